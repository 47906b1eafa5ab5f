"""Which montages there are, and which folder is whose."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from montage_assets.data_root import DataRoot
from montage_assets.media.errors import MediaError
from montage_assets.partitions import folder_of, montages_in, names_in, no_such_montage, unfit_as_key


@pytest.fixture
def root(tmp_path: Path) -> DataRoot:
    return DataRoot(str(tmp_path))


def test_every_folder_is_a_montage(root: DataRoot) -> None:
    root.write_bytes("input/holiday/a.mp4", b"1")
    root.write_bytes("input/notes.txt", b"1")
    assert montages_in(root) == ["holiday"]
    assert folder_of(root, "holiday") == "input/holiday"


def test_loose_media_is_the_montage_default(root: DataRoot) -> None:
    root.write_bytes("input/a.mp4", b"1")
    assert montages_in(root) == ["default"]
    assert folder_of(root, "default") == "input"


def test_a_folder_named_default_is_one_like_any_other_without_loose_media(root: DataRoot) -> None:
    root.write_bytes("input/default/a.mp4", b"1")
    root.write_bytes("input/montage.yaml", b"pace: fast")
    assert montages_in(root) == ["default"]
    assert folder_of(root, "default") == "input/default"


def test_a_folder_named_default_beside_loose_media_is_refused(root: DataRoot) -> None:
    root.write_bytes("input/default/a.mp4", b"1")
    root.write_bytes("input/b.mp4", b"1")
    root.write_bytes("input/holiday/c.mp4", b"1")
    assert montages_in(root) == ["default", "holiday"]
    assert folder_of(root, "holiday") == "input/holiday"
    with pytest.raises(MediaError, match="rename the folder, or move the loose files into it") as refused:
        folder_of(root, "default")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["a...b", "a\nb", "a\x1b", os.fsdecode(b"caf\xe9")])
def test_a_name_that_cannot_be_a_partition_key_is_no_montage(root: DataRoot, tmp_path: Path, name: str) -> None:
    (tmp_path / "input" / name).mkdir(parents=True)
    (tmp_path / "input" / "café · 夏").mkdir()
    assert montages_in(root) == ["café · 夏"]
    assert sorted(names_in(root)) == sorted([name, "café · 夏"])
    assert (unfit_as_key(name) or "").endswith("rename the folder")
    no_such_montage(name, montages_in(root), root).encode()
