"""The image's files, as far as they can be judged without building it: roles, locked packages, user."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from tests.deploy.manifests import DEPLOY

PROGRAMS = ("dagster-webserver", "dagster-daemon", "dagster", "montage", "some-tool")


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A PATH of programs that say how they were called."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in PROGRAMS:
        (folder / name).write_text('#!/bin/sh\necho "$(basename "$0")" "$@"\n')
        (folder / name).chmod(0o755)
    return folder


def _started(programs: Path, *arguments: str, **variables: str) -> str:
    done = subprocess.run(
        [DEPLOY / "entrypoint", *arguments],
        env={"PATH": f"{programs}:/usr/bin:/bin", "DAGSTER_HOME": "/opt/dagster", **variables},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("arguments", "variables", "started"),
    [
        (["webserver"], {}, "dagster-webserver --host 0.0.0.0 --port 8080 --workspace /opt/dagster/workspace.yaml"),
        (
            ["code-server"],
            {},
            "dagster api grpc --host 0.0.0.0 --port 4000 --module-name montage_assets.definitions",
        ),
        (["daemon"], {}, "dagster-daemon run --workspace /opt/dagster/workspace.yaml"),
        (["daemon"], {"DAGSTER_WORKSPACE": "/w.yaml"}, "dagster-daemon run --workspace /w.yaml"),
        (["worker"], {}, "montage worker"),
        (["worker", "--queue", "encode"], {}, "montage worker --queue encode"),
        (["webserver"], {"WORKER_MODE": "true"}, "montage worker"),
        ([], {"WORKER_MODE": "distributed"}, "montage worker"),
        (["webserver"], {"WORKER_MODE": "false"}, "dagster-webserver --host 0.0.0.0 --port 8080"),
        (["daemon"], {"WORKER_MODE": "true"}, "dagster-daemon run"),
        (["dagster", "api", "execute_step", "{}"], {"WORKER_MODE": "true"}, "dagster api execute_step {}"),
        (["job", "some-tool", "a b"], {}, "some-tool a b"),
        (["montage", "make", "/examples"], {}, "montage make /examples"),
    ],
)
def test_each_role_starts_its_program(
    programs: Path, arguments: list[str], variables: dict[str, str], started: str
) -> None:
    assert _started(programs, *arguments, **variables).startswith(started)


def test_every_package_is_locked_to_a_version_that_the_project_accepts_with_its_hashes() -> None:
    project = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text())["project"]
    text = (DEPLOY / "requirements.lock").read_text()
    entries = re.findall(
        r"^([A-Za-z0-9._-]+)==([^\s;]+)[^\n]*\n((?:    --hash=sha256:[0-9a-f]{64}[^\n]*\n)+)", text, re.M
    )
    assert len(entries) == len(re.findall(r"^[A-Za-z0-9]", text, re.M)), "an entry lacks its hashes"
    locked: dict[str, list[str]] = {}
    for name, version, _ in entries:
        locked.setdefault(canonicalize_name(name), []).append(version)
    for line in [*project["dependencies"], *project["optional-dependencies"]["cluster"]]:
        wanted = Requirement(line)
        versions = locked[canonicalize_name(wanted.name)]
        assert all(wanted.specifier.contains(version) for version in versions), f"{line}: {versions} is locked"


def test_the_image_runs_as_the_user_that_the_manifests_name() -> None:
    dockerfile = (DEPLOY.parent / "Dockerfile").read_text()
    final = dockerfile.rpartition("\nFROM ")[2]
    assert "USER 10001:10001" in final
    assert "MONTAGE_DATA=/data" in final
    assert not re.search(r"python3-venv|python3-dev|\bgcc\b|/opt/pip", final)
