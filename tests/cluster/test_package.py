"""The package itself: its public names, and what it may import."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import montage_assets.cluster

SOURCES = sorted(Path(montage_assets.cluster.__file__).parent.glob("*.py"))


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_nothing_here_imports_media(source: Path) -> None:
    for statement in ast.walk(ast.parse(source.read_text())):
        names = [alias.name for alias in statement.names] if isinstance(statement, ast.Import) else []
        names += [statement.module or ""] if isinstance(statement, ast.ImportFrom) else []
        assert not [name for name in names if name.startswith("montage_assets.media")]


def test_importing_the_package_loads_nothing_heavy() -> None:
    program = (
        "import sys, montage_assets.cluster\n"
        "print(sorted(set(sys.modules) & {'dagster', 'kubernetes', 'pydantic', 'rich', 'yaml', 'numpy'}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_every_public_name_is_there() -> None:
    for name in montage_assets.cluster.__all__:
        assert getattr(montage_assets.cluster, name) is not None
    documented = {"get_cluster_manager", "TaskRouter", "TaskType", "print_cluster_summary", "ClusterMode"}
    assert documented | {"NodeCapability", "GPUType", "select_node_for_task"} <= set(montage_assets.cluster.__all__)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'JobSubmiter'"):
        _ = montage_assets.cluster.JobSubmiter  # type: ignore[attr-defined]
