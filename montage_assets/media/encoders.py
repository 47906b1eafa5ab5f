"""How the table's encoders are asked to encode, and how what they wrote is told apart.

Belongs here: the container of a segment, ffmpeg's arguments for an encoder as a machine can run it, and the
reading back of an encoded stream (frames, parameters, their hash). Does not belong here: the encoders themselves
(`encoder_table`), which of them a machine has (`encoder_probe`) and takes (`encoder_router`), filter chains for a
source (`picture`), or running an encode (`render`, `join`).

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

from montage_assets.media.encoder_table import CODECS, ENCODERS, QUALITIES, Codec, Encoder, Quality
from montage_assets.media.errors import MediaError

__all__ = (
    "CODECS", "ENCODERS", "QUALITIES", "Codec", "EncodedStream", "Encoder", "Quality", "ReadyEncoder",
    "SegmentContainer", "container_of", "encode_flags", "encode_output", "encoder_filters", "encoder_named",
    "gop_frames", "on_cpu", "read_encoded_stream", "software_encoder",
)  # fmt: skip

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
class ReadyEncoder:
    """An encoder as one machine runs it: on which `device` (ffmpeg's name for it, empty where there is none to
    name), with how many `b_frames`, at which quality `numbers` (the table's, or what was calibrated there)."""

    encoder: Encoder
    device: str = ""
    b_frames: int = 0
    numbers: Mapping[Quality, float] | None = None

    @property
    def name(self) -> str:
        """ffmpeg's name of the encoder."""
        return self.encoder.name

    @property
    def on_cpu(self) -> bool:
        """Whether it needs no device: such an encoder gives the same bits everywhere."""
        return self.encoder.family == "cpu"

    @property
    def container(self) -> SegmentContainer:
        """What its segments are written as."""
        return container_of(self.encoder)

    @property
    def device_flags(self) -> list[str]:
        """ffmpeg's options before the inputs."""
        return [flag.replace("{device}", self.device) for flag in self.encoder.device_flags]

    def number(self, quality: Quality) -> float:
        """What `{q}` stands for."""
        return (self.numbers or self.encoder.numbers)[quality]


def on_cpu(codec: Codec) -> ReadyEncoder:
    """The codec's software encoder, ready everywhere. Raises MediaError for an unknown codec."""
    return ReadyEncoder(software_encoder(codec))


def container_of(encoder: Encoder) -> SegmentContainer:
    """What the encoder's segments are written as."""
    return SEGMENT_CONTAINERS[encoder.codec]


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
        if encoder.codec == codec and encoder.family == "cpu":
            return encoder
    raise MediaError(f"There is no codec {codec!r} here; choose one of {', '.join(CODECS)}")


def gop_frames(fps: Fraction) -> int:
    """Frames from one keyframe to the next."""
    return max(1, round(GOP_SECONDS * fps))


def encoder_filters(ready: ReadyEncoder, bit_depth: int = 8) -> list[str]:
    """The end of the filter chain: the encoder's pixel format, and the way to its device."""
    return [f"format={ready.encoder.depths[bit_depth].pixel_format}", *ready.encoder.upload]


def encode_flags(
    ready: ReadyEncoder, quality: Quality, fps: Fraction, size: tuple[int, int], bit_depth: int = 8
) -> list[str]:
    """ffmpeg's output options that encode video of `size` (width, height) and `fps`; no container, no file name.

    Raises MediaError for an unknown quality.
    """
    encoder = ready.encoder
    if quality not in encoder.quality:
        raise MediaError(f"There is no quality {quality!r}; choose one of {', '.join(QUALITIES)}")
    number = ready.number(quality)
    values = {
        "q": f"{number:g}",
        "bitrate": str(round(number * size[0] * size[1] * fps)),
        "gop": str(gop_frames(fps)),
        "b_frames": str(ready.b_frames),
        "device": ready.device,
    }
    depth = encoder.depths[bit_depth]
    flags = [_filled(flag, values) for flag in (*encoder.quality[quality], *depth.flags, *encoder.flags)]
    stream_filters = ["-bsf:v", ",".join(encoder.stream_filters)] if encoder.stream_filters else []
    return ["-c:v", encoder.name, *flags, *COLOUR_FLAGS, *stream_filters]


def encode_output(
    ready: ReadyEncoder, quality: Quality, fps: Fraction, size: tuple[int, int], frames: int, out_path: Path,
    bit_depth: int = 8,
) -> list[str]:  # fmt: skip
    """All of ffmpeg's output options for one segment: exactly `frames` frames at an even rate, and the file."""
    container = ready.container
    return [
        "-r", str(fps), "-fps_mode", "cfr",
        "-frames:v", str(frames),
        *encode_flags(ready, quality, fps, size, bit_depth),
        "-map_metadata", "-1", "-fflags", "+bitexact",
        *container.flags,
        "-f", container.format,
        str(out_path.absolute()),
    ]  # fmt: skip


def _filled(flag: str, values: Mapping[str, str]) -> str:
    for name, value in values.items():
        flag = flag.replace(f"{{{name}}}", value)
    return flag


@dataclass(frozen=True)
class EncodedStream:
    """What a finished file's video stream is; `size` is (width, height).

    `parameters` hashes all that a decoder must be set up with.
    """

    codec: str
    size: tuple[int, int]
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
                size=(context.width, context.height),
                frames=frames,
                starts_with_keyframe=first_is_key,
                parameters=hashlib.sha256(described.encode()).hexdigest()[:16],
            )
    except (av.FFmpegError, IndexError, OSError) as error:
        raise MediaError(f"{path.name} holds no readable video ({error}); delete it and run again") from error


def _codec_of_decoder(name: str) -> str:
    """PyAV names a stream's codec by the decoder it opened, which for AV1 is a library's."""
    return {"libdav1d": "av1", "libaom-av1": "av1"}.get(name, name)
