"""Files go to the cloud machine and come back whole, or not at all."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from montage_assets.cloud import workspace as workspaces
from montage_assets.cloud.failures import CloudFailure, CloudFault
from montage_assets.cloud.workspace import Workspace, in_workspace, opened
from tests.cloud.conftest import Cloud


def some_bytes(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "files"
    folder.mkdir()
    sizes = {"empty": 0, "small.txt": 10, "large.bin": 300_000}
    for name, size in sizes.items():
        (folder / name).write_bytes(some_bytes(size))
    return [folder / name for name in sizes]


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspaces, "DOWNLOAD_CHUNK_BYTES", 120_000)


def copies(cloud: Cloud) -> list[str]:
    return [call[-1].rpartition("/")[2] for call in cloud.calls() if call[0] == "copy"]


@pytest.mark.usefixtures("small_chunks")
def test_files_come_back_as_they_were_sent_in_chunks(cloud: Cloud, files: list[Path], tmp_path: Path) -> None:
    told: list[tuple[str, int]] = []
    workspace = Workspace(cloud.client(), lambda what, size, seconds: told.append((what, size)), chunk_bytes=100_000)
    workspace.open()
    workspace.put(files, "things")
    for file in files:
        workspace.get(file.name, tmp_path / file.name)
        assert (tmp_path / file.name).read_bytes() == file.read_bytes()
    assert copies(cloud) == [f"part-{number:05d}" for number in range(4)]
    ((what, size),) = told
    assert what == "things"
    assert 300_010 <= size <= 320_000
    workspace.close()
    assert list(cloud.content.iterdir()) == []


def test_no_name_of_the_users_is_sent(cloud: Cloud, files: list[Path]) -> None:
    with opened(cloud.client()) as workspace:
        workspace.put(files, "things")
    for call in cloud.calls():
        assert "files" not in " ".join(call).replace("part-", "")
        assert "small.txt" not in " ".join(call)


def test_a_chunk_that_arrives_damaged_is_sent_again_alone(cloud: Cloud, files: list[Path], tmp_path: Path) -> None:
    cloud.behave("upload-damaged 3 3")
    workspace = Workspace(cloud.client(), chunk_bytes=100_000)
    workspace.open()
    workspace.put(files, "things")
    assert copies(cloud) == ["part-00000", "part-00001", "part-00002", "part-00003", "part-00001"]
    workspace.get("large.bin", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == files[2].read_bytes()


def test_damage_that_stays_fails_and_is_told_as_sent(cloud: Cloud, files: list[Path]) -> None:
    cloud.behave("upload-damaged 2")
    told: list[int] = []
    workspace = Workspace(cloud.client(), lambda what, size, seconds: told.append(size))
    workspace.open()
    with pytest.raises(CloudFailure) as failure:
        workspace.put(files, "things")
    assert failure.value.fault is CloudFault.UPLOAD_DAMAGED
    assert sum(told) > 2 * 300_000, "what was sent in vain has left the machine too"


@pytest.mark.usefixtures("small_chunks")
def test_a_chunk_that_comes_back_damaged_is_asked_for_again(cloud: Cloud, files: list[Path], tmp_path: Path) -> None:
    workspace = Workspace(cloud.client())
    workspace.open()
    workspace.put(files, "things")
    cloud.behave(f"download-damaged {len(cloud.calls()) + 2} {len(cloud.calls()) + 2}")
    workspace.get("large.bin", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == files[2].read_bytes()


def test_a_download_that_stays_damaged_leaves_no_file(cloud: Cloud, files: list[Path], tmp_path: Path) -> None:
    workspace = Workspace(cloud.client())
    workspace.open()
    workspace.put(files, "things")
    cloud.behave("download-damaged")
    with pytest.raises(CloudFailure) as failure:
        workspace.get("large.bin", tmp_path / "back")
    assert failure.value.fault is CloudFault.DOWNLOAD_DAMAGED
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cloud", "files"]


def test_a_file_that_is_not_there_is_no_download(cloud: Cloud, tmp_path: Path) -> None:
    with opened(cloud.client()) as workspace, pytest.raises(CloudFailure) as failure:
        workspace.get("nothing", tmp_path / "back")
    assert failure.value.fault is CloudFault.WORK_FAILED


@pytest.mark.parametrize("call", [2, 3, 4])
def test_another_machine_is_noticed_whatever_came_before_and_the_work_begins_anew(
    call: int, cloud: Cloud, files: list[Path], tmp_path: Path
) -> None:
    cloud.behave(f"new-machine {call} {call}")
    begun: list[str] = []

    def work(workspace: Workspace) -> bytes:
        begun.append(workspace.folder)
        workspace.put(files, "things")
        workspace.get("small.txt", tmp_path / "back")
        return (tmp_path / "back").read_bytes()

    assert in_workspace(cloud.client(), work) == files[1].read_bytes()
    assert len(set(begun)) == len(begun) == 2


def test_a_machine_that_keeps_changing_is_given_up(cloud: Cloud, files: list[Path]) -> None:
    cloud.behave("new-machine 2")
    with pytest.raises(CloudFailure) as failure:
        in_workspace(cloud.client(), lambda workspace: workspace.put(files, "things"))
    assert failure.value.fault is CloudFault.RUNTIME_CHANGED


def test_a_lost_connection_is_tried_once_more(cloud: Cloud) -> None:
    cloud.behave("lost-socket 2 2")
    assert in_workspace(cloud.client(), lambda workspace: workspace.run("pwd", timeout_s=30)).code == 0
    cloud.behave("lost-socket")
    with pytest.raises(CloudFailure) as failure:
        in_workspace(cloud.client(), lambda workspace: workspace.run("pwd", timeout_s=30))
    assert failure.value.fault is CloudFault.CONNECTION_LOST


def test_a_cloud_that_is_gone_for_good_is_not_asked_to_clean_up(cloud: Cloud) -> None:
    cloud.behave("quota 2")
    with pytest.raises(CloudFailure):
        in_workspace(cloud.client(), lambda workspace: workspace.run("pwd", timeout_s=30))
    assert len(cloud.calls()) == 2


def test_what_is_too_large_is_not_begun(cloud: Cloud, files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspaces, "LARGEST_BYTES", 1000)
    with opened(cloud.client()) as workspace, pytest.raises(CloudFailure) as failure:
        workspace.put(files, "things")
    assert failure.value.fault is CloudFault.TOO_LARGE
    assert copies(cloud) == []


@pytest.mark.parametrize("name", ["../x", "a b", "-rf", "a/b", "", "x" * 65, "a'b"])
def test_only_plain_names_go_to_the_cloud_machine(name: str, cloud: Cloud) -> None:
    with pytest.raises(ValueError, match="plain"):
        Workspace(cloud.client()).path(name)
