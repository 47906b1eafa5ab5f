"""The cache of a bucket's files: its bound, what is in use, and several processes at once."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from montage_assets.file_cache import KEPT_IN_USE, FileCache


def name_of(number: int) -> str:
    return f"{number:024x}.mp4"


def writes(size: int) -> Callable[[Path], int]:
    return lambda path: path.write_bytes(b"x" * size)


def get(cache: FileCache, *numbers: int, size: int = 400) -> list[Path]:
    return [cache.get(name_of(number), size, writes(size)) for number in numbers]


def kept(folder: Path) -> list[int]:
    return sorted(int(path.stem, 16) for path in folder.glob("*.mp4") if not path.name.startswith("."))


def test_what_was_used_longest_ago_goes_first(tmp_path: Path) -> None:
    for number in (1, 2, 1, 3):
        get(FileCache(tmp_path, 1000), number)
    assert kept(tmp_path) == [1, 3]


def test_a_copy_is_fetched_once(tmp_path: Path) -> None:
    (path,) = get(FileCache(tmp_path, 1000), 1)
    assert FileCache(tmp_path, 1000).get(name_of(1), 400, lambda _: pytest.fail("fetched again")) == path


def test_the_bound_gives_way_to_what_is_in_use_and_no_further(tmp_path: Path) -> None:
    cache = FileCache(tmp_path, 1000)
    get(cache, *range(KEPT_IN_USE + 8))
    assert kept(tmp_path) == list(range(8, KEPT_IN_USE + 8))
    del cache
    get(FileCache(tmp_path, 1000), 100)
    assert kept(tmp_path) == [KEPT_IN_USE + 7, 100]


def test_a_copy_asked_for_often_pushes_no_other_out(tmp_path: Path) -> None:
    cache = FileCache(tmp_path, 1000)
    get(cache, 1, *[2] * 2 * KEPT_IN_USE, 3, 4)
    get(FileCache(tmp_path, 1000), 5)
    assert kept(tmp_path) == [1, 2, 3, 4, 5]
    del cache


def test_a_failed_fetch_leaves_nothing(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise FileNotFoundError(path)

    with pytest.raises(FileNotFoundError):
        FileCache(tmp_path, 1000).get(name_of(1), 400, fail)
    assert not list(tmp_path.glob("*.mp4")) + list(tmp_path.glob(".*.partial"))


def test_a_folder_s_other_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "holiday.mp4").write_bytes(b"x" * 5000)
    (tmp_path / "folder").mkdir()
    get(FileCache(tmp_path, 1000), 1)
    get(FileCache(tmp_path, 1000), 2)
    get(FileCache(tmp_path, 1000), 3)
    assert (tmp_path / "holiday.mp4").stat().st_size == 5000
    assert len(list(tmp_path.glob("0*.mp4"))) == 2


def test_a_copy_fetched_by_another_meanwhile_makes_no_trouble(tmp_path: Path) -> None:
    first, second = FileCache(tmp_path, 1000), FileCache(tmp_path, 1000)

    def fetch_while_another_does(path: Path) -> None:
        path.write_bytes(b"y" * 400)
        get(second, 1, 2, 3)

    assert first.get(name_of(1), 400, fetch_while_another_does).stat().st_size == 400
    assert kept(tmp_path) == [1, 2, 3]


OTHER_PROCESS = """
import sys, time
from pathlib import Path
from montage_assets.file_cache import FileCache
cache = FileCache(Path(sys.argv[1]), 1000)
for number in (1, 2):
    cache.get(f"{number:024x}.mp4", 400, lambda path: path.write_bytes(b"x" * 400))
def fetch(path):
    path.write_bytes(b"x" * 100)
    print("fetching", flush=True)
    time.sleep(600)
cache.get(f"{3:024x}.mp4", 400, fetch)
"""


def test_what_another_process_uses_stays_until_it_is_dead(tmp_path: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", OTHER_PROCESS, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "fetching\n"
        get(FileCache(tmp_path, 1000), 4)
        get(FileCache(tmp_path, 1000), 5)
        assert kept(tmp_path) == [1, 2, 5]
        assert len(list(tmp_path.glob(".*.partial"))) == 1
    finally:
        other.send_signal(signal.SIGKILL)
        other.communicate()
    get(FileCache(tmp_path, 1000), 6)
    assert kept(tmp_path) == [5, 6]
    assert not list(tmp_path.glob(".*.partial"))
