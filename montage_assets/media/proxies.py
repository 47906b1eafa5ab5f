"""Proxies: small, frame-exact copies of clips that are costly to decode.

Belongs here: which clips get one, and how it is made. A proxy has its source's frames, each at its source's
timestamp. Making one decodes the source, so the same decoding gives the frame scores (design rule 5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from montage_assets.media.clip import Clip
from montage_assets.media.frame_scores import (
    FrameScores,
    OnFrames,
    Watcher,
    analysis_frames,
    as_decoded_here,
    score_frames,
)
from montage_assets.media.hardware_decode import HardwareDecoder
from montage_assets.media.shards import ClipRange

if TYPE_CHECKING:
    from av.video.stream import VideoStream

ALGORITHM = 1
"""Part of every proxy's key."""

LONG_SIDE = 960
_GOP_FRAMES = 12
COSTLY_FRAME_MS = 10.0
"""Sources that decode slower than 100 frames a CPU-second get a proxy."""

# CPU-milliseconds to decode one megapixel of 8 bits with the pinned ffmpeg: the best of three rounds of
# benchmarks/decode_cost.py, on 1920x1080 with a camera's grain at high quality (its encoder settings are there).
DECODE_MS_PER_MEGAPIXEL = {
    "h264": 4.2,
    "hevc": 4.4,
    "av1": 4.6,
    "vp9": 5.9,
    "vp8": 2.4,
    "mpeg2video": 1.5,
    "mpeg4": 1.2,
    # 6.6 as measured; it always has 10 bits or more, so that the factor below is added.
    "prores": 5.1,
    "dnxhd": 5.9,
    "mjpeg": 2.2,
}
_UNKNOWN_CODEC_MS = 4.5
_HIGH_BIT_DEPTH_FACTOR = 1.3
"""What 10 bits cost more; 1.1 for H.264, 1.3 for HEVC, 1.4 for AV1."""


def decode_ms_per_frame(clip: Clip) -> float:
    """Estimated CPU-milliseconds to decode one frame of a clip, from measured figures per codec."""
    per_megapixel = DECODE_MS_PER_MEGAPIXEL.get(clip.codec, _UNKNOWN_CODEC_MS)
    depth = _HIGH_BIT_DEPTH_FACTOR if clip.bit_depth > 8 else 1.0
    return per_megapixel * depth * clip.width * clip.height / 1e6


def wants_proxy(clip: Clip) -> bool:
    """Whether a clip is costly enough to decode that a small copy pays for itself."""
    return decode_ms_per_frame(clip) > COSTLY_FRAME_MS


def proxy_size(clip: Clip) -> tuple[int, int]:
    """Width and height of a clip's proxy, upright, even, at most 960 on the long side."""
    width, height = (clip.width, clip.height) if clip.rotation % 180 == 0 else (clip.height, clip.width)
    factor = min(1.0, LONG_SIDE / max(width, height))
    return max(2, round(width * factor / 2) * 2), max(2, round(height * factor / 2) * 2)


def proxy_clip(clip: Clip) -> Clip:
    """The clip as its proxy shows it: same frames and times, other pixels."""
    width, height = proxy_size(clip)
    upright = clip.sample_aspect if clip.rotation % 180 == 0 else 1 / clip.sample_aspect
    source_width, source_height = (clip.width, clip.height) if clip.rotation % 180 == 0 else (clip.height, clip.width)
    return replace(
        clip,
        container="mov",
        codec="h264",
        pixel_format="yuv420p",
        bit_depth=8,
        width=width,
        height=height,
        sample_aspect=upright * Fraction(source_width * height, source_height * width),
        rotation=0,
        interlaced=False,
        audio_channels=0,
        audio_rate=0,
        container_start_s=float(clip.first_pts * clip.time_base),
    )


def make_proxy_part(
    path: Path,
    clip: Clip,
    part: ClipRange,
    out: Path,
    on_frames: OnFrames | None = None,
    watch: Watcher | None = None,
    decoder: HardwareDecoder | None = None,
) -> FrameScores:
    """Write the proxy of one range and score its frames, in one decoding of the source.

    `out` is a NUT file, the one container that keeps any time base; `join_proxy` makes the proxy of the parts.
    Raises UnusableClip when nothing can be decoded, FfmpegFailed when encoding fails.
    """
    proxy = _proxy_output_args(clip, part, out, decoder)
    frames = analysis_frames(path, clip, part.after_pts, part.until_pts, proxy, decoder)
    return score_frames(frames, clip, part, on_frames, watch)


def _proxy_output_args(clip: Clip, part: ClipRange, out: Path, decoder: HardwareDecoder | None) -> list[str]:
    width, height = proxy_size(clip)
    start = "" if part.after_pts is None else f"start_pts={part.after_pts + 1}"
    end = "" if part.until_pts is None else f"end_pts={part.until_pts + 1}"
    trim = ":".join(filter(None, (start, end)))
    # The trim's timestamps are in the clip's time base, which settb makes sure of.
    exact_range = [f"settb={clip.time_base}", f"trim={trim}"] if trim else []
    deinterlace = ["bwdif=mode=send_frame"] if clip.interlaced else []
    first = [*as_decoded_here(clip, decoder), *exact_range, *deinterlace]
    chain = [*first, f"scale={width}:{height}:flags=bilinear", "format=yuv420p"]
    return [
        "-map", "0:V:0", "-vf", ",".join(chain), "-fps_mode", "passthrough", "-enc_time_base", "demux",
        "-c:v", "libx264", "-preset", "veryfast", "-crf", "24", "-bf", "0", "-g", str(_GOP_FRAMES),
        "-sc_threshold", "0", "-threads", "2", "-f", "nut", "-y", str(out),
    ]  # fmt: skip


def join_proxy(parts: Sequence[Path], clip: Clip, out: Path) -> int:
    """Put the parts of a proxy into one MP4, keeping every timestamp.

    Returns the number of frames up to where the parts are in order, which is all of them when they fit together.
    """
    import av

    frames = 0
    last: Fraction | None = None
    with av.open(str(out), "w", format="mp4", options={"movflags": "+faststart"}) as target:
        stream: VideoStream | None = None
        for path in parts:
            with av.open(str(path)) as source:
                if stream is None:
                    stream = target.add_stream_from_template(source.streams.video[0])
                    stream.time_base = Fraction(1, clip.time_base.denominator)
                for packet in source.demux(source.streams.video[0]):
                    if packet.pts is None or packet.time_base is None:
                        continue
                    time = packet.pts * Fraction(packet.time_base)
                    if last is not None and time <= last:
                        return frames
                    last = time
                    packet.stream = stream
                    target.mux(packet)
                    frames += 1
    return frames
