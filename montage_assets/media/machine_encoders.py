"""The video encoders of the machine this runs on: tested, measured, chosen, and left alone once they fail in a run.

Belongs here: bringing devices, test encodes, measurements and the router's decision together, and the memory of
failures in a run. Does not belong here: any of these themselves.

Who decides. The step that plans a film cannot know the devices of the worker that encodes a segment; so the worker
decides, by its own test encodes and its own environment. The plan names the codec, the level and, if the user asked
for one, the encoder; a segment's report names the encoder that was used. The edit depends on none of this.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from montage_assets.media.calibration import MeasuredStore, Measurement, TestFilm, measure
from montage_assets.media.encoder_devices import Host, devices_of, driver_identity, families_in_order, seems_present
from montage_assets.media.encoder_probe import TEST_SIZE, ProbeResult, ProbeStore, probe
from montage_assets.media.encoder_router import Candidate, Choice, LeftOut, Need, Wish, choose, worth_trying
from montage_assets.media.encoder_table import ENCODERS, FAMILIES, HARDWARE_FAMILIES, Encoder, Quality
from montage_assets.media.encoders import ReadyEncoder, software_encoder
from montage_assets.media.errors import FfmpegFailed

MOST_FAILURES = 3
"""In one run on one machine; then an encoder is left alone. One that hangs is left alone at once."""
_RUNS_KEPT_S = 7 * 86400.0


@dataclass(frozen=True)
class EncoderState:
    """One encoder on one device (or none), as a machine's table shows it; `bit_depths` are those it was tested with."""

    encoder: Encoder
    device: str
    works: bool
    reason: str
    bit_depths: tuple[int, ...]
    measured: Measurement | None = None


@dataclass(frozen=True)
class Routing:
    """Encoders to try in this order, software last, and what to tell the user (empty: nothing)."""

    encoders: tuple[ReadyEncoder, ...]
    note: str


class MachineEncoders:
    """The encoders of a machine. `folder` keeps results of tests and measurements; None keeps them in this process.

    `variables` are those of the environment that drivers heed.
    """

    def __init__(
        self, folder: Path | None = None, variables: Sequence[tuple[str, str]] = (), host: Host | None = None
    ) -> None:
        self.host = host or Host()
        driver = driver_identity(self.host, variables)
        self.probes = ProbeStore(folder, driver)
        self.measured = MeasuredStore(folder, driver)

    def routing(self, need: Need, wish: Wish, turn: int = 0, left_alone: Sequence[str] = ()) -> Routing:
        """Which encoders a segment is to be given to. `turn` spreads segments over devices of one kind.

        `left_alone` are labels (`label_of`) of those that failed too often in this run; see `RunMemory`.
        """
        choice = self.choice(need, wish)
        ready = [self._ready(candidate, need.quality) for candidate in choice.order]
        ready = [one for one in _taking_turns(ready, turn) if one.on_cpu or label_of(one) not in left_alone]
        return Routing(tuple(ready), choice.note)

    def choice(self, need: Need, wish: Wish) -> Choice:
        """The router's decision on this machine's test encodes and measurements."""
        present = [family for family in HARDWARE_FAMILIES if seems_present(family, self.host)]
        trying, left_out = worth_trying(need, wish, present)
        tried: list[Candidate] = []
        for encoder in trying:
            devices = devices_of(encoder.family, self.host)
            if not devices:
                left_out.append(LeftOut(encoder.name, no_device(encoder)))
            tried += [self._tested(encoder, device, need) for device in devices]
        # Without hardware there is nothing to compare, and no ffmpeg to ask for its build.
        software = self.measured.get(software_encoder(need.codec).name, "", need.quality) if tried else None
        families = families_in_order(self.host)
        return choose(need, wish, tried, left_out, families, software.fps if software else None)

    def states(self, quality: Quality, fresh: bool = False) -> Iterator[EncoderState]:
        """Every encoder of the table on every device it may have here, tested; measurements of before only.

        What failed before is tested again, `fresh` tests everything again.
        """
        for encoder in ENCODERS:
            devices = devices_of(encoder.family, self.host)
            if not devices:
                yield EncoderState(encoder, "", False, no_device(encoder), ())
            for device in devices:
                yield self._state(encoder, device, quality, fresh)

    def measure(self, state: EncoderState, quality: Quality, film: TestFilm) -> Measurement:
        """Measure a working encoder at its present number and keep the result. Raises FfmpegFailed."""
        found = measure(self.ready(state.encoder, state.device), quality, film)
        self.measured.put(found)
        return found

    def ready(self, encoder: Encoder, device: str) -> ReadyEncoder:
        """An encoder as it is run here, with the numbers that were calibrated for it, if any were."""
        known = self.probes.get(encoder, device, TEST_SIZE, 8)
        numbers = dict(encoder.numbers)
        if encoder.family != "cpu":
            for quality in encoder.quality:
                found = self.measured.get(encoder.name, device, quality)
                numbers[quality] = found.number if found else numbers[quality]
        return ReadyEncoder(encoder, device, known.b_frames if known else encoder.b_frames[-1], numbers)

    def _ready(self, candidate: Candidate, quality: Quality) -> ReadyEncoder:
        ready = self.ready(candidate.encoder, candidate.device)
        return ReadyEncoder(ready.encoder, ready.device, candidate.b_frames, ready.numbers)

    def _state(self, encoder: Encoder, device: str, quality: Quality, fresh: bool) -> EncoderState:
        first = self._tested_again(encoder, device, 8, fresh)
        others = [depth for depth in encoder.depths if depth != 8] if first.works else []
        depths = [depth for depth in others if self._tested_again(encoder, device, depth, fresh).works]
        works = first.works
        measured = self.measured.get(encoder.name, device, quality) if works and not fresh else None
        return EncoderState(encoder, device, works, first.reason, (8, *depths) if works else (), measured)

    def _tested_again(self, encoder: Encoder, device: str, bit_depth: int, fresh: bool) -> ProbeResult:
        known = self.probes.get(encoder, device, TEST_SIZE, bit_depth)
        if known is not None and known.works and not fresh:
            return known
        result = probe(encoder, device, bit_depth=bit_depth)
        self.probes.put(encoder, result)
        return result

    def _tested(self, encoder: Encoder, device: str, need: Need) -> Candidate:
        """Sizes below the test's may fail on sound hardware, and so prove nothing alone: they are tested as well."""
        film = (need.width, need.height)
        is_small = film[0] < TEST_SIZE[0] or film[1] < TEST_SIZE[1]
        b_frames = encoder.b_frames[-1]
        for size in [TEST_SIZE, film] if is_small else [film]:
            found = probe(encoder, device, size, need.bit_depth, self.probes)
            if not found.works:
                at = f" (at {size[0]}x{size[1]})" if size != TEST_SIZE else ""
                return Candidate(encoder, device, False, found.reason + at)
            b_frames = found.b_frames
        measured = self.measured.get(encoder.name, device, need.quality)
        return Candidate(encoder, device, True, "", b_frames, measured.fps if measured else None)


def label_of(ready: ReadyEncoder) -> str:
    """`h264_vaapi on /dev/dri/renderD128`; only the encoder where there is no device to name."""
    return f"{ready.name} on {ready.device}" if ready.device else ready.name


def no_device(encoder: Encoder) -> str:
    """Why an encoder without any device cannot be tested."""
    return {
        "render node": "there is no render node in /dev/dri",
        "intel render node": "there is no Intel render node in /dev/dri",
    }.get(FAMILIES[encoder.family].devices, "there is no device of its kind")


def _taking_turns(ready: Sequence[ReadyEncoder], turn: int) -> list[ReadyEncoder]:
    """The same encoders, but devices of one encoder in another order each turn."""
    ordered: list[ReadyEncoder] = []
    for name in dict.fromkeys(one.name for one in ready):
        devices = [one for one in ready if one.name == name]
        first = turn % len(devices)
        ordered += devices[first:] + devices[:first]
    return ordered


class RunMemory:
    """What happened to encoders in one run on this machine, shared by its processes through small files in `folder`.

    `folder` None remembers nothing: each segment then tries and tells for itself.
    """

    def __init__(self, folder: Path | None, run: str) -> None:
        self._folder = None if folder is None else folder / "runs" / re.sub(r"\W+", "-", run)

    def left_alone(self) -> list[str]:
        """Labels of the encoders that failed too often, or hung."""
        if self._folder is None:
            return []
        labels: list[str] = []
        for path in self._folder.glob("*.failures"):
            with contextlib.suppress(OSError):
                failures = path.read_text().splitlines()
                labels += failures[:1] if len(failures) >= MOST_FAILURES else []
        return labels

    def note_failure(self, ready: ReadyEncoder, failure: FfmpegFailed, log: Callable[[str], None]) -> None:
        """Remember a failure; `log` is told of the first one of each encoder in the run."""
        label = label_of(ready)
        self.tell_once(label, f"{label} failed, the next encoder takes over: {failure}", log)
        if self._folder is not None:
            line = f"{label}\n" * (MOST_FAILURES if failure.hung else 1)
            with contextlib.suppress(OSError), (self._folder / f"{_file_name(label)}.failures").open("a") as noted:
                noted.write(line)

    def tell_once(self, subject: str, message: str, log: Callable[[str], None]) -> None:
        """Log a message unless another process of this machine told the same subject in this run."""
        if self._folder is not None:
            try:
                self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                (self._folder / f"{_file_name(subject)}.told").touch(exist_ok=False)
                _forget_old(self._folder.parent)
            except FileExistsError:
                return
            except OSError:  # a folder that cannot be written to must not stop the film
                pass
        log(message)


def _file_name(text: str) -> str:
    return re.sub(r"\W+", "-", text)[:80]


def _forget_old(folder: Path) -> None:
    """Remove what runs of more than a week ago left."""
    for run in folder.iterdir():
        with contextlib.suppress(OSError):
            if time.time() - run.stat().st_mtime > _RUNS_KEPT_S:
                for path in run.iterdir():
                    path.unlink(missing_ok=True)
                run.rmdir()
