"""The video encoders of the pipeline, as one table, and how what they wrote is told apart.

Belongs here: every encoder's ffmpeg arguments per quality level, the container its segments need, and the
reading back of an encoded stream (frames, parameters, their hash). Does not belong here: which encoder a
machine has (detection and routing decide), filter chains for a source (`picture`), or running an encode
(`render`, `join`). A new encoder is a new row; the code below the table knows no encoder by name.

What every row keeps to, so that segments from different machines join without a re-encode:
- closed GOP of fixed length (2 s), first frame an IDR picture; 8-bit 4:2:0, BT.709, TV range;
- headers that depend on the format alone, never on the pictures (x264: `stitchable`);
- the same bits on every machine: the number of threads is fixed, because x264's output depends on it, and
  x264 is told not to pick its algorithms by the CPU's instruction sets (`cpu-independent`). Measured with
  1 and 2 cores allowed: equal output for all three. x265 and SVT-AV1 do not depend on the thread count
  (measured: 1, 2 and 4), x265 does on the number of frame threads and on having a pool at all.

Lookahead is kept short (20 frames in x264, 15 in x265) and SVT-AV1 at parallelism 2, since at 4K every frame
held back is 12 MB and more: with four 4K sources open, each of the three stays below 2 GB (see `render`).

Segments are MPEG-TS, except AV1's: the pinned ffmpeg writes AV1 into MPEG-TS but finds no stream in it
when it reads it back, so AV1 segments are MP4.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import Literal, get_args

from montage_assets.media.errors import MediaError

Codec = Literal["h264", "hevc", "av1"]
Quality = Literal["preview", "standard", "high", "master"]

CODECS: tuple[Codec, ...] = get_args(Codec)
QUALITIES: tuple[Quality, ...] = get_args(Quality)

GOP_SECONDS = 2

COLOUR_FLAGS = (
    "-color_primaries", "bt709", "-color_trc", "bt709", "-colorspace", "bt709", "-color_range", "tv",
)  # fmt: skip


@dataclass(frozen=True)
class SegmentContainer:
    """A container for segments: ffmpeg's name for it, the muxer's options, and the file name's suffix."""

    format: str
    suffix: str
    flags: tuple[str, ...] = ()


MPEG_TS = SegmentContainer("mpegts", ".ts", ("-muxdelay", "0", "-muxpreload", "0"))
MP4 = SegmentContainer("mp4", ".mp4")

SEGMENT_CONTAINERS: Mapping[Codec, SegmentContainer] = MappingProxyType({"h264": MPEG_TS, "hevc": MPEG_TS, "av1": MP4})

# In MP4 the parameter sets stand in the header; "avc1" and "hvc1" allow no copies between the pictures.
INLINE_HEADER_FILTERS: Mapping[Codec, str] = MappingProxyType(
    {"h264": "filter_units=remove_types=7-9", "hevc": "filter_units=remove_types=32-35"}
)

# Players of Apple's look for these.
MP4_TAGS: Mapping[Codec, str] = MappingProxyType({"h264": "avc1", "hevc": "hvc1", "av1": "av01"})


@dataclass(frozen=True)
class Encoder:
    """One encoder of ffmpeg's and how it is asked for each quality.

    `device` is what it runs on ("cpu" here). `device_flags` go before the inputs, `filters` are appended to
    the end of the filter chain (uploading frames, say), `flags` are always given, `quality` per level.
    `{gop}` in a flag stands for the GOP's length in frames.
    """

    name: str
    codec: Codec
    device: str
    quality: Mapping[Quality, tuple[str, ...]]
    flags: tuple[str, ...]
    filters: tuple[str, ...] = ("format=yuv420p",)
    device_flags: tuple[str, ...] = ()

    @property
    def container(self) -> SegmentContainer:
        return SEGMENT_CONTAINERS[self.codec]


def _levels(
    preview: tuple[str, ...], standard: tuple[str, ...], high: tuple[str, ...], master: tuple[str, ...]
) -> Mapping[Quality, tuple[str, ...]]:
    return MappingProxyType({"preview": preview, "standard": standard, "high": high, "master": master})


ENCODERS: tuple[Encoder, ...] = (
    Encoder(
        name="libx264",
        codec="h264",
        device="cpu",
        quality=_levels(
            preview=("-preset", "superfast", "-crf", "28"),
            standard=("-preset", "veryfast", "-crf", "21"),
            high=("-preset", "medium", "-crf", "18", "-rc-lookahead", "20"),
            master=("-preset", "slow", "-crf", "14", "-rc-lookahead", "20"),
        ),
        flags=(
            "-profile:v", "high", "-threads", "6",
            "-g", "{gop}", "-keyint_min", "{gop}", "-sc_threshold", "0", "-flags", "+cgop",
            "-x264-params", "open-gop=0:stitchable=1:cpu-independent=1",
        ),
    ),
    Encoder(
        name="libx265",
        codec="hevc",
        device="cpu",
        quality=_levels(
            preview=("-preset", "ultrafast", "-crf", "31"),
            standard=("-preset", "veryfast", "-crf", "24"),
            high=("-preset", "medium", "-crf", "20"),
            master=("-preset", "slow", "-crf", "16"),
        ),
        flags=(
            "-profile:v", "main", "-g", "{gop}", "-keyint_min", "{gop}",
            "-x265-params",
            "open-gop=0:scenecut=0:keyint={gop}:min-keyint={gop}:rc-lookahead=15:pools=4:frame-threads=2:repeat-headers=1"
            ":log-level=error",
        ),
    ),
    Encoder(
        name="libsvtav1",
        codec="av1",
        device="cpu",
        quality=_levels(
            preview=("-preset", "11", "-crf", "45"),
            standard=("-preset", "9", "-crf", "32"),
            high=("-preset", "7", "-crf", "26"),
            master=("-preset", "5", "-crf", "20"),
        ),
        flags=("-g", "{gop}", "-svtav1-params", "lp=2:scd=0:irefresh-type=2"),
    ),
)  # fmt: skip


def encoder_named(name: str) -> Encoder:
    """The table's row for ffmpeg's encoder `name`. Raises MediaError when there is none."""
    for encoder in ENCODERS:
        if encoder.name == name:
            return encoder
    known = ", ".join(encoder.name for encoder in ENCODERS)
    raise MediaError(f"There is no encoder {name!r} here; choose one of {known}")


def software_encoder(codec: Codec) -> Encoder:
    """The encoder of `codec` that every machine has. Raises MediaError for an unknown codec."""
    for encoder in ENCODERS:
        if encoder.codec == codec and encoder.device == "cpu":
            return encoder
    raise MediaError(f"There is no codec {codec!r} here; choose one of {', '.join(CODECS)}")


def gop_frames(fps: Fraction) -> int:
    """Frames from one keyframe to the next."""
    return max(1, round(GOP_SECONDS * fps))


def encode_flags(encoder: Encoder, quality: Quality, fps: Fraction) -> list[str]:
    """ffmpeg's output options that encode video of `fps` frames a second; no container, no file name.

    Raises MediaError for an unknown quality.
    """
    if quality not in encoder.quality:
        raise MediaError(f"There is no quality {quality!r}; choose one of {', '.join(QUALITIES)}")
    gop = str(gop_frames(fps))
    flags = [*encoder.quality[quality], *encoder.flags]
    return ["-c:v", encoder.name, *(flag.replace("{gop}", gop) for flag in flags), *COLOUR_FLAGS]


@dataclass(frozen=True)
class EncodedStream:
    """What a finished file's video stream is. `parameters` hashes all that a decoder must be set up with."""

    codec: str
    frames: int
    starts_with_keyframe: bool
    parameters: str


def read_encoded_stream(path: Path, container_kind: SegmentContainer) -> EncodedStream:
    """Demux `path` and describe its video: every packet is counted, none is decoded.

    The container is given since MPEG-TS of a few packets is not recognised by its content.
    Raises MediaError when the file has no readable video.
    """
    import av

    try:
        with av.open(str(path), format=container_kind.format) as container:
            stream = container.streams.video[0]
            frames = 0
            first_is_key = False
            for packet in container.demux(stream):
                if packet.size:
                    first_is_key = first_is_key or (frames == 0 and packet.is_keyframe)
                    frames += 1
            context = stream.codec_context
            described = (
                f"{context.name} {context.profile} {context.width}x{context.height} {context.pix_fmt} "
                f"{hashlib.sha256(context.extradata or b'').hexdigest()}"
            )
            return EncodedStream(
                codec=_codec_of_decoder(context.name),
                frames=frames,
                starts_with_keyframe=first_is_key,
                parameters=hashlib.sha256(described.encode()).hexdigest()[:16],
            )
    except (av.FFmpegError, IndexError, OSError) as error:
        raise MediaError(f"{path.name} holds no readable video ({error}); delete it and run again") from error


def _codec_of_decoder(name: str) -> str:
    """PyAV names a stream's codec by the decoder it opened, which for AV1 is a library's."""
    return {"libdav1d": "av1", "libaom-av1": "av1"}.get(name, name)
