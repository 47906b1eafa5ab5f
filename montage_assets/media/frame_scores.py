"""Decode a range of a clip once and keep all that selection and every detector will ask of it.

Belongs here: the decoding of small analysis frames, their per-frame scores, and the merge of the shards'
scores into a clip's. Does not belong here: deciding cuts (`scenes`).

The analysis frame is PySceneDetect's: the long side is 256 px. Scores of frame i that compare it with
frame i-1 are computed by the shard that owns frame i, which decodes frame i-1 for it.
"""

from __future__ import annotations

import contextlib
import io
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from montage_assets.media.clip import Clip
from montage_assets.media.errors import MediaError, UnusableClip
from montage_assets.media.ffmpeg import ffmpeg_output, input_args
from montage_assets.media.hardware_decode import HardwareDecoder, exact_format
from montage_assets.media.shards import ClipRange

if TYPE_CHECKING:
    from numpy.typing import NDArray

ALGORITHM = 3
"""Part of every score's key; raised whenever a change of this module changes a score."""

DRIVER_HANGS_AFTER_S = 60.0
"""A GPU that gives no frame for so long gives none any more."""

LONG_SIDE = 256
SCALE_FLAGS = "fast_bilinear"
HISTOGRAM_BINS = 128
HASH_SIZE = 8
HASH_LOWPASS = 2
SIGNATURE_EVERY_S = 0.5
THUMBNAIL_EVERY_S = 1.0
THUMBNAIL_LONG_SIDE = 160
_SIGNATURE_SIDE = 6
_BLACK_BINS = 16 * HISTOGRAM_BINS // 256
_WHITE_BINS = 244 * HISTOGRAM_BINS // 256


@dataclass(frozen=True)
class FrameScores:
    """Scores of consecutive frames in display order; one entry a frame unless said otherwise.

    `pts` is in the clip's time base. The `delta_*` are sums over all pixels of the absolute difference of
    hue, saturation and value to the frame before (0 for a clip's first frame). `perceptual_hash` packs the 64 bits
    of PySceneDetect's hash detector; `histogram_correlation` is its histogram detector's (1 for the
    first frame). `brightness_sum` is the sum over all pixels and channels. `sharpness` is log10 of the
    variance of the Laplacian; `brightness`, `contrast` are mean and standard deviation of luma (0..255);
    `clipped` is the share of pixels crushed black or blown white.
    """

    pixels: int
    pts: NDArray[np.int64]
    delta_hue: NDArray[np.int32]
    delta_sat: NDArray[np.int32]
    delta_val: NDArray[np.int32]
    perceptual_hash: NDArray[np.uint64]
    histogram_correlation: NDArray[np.float64]
    brightness_sum: NDArray[np.int64]
    sharpness: NDArray[np.float32]
    brightness: NDArray[np.float32]
    contrast: NDArray[np.float32]
    clipped: NDArray[np.float32]
    signature_pts: NDArray[np.int64]
    """One entry per signature: the frame it describes."""
    signatures: NDArray[np.float32]
    """(signatures, dimensions), rows of unit length: colour and layout of one frame every 0.5 s."""
    thumbnail_pts: NDArray[np.int64]
    """One entry per thumbnail: the frame it shows; one a second."""
    thumbnail_bytes: NDArray[np.int64]
    """Length of each thumbnail's JPEG."""
    thumbnail_data: NDArray[np.uint8]
    """The JPEGs one after the other, upright, 160 px on the long side."""
    before_pts: int
    """Time of the frame before the first one; -1 when there is none. Links a shard to its neighbour."""
    before_check: int
    """CRC-32 of that frame's pixels as this shard decoded it; 0 when there is none."""
    last_check: int
    """CRC-32 of the last frame's pixels."""

    @property
    def frames(self) -> int:
        """Number of frames."""
        return len(self.pts)

    def thumbnail_near(self, pts: int) -> bytes:
        """The JPEG of the thumbnail nearest to a time in the clip's time base."""
        nearest = int(np.argmin(np.abs(self.thumbnail_pts - pts)))
        end = int(self.thumbnail_bytes[: nearest + 1].sum())
        return self.thumbnail_data[end - int(self.thumbnail_bytes[nearest]) : end].tobytes()


class ShardsDoNotFit(MediaError):  # noqa: N818
    """The shards of a clip miss a frame, hold one twice, or decoded one differently."""


OnFrames = Callable[[int], None]
Watcher = Callable[[int, "NDArray[np.uint8]"], None]
"""Is given every decoded analysis frame (pts, BGR), the one before the range included."""


def score_range(
    path: Path,
    clip: Clip,
    part: ClipRange,
    on_frames: OnFrames | None = None,
    watch: Watcher | None = None,
    decoder: HardwareDecoder | None = None,
) -> FrameScores:
    """Decode the frames of one range with the pinned ffmpeg, on the CPU or by `decoder`, and score them.

    `on_frames` is told the number of frames scored so far, about every 100 frames; `watch` sees every frame.
    Raises UnusableClip when nothing of the clip can be decoded, FfmpegFailed when ffmpeg or a `decoder` fails.
    """
    frames = analysis_frames(path, clip, part.after_pts, part.until_pts, decoder=decoder)
    return score_frames(frames, clip, part, on_frames, watch)


def score_frames(
    frames: Iterable[tuple[int, NDArray[np.uint8]]],
    clip: Clip,
    part: ClipRange,
    on_frames: OnFrames | None = None,
    watch: Watcher | None = None,
) -> FrameScores:
    """Score decoded analysis frames of one range; as `score_range`, for a caller that decodes itself."""
    recorder = _Recorder(clip, part)
    with _opencv_in_one_thread():
        for pts, frame in frames:
            recorder.add(pts, frame)
            if watch is not None:
                watch(pts, frame)
            if on_frames is not None and recorder.frames % 100 == 0:
                on_frames(recorder.frames)
    if recorder.frames == 0 and part.count == 1:
        raise UnusableClip("holds no frame that can be decoded; the file is damaged")
    if on_frames is not None:
        on_frames(recorder.frames)
    return recorder.scores()


def analysis_size(clip: Clip) -> tuple[int, int]:
    """Width and height of the analysis frame: PySceneDetect's own downscaling, after rotation."""
    width, height = (clip.width, clip.height) if clip.rotation % 180 == 0 else (clip.height, clip.width)
    factor = max(1.0, max(width, height) / LONG_SIDE)
    return max(1, round(width / factor)), max(1, round(height / factor))


def analysis_frames(
    path: Path,
    clip: Clip,
    after_pts: int | None = None,
    until_pts: int | None = None,
    second_output: Sequence[str] = (),
    decoder: HardwareDecoder | None = None,
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """(pts, BGR frame) of every frame from the one at `after_pts` (or the first) to `until_pts`.

    `second_output` are ffmpeg arguments of another output that the same decoding feeds. The first yielded
    frame of a range with `after_pts` is the one before the range. An array is valid until the next one is
    asked for.
    """
    early = 0
    while True:
        args = [
            *decode_args(path, clip, after_pts, until_pts, early, decoder),
            *second_output,
            *analysis_output_args(clip, decoder),
        ]
        stall_s = None if decoder is None else DRIVER_HANGS_AFTER_S
        landed = yield from _frames_of_range(args, clip, after_pts, until_pts, early, stall_s)
        if landed is None or after_pts is None:
            return
        early = after_pts - landed


def _frames_of_range(
    args: Sequence[str], clip: Clip, after_pts: int | None, until_pts: int | None, early: int, stall_s: float | None
) -> Generator[tuple[int, NDArray[np.uint8]], None, int | None]:
    """Yields as `analysis_frames`. Returns where the seek landed, with nothing yielded, if that was too early.

    Some containers are entered at an earlier keyframe than asked for, and ffmpeg counts the length it is to
    read from there, which would cut off the end of the range.
    """
    held: tuple[int, NDArray[np.uint8]] | None = None
    with ffmpeg_output(args, what=f"decoding {clip.name}", stall_s=stall_s) as pipe:
        for pts, frame in read_frames(pipe, clip):
            if until_pts is not None and pts > until_pts:
                continue  # a few at most; reading to the end lets a second output end in order
            if after_pts is not None and pts <= after_pts:
                if held is None and until_pts is not None and pts < after_pts - early:
                    return pts
                held = (pts, frame)
                continue
            if held is not None:
                yield held
                held = None
            yield pts, frame
    return None


def read_frames(pipe: IO[bytes], clip: Clip) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """(pts, BGR frame) of the analysis frames that ffmpeg writes to a pipe. None, where it wrote nothing."""
    import av
    from av.error import FFmpegError

    width, height = analysis_size(clip)
    try:
        container = av.open(pipe, "r", format="nut", buffer_size=1 << 20)
    except FFmpegError:  # ffmpeg writes not even a header when no frame could be decoded
        return
    with container:
        stream = container.streams.video[0]
        to_clip = Fraction(stream.time_base or 1) / clip.time_base
        for packet in container.demux(stream):
            if 0 < packet.size < height * width * 3:
                return  # ffmpeg died in the middle of a picture; its exit code says how
            if packet.pts is not None and packet.size:
                pixels = np.frombuffer(memoryview(packet), np.uint8)
                yield round(packet.pts * to_clip), pixels.reshape(height, width, 3)


def decode_args(
    path: Path,
    clip: Clip,
    after_pts: int | None = None,
    until_pts: int | None = None,
    early: int = 0,
    decoder: HardwareDecoder | None = None,
) -> list[str]:
    """ffmpeg arguments that decode a clip's pictures, with true timestamps, from `after_pts` or before.

    With `until_pts` no packet is read that is decoded only after the frame at that time. `early` is by how
    much, in the clip's time base, the seek is known to land before `after_pts`.
    """
    # A seek a little behind the keyframe, or rounding to ffmpeg's microseconds could fall before it and land on
    # the one before; the end two ticks behind, since ffmpeg takes their difference, in whole ticks, for the length.
    limits: list[str] = []
    if after_pts is not None:
        seek = Fraction(4 * after_pts + 1, 4) * clip.time_base + Fraction(1, 1_000_000)
        limits += ["-noaccurate_seek", "-seek_timestamp", "1", "-ss", f"{float(seek):.6f}"]
    if until_pts is not None:
        end = (until_pts + early + 2) * clip.time_base + Fraction(4, 1_000_000)
        limits += ["-to", f"{float(end) - clip.container_start_s:.6f}"]
    hardware = decoder.input_flags if decoder else []
    return ["-copyts", *input_args(path, *hardware, "-an", "-sn", "-dn", *limits)]


def as_decoded_here(clip: Clip, decoder: HardwareDecoder | None) -> list[str]:
    """The filters that make of a decoder's frames what the CPU's would be; first in every chain."""
    return [exact_format(clip)] if decoder else []


def analysis_output_args(clip: Clip, decoder: HardwareDecoder | None = None) -> list[str]:
    """ffmpeg arguments that write the analysis frames to `pipe:1`, none dropped, none doubled."""
    width, height = analysis_size(clip)
    chain = [*as_decoded_here(clip, decoder), f"scale={width}:{height}:flags={SCALE_FLAGS}", "format=bgr24"]
    return [
        # One filter thread: the result is small, and sharing it out costs more than scaling it.
        "-filter_threads", "1",
        "-map", "0:V:0", "-vf", ",".join(chain),
        "-fps_mode", "passthrough", "-enc_time_base", "demux",
        "-c:v", "rawvideo", "-f", "nut", "-write_index", "0", "pipe:1",
    ]  # fmt: skip


@contextlib.contextmanager
def _opencv_in_one_thread() -> Iterator[None]:
    """Frames this small are done before a second thread wakes up; it would only cost."""
    import cv2

    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


class _Recorder:
    """Scores frames one after the other; keeps the previous frame's intermediate pictures."""

    def __init__(self, clip: Clip, part: ClipRange) -> None:
        self._after = part.after_pts
        self._first_pts = clip.first_pts
        self._tick_s = float(clip.time_base)
        self._pixels = 0
        self._pts: list[int] = []
        self._measures: list[tuple[float, ...]] = []
        self._coarse: list[bytes] = []
        self._signature_pts: list[int] = []
        self._signatures: list[NDArray[np.float32]] = []
        self._thumbnail_pts: list[int] = []
        self._thumbnails: list[NDArray[np.uint8]] = []
        self._last: tuple[int, Any, Any] | None = None
        self._last_frame: NDArray[np.uint8] | None = None
        self._before = (-1, 0)

    @property
    def frames(self) -> int:
        return len(self._pts)

    def add(self, pts: int, frame: NDArray[np.uint8]) -> None:
        import cv2

        self._pixels = frame.shape[0] * frame.shape[1]
        hsv = cv2.cvtColor(frame, cv2.COLOR_BGR2HSV)
        luma = cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)
        histogram = cv2.calcHist([luma], [0], None, [HISTOGRAM_BINS], [0, 256])
        normalised = cv2.normalize(histogram, None).flatten()
        last = self._last
        self._last = (pts, hsv, normalised)
        self._last_frame = frame
        if self._after is not None and pts <= self._after:
            self._before = (pts, zlib.crc32(frame.data))
            return
        deltas, correlation = (0.0, 0.0, 0.0), 1.0
        if last is not None:
            deltas = cv2.sumElems(cv2.absdiff(hsv, last[1]))[:3]
            correlation = cv2.compareHist(last[2], normalised, cv2.HISTCMP_CORREL)
        mean, deviation = cv2.meanStdDev(luma)
        edges = cv2.Laplacian(luma, cv2.CV_16S)
        counts = histogram.ravel()
        self._pts.append(pts)
        self._coarse.append(_coarse_picture(luma))
        self._measures.append(
            (
                *deltas,
                correlation,
                sum(cv2.sumElems(frame)[:3]),
                cv2.sumElems(edges)[0],
                cv2.norm(edges, cv2.NORM_L2SQR),
                mean[0, 0],
                deviation[0, 0],
                counts[:_BLACK_BINS].sum() + counts[_WHITE_BINS:].sum(),
            )
        )
        before = None if last is None else last[0]
        if self._is_due(SIGNATURE_EVERY_S, pts, before):
            self._signature_pts.append(pts)
            self._signatures.append(_signature(frame, hsv))
        if self._is_due(THUMBNAIL_EVERY_S, pts, before):
            self._thumbnail_pts.append(pts)
            self._thumbnails.append(_thumbnail(frame))

    def _is_due(self, every_s: float, pts: int, before: int | None) -> bool:
        # Decided by time alone, so that any shards choose the same frames.
        return before is None or self._periods(every_s, pts) != self._periods(every_s, before)

    def _periods(self, every_s: float, pts: int) -> int:
        return int((pts - self._first_pts) * self._tick_s / every_s + 1e-6)

    def scores(self) -> FrameScores:
        measures = np.array(self._measures, np.float64).reshape(-1, 10).T
        hue, sat, val, correlation, brightness_sum, edge_sum, edge_energy, mean, deviation, clipped = measures
        pixels = max(self._pixels, 1)
        edge_variance = (edge_energy - edge_sum**2 / pixels) / pixels
        last_check = 0 if self._last_frame is None else zlib.crc32(self._last_frame.data)
        dimensions = 3 * _SIGNATURE_SIDE * _SIGNATURE_SIDE + 48
        return FrameScores(
            pixels=self._pixels,
            pts=np.array(self._pts, np.int64),
            delta_hue=hue.astype(np.int32),
            delta_sat=sat.astype(np.int32),
            delta_val=val.astype(np.int32),
            perceptual_hash=_perceptual_hashes(self._coarse),
            histogram_correlation=correlation.copy(),
            brightness_sum=brightness_sum.astype(np.int64),
            sharpness=np.log10(1.0 + edge_variance).astype(np.float32),
            brightness=mean.astype(np.float32),
            contrast=deviation.astype(np.float32),
            clipped=(clipped / pixels).astype(np.float32),
            signature_pts=np.array(self._signature_pts, np.int64),
            signatures=np.array(self._signatures, np.float32).reshape(-1, dimensions),
            thumbnail_pts=np.array(self._thumbnail_pts, np.int64),
            thumbnail_bytes=np.array([len(jpeg) for jpeg in self._thumbnails], np.int64),
            thumbnail_data=np.concatenate(self._thumbnails) if self._thumbnails else np.zeros(0, np.uint8),
            before_pts=self._before[0],
            before_check=self._before[1],
            last_check=last_check,
        )


def _thumbnail(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    import cv2

    factor = THUMBNAIL_LONG_SIDE / max(frame.shape[:2])
    size = (max(1, round(frame.shape[1] * factor)), max(1, round(frame.shape[0] * factor)))
    small = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
    _, jpeg = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 75])
    return np.asarray(jpeg, np.uint8).ravel()


def _coarse_picture(luma: NDArray[np.uint8]) -> bytes:
    """The low frequencies of a picture, (8, 8) float32, as PySceneDetect's HashDetector.hash_frame takes them."""
    import cv2

    side = HASH_SIZE * HASH_LOWPASS
    small = cv2.resize(luma, (side, side), interpolation=cv2.INTER_AREA)
    brightest = int(small.max()) or 1
    frequencies = np.asarray(cv2.dct(np.float32(small) / brightest), np.float32)
    return frequencies[:HASH_SIZE, :HASH_SIZE].tobytes()


def _perceptual_hashes(coarse: Sequence[bytes]) -> NDArray[np.uint64]:
    """The 64 bits of HashDetector.hash_frame (size 8, lowpass 2) of each picture, packed, first bit highest."""
    low = np.frombuffer(b"".join(coarse), np.float32).reshape(-1, HASH_SIZE * HASH_SIZE)
    ordered = np.sort(low, axis=1)
    median = (ordered[:, 31:32] + ordered[:, 32:33]) * np.float32(0.5)
    return np.packbits(low > median, axis=1).view(">u8").ravel().astype(np.uint64)


def _signature(frame: NDArray[np.uint8], hsv: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Colour histogram (12 hues x 4 saturations) and colour layout (6x6), together of unit length."""
    import cv2

    colours = np.sqrt(cv2.calcHist([hsv], [0, 1], None, [12, 4], [0, 180, 0, 256]).ravel())
    colours /= float(np.linalg.norm(colours)) or 1.0
    layout = cv2.resize(frame, (_SIGNATURE_SIDE, _SIGNATURE_SIDE), interpolation=cv2.INTER_AREA)
    flat = layout.astype(np.float32).ravel() + np.float32(1.0)
    flat /= float(np.linalg.norm(flat))
    return np.concatenate([colours, flat]).astype(np.float32) * np.float32(np.sqrt(0.5))


def merge_scores(shards: Sequence[FrameScores]) -> FrameScores:
    """The scores of a whole clip from those of its shards, in order.

    Raises ShardsDoNotFit unless every shard decoded, as the frame before its first, exactly the last
    frame of the shard before it: then no frame is missing and none is there twice.
    """
    kept = [shard for shard in shards if shard.frames]
    if not kept:
        raise UnusableClip("holds no frame that can be decoded; the file is damaged")
    for number, (left, right) in enumerate(pairwise(kept), start=1):
        if (int(left.pts[-1]), left.last_check) != (right.before_pts, right.before_check):
            raise ShardsDoNotFit(
                f"shard {number} ends with frame {int(left.pts[-1])} (check {left.last_check:08x}) but shard "
                f"{number + 1} follows frame {right.before_pts} (check {right.before_check:08x})"
            )
    merged = {
        field.name: np.concatenate([getattr(shard, field.name) for shard in kept])
        for field in fields(FrameScores)
        if field.name not in ("pixels", "before_pts", "before_check", "last_check")
    }
    return FrameScores(
        pixels=kept[0].pixels,
        before_pts=kept[0].before_pts,
        before_check=kept[0].before_check,
        last_check=kept[-1].last_check,
        **merged,
    )


def dump_scores(scores: FrameScores) -> bytes:
    """The scores as a compressed .npz file."""
    out = io.BytesIO()
    np.savez_compressed(out, **{field.name: getattr(scores, field.name) for field in fields(FrameScores)})
    return out.getvalue()


def load_scores(data: bytes) -> FrameScores:
    """Scores from `dump_scores`' bytes."""
    with np.load(io.BytesIO(data), allow_pickle=False) as stored:
        values = {name: stored[name] for name in stored.files}
    for name in ("pixels", "before_pts", "before_check", "last_check"):
        values[name] = int(values[name])
    return FrameScores(**values)
