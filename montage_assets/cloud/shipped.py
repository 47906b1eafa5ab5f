"""What runs on the cloud machine: our scripts, with the modules of ours that they need, and how they report.

Belongs here: packing modules, running a script in a workspace, reading its verdict. Does not belong here: what the
scripts do (`scripts/`).

A script ends with exit code 0, or says `MONTAGE-FAULT <class> <detail>` in its last line.
"""

from __future__ import annotations

import ast
import importlib.util
import io
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path

from montage_assets.cloud.client import CGPUClient, RemoteOutput
from montage_assets.cloud.failures import CloudFailure, CloudFault
from montage_assets.cloud.workspace import Workspace, in_workspace
from montage_assets.settings import Settings

PACKAGE = "montage_assets"
MODULES = "modules.zip"
SCRIPTS = Path(__file__).with_name("scripts")
_FAULT = re.compile(r"^MONTAGE-FAULT ([A-Z_]+) ?(.*)$")
_EPOCH = (1980, 1, 1, 0, 0, 0)


def packed_modules(wanted: Iterable[str]) -> bytes:
    """A zip of these modules of ours and of all modules of ours that they import. Equal for equal sources."""
    sources: dict[str, Path] = {}
    pending = list(wanted)
    while pending:
        name = pending.pop()
        if name in sources or not (name == PACKAGE or name.startswith(f"{PACKAGE}.")):
            continue
        path = _source_of(name)
        if path is None:  # a name in a module, not a module
            continue
        sources[name] = path
        pending.extend(_imports_of(path))
        pending.append(name.rpartition(".")[0])
    root = Path(__file__).parents[2]
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for path in sorted(set(sources.values())):
            entry = zipfile.ZipInfo(path.relative_to(root).as_posix(), _EPOCH)
            archive.writestr(entry, path.read_bytes(), zipfile.ZIP_DEFLATED)
    return out.getvalue()


def _source_of(name: str) -> Path | None:
    try:
        found = importlib.util.find_spec(name)
    except ModuleNotFoundError:  # its parent is a module, not a package
        return None
    return Path(found.origin) if found is not None and found.origin else None


def _imports_of(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def run_script(workspace: Workspace, script: Path, *args: str, timeout_s: float) -> RemoteOutput:
    """Run a Python script that was put into the workspace; `args` are names of files there, or options. Raises
    CloudFailure of the class that the script names, else WORK_FAILED."""
    output = workspace.run("python3", "-B", script.name, *args, timeout_s=timeout_s)
    if output.code != 0:
        raise _verdict(output)
    return output


def run_cgpu_python(
    script: Path, *args: str, timeout_s: float = 600.0, client: CGPUClient | None = None
) -> RemoteOutput:
    """Upload a Python script and run it on the cloud machine. Raises CloudFailure."""

    def work(workspace: Workspace) -> RemoteOutput:
        workspace.put([script], "a script")
        return run_script(workspace, script, *args, timeout_s=timeout_s)

    return in_workspace(client or CGPUClient.from_settings(Settings.from_environment()), work)


def _verdict(output: RemoteOutput) -> CloudFailure:
    for line in reversed(output.lines):
        found = _FAULT.match(line)
        if found is not None and found[1] in CloudFault.__members__:
            return CloudFailure(CloudFault[found[1]], found[2])
    return CloudFailure(CloudFault.WORK_FAILED, output.last_line or f"exit code {output.code}")
