"""What runs measured of the nodes is found again by later runs, and tells them how to share out the work."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from montage_assets.assets.rendered_segments import SegmentReport, encoding_measured
from montage_assets.cluster.measured import RUNS_READ, Measurement, keep_measurements, speeds_on
from montage_assets.cluster.placement import encoding_speeds
from montage_assets.cluster.tasks import TaskType
from montage_assets.data_root import DataRoot
from tests.cluster.clusters import AMD, FULL_HD, Nodes, plan


@pytest.fixture
def root(tmp_path: Path) -> DataRoot:
    return DataRoot(str(tmp_path / "data"))


def test_nothing_measured_is_no_speed(root: DataRoot) -> None:
    assert not any(speeds_on(root).values())


def test_each_kind_of_work_has_speeds_of_its_own(root: DataRoot) -> None:
    keep_measurements(root, "analyze", "a", [Measurement("desk", 100.0, 2.0), Measurement("attic", 30.0, 3.0)])
    keep_measurements(root, "encode", "a", [Measurement("desk", 8.0, 4.0)])
    speeds = speeds_on(root)
    assert (speeds["analyze"], speeds["encode"]) == ({"desk": 50.0, "attic": 10.0}, {"desk": 2.0})


def test_work_of_less_than_a_second_tells_nothing(root: DataRoot) -> None:
    keep_measurements(root, "analyze", "a", [Measurement("desk", 100.0, 0.9)])
    assert not speeds_on(root)["analyze"]


def test_what_was_measured_long_ago_is_forgotten(root: DataRoot) -> None:
    for number in range(RUNS_READ + 1):
        keep_measurements(root, "analyze", f"run{number}", [Measurement("old" if number == 0 else "new", 9.0, 3.0)])
        file = Path(root.url) / "work" / "measured" / "analyze" / f"run{number}.json"
        os.utime(file, (number + 1, number + 1))
    assert set(speeds_on(root)["analyze"]) == {"new"}


def test_segments_tell_how_fast_nodes_encode_and_what_the_cloud_made_tells_nothing(root: DataRoot) -> None:
    slow_codec = [_segment("tower", 40, 2.0), _segment("desk", 10, 2.0), _segment("", 48, 0.1)]
    quick_codec = [_segment("tower", 800, 2.0), _segment("desk", 200, 2.0)]
    for run, segments in {"a": slow_codec, "b": quick_codec}.items():
        keep_measurements(root, "encode", run, encoding_measured(segments))
    assert speeds_on(root)["encode"] == pytest.approx({"tower": 1.6, "desk": 0.4})


def test_a_run_on_one_node_tells_nothing_of_how_it_compares() -> None:
    assert encoding_measured([_segment("tower", 40, 2.0), _segment("tower", 40, 2.5)]) == []


def test_a_node_that_encoded_slower_than_stated_gets_less_of_the_next_film(root: DataRoot) -> None:
    as_stated = encoding_speeds(Nodes(plan()), TaskType.GPU_ENCODING, FULL_HD)
    rows = [Measurement(node.name, 1000.0 if node.name == AMD else 1.0, 10.0) for node in plan()]
    keep_measurements(root, "encode", "a", rows)
    measured = encoding_speeds(Nodes(plan()), TaskType.GPU_ENCODING, FULL_HD, speeds_on(root))
    assert max(measured) / sum(measured) > 0.9 > max(as_stated) / sum(as_stated)


def _segment(node: str, frames: int, seconds: float) -> SegmentReport:
    return SegmentReport(0, "work/segments/a.ts", frames, "libx264", "", 1, seconds, seconds, node=node)
