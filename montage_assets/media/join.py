"""Joining: segments become one film without sound, with exactly even timestamps and no second encoding.

Belongs here: which segments fit together, re-encoding those that do not, and rewriting their packets one
after another. Does not belong here: encoding shots (`render`), the sound and the final file (`soundtrack`).

Segments of different encoders must not be joined as they are: a player that reads the first segment's
parameters only shows garbage or drops the rest (measured: 60 of 180 frames). So segments are grouped by
the hash of their stream parameters, and all but the largest group are encoded again like it.

MPEG-TS counts time in 1/90000 s and so cannot hold 24000/1001 evenly. Frames are therefore numbered, not
timed: a packet's rank in its segment, by presentation time, is its place in the film.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from montage_assets.media.encoders import (
    INLINE_HEADER_FILTERS,
    SEGMENT_CONTAINERS,
    ReadyEncoder,
    encode_output,
    encoder_filters,
    on_cpu,
    read_encoded_stream,
)
from montage_assets.media.errors import FfmpegFailed, MediaError
from montage_assets.media.ffmpeg import input_args, run_ffmpeg
from montage_assets.media.render import HARDWARE_STALL_S, OutputFormat, RenderedSegment

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream


ALGORITHM = 1
"""Part of every film's key; raised whenever a change of this module changes the film."""


@dataclass(frozen=True)
class JoinedFilm:
    """The film without sound. `reencoded` are the segments (by place in the film) that were encoded twice."""

    path: Path
    frames: int
    reencoded: list[int]


def join_segments(
    segments: Sequence[RenderedSegment],
    fmt: OutputFormat,
    out_path: Path,
    encoders: Callable[[], Sequence[ReadyEncoder]] = tuple,
) -> JoinedFilm:
    """Write `segments`, in the given order, as one MP4 without sound to `out_path`.

    The largest group of like segments is copied, the others are encoded again with its encoder; where that one does
    not run here, like the segments of the codec's software encoder. `encoders` tells which hardware encoders run
    here, and is asked only when segments differ. The file appears whole or not at all. Raises FfmpegFailed when a
    re-encode fails or the film does not have exactly the segments' frames; MediaError when there are no segments or
    one cannot be read.
    """
    if not segments:
        raise MediaError(f"{out_path.name} has no segments; there is nothing to join")
    unfinished = out_path.with_name(f".{out_path.name}.{os.getpid()}.part")
    with tempfile.TemporaryDirectory(prefix=".join-", dir=out_path.parent) as folder:
        alike, reencoded = _made_alike([_as_written(s, fmt) for s in segments], fmt, Path(folder), encoders)
        try:
            _write_one_after_another(alike, fmt, unfinished)
            _refuse_wrong_film(unfinished, sum(segment.frames for segment in alike), fmt.fps)
            unfinished.replace(out_path)
        finally:
            unfinished.unlink(missing_ok=True)
    return JoinedFilm(out_path, sum(segment.frames for segment in alike), reencoded)


def majority_parameters(segments: Sequence[RenderedSegment]) -> str:
    """The `codec_hash` of the group with the most frames; of equals, the one that comes first."""
    frames: dict[str, int] = {}
    for segment in segments:
        frames[segment.codec_hash] = frames.get(segment.codec_hash, 0) + segment.frames
    return max(frames, key=lambda parameters: frames[parameters])


def _as_written(segment: RenderedSegment, fmt: OutputFormat) -> RenderedSegment:
    """The segment with the parameters of the file itself: the report may tell of an earlier, other encode."""
    try:
        written = read_encoded_stream(segment.path, SEGMENT_CONTAINERS[fmt.codec])
    except MediaError as error:
        raise MediaError(f"Segment {segment.path.name} cannot be read; delete it and run again") from error
    return replace(segment, codec_hash=written.parameters)


def _made_alike(
    segments: Sequence[RenderedSegment],
    fmt: OutputFormat,
    folder: Path,
    encoders: Callable[[], Sequence[ReadyEncoder]],
) -> tuple[list[RenderedSegment], list[int]]:
    wanted = majority_parameters(segments)
    if all(segment.codec_hash == wanted for segment in segments):
        return list(segments), []
    software = on_cpu(fmt.codec)
    majority_encoder = next(s.encoder for s in segments if s.codec_hash == wanted)
    # Devices of one encoder may write different headers: each is tried.
    models = [ready for ready in encoders() if ready.name == majority_encoder and not ready.on_cpu]
    targets = [(ready, wanted) for ready in models]
    if majority_encoder == software.name:
        targets.append((software, wanted))
    else:
        targets += [(software, s.codec_hash) for s in segments if s.encoder == software.name][:1]
    for ready, parameters in targets:
        foreign = [place for place, segment in enumerate(segments) if segment.codec_hash != parameters]
        try:
            alike = _reencoded(segments, foreign, ready, fmt, folder)
        except FfmpegFailed:
            if ready is software:
                raise
            continue
        if len({segment.codec_hash for segment in alike}) == 1:
            return alike, foreign
    everything = list(range(len(segments)))
    alike = _reencoded(segments, everything, software, fmt, folder)
    if len({segment.codec_hash for segment in alike}) > 1:
        raise FfmpegFailed("The segments do not fit together even when encoded again; delete them and run again")
    return alike, everything


def _reencoded(
    segments: Sequence[RenderedSegment],
    places: Sequence[int],
    ready: ReadyEncoder,
    fmt: OutputFormat,
    folder: Path,
) -> list[RenderedSegment]:
    alike = list(segments)
    stall_s = None if ready.on_cpu else HARDWARE_STALL_S
    for place in places:
        segment = segments[place]
        path = folder / f"{place}-{ready.name}{ready.container.suffix}"
        even = f"settb={1 / fmt.fps},setpts=N"
        run_ffmpeg(
            [
                *ready.device_flags,
                *input_args(segment.path, "-f", SEGMENT_CONTAINERS[fmt.codec].format),
                "-map", "0:v:0",
                "-vf", ",".join([even, *encoder_filters(ready)]),
                *encode_output(ready, fmt.quality, fmt.fps, (fmt.width, fmt.height), segment.frames, path),
            ],
            what=f"Encoding {segment.path.name} like its neighbours",
            stall_s=stall_s,
        )  # fmt: skip
        written = read_encoded_stream(path, ready.container)
        if written.frames != segment.frames:
            raise FfmpegFailed(
                f"{segment.path.name} holds {written.frames} frames instead of {segment.frames}; "
                "delete it and run again"
            )
        alike[place] = replace(segment, path=path, encoder=ready.name, codec_hash=written.parameters)
    return alike


def _write_one_after_another(segments: Sequence[RenderedSegment], fmt: OutputFormat, out_path: Path) -> None:
    import av

    orders = [_presentation_ranks(segment, fmt) for segment in segments]
    # Decoding runs ahead of presentation by as many frames as the most reordered packet needs.
    delay = max(place - rank for ranks in orders for place, rank in enumerate(ranks))
    frame_duration = 1 / fmt.fps
    try:
        with av.open(str(out_path), "w", format="mp4", options={"fflags": "+bitexact"}) as film:
            with _opened(segments[0].path, fmt) as first:
                stream = film.add_stream_from_template(first.streams.video[0], opaque=True)
            stream.time_base = frame_duration
            done = 0
            for segment, ranks in zip(segments, orders, strict=True):
                for place, packet in enumerate(_packets(segment.path, fmt)):
                    packet.stream = stream
                    packet.time_base = frame_duration
                    packet.pts = done + ranks[place]
                    packet.dts = done + place - delay
                    packet.duration = 1
                    film.mux_one(packet)
                done += len(ranks)
    except av.FFmpegError as error:
        raise FfmpegFailed(f"Joining {len(segments)} segments failed: {error}; run again") from error


def _presentation_ranks(segment: RenderedSegment, fmt: OutputFormat) -> list[int]:
    """For every packet, in the order of the file, the number of its frame in the segment (from 0)."""
    import av

    try:
        with _opened(segment.path, fmt) as container:
            times = [packet.pts for packet in container.demux(video=0) if packet.size]
    except (av.FFmpegError, OSError) as error:
        raise MediaError(f"Segment {segment.path.name} cannot be read ({error}); delete it and run again") from error
    shown = sorted(time for time in times if time is not None)
    number = {time: rank for rank, time in enumerate(shown)}
    if len(number) != len(times) or len(times) != segment.frames:
        raise FfmpegFailed(
            f"Segment {segment.path.name} holds {len(number)} timed frames instead of {segment.frames}; "
            "delete it and run again"
        )
    return [number[time] for time in times if time is not None]


def _opened(path: Path, fmt: OutputFormat) -> InputContainer:
    """The container is named: MPEG-TS of a few packets is not recognised by its content."""
    import av

    return av.open(str(path), format=SEGMENT_CONTAINERS[fmt.codec].format)


def _packets(path: Path, fmt: OutputFormat) -> Iterator[Packet[VideoStream]]:
    from av.bitstream import BitStreamFilterContext

    with _opened(path, fmt) as container:
        stream = container.streams.video[0]
        unwanted = INLINE_HEADER_FILTERS.get(fmt.codec)
        strip = BitStreamFilterContext(unwanted, stream) if unwanted else None
        for packet in container.demux(stream):
            if packet.size:
                yield from strip.filter(packet) if strip else [packet]


def _refuse_wrong_film(path: Path, planned: int, fps: Fraction) -> None:
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        time_base = Fraction(stream.time_base or 1)
        times = sorted(p.pts * time_base for p in container.demux(stream) if p.size and p.pts is not None)
    if times != [place / fps for place in range(planned)]:
        raise FfmpegFailed(
            f"The joined film has {len(times)} frames, not the planned {planned} at even times; run again"
        )
