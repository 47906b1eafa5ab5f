"""The film's checks as Dagster asset checks; all in one step, since one decoding of the film serves all.

Belongs here: reporting the verdicts of `media.film_check`. A check is blocking (an error that fails the run)
where the film would be wrong, and a warning where it would only be less good.
"""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import dagster as dg

from montage_assets import layout
from montage_assets.assets.common import RETRIES, data_root, task_tags
from montage_assets.assets.montage import Film
from montage_assets.data_root import DataRoot
from montage_assets.failures import plain_failures
from montage_assets.io import dump_record, read_record
from montage_assets.media import edit_list as edit_lists
from montage_assets.media import film_check
from montage_assets.media.film_check import CheckResult
from montage_assets.media.fingerprint import quick_fingerprint_of, result_key
from montage_assets.progress import FrameCounter

MONTAGE = dg.AssetKey("montage")
CHECKS = {
    "frame_count": "The film has exactly the frames of its edit list.",
    "even_timestamps": "Its frames are strictly evenly spaced.",
    "decodes_cleanly": "It decodes from start to end without a message.",
    "sound_ends_with_picture": "Picture and sound end within one frame.",
    "cuts_on_beats": "Every cut lies within half a frame of its beat.",
    "cuts_visible": "The picture changes where the edit list cuts.",
    "loudness": "Its loudness is at the target, its true peak below -1 dBTP.",
    "no_black_shot": "No shot is black.",
    "no_duplicate_shot": "No shot shows the same pictures as another.",
}


@dataclass(frozen=True)
class Verdict:
    """What the checks found out about one film."""

    results: list[CheckResult]

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong with the film; advice does not count."""
        return all(result.passed or result.name in film_check.ADVISORY for result in self.results)


@dg.multi_asset_check(
    name="film_checks",
    specs=[
        dg.AssetCheckSpec(
            name,
            asset=MONTAGE,
            description=text,
            blocking=name not in film_check.ADVISORY,
        )
        for name, text in CHECKS.items()
    ],
    op_tags=task_tags("metadata"),
    retry_policy=RETRIES,
)
def film_checks(context: dg.AssetCheckExecutionContext, montage: Film) -> Iterator[dg.AssetCheckResult]:
    """Check the finished film against its edit list."""
    with plain_failures():
        verdict = verdict_on(data_root(), montage, context.log.info)
    for result in verdict.results:
        yield _as_asset_check(result)


def verdict_on(root: DataRoot, film: Film, log: Callable[[str], None]) -> Verdict:
    """The stored verdict on this very film, else a new one, which is stored if the film passes.

    The file itself is part of the key: a film may have been replaced behind the program's back.
    """
    key = result_key(made_of=film.made_of, file=_quick_fingerprint(root, film), algorithm=film_check.ALGORITHM)
    stored = layout.result("checks", key, ".json")
    if root.exists(stored):
        return read_record(root, stored, Verdict)
    edit = edit_lists.from_json(root.read_bytes(film.edit_list).decode())
    counter = FrameCounter(log, "checking the film", film.frames)
    results = film_check.check_film(
        root.local_file(film.film),
        edit,
        on_progress=lambda progress: counter(progress.frames),
    )
    verdict = Verdict(results)
    if verdict.passed:
        root.write_bytes(stored, dump_record(verdict))
    return verdict


def _quick_fingerprint(root: DataRoot, film: Film) -> str:
    with root.open(film.film) as stream:
        size_bytes = stream.seek(0, io.SEEK_END)
        return quick_fingerprint_of(stream, size_bytes)


def _as_asset_check(result: CheckResult) -> dg.AssetCheckResult:
    severity = dg.AssetCheckSeverity.WARN if result.name in film_check.ADVISORY else dg.AssetCheckSeverity.ERROR
    return dg.AssetCheckResult(
        asset_key=MONTAGE,
        check_name=result.name,
        passed=result.passed,
        severity=severity,
        description=result.detail,
        metadata={name: float(value) for name, value in result.values.items()},
    )
