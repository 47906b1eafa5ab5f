"""cgpu's login: looked at without being used, and unharmed by what cgpu does to it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from montage_assets.cloud.failures import CloudFailure
from montage_assets.cloud.session import borrowed_config, config_folder, look_at_session
from tests.cloud.cgpu_program import SESSION
from tests.cloud.conftest import Cloud


def test_a_login_is_there_with_its_age(cloud: Cloud) -> None:
    os.utime(cloud.session, (1_000_000, 1_000_000))
    session = look_at_session(cloud.folder / "config", now=1_000_000 + 3 * 86400)
    assert (session.state, session.age_days, session.usable) == ("present", 3.0, True)


def test_the_folder_is_cgpus_own_unless_one_is_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert config_folder(None) == tmp_path / ".config" / "cgpu"
    assert config_folder(Path("/creds")) == Path("/creds")
    assert look_at_session(config_folder(None)).state == "missing"


def test_a_login_that_is_not_whole_is_damaged(cloud: Cloud) -> None:
    for missing in ("id", "refreshToken", "scopes", "account"):
        cloud.session.write_text(json.dumps({key: value for key, value in SESSION.items() if key != missing}))
        assert look_at_session(cloud.folder / "config").state == "damaged"


def test_cgpu_works_on_a_copy_that_is_gone_afterwards(cloud: Cloud) -> None:
    (cloud.folder / "config" / "config.json").write_text("{}")
    before = cloud.session.read_bytes()
    with borrowed_config(cloud.folder / "config") as copy:
        assert (copy / "state" / "session.json").read_bytes() == before
        assert (copy / "state" / "session.json").stat().st_mode & 0o077 == 0
        assert copy.parent.stat().st_mode & 0o077 == 0
        assert (copy / "config.json").read_text() == "{}"
        (copy / "state" / "session.json").unlink()
    assert not copy.exists()
    assert cloud.session.read_bytes() == before


def test_a_login_removed_by_a_cgpu_that_ignores_the_copy_is_put_back_as_it_was(cloud: Cloud) -> None:
    before = (cloud.session.read_bytes(), cloud.session.stat().st_mode, cloud.session.stat().st_mtime_ns)
    with borrowed_config(cloud.folder / "config"):
        cloud.session.unlink()
    assert (cloud.session.read_bytes(), cloud.session.stat().st_mode, cloud.session.stat().st_mtime_ns) == before


def test_a_login_made_meanwhile_is_not_overwritten(cloud: Cloud) -> None:
    with borrowed_config(cloud.folder / "config"):
        cloud.session.write_text("new")
    assert cloud.session.read_text() == "new"


def test_nothing_is_written_where_the_login_lies(cloud: Cloud) -> None:
    folders = (cloud.folder / "config", cloud.folder / "config" / "state")
    before = [folder.stat().st_mtime_ns for folder in folders]
    assert cloud.client().run(["true"], timeout_s=30).code == 0
    cloud.behave("no-network")
    with pytest.raises(CloudFailure):
        cloud.client().run(["true"], timeout_s=30)
    assert [folder.stat().st_mtime_ns for folder in folders] == before
