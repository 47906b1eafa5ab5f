"""A pod's container as processes of this machine: its environment and paths, its start, its log, its end.

Belongs here: one container. Does not belong here: when it starts and what its end means (`cluster`).
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from montage_assets.cluster.quantities import parse_quantity
from tests.cluster.emulator.objects import Object

REPOSITORY = Path(__file__).parents[3]
_MARK = "EMULATED_POD"

Lookup = Callable[[str, str], Mapping[str, str] | None]
"""The text values of a "configmaps" or "secrets" object by name, None when there is none."""


class ContainerConfigError(Exception):
    """The container refers to something that does not exist."""


class Container:
    """A running container. `on_end` is called once, from a thread of its own, with the exit code."""

    def __init__(
        self,
        uid: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        folder: Path | None,
        log: Path,
        on_end: Callable[[int], None],
    ) -> None:
        """Raises OSError when the command cannot be started."""
        self._uid = uid
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                env={**environment, _MARK: uid},
                cwd=folder or REPOSITORY,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._waiter = threading.Thread(target=self._wait, args=(on_end,), name=f"pod-{uid}", daemon=True)
        self._waiter.start()

    def terminate(self) -> None:
        """What a deleted pod gets first."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the container and all that it started."""
        self._signal(signal.SIGKILL)

    def join(self) -> None:
        self._waiter.join()

    def _signal(self, number: int) -> None:
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return

    def _wait(self, on_end: Callable[[int], None]) -> None:
        code = self._process.wait()
        self._kill_the_rest()
        on_end(code if code >= 0 else 128 - code)

    def _kill_the_rest(self) -> None:
        """A container ends with its first process, whatever sessions the others have opened."""
        while members := list(_marked_processes(self._uid)):
            for pid in members:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue


def _marked_processes(uid: str) -> Sequence[int]:
    mark = f"{_MARK}={uid}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            variables = (folder / "environ").read_bytes().split(b"\0")
        except OSError:  # it has ended, or is somebody else's
            continue
        if mark in variables:
            found.append(int(folder.name))
    return found


def start_command(uid: str, command: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """A further process of a pod, without input, its output in pipes. Raises OSError when it cannot be started."""
    return subprocess.Popen(
        command,
        env={**environment, _MARK: uid},
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def container_of(pod: Object, name: str | None = None) -> Mapping[str, Any]:
    """The container of that name, or the first. Raises KeyError when there is none of that name."""
    containers: Sequence[Mapping[str, Any]] = pod["spec"]["containers"]
    if name is None:
        return containers[0]
    return {container["name"]: container for container in containers}[name]


def command_of(
    container: Mapping[str, Any], environment: Mapping[str, str], entrypoint: Sequence[str] = ()
) -> tuple[str, ...]:
    """The command line: `command` or the image's entrypoint, then `args`, with `$(NAME)` filled in."""
    words = [*(container.get("command") or entrypoint), *(container.get("args") or [])]
    return tuple(_expanded(word, environment) for word in words)


def mounted_folders(
    pod: Object, container: Mapping[str, Any], claims: Mapping[str, Path], configured: Callable[[str], Path | None]
) -> dict[str, Path]:
    """Where the container's claims and ConfigMaps are mounted, and the folders of this machine that stand for them.

    `configured` gives that of a ConfigMap by name, None when there is none.
    """
    folders: dict[str, Path | None] = {}
    for volume in pod["spec"].get("volumes") or []:
        if "persistentVolumeClaim" in volume:
            folders[volume["name"]] = claims.get(volume["persistentVolumeClaim"]["claimName"])
        elif "configMap" in volume:
            folders[volume["name"]] = configured(volume["configMap"]["name"])
    mounts = {mount["mountPath"]: folders.get(mount["name"]) for mount in container.get("volumeMounts") or []}
    return {path: folder for path, folder in mounts.items() if folder is not None}


def as_mounted(text: str, folders: Mapping[str, Path]) -> str:
    """A path in the container as the path on this machine; any other text as it is."""
    for path, folder in folders.items():
        if text == path or text.startswith(f"{path}/"):
            return str(folder) + text.removeprefix(path)
    return text


def base_environment() -> dict[str, str]:
    """What every container has: this Python's programs first, and the package importable from anywhere."""
    programs = str(Path(sys.executable).parent)
    kept = {name: os.environ[name] for name in ("HOME", "LANG", "TMPDIR") if name in os.environ}
    path = os.pathsep.join(filter(None, (programs, os.environ.get("PATH"))))
    return {**kept, "PATH": path, "PYTHONPATH": str(REPOSITORY)}


def environment_of(pod: Object, container: Mapping[str, Any], lookup: Lookup) -> dict[str, str]:
    """The variables that the pod's spec gives a container. Raises ContainerConfigError."""
    found: dict[str, str] = {}
    for source in container.get("envFrom") or []:
        resource, reference = _reference(source)
        values = _values(lookup, resource, reference)
        found.update({source.get("prefix", "") + key: value for key, value in values.items()})
    for entry in container.get("env") or []:
        value = _value(entry, pod, container, lookup)
        if value is not None:
            found[entry["name"]] = _expanded(value, found)
    return found


def _expanded(text: str, known: Mapping[str, str]) -> str:
    """`$(NAME)` replaced where NAME is known; `$$` is a dollar sign (third_party/forked/golang/expansion)."""
    return re.sub(r"\$\$|\$\(([^)]*)\)", lambda match: known.get(match[1], match[0]) if match[1] else "$", text)


def _reference(source: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    if "configMapRef" in source:
        return "configmaps", source["configMapRef"]
    return "secrets", source["secretRef"]


def _values(lookup: Lookup, resource: str, reference: Mapping[str, Any]) -> Mapping[str, str]:
    values = lookup(resource, reference["name"])
    if values is None and not reference.get("optional"):
        raise ContainerConfigError(f'{resource.removesuffix("s")} "{reference["name"]}" not found')
    return values or {}


def _value(entry: Mapping[str, Any], pod: Object, container: Mapping[str, Any], lookup: Lookup) -> str | None:
    source = entry.get("valueFrom")
    if source is None:
        return str(entry.get("value", ""))
    if "fieldRef" in source:
        return _field(source["fieldRef"]["fieldPath"], pod)
    if "resourceFieldRef" in source:
        return _resource(source["resourceFieldRef"], container)
    for kind, resource in (("configMapKeyRef", "configmaps"), ("secretKeyRef", "secrets")):
        if kind in source:
            reference = source[kind]
            value = _values(lookup, resource, reference).get(reference["key"])
            if value is None and not reference.get("optional"):
                raise ContainerConfigError(f"couldn't find key {reference['key']} in {resource} {reference['name']}")
            return value
    raise ContainerConfigError(f"{entry['name']}: the emulator knows no {', '.join(source)}")


def _field(path: str, pod: Object) -> str:
    if match := re.fullmatch(r"metadata\.(labels|annotations)\['(.+)'\]", path):
        return str((pod["metadata"].get(match[1]) or {}).get(match[2], ""))
    value: Any = pod
    for name in path.split("."):
        value = value.get(name, "") if isinstance(value, dict) else ""
    return str(value)


def _resource(reference: Mapping[str, Any], container: Mapping[str, Any]) -> str:
    group, _, name = reference["resource"].partition(".")
    amounts = (container.get("resources") or {}).get(group) or {}
    amount = parse_quantity(amounts.get(name, "0")) / parse_quantity(reference.get("divisor") or "1")
    return str(-int(-amount // 1))  # rounded up, as the kubelet does
