"""How fast the nodes really were: what steps measured, kept on the data root, and read again by later runs.

Belongs here: storing and reading the rows. Does not belong here: what follows from them (`distribution`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from montage_assets import layout
from montage_assets.cluster.distribution import measured_speeds
from montage_assets.cluster.tasks import WORKS, Work
from montage_assets.data_root import DataRoot

RUNS_READ = 20
"""Nodes change; so many of the last runs tell how fast they are now."""

_FOLDER = f"{layout.WORK}/measured"


@dataclass(frozen=True)
class Measurement:
    """One step's work: where, how much (in any unit that is the same for all work of this kind), how long."""

    node: str
    cost: float
    seconds: float


def keep_measurements(root: DataRoot, work: Work, run_id: str, rows: Sequence[Measurement]) -> None:
    """Store what the steps of one run measured. Work so short that starting it counts for most tells nothing."""
    told = [asdict(row) for row in rows if row.seconds >= 1]
    if told:
        root.write_bytes(f"{_FOLDER}/{work}/{run_id}.json", json.dumps(told, indent=1).encode())


def speeds_on(root: DataRoot) -> Mapping[Work, Mapping[str, float]]:
    """Per kind of work the speed of each node that took part in one of the last runs, in units of its own."""
    return {work: measured_speeds(_rows(root, work)) for work in WORKS}


def _rows(root: DataRoot, work: Work) -> list[dict[str, object]]:
    folder = f"{_FOLDER}/{work}"
    if not root.folder_exists(folder):
        return []
    newest = sorted(root.list_files(folder, recursive=False), key=lambda file: _written(file.version))[-RUNS_READ:]
    rows: list[dict[str, object]] = []
    for file in newest:
        rows.extend(json.loads(root.read_bytes(f"{folder}/{file.name}")))
    return rows


def _written(version: str) -> str:
    """The time part of a stored file's version; for a bucket's, whose tags have no order, any order will do."""
    return version.partition("-")[2].rjust(24, "0")
