"""Rendering: groups of shots become encoded segments, frame for frame.

Belongs here: what a film's format is, which shots share one ffmpeg (`plan_segments`), where a source is
sought, the filter graph of a segment, and the check that the segment has exactly the planned frames.
Does not belong here: which shots there are (`selection`), how a picture is fitted (`picture`), its colours
(`grading`) and movement (`stabilisation`), encoder settings (`encoders`), joining and sound (`join`, `soundtrack`).

Time. A shot starts at a frame of its clip, given in seconds after the clip's first frame. All timestamps
stay the file's own (`-copyts`, `-seek_timestamp`): otherwise ffmpeg counts from the container's start, which
may be the sound's, and in MPEG streams, when the sound is not used, from a start that it corrects by a
wrong amount. `trim` keeps frames from 0.1 ms before the wanted one: more than any rounding of its time,
and little enough that rounding to the stream's time base (a whole frame in AVI, 1 ms in Matroska) lands on
it. The midpoint between two frames, otherwise the natural choice, is wrong where a tick is a frame.

Decoding begins at a keyframe that is looked up first, not where ffmpeg would seek on its own: that may be a
keyframe which is shown before the wanted frame's time only by decoding time (MP4 with open GOP), or, in MPEG
streams, which have no index, any packet at all; the wanted frame is then skipped or damaged.

Memory. Every source of a command is open at once, whether its turn has come or not: measured 13 frames of
the source's size each (160 MB for 8-bit 4K). `plan_segments` bounds them, to four 4K sources. The rest is the
encoder's and depends on the film's size alone. Measured peaks for a 4K film from four 4K sources: x264 high
1.8 GB, x265 high 1.9 GB, SVT-AV1 1.9 GB; for a 1080p film 0.8 GB. Nothing grows with a source's length.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from montage_assets.media.clip import Clip
from montage_assets.media.containers import open_media, picture_stream
from montage_assets.media.encoders import (
    Codec,
    EncodedStream,
    Quality,
    ReadyEncoder,
    encode_output,
    encoder_filters,
    on_cpu,
    read_encoded_stream,
)
from montage_assets.media.errors import FfmpegFailed, MediaError
from montage_assets.media.ffmpeg import DISK_FULL, Progress, input_args, run_ffmpeg
from montage_assets.media.grading import grade_filters
from montage_assets.media.picture import Framing, layout, picture_chain, scaled_chain
from montage_assets.media.stabilisation import (
    Steadying,
    measuring_filter,
    read_shifts,
    shake,
    steadying,
    steadying_filter,
)

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.stream import VideoStream

SEGMENT_SECONDS = 9
MOST_SHOTS = 24
FRAMES_HELD_PER_SOURCE = 13
OPEN_SOURCES_BYTES = 700_000_000

FRAME_MARGIN_S = Fraction(1, 10_000)

# More threads change no frame of one shot, but zscale and gblur cut the picture into as many bands as there
# are threads and round differently at their edges: the number is part of the result.
FILTER_THREADS = 2
DECODER_THREADS = 2

CONTAINERS_WITHOUT_INDEX = frozenset({"mpegts", "mpeg"})
FIRST_LOOK_BACK_S = Fraction(2)
# A seek into MPEG streams goes this much before the keyframe, which may be decoded long before it is shown.
EARLY_SEEK_S = Fraction(1)
# ffmpeg seeks up to 3/23 s before what it is asked for; before the first keyframe that fails in AVI.
NEAR_START_S = Fraction(1, 5)

ALGORITHM = 1
"""Part of every segment's key; raised whenever a change here or in `picture` changes a pixel."""

HARDWARE_STALL_S = 120.0
"""Without one more frame for so long, an encode on a device is taken to hang. Seeking in 4K takes a few seconds."""

PATH_SEARCH_S = 0.05
"""For each frame of a shot, before its first one comes: vid.stab looks for the whole path first. 0.015 was measured."""

# A clip may end a frame before its nominal length; its last frame then stands that much longer.
FRAMES_HELD_AT_CLIP_END = 2


@dataclass(frozen=True)
class OutputFormat:
    """What every segment of a film is: even size in pixels, exact frame rate, codec, quality, framing.

    `lut`: a file of `grading.cube_text` that its colours go through. `stabilize`: shots that shake are smoothed.
    """

    width: int
    height: int
    fps: Fraction
    codec: Codec = "h264"
    quality: Quality = "standard"
    framing: Framing = "auto"
    lut: Path | None = None
    stabilize: bool = False


@dataclass(frozen=True)
class RenderShot:
    """`frames` film frames from `path`, starting `in_time_s` seconds after the clip's first video frame."""

    path: Path
    clip: Clip
    in_time_s: Fraction
    frames: int


@dataclass(frozen=True)
class RenderedSegment:
    """A finished segment. `codec_hash` is equal for segments that join without a re-encode.

    `cpu_s` is what this process's children used meanwhile: the segment's own, unless others ran alongside.
    `fallback` says which encoders failed before, and why; empty when the first one did it. `stabilised`: how much each
    shot shook that was smoothed, as a share of its picture's height.
    """

    path: Path
    frames: int
    encoder: str
    codec_hash: str
    size_bytes: int
    cpu_s: float
    fallback: str = ""
    stabilised: tuple[float, ...] = ()


@dataclass(frozen=True)
class _Smoothing:
    """What the first pass found out about a shot that is to be smoothed, and how that is done."""

    measured: Path
    how: Steadying
    shake: float


def plan_segments(shots: Sequence[RenderShot], fps: Fraction, *, target_s: float = SEGMENT_SECONDS) -> list[range]:
    """Cut the film into groups of consecutive shots, one ffmpeg each; each range indexes `shots`.

    The groups are as equal in length as shots allow, about `target_s` seconds, with no more sources open
    than memory bears. Depends on the shots alone, never on who renders them. O(shots x MOST_SHOTS).
    """
    total = sum(shot.frames for shot in shots)
    if total == 0:
        return []
    count = max(1, round(total / (fps * Fraction(target_s))))
    ideal = Fraction(total, count)
    best: list[Fraction] = [Fraction(0)]
    start_of_group_ending: list[int] = [0]
    for end in range(1, len(shots) + 1):
        options: list[tuple[Fraction, int]] = []
        frames = open_bytes = 0
        for start in range(end - 1, max(-1, end - 1 - MOST_SHOTS), -1):
            frames += shots[start].frames
            open_bytes += open_source_bytes(shots[start].clip)
            if open_bytes > OPEN_SOURCES_BYTES and start < end - 1:
                break
            options.append((best[start] + (frames - ideal) ** 2, start))
        cost, start = min(options)
        best.append(cost)
        start_of_group_ending.append(start)
    groups: list[range] = []
    end = len(shots)
    while end > 0:
        groups.append(range(start_of_group_ending[end], end))
        end = start_of_group_ending[end]
    return groups[::-1]


def open_source_bytes(clip: Clip) -> int:
    """Memory that one open source takes in a command, in bytes (4:2:0; more bits take two bytes a sample)."""
    sample_bytes = 2 if clip.bit_depth > 8 else 1
    return clip.width * clip.height * 3 // 2 * sample_bytes * FRAMES_HELD_PER_SOURCE


def render_segment(
    shots: Sequence[RenderShot],
    fmt: OutputFormat,
    out_path: Path,
    *,
    encoders: Sequence[ReadyEncoder] = (),
    name: str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    on_fallback: Callable[[ReadyEncoder, FfmpegFailed], None] | None = None,
) -> RenderedSegment:
    """Encode `shots`, one after another, into `out_path`, whose suffix should be that of the codec's container.

    `encoders` are tried in their order, each from the first frame on, until one gives exactly the shots' frames;
    none stands for the codec's software encoder. `on_fallback` is told of each that failed before another was tried.
    `name` names the segment in errors. The file appears whole or not at all. Raises FfmpegFailed when the last one
    fails, or its segment does not have exactly the shots' frames or does not start with a keyframe; MediaError for
    settings that cannot be.
    """
    if not shots:
        raise MediaError(f"Segment {out_path.name} has no shots; there is nothing to render")
    candidates = tuple(encoders) or (on_cpu(fmt.codec),)
    what = f"Rendering {name or out_path.stem} ({_clip_names(shots)})"
    unfinished = out_path.with_name(f".{out_path.name}.{os.getpid()}.part")
    cpu_before = _children_cpu_s()
    failures: list[str] = []
    with tempfile.TemporaryDirectory(prefix="montage-shake-") if fmt.stabilize else nullcontext() as folder:
        smoothings = [None] * len(shots) if folder is None else _measured(shots, fmt, Path(folder), what)
        try:
            for ready in candidates:
                try:
                    written = _encode_checked(shots, fmt, ready, unfinished, what, on_progress, smoothings)
                    break
                except FfmpegFailed as failure:
                    if ready is candidates[-1] or DISK_FULL in failure.log:
                        raise
                    failures.append(f"{ready.name}: {failure}")
                    if on_fallback is not None:
                        on_fallback(ready, failure)
            size = unfinished.stat().st_size
            unfinished.replace(out_path)
        finally:
            unfinished.unlink(missing_ok=True)
    return RenderedSegment(
        path=out_path,
        frames=written.frames,
        encoder=ready.name,
        codec_hash=written.parameters,
        size_bytes=size,
        cpu_s=_children_cpu_s() - cpu_before,
        fallback="; ".join(failures),
        stabilised=tuple(smoothing.shake for smoothing in smoothings if smoothing is not None),
    )


def _measured(shots: Sequence[RenderShot], fmt: OutputFormat, folder: Path, what: str) -> list[_Smoothing | None]:
    """The first pass over all shots: those that shake, and how they are smoothed."""
    results = [folder / f"{index}.trf" for index in range(len(shots))]
    run_ffmpeg(measuring_args(shots, fmt, results), what=f"{what}, measuring how it shakes")
    smoothings: list[_Smoothing | None] = []
    for shot, result in zip(shots, results, strict=True):
        placed = layout(shot.clip, fmt.width, fmt.height, fmt.framing)
        shifts = read_shifts(result)
        how = steadying(shifts, (placed.width, placed.height), shot.clip.fps)
        smoothings.append(None if how is None else _Smoothing(result, how, shake(shifts) / placed.height))
    return smoothings


def _encode_checked(
    shots: Sequence[RenderShot],
    fmt: OutputFormat,
    ready: ReadyEncoder,
    out_path: Path,
    what: str,
    on_progress: Callable[[Progress], None] | None,
    smoothings: Sequence[_Smoothing | None],
) -> EncodedStream:
    smoothed = sum(shot.frames for shot, smoothing in zip(shots, smoothings, strict=True) if smoothing)
    stall_s = None if ready.on_cpu else HARDWARE_STALL_S + smoothed * PATH_SEARCH_S
    steady = [steadying_filter(each.measured, each.how) if each else "" for each in smoothings]
    args = segment_args(shots, fmt, ready, out_path, steady)
    run_ffmpeg(args, what=what, on_progress=on_progress, stall_s=stall_s)
    try:
        written = read_encoded_stream(out_path, ready.container)
    except MediaError as error:
        raise FfmpegFailed(f"{what} gave a file without readable video; use another encoder") from error
    _refuse_wrong_stream(written, sum(shot.frames for shot in shots), fmt, what)
    return written


def segment_args(
    shots: Sequence[RenderShot], fmt: OutputFormat, ready: ReadyEncoder, out_path: Path, steady: Sequence[str] = ()
) -> list[str]:
    """ffmpeg's arguments that render `shots` into `out_path`. Looks into sources that have no index.

    `steady` has each shot's filter that smooths it, empty for none.
    """
    starts = [_start_of(shot) for shot in shots]
    chains = [
        _shot_chain(shot, fmt, start, str(index), steady[index] if steady else "")
        for index, (shot, start) in enumerate(zip(shots, starts, strict=True))
    ]
    end = [f"settb={1 / fmt.fps}", "setpts=N", *(grade_filters(fmt.lut) if fmt.lut else []), *encoder_filters(ready)]
    return [
        *ready.device_flags,
        *_graph_args(shots, starts, chains, end),
        *encode_output(
            ready, fmt.quality, fmt.fps, (fmt.width, fmt.height), sum(shot.frames for shot in shots), out_path
        ),
    ]


def measuring_args(shots: Sequence[RenderShot], fmt: OutputFormat, results: Sequence[Path]) -> list[str]:
    """ffmpeg's arguments that measure how `shots` move, each into its file of `results`: the very frames of the clips
    that are shown, at the size that they are shown at."""
    starts = [_start_of(shot) for shot in shots]
    chains = [
        _measuring_chain(shot, fmt, start, result) for shot, start, result in zip(shots, starts, results, strict=True)
    ]
    return [*_graph_args(shots, starts, chains, []), "-f", "null", "-"]


def _graph_args(
    shots: Sequence[RenderShot], starts: Sequence[Fraction], chains: Sequence[str], end: Sequence[str]
) -> list[str]:
    """All sources, each through its chain, one after another, and the result through the filters of `end`."""
    inputs: list[str] = []
    for shot, start in zip(shots, starts, strict=True):
        inputs += input_args(
            shot.path,
            *("-threads", str(DECODER_THREADS), "-reinit_filter", "0", "-an", "-sn", "-dn"),
            *_seek_to_keyframe(shot, start),
        )
    graph = [f"[{index}:V:0]{chain}[s{index}]" for index, chain in enumerate(chains)]
    pads = "".join(f"[s{index}]" for index in range(len(shots)))
    graph.append(",".join([f"{pads}concat=n={len(shots)}:v=1:a=0", *end]) + "[film]")
    return [
        "-copyts",
        "-filter_complex_threads", str(FILTER_THREADS),
        *inputs,
        "-filter_complex", ";".join(graph),
        "-map", "[film]",
    ]  # fmt: skip


def _start_of(shot: RenderShot) -> Fraction:
    """Seconds by the file's own clock."""
    return shot.clip.first_pts * shot.clip.time_base + shot.in_time_s


def _shot_chain(shot: RenderShot, fmt: OutputFormat, start: Fraction, label: str, steady: str) -> str:
    """Cut and rate first or picture first, whichever leaves fewer frames to scale. What is smoothed needs all."""
    # `fps` rounds a frame's time to the nearest film frame, and of several keeps the last. Moved by a quarter
    # of a film frame, that is the frame on show a quarter after the film frame's time: the very first one
    # stays the first, and times that jitter by less than a quarter neither drop nor repeat a frame.
    quarter = round(1_000_000 / (4 * fmt.fps))
    cut = [
        f"trim=start={_seconds(start - FRAME_MARGIN_S)}",
        "settb=1/1000000",
        f"setpts=PTS-STARTPTS+{quarter}",
    ]
    rate = [
        f"fps={fmt.fps}",
        f"tpad=stop_mode=clone:stop={FRAMES_HELD_AT_CLIP_END}",
        f"trim=end_frame={shot.frames}",
    ]
    picture = [picture_chain(shot.clip, fmt.width, fmt.height, fmt.framing, label, steady)]
    repeats_frames = not shot.clip.variable_rate and shot.clip.fps < fmt.fps
    return ",".join(cut + (picture + rate if repeats_frames or steady else rate + picture))


def _measuring_chain(shot: RenderShot, fmt: OutputFormat, start: Fraction, result: Path) -> str:
    """The frames that `_shot_chain` shows: the last film frame shows what is on a quarter after its time."""
    length = (shot.frames - Fraction(3, 4)) / fmt.fps + FRAME_MARGIN_S
    # The end counts in microseconds: in the stream's time base it could be rounded to a whole frame.
    cut = [
        f"trim=start={_seconds(start - FRAME_MARGIN_S)}",
        "settb=1/1000000",
        "setpts=PTS-STARTPTS",
        f"trim=end={_seconds(length)}",
    ]
    picture = scaled_chain(shot.clip, layout(shot.clip, fmt.width, fmt.height, fmt.framing))
    alike = ["scale=16:16:flags=neighbor", "setsar=1"]  # as `concat` wants them
    return ",".join([*cut, picture, measuring_filter(result), *alike])


def _seek_to_keyframe(shot: RenderShot, start: Fraction) -> list[str]:
    """Input options that start decoding at the keyframe the frame at `start` needs; none near the start."""
    first = shot.clip.first_pts * shot.clip.time_base
    if start - first <= NEAR_START_S:
        return []
    indexed = shot.clip.container not in CONTAINERS_WITHOUT_INDEX
    keyframe = keyframe_at_or_before(shot.path, start, Fraction(0) if indexed else FIRST_LOOK_BACK_S)
    if keyframe - first <= NEAR_START_S:
        return []
    # Asked for a little late, ffmpeg finds the keyframe itself; a little early, it would find the one before.
    seek_to = keyframe + (FRAME_MARGIN_S if indexed else -EARLY_SEEK_S)
    return ["-seek_timestamp", "1", "-noaccurate_seek", "-ss", _seconds(seek_to)]


def keyframe_at_or_before(path: Path, time_s: Fraction, look_back_s: Fraction) -> Fraction:
    """When the last keyframe is shown that is shown no later than `time_s`: both absolute seconds.

    The stream's start when there is none. Unlike `keyframes.keyframe_finder` this looks further back when a
    seek lands behind that keyframe; `look_back_s` is how much before `time_s` to look first.
    Raises MediaError when the file cannot be read.
    """
    import av

    try:
        with open_media(path) as container:
            stream = picture_stream(container)
            if stream is None:
                raise MediaError(f"{path.name} has no picture any more; replace the file")
            time_base = Fraction(stream.time_base or 1)
            begin = (stream.start_time or 0) * time_base
            while time_s - look_back_s > begin:
                container.seek(int((time_s - look_back_s) / time_base), stream=stream)
                last = _last_keyframe(container.demux(stream), (time_s + FRAME_MARGIN_S) / time_base)
                if last is not None:
                    return last * time_base
                look_back_s = max(FIRST_LOOK_BACK_S, 4 * look_back_s)
            return begin
    except (av.FFmpegError, OSError) as error:
        raise MediaError(f"{path.name} could not be read ({error}); replace the file") from error


def _last_keyframe(packets: Iterable[Packet[VideoStream]], wanted: Fraction) -> int | None:
    found: int | None = None
    for packet in packets:
        if packet.is_keyframe and packet.pts is not None and packet.pts <= wanted:
            found = packet.pts
        if packet.dts is not None and packet.dts > wanted:
            break
    return found


def _refuse_wrong_stream(written: EncodedStream, planned: int, fmt: OutputFormat, what: str) -> None:
    if written.frames != planned:
        raise FfmpegFailed(
            f"{what} gave {written.frames} frames instead of {planned}; a clip may be damaged or have "
            "changed: run again, and take the clip out if this comes back"
        )
    if not written.starts_with_keyframe:
        raise FfmpegFailed(f"{what} gave a segment that does not start with a keyframe; use another encoder")
    if written.size != (fmt.width, fmt.height):
        size = "x".join(str(side) for side in written.size)
        raise FfmpegFailed(f"{what} gave pictures of {size} instead of {fmt.width}x{fmt.height}; use another encoder")


def _clip_names(shots: Sequence[RenderShot]) -> str:
    return ", ".join(dict.fromkeys(shot.clip.name for shot in shots))


def _children_cpu_s() -> float:
    times = os.times()
    return times.children_user + times.children_system


def _seconds(value: Fraction) -> str:
    return f"{float(value):.6f}"
