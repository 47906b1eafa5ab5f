"""Records come back as they were, and a run reads what it made itself."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import dagster as dg
import pytest

from montage_assets.data_root import DataRoot
from montage_assets.io import JsonRecords, dump_record, load_record, read_record
from montage_assets.media.beat_analysis import Section
from montage_assets.media.clip import LeftOut
from montage_assets.media.edit_list import EditList, EditMusic, Shot
from montage_assets.partitions import montage_partitions

EDIT = EditList(
    fps=Fraction(24000, 1001),
    width=1920,
    height=1080,
    frames=48,
    seed=3,
    music=EditMusic("söng.mp3", 1.5, [0.0, 0.5], [0.0], 120.0),
    shots=[Shot(0, "a.mp4", 1 / 3, 8, 0, 48, 0.0, 0.5, {"motion": 0.25})],
    left_out=[LeftOut("b.mp4", "is empty (0 bytes)")],
)


def test_a_record_comes_back_exactly_as_it_was() -> None:
    assert load_record(dump_record(EDIT)) == EDIT


def test_records_are_json_that_a_person_can_read() -> None:
    text = dump_record(EDIT).decode()
    assert '"fps": "24000/1001"' in text
    assert '"record": "montage_assets.media.edit_list:EditList"' in text


@pytest.mark.parametrize("name", ["os:system", "montage_assets.io:dump_record", "subprocess:Popen"])
def test_only_records_of_this_package_are_loaded(name: str) -> None:
    with pytest.raises(ValueError, match="is no record"):
        load_record(b'{"record": "%s"}' % name.encode())


def test_a_record_of_another_kind_is_refused(tmp_path: Path) -> None:
    root = DataRoot(str(tmp_path))
    root.write_bytes("a.json", dump_record(LeftOut("a", "b")))
    with pytest.raises(ValueError, match="holds a LeftOut, not a Section"):
        read_record(root, "a.json", Section)


def test_a_run_reads_its_own_records_while_another_makes_the_same_montage(tmp_path: Path) -> None:
    root = DataRoot(str(tmp_path))
    read: list[str] = []

    @dg.asset(partitions_def=montage_partitions)
    def first() -> LeftOut:
        return LeftOut("mine", "")

    @dg.asset(partitions_def=montage_partitions)
    def second(first: LeftOut) -> None:
        read.append(first.clip)

    @dg.asset(partitions_def=montage_partitions, deps=[first])
    def another_run() -> None:
        root.write_bytes("work/montages/m/first.json", dump_record(LeftOut("theirs", "")))

    manager = dg.IOManagerDefinition.hardcoded_io_manager(JsonRecords(root))
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("montage", ["m"])

        def run(*assets: dg.AssetsDefinition) -> None:
            dg.materialize([first, second, another_run], selection=list(assets), partition_key="m",
                           instance=instance, resources={"io_manager": manager})  # fmt: skip

        run(first, another_run, second)
        run(second)
    assert read == ["mine", "theirs"]
