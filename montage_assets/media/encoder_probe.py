"""Whether an encoder truly encodes here: a small test encode with production's flags, decoded back and looked at.

Belongs here: the test encode, its judgement, the reason in words, and keeping results until ffmpeg, driver or device
changes. Does not belong here: which encoder is then taken (`encoder_router`), or how fast and how good it is
(`calibration`).

That ffmpeg lists an encoder proves nothing: the pinned build lists all vendors' on every machine. A test encode
runs in a process (and process group) of its own with a time limit; drivers are loaded there and nowhere else, so
one that crashes or hangs takes nothing with it. What it wrote is decoded in software and must hold every frame, of
the right size, in order and looking like what went in, with the colours named, and every GOP closed and begun by an
IDR picture. Two GOPs fit into the ten frames because the test film has few frames a second.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from montage_assets.media.encoders import (
    Codec,
    Encoder,
    Quality,
    ReadyEncoder,
    encode_flags,
    encode_output,
    encoder_filters,
    gop_frames,
)
from montage_assets.media.ffmpeg import ffmpeg_program

if TYPE_CHECKING:
    import numpy as np
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream
    from numpy.typing import NDArray

ALGORITHM = 1
"""Part of every result's key; raised when the judgement changes."""

TEST_SIZE = (640, 368)
"""Above every encoder's smallest size, and a whole number of macroblocks: smaller ones fail on sound hardware."""
FRAMES = 10
FPS = Fraction(4)
QUALITY: Quality = "standard"
TIME_LIMIT_S = 20.0
_KILL_LIMIT_S = 5.0

FAILURE_HOLDS_S = 3600.0
"""A failure may pass (a busy GPU, a group just joined); a success holds until something changes."""

_MOST_LUMA_ERROR = 12.0
"""Mean absolute error of a frame; the worst level of a sound encoder stays below 3, a wrong frame is above 20."""


@dataclass(frozen=True)
class ProbeResult:
    """What a test encode showed. `reason` is why it does not work, empty when it does.

    `b_frames` is how many B pictures between references it was proved with.
    """

    encoder: str
    device: str
    width: int
    height: int
    bit_depth: int
    works: bool
    reason: str
    b_frames: int


class ProbeStore:
    """Results of test encodes in a folder of this machine, kept by ffmpeg build, drivers, device and flags.

    `folder` None keeps them in this process only.
    """

    def __init__(self, folder: Path | None, driver: str) -> None:
        self._folder, self._driver = folder, driver
        self._known: dict[str, ProbeResult] = {}

    def get(self, encoder: Encoder, device: str, size: tuple[int, int], bit_depth: int) -> ProbeResult | None:
        """The result, unless there is none or it is a failure of more than an hour ago."""
        key = self._key(encoder, device, size, bit_depth)
        if key in self._known or self._folder is None:
            return self._known.get(key)
        path = self._folder / f"{key}.json"
        with contextlib.suppress(OSError, ValueError, TypeError):
            found = ProbeResult(**json.loads(path.read_text()))
            if found.works or time.time() - path.stat().st_mtime < FAILURE_HOLDS_S:
                self._known[key] = found
        return self._known.get(key)

    def put(self, encoder: Encoder, result: ProbeResult) -> None:
        """Keep a result; where the folder cannot be written to, for this process only."""
        key = self._key(encoder, result.device, (result.width, result.height), result.bit_depth)
        self._known[key] = result
        if self._folder is not None:
            with contextlib.suppress(OSError):
                write_atomically(self._folder / f"{key}.json", json.dumps(asdict(result)))

    def _key(self, encoder: Encoder, device: str, size: tuple[int, int], bit_depth: int) -> str:
        ready = ReadyEncoder(encoder, device, encoder.b_frames[0])
        flags = [*ready.device_flags, *encode_flags(ready, QUALITY, FPS, size, bit_depth)]
        described = [ALGORITHM, ffmpeg_identity(), self._driver, encoder.name, device, size, bit_depth, flags]
        return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:24]


def write_atomically(path: Path, text: str) -> None:
    """Write a small file of this machine's; another process sees it whole or not at all. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        unfinished.write_text(text)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


@functools.cache
def ffmpeg_identity() -> str:
    """A hash of the ffmpeg in use: its build's description, and the file itself."""
    program = Path(ffmpeg_program())
    said = subprocess.run([program, "-hide_banner", "-version"], capture_output=True, check=False, timeout=60).stdout
    found = program.stat()
    described = f"{program} {found.st_size} {found.st_mtime_ns} ".encode() + said
    return hashlib.sha256(described).hexdigest()[:16]


@functools.cache
def listed_encoders() -> frozenset[str]:
    """The names of the video encoders that this ffmpeg was built with."""
    command = [ffmpeg_program(), "-hide_banner", "-encoders"]
    said = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60).stdout
    return frozenset(re.findall(r"^ V\S{5} (\S+)", said, re.MULTILINE))


def probe(
    encoder: Encoder,
    device: str,
    size: tuple[int, int] = TEST_SIZE,
    bit_depth: int = 8,
    store: ProbeStore | None = None,
    time_limit_s: float = TIME_LIMIT_S,
) -> ProbeResult:
    """Try `encoder` on `device` (ffmpeg's name of it), with B pictures and, where those fail, without.

    Never raises for what an encoder or driver does; the result's `reason` tells it.
    """
    known = store.get(encoder, device, size, bit_depth) if store else None
    if known is not None:
        return known
    result = ProbeResult(encoder.name, device, *size, bit_depth, False, "", encoder.b_frames[0])
    if encoder.name not in listed_encoders():
        return replace(result, reason="this ffmpeg build does not have it")
    if bit_depth not in encoder.depths:
        return replace(result, reason=f"it does not encode {bit_depth}-bit video")
    first_reason = ""
    for b_frames in encoder.b_frames:
        reason = _fault(ReadyEncoder(encoder, device, b_frames), size, bit_depth, time_limit_s)
        if reason is None:
            result = replace(result, works=True, b_frames=b_frames)
            break
        first_reason = first_reason or reason
        if reason.startswith(_HANGS):
            break
    if not result.works:
        result = replace(result, reason=f"listed by ffmpeg, but the test encode {first_reason}")
    if store:
        store.put(encoder, result)
    return result


_HANGS = "did not end"


def _fault(ready: ReadyEncoder, size: tuple[int, int], bit_depth: int, time_limit_s: float) -> str | None:
    """What is wrong with a test encode, to follow "the test encode"; None when nothing is."""
    frames = film_frames(size)
    with tempfile.TemporaryDirectory(prefix="montage-encoder-") as folder:
        out = Path(folder) / f"test{ready.container.suffix}"
        command = [
            ffmpeg_program(), "-hide_banner", "-nostdin", "-loglevel", "error", "-y",
            *ready.device_flags,
            "-f", "rawvideo", "-pix_fmt", "yuv420p", "-s", f"{size[0]}x{size[1]}", "-r", str(FPS),
            "-color_range", "tv", "-i", "pipe:0",
            "-vf", ",".join([_TAGGED, *encoder_filters(ready, bit_depth)]),
            *encode_output(ready, QUALITY, FPS, size, FRAMES, out, bit_depth),
        ]  # fmt: skip
        fault = run_apart(command, b"".join(_as_yuv420p(luma) for luma in frames), time_limit_s).fault
        return fault or _fault_of_stream(ready, out, frames, size)


_TAGGED = "setparams=color_primaries=bt709:color_trc=bt709:colorspace=bt709:range=tv,setsar=1"


@dataclass(frozen=True)
class ApartRun:
    """How a program's run ended. `fault` says what went wrong, None when nothing did."""

    fault: str | None
    output: bytes = b""
    log: bytes = b""


def run_apart(command: Sequence[str], given: bytes, time_limit_s: float) -> ApartRun:
    """Run a program that may crash or hang in a driver, in a process group of its own."""
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        output, said = process.communicate(given, timeout=time_limit_s)
    except subprocess.TimeoutExpired:
        _kill_group(process)
        return ApartRun(f"{_HANGS} within {time_limit_s:g} s and was stopped")
    except BaseException:
        _kill_group(process)
        raise
    if process.returncode < 0:
        return ApartRun(f"crashed ({_signal_name(-process.returncode)})", output, said)
    if process.returncode > 0:
        return ApartRun(f"failed: {telling_line(said.decode('utf-8', 'replace'))}", output, said)
    return ApartRun(None, output, said)


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill, and wait only a while: a process stuck in a driver cannot be killed, and is left behind."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_KILL_LIMIT_S)
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


_SECONDARY = re.compile(
    r"Error while opening encoder|Error sending frames|Task finished|Terminating thread|Could not open encoder"
    r"|Nothing was written|Error reinitializing|Error parsing|Failed to set value|Device creation failed"
    r"|Conversion failed|^\s|^Link |^Failed to create\s+hardware device context"
    r"|Error initializing (a simple )?filtergraph|broken pipe"
    r"|^Error (opening|muxing|writing|submitting)|Error during muxing|can't configure encoder",
    re.IGNORECASE,
)


def telling_line(log: str) -> str:
    """The line of ffmpeg's log that names the cause: the first that does not merely pass a failure on."""
    said = [line for line in log.splitlines() if line.strip() and "[info]" not in line]
    lines = [re.sub(r"^(\[[^]]*\]\s*)+", "", line).rstrip() for line in said]
    first_hand = [line for line in lines if line and not _SECONDARY.search(line)]
    return (first_hand or lines or ["ffmpeg gave no reason"])[0][:200]


def _fault_of_stream(
    ready: ReadyEncoder, path: Path, frames: Sequence[NDArray[np.uint8]], size: tuple[int, int]
) -> str | None:
    import av

    try:
        with av.open(str(path), format=ready.container.format) as container:
            packets = [packet for packet in container.demux(video=0) if packet.size]
            fault = _fault_of_packets(packets, ready.encoder.codec)
        with av.open(str(path), format=ready.container.format) as container:
            decoded = list(container.decode(video=0))
    except (av.FFmpegError, IndexError, OSError, ValueError) as error:
        return f"gave a stream that cannot be decoded ({error})"
    if not packets:
        return "gave an empty stream"
    if len(decoded) != len(frames):
        return f"gave {len(decoded)} frames instead of {len(frames)}"
    shown = (decoded[0].width, decoded[0].height)
    if shown != size:
        return f"gave pictures of {shown[0]}x{shown[1]} instead of {size[0]}x{size[1]}"
    if any(_luma_error(frame, luma) > _MOST_LUMA_ERROR for frame, luma in zip(decoded, frames, strict=True)):
        return "gave pictures that are not those it was given"
    first = decoded[0]
    if (first.color_primaries, first.color_trc, first.colorspace, first.color_range) != _BT709_TV:
        return "gave a stream that does not name its colours (BT.709, TV range)"
    return fault


_BT709_TV = (1, 1, 1, 1)


def _fault_of_packets(packets: Sequence[Packet[VideoStream]], codec: Codec) -> str | None:
    keys = [place for place, packet in enumerate(packets) if packet.is_keyframe]
    if keys[:1] != [0]:
        return "gave a stream that does not start with a keyframe"
    for key in keys:
        if not _is_idr(bytes(packets[key]), codec):
            return f"began the GOP at frame {key} without an IDR picture"
        before = [packet.pts for packet in packets[:key] if packet.pts is not None]
        after = [packet.pts for packet in packets[key:] if packet.pts is not None]
        if before and max(before) >= min(after):
            return f"left the GOP before frame {key} open"
    longest = max(later - earlier for earlier, later in zip(keys, [*keys[1:], len(packets)], strict=True))
    if longest > gop_frames(FPS):
        return f"set no keyframe for {longest} frames, though it was told to every {gop_frames(FPS)}"
    return None


def _is_idr(packet: bytes, codec: Codec) -> bool:
    """Whether an Annex B packet holds an IDR slice; AV1's keyframes always start anew."""
    if codec == "av1":
        return True
    kinds = [packet[match.end()] for match in re.finditer(rb"\x00\x00\x01", packet) if match.end() < len(packet)]
    if codec == "h264":
        return any(kind & 0x1F == 5 for kind in kinds)
    return any((kind >> 1) & 0x3F in (19, 20) for kind in kinds)


def film_frames(size: tuple[int, int]) -> list[NDArray[np.uint8]]:
    """Luma of the test film, shape (height, width) each: a slope that moves, and a light bar that tells the frame."""
    import numpy as np

    width, height = size
    rows, columns = np.mgrid[0:height, 0:width]
    frames = []
    for number in range(FRAMES):
        luma = 60 + 60 * np.sin((columns + rows + 40 * number) * (2 * np.pi / 256))
        left = width * number // FRAMES
        luma[height // 4 : 3 * height // 4, left : left + width // FRAMES] = 220
        frames.append(np.clip(luma, 16, 235).astype(np.uint8))
    return frames


def _as_yuv420p(luma: NDArray[np.uint8]) -> bytes:
    height, width = luma.shape
    grey = b"\x80" * (2 * ((width + 1) // 2) * ((height + 1) // 2))
    return b"".join([luma.tobytes(), grey])


def _luma_error(frame: VideoFrame, given: NDArray[np.uint8]) -> float:
    """Mean absolute difference, in steps of 8-bit luma."""
    import numpy as np

    bits = frame.format.components[0].bits
    dtype: type[np.uint16 | np.uint8] = np.uint16 if bits > 8 else np.uint8
    rows = np.frombuffer(memoryview(frame.planes[0]), dtype).reshape(frame.height, -1)
    luma = rows[:, : frame.width].astype(np.int16) >> (bits - 8)
    return float(np.abs(luma - given.astype(np.int16)).mean())
