"""Ingest: look into every file once, normalise what is ordinary, refuse what is broken and say why.

Belongs here: probing (PyAV reads the container, the pinned ffmpeg proves that it decodes) and the reasons
for leaving a file out. Does not belong here: per-frame measurement (`frame_scores`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal

from montage_assets.media.clip import Clip, Matrix, Transfer
from montage_assets.media.containers import open_media, picture_stream
from montage_assets.media.errors import FfmpegFailed, UnusableClip
from montage_assets.media.ffmpeg import MAX_SIDE, input_args, run_ffmpeg

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

VIDEO_SUFFIXES = frozenset(
    (
        ".3g2 .3gp .asf .avi .dv .flv .ivf .m2t .m2ts .m2v .m4v .mkv .mov .mp4 .mpeg .mpg .mts .mxf .nut .ogm .ogv "
        ".rm .rmvb .ts .vob .webm .wmv .y4m .264 .265 .h264 .h265 .hevc"
    ).split()
)
AUDIO_SUFFIXES = frozenset(
    ".aac .ac3 .aif .aiff .alac .amr .ape .au .caf .flac .m4a .mka .mp2 .mp3 .oga .ogg .opus .wav .wma .wv".split()
)
STILL_SUFFIXES = frozenset(
    ".arw .avif .bmp .cr2 .dng .gif .heic .heif .jpeg .jpg .nef .png .raw .svg .tif .tiff .webp".split()
)

MediaKind = Literal["video", "audio", "still", "other"]

# How ffmpeg words the field order of an input stream.
_INTERLACED = re.compile(r"Stream #0.*Video: .*\((?:[^)]*, )?(?:top|bottom)(?: coded)? first", re.MULTILINE)
_FIRST_FRAME_TIMEOUT_S = 60.0
_RATE_WINDOW_PACKETS = 240
_THUMBNAIL_LONG_SIDE = 320
# AVColorTransferCharacteristic, AVColorSpace and AVColorRange numbers (libavutil/pixfmt.h).
_TRANSFERS: dict[int, Transfer] = {16: "pq", 18: "hlg"}
_MATRICES: dict[int, Matrix] = {1: "bt709", 5: "bt601", 6: "bt601", 9: "bt2020", 10: "bt2020"}
_FULL_RANGE = 2
# Untagged pictures of fewer lines are taken for standard definition, as players do.
_HD_LINES = 720


def media_kind(name: str) -> MediaKind:
    """What a file is by its suffix; a wrong suffix is found out by the probe."""
    suffix = PurePosixPath(name).suffix.lower()
    if suffix in VIDEO_SUFFIXES:
        return "video"
    if suffix in AUDIO_SUFFIXES:
        return "audio"
    return "still" if suffix in STILL_SUFFIXES else "other"


@dataclass(frozen=True)
class IngestedClip:
    """A usable clip and one picture of it (JPEG bytes, 320 px on its long side)."""

    clip: Clip
    thumbnail: bytes


def ingest_clip(path: Path, name: str, fingerprint: str) -> IngestedClip:
    """Probe one video file and decode one frame of it.

    Raises UnusableClip with the reason, in words for the user.
    """
    size = path.stat().st_size
    if size == 0:
        raise UnusableClip("is empty (0 bytes)")
    probed = _probe(path, name, fingerprint, size)
    thumbnail, log = _decode_one_frame(path, probed)
    interlaced = _INTERLACED.search(log) is not None
    return IngestedClip(replace(_turned(probed, _rotation_in(log)), interlaced=interlaced), thumbnail)


def _probe(path: Path, name: str, fingerprint: str, size: int) -> Clip:
    from av.error import FFmpegError

    try:
        container = open_media(path)
    except (FFmpegError, OSError, ValueError) as error:
        raise UnusableClip(_why_not_opened(path, error)) from error
    with container:
        stream = _picture_stream(container)
        try:
            return _clip_from(container, stream, name, fingerprint, size)
        except FFmpegError as error:
            raise UnusableClip(f"is damaged: its data cannot be read ({error.strerror})") from error


def _why_not_opened(path: Path, error: Exception) -> str:
    with path.open("rb") as file:
        head = file.read(4096)
    if head.lstrip().startswith((b"#EXTM3U", b"ffconcat", b"<?xml", b"v=0", b"[playlist]")):
        return "is a playlist that names other files, not a video"
    if not head.strip(b"\0"):
        return "holds no data, only zero bytes"
    if b"ftyp" in head[:64]:
        return "is an incomplete MP4: its index is missing, the recording or the copy was cut off; copy it again"
    return f"is no video that can be opened ({getattr(error, 'strerror', None) or error})"


def _picture_stream(container: InputContainer) -> VideoStream:
    stream = picture_stream(container)
    if stream is not None:
        return stream
    if container.streams.audio:
        raise UnusableClip("has sound only; to use it as the music, name it in montage.yaml (music: FILE)")
    raise UnusableClip("has no video in it")


def _clip_from(container: InputContainer, stream: VideoStream, name: str, fingerprint: str, size: int) -> Clip:
    # PyAV gives no codec context for streams whose codec it does not know.
    codec = getattr(stream, "codec_context", None)
    if codec is None:
        raise UnusableClip("is in a video codec that is not known; convert it, e.g. to H.264")
    if codec.codec_tag in ("encv", "drmi") or "encrypt" in str(stream.metadata).lower():
        raise UnusableClip("is encrypted (DRM); only unprotected files can be used")
    width, height = codec.width, codec.height
    if width <= 0 or height <= 0:
        raise UnusableClip("has no picture size; the file is damaged")
    if max(width, height) > MAX_SIDE:
        raise UnusableClip(f"is {width}x{height} pixels; at most {MAX_SIDE} a side are accepted")
    pixel_format = codec.format
    if pixel_format is None:
        raise UnusableClip("has no pixel format that is known; the file is damaged or encrypted")
    time_base = stream.time_base
    if time_base is None:
        raise UnusableClip("has no time base; the file is damaged")
    aspect = _sane_aspect(stream.sample_aspect_ratio)
    timing = _timing(container, stream, size)
    audio = container.streams.audio[0].codec_context if container.streams.audio else None
    matrix_lines = min(width, height)
    return Clip(
        name=name,
        fingerprint=fingerprint,
        size_bytes=size,
        container=container.format.name.split(",")[0],
        codec=codec.codec.canonical_name,
        pixel_format=pixel_format.name,
        bit_depth=max(component.bits for component in pixel_format.components),
        width=width,
        height=height,
        display_width=max(2, round(width * aspect)),
        display_height=height,
        sample_aspect=aspect,
        rotation=0,
        interlaced=False,
        fps=timing.fps,
        variable_rate=timing.variable,
        frames_estimate=timing.frames,
        duration_s=timing.duration_s,
        time_base=time_base,
        first_pts=timing.first_pts,
        container_start_s=(container.start_time or 0) / 1e6,
        transfer=_TRANSFERS.get(int(codec.color_trc or 0), "sdr"),
        matrix=_MATRICES.get(int(codec.colorspace or 0), "bt709" if matrix_lines >= _HD_LINES else "bt601"),
        full_range=int(codec.color_range or 0) == _FULL_RANGE or pixel_format.name.startswith("yuvj"),
        audio_channels=0 if audio is None else int(audio.channels),
        audio_rate=0 if audio is None else int(audio.sample_rate),
    )


def _sane_aspect(aspect: Fraction | None) -> Fraction:
    """The pixel aspect; absurd ones (damaged headers) are taken for square pixels."""
    if aspect is None or not Fraction(1, 8) <= aspect <= 8:
        return Fraction(1)
    return Fraction(aspect)


@dataclass(frozen=True)
class _Timing:
    fps: Fraction
    variable: bool
    frames: int
    duration_s: float
    first_pts: int


def _timing(container: InputContainer, stream: VideoStream, size: int) -> _Timing:
    """Rate and length from the container's index and from real packets at its start and end."""
    time_base = Fraction(stream.time_base or 1)
    _refuse_truncated_index(stream, size)
    head = _packet_times(container, stream, None)
    if not head:
        raise UnusableClip("holds no video data; the recording or the copy was cut off")
    first = head[0]
    declared_s = _declared_duration_s(container, stream)
    last = _last_time(container, stream, declared_s, first)
    span_s = float((last - first) * time_base)
    step = Fraction(last - first, max(len(head) - 1, 1)) if len(head) < _RATE_WINDOW_PACKETS else None
    fps = _rate(stream, head, time_base, step)
    duration_s = span_s + float(1 / fps)
    if declared_s is not None and declared_s > duration_s + max(2.0, 0.05 * declared_s):
        raise UnusableClip(
            f"is cut off: {duration_s:.1f} s of its {declared_s:.1f} s are there; copy it again from the camera"
        )
    return _Timing(
        fps=fps,
        variable=_is_variable(head),
        frames=stream.frames or max(1, round(duration_s * fps)),
        duration_s=duration_s,
        first_pts=first,
    )


def _refuse_truncated_index(stream: VideoStream, size: int) -> None:
    entries = stream.index_entries
    if len(entries) == 0:
        return
    end = max(entry.pos + entry.size for entry in (entries[len(entries) - 1], entries[len(entries) // 2]))
    if end > size:
        raise UnusableClip(
            f"is cut off: {size} bytes are there but its index reaches to byte {end}; copy it again from the camera"
        )


def _packet_times(container: InputContainer, stream: VideoStream, seek_to: int | None) -> list[int]:
    """Presentation times, sorted, of up to 240 packets from the first keyframe on, or the one before `seek_to`.

    Only of packets that become frames: an edit list discards the pre-roll of a trimmed MP4, and nothing before
    a recording's first keyframe can be decoded, nor what comes after it in the file but is shown before it.
    """
    if seek_to is not None:
        container.seek(seek_to, stream=stream, backward=True)
    times: list[int] = []
    first: int | None = None
    for packet in container.demux(stream):
        time = packet.pts if packet.pts is not None else packet.dts
        if time is None or not packet.size:
            continue
        if first is None and packet.is_keyframe:
            first = time
        if first is not None and time >= first and not packet.is_discard:
            times.append(time)
        if seek_to is None and len(times) >= _RATE_WINDOW_PACKETS:
            break
    return sorted(times)


def _declared_duration_s(container: InputContainer, stream: VideoStream) -> float | None:
    if stream.duration:
        return float(stream.duration * Fraction(stream.time_base or 1))
    if container.duration:
        return container.duration / 1e6
    return None


def _last_time(container: InputContainer, stream: VideoStream, declared_s: float | None, first: int) -> int:
    import av

    target = first + int((declared_s or 0.0) / Fraction(stream.time_base or 1))
    try:
        tail = _packet_times(container, stream, target)
    except av.FFmpegError:
        tail = []
    if not tail:
        container.seek(0)
        tail = _packet_times(container, stream, first)
    return max(first, *tail) if tail else first


def _rate(stream: VideoStream, head: list[int], time_base: Fraction, step: Fraction | None) -> Fraction:
    """Mean frame rate: the container's where it is believable, else from the packets' times."""
    stated = stream.average_rate or stream.guessed_rate
    if stated is not None and 1 <= stated <= 1000:
        return Fraction(stated)
    ordered = sorted(set(head))
    if step is None:
        step = Fraction(ordered[-1] - ordered[0], max(len(ordered) - 1, 1))
    if step <= 0:
        return Fraction(25)
    return (1 / (step * time_base)).limit_denominator(1001)


def _is_variable(times: list[int]) -> bool:
    """Whether the steps between frames differ by more than the rounding of the time base."""
    # The last packets in decoding order may lack the frames shown between them.
    ordered = sorted(set(times))[:-8] if len(times) > 16 else sorted(set(times))
    steps = [b - a for a, b in pairwise(ordered)]
    return bool(steps) and max(steps) - min(steps) > max(2, 0.05 * max(steps))


def _decode_one_frame(path: Path, clip: Clip) -> tuple[bytes, str]:
    """A JPEG from about a third into the clip, and what ffmpeg said of the file; proves that it decodes."""
    # A frame a third in says more of a clip than its first one; where seeking fails the first one serves.
    for seek_s in (clip.duration_s / 3, None):
        try:
            return _thumbnail(path, seek_s)
        except FfmpegFailed as error:
            reason = error
    raise UnusableClip(f"cannot be decoded ({_last_words(reason)}); the file is damaged or encrypted")


def _thumbnail(path: Path, seek_s: float | None) -> tuple[bytes, str]:
    import tempfile

    side = _THUMBNAIL_LONG_SIDE
    scale = f"scale='if(gt(dar,1),{side},-2)':'if(gt(dar,1),-2,{side})',setsar=1,format=yuvj420p"
    # One keyframe by one thread: decoding from there to the very second, or ahead of it, takes seconds at 4K.
    seek = [] if seek_s is None else ["-skip_frame", "nokey", "-noaccurate_seek", "-ss", f"{seek_s:.6f}"]
    with tempfile.TemporaryDirectory(prefix="montage-thumbnail-") as folder:
        picture = Path(folder) / "frame.jpg"
        log = run_ffmpeg(
            [*input_args(path, "-an", "-sn", "-threads", "1", *seek), "-map", "0:V:0", "-frames:v", "1", "-vf", scale,
             "-q:v", "4", "-f", "mjpeg", str(picture)],
            what="decoding its first frame",
            timeout_s=_FIRST_FRAME_TIMEOUT_S,
            level="info",
        )  # fmt: skip
        if not picture.exists() or picture.stat().st_size == 0:
            raise FfmpegFailed("decoding its first frame failed: no frame came out", log)
        return picture.read_bytes(), log


def _rotation_in(log: str) -> int:
    """Clockwise degrees from ffmpeg's report of the display matrix (it reports counter-clockwise)."""
    found = re.search(r"[Dd]isplay ?[Mm]atrix: rotation of (-?[\d.]+) degrees", log)
    return 0 if found is None else round(-float(found.group(1)) / 90) * 90 % 360


def _turned(clip: Clip, rotation: int) -> Clip:
    if rotation % 180 == 0:
        return replace(clip, rotation=rotation)
    return replace(clip, rotation=rotation, display_width=clip.display_height, display_height=clip.display_width)


def _last_words(error: FfmpegFailed) -> str:
    return re.sub(r"^.*failed: (\[[^]]*\] )?", "", str(error))[:160]
