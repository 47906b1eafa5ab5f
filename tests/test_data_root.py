"""The data root: atomic writes, honest listings, the same on a folder and on S3."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from montage_assets.data_root import DataRoot
from montage_assets.media.render import MOST_SHOTS
from tests.s3_server import S3Server


@pytest.fixture(params=["folder", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataRoot:
    if request.param == "folder":
        return DataRoot(str(tmp_path / "data"))
    server: S3Server = request.getfixturevalue("s3_server")
    server.use(monkeypatch)
    return DataRoot(server.new_root(), cache=tmp_path / "cache", cache_bytes=1000)


def test_what_is_written_is_read_back(root: DataRoot) -> None:
    root.write_bytes("work/a b/result.json", b"{}")
    assert root.exists("work/a b/result.json")
    assert root.read_bytes("work/a b/result.json") == b"{}"
    assert root.local_file("work/a b/result.json").read_bytes() == b"{}"
    with root.open("work/a b/result.json") as stream:
        assert stream.read(1) == b"{"


def test_a_failed_write_leaves_nothing_behind(root: DataRoot) -> None:
    root.write_bytes("work/film.mp4", b"old")
    with pytest.raises(ZeroDivisionError), root.writing("work/film.mp4") as path:
        path.write_bytes(b"%d" % (1 // 0))
    assert root.read_bytes("work/film.mp4") == b"old"
    assert [file.name for file in root.list_files("work")] == ["film.mp4"]


def test_listings_are_sorted_and_leave_hidden_files_out(root: DataRoot) -> None:
    for name in ("b.mp4", "a.mp4", "sub/c.mp4", ".hidden", "sub/.x.partial.mp4"):
        root.write_bytes(f"input/m/{name}", b"123")
    assert [file.name for file in root.list_files("input/m")] == ["a.mp4", "b.mp4", "sub/c.mp4"]
    assert [file.name for file in root.list_files("input/m", recursive=False)] == ["a.mp4", "b.mp4"]
    assert [file.size for file in root.list_files("input/m")] == [3, 3, 3]
    assert root.list_folders("input") == ["m"]
    assert root.folder_exists("input/m")
    assert not root.folder_exists("input/n")
    assert root.list_folders("nothing") == []


def test_a_changed_file_has_another_version(root: DataRoot) -> None:
    root.write_bytes("input/a.mp4", b"123")
    before = root.list_files("input")[0].version
    root.write_bytes("input/a.mp4", b"124")
    assert root.list_files("input")[0].version != before
    assert root.local_file("input/a.mp4").read_bytes() == b"124"


def test_files_outside_the_root_are_read_by_their_path(root: DataRoot, tmp_path: Path) -> None:
    outside = tmp_path / "outside" / "clip.mp4"
    outside.parent.mkdir()
    outside.write_bytes(b"clip")
    assert root.exists(str(outside))
    assert root.local_file(str(outside)) == outside
    assert [file.name for file in root.list_files(str(outside.parent))] == ["clip.mp4"]


def test_a_removed_file_is_gone(root: DataRoot) -> None:
    root.write_bytes("work/a", b"1")
    root.remove("work/a")
    root.remove("work/a")
    assert not root.exists("work/a")


def test_what_a_killed_writer_left_goes_after_a_day_and_nothing_else(tmp_path: Path) -> None:
    root, now = DataRoot(str(tmp_path)), time.time()
    root.write_bytes("work/film.partial.mp4", b"a user's name for a file")
    with root.writing("work/proxies/a.mp4") as abandoned, root.writing("work/proxies/b.mp4") as growing:
        for path in (abandoned, growing):
            path.write_bytes(b"half")
        for path in (abandoned, tmp_path / "work" / "film.partial.mp4"):
            os.utime(path, (now - 2 * 86400, now - 2 * 86400))
        assert root.remove_unfinished("work") == 1
        assert (abandoned.exists(), growing.exists()) == (False, True)
        abandoned.touch()
    assert root.exists("work/film.partial.mp4")
    assert DataRoot(str(tmp_path / "new")).remove_unfinished("work") == 0


def test_the_cache_of_a_remote_root_stays_within_its_bound(
    s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3_server.use(monkeypatch)
    cache, url = tmp_path / "cache", s3_server.new_root()
    for number in range(6):
        step = DataRoot(url, cache=cache, cache_bytes=1000)
        step.write_bytes(f"work/{number}", bytes([number]) * 400)
        assert step.local_file(f"work/{number}").read_bytes() == bytes([number]) * 400
        assert sum(path.stat().st_size for path in cache.iterdir() if path.name[0] != ".") <= 1000
        del step


def test_the_sources_of_one_step_stay_until_it_has_them_all(
    s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3_server.use(monkeypatch)
    root = DataRoot(s3_server.new_root(), cache=tmp_path / "cache", cache_bytes=1000)
    for number in range(MOST_SHOTS):
        root.write_bytes(f"work/{number}", bytes([number]) * 400)
    sources = [root.local_file(f"work/{number}") for number in range(MOST_SHOTS)]
    assert [path.read_bytes() for path in sources] == [bytes([number]) * 400 for number in range(MOST_SHOTS)]


def test_a_file_that_vanishes_while_a_folder_is_listed_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = DataRoot(str(tmp_path))
    for name in ("a.mp4", "gone.mp4", "sub/b.mp4", "sub-gone/c.mp4"):
        root.write_bytes(f"input/{name}", b"123")
    (tmp_path / "input" / "nowhere.mp4").symlink_to(tmp_path / "nothing")
    (tmp_path / "input" / "round.mp4").symlink_to(tmp_path / "input" / "round.mp4")
    walk = os.walk

    def walk_while_another_removes(top: Path, **options: Any) -> Iterator[tuple[str, list[str], list[str]]]:
        for parent, folders, names in walk(top, **options):
            if Path(parent) == top:
                (top / "gone.mp4").unlink()
                shutil.rmtree(top / "sub-gone")
            yield parent, folders, names

    monkeypatch.setattr(os, "walk", walk_while_another_removes)
    assert [file.name for file in root.list_files("input")] == ["a.mp4", "sub/b.mp4"]


def test_a_folder_that_cannot_be_read_is_not_an_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = DataRoot(str(tmp_path))
    root.write_bytes("input/locked/a.mp4", b"123")

    def refuse(path: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)  # rights hold nobody back who tests as root
    with pytest.raises(PermissionError):
        root.list_files("input")
