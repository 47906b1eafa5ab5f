"""cluster.yaml: reading and writing the nodes of a cluster, and what is said about a mistake in the file.

    nodes:
      - name: desk
        cpu_cores: 8
        ram_gb: 32
        gpu: amd_rx7900xtx
        vram_gb: 24
        encoders: [h264_vaapi, hevc_vaapi]
        optimal_for: [4k_encoding, final_render]

`nodes` may also be a mapping from names to the rest, and `encoder: h264_vaapi` is short for a list of one.
"""

from __future__ import annotations

import difflib
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from montage_assets.cluster.errors import ClusterError
from montage_assets.cluster.node import NodeCapability

CATALOG_FILE = "cluster.yaml"
_KEYS = ("nodes",)
_SHORT_FORMS = ("encoder",)


class _StrictLoader(yaml.SafeLoader):
    """Refuses a key given twice, which YAML loaders otherwise drop: here it would be a node."""


def _mapping_without_duplicates(loader: _StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if isinstance(key, (str, int, float)) and key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"{key!r} is given twice", key_node.start_mark)
        if isinstance(key, (str, int, float)):
            seen.add(key)
    return loader.construct_mapping(node, deep=True)


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping_without_duplicates)


def load_nodes(path: Path) -> tuple[NodeCapability, ...]:
    """The nodes of a cluster.yaml, in its order. Raises ClusterError with one line that names file, node and key."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ClusterError(f"there is no cluster file {path}; check MONTAGE_CLUSTER_CONFIG") from None
    except UnicodeDecodeError:
        raise ClusterError(f"{path} is not a text file; write the cluster as YAML") from None
    except OSError as error:
        raise ClusterError(f"{path} cannot be read: {error.strerror}") from None
    return parse_nodes(text, str(path))


def parse_nodes(text: str, where: str) -> tuple[NodeCapability, ...]:
    """The nodes in a cluster.yaml's text; `where` names it in errors. Raises ClusterError."""
    try:
        data = yaml.load(text, _StrictLoader)  # noqa: S506 -- a SafeLoader that also refuses duplicates
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f", line {mark.line + 1}"
        problem = getattr(error, "problem", None) or "unreadable"
        raise ClusterError(f"{where}{line}: this is not usable YAML: {' '.join(str(problem).split())}") from None
    if not isinstance(data, dict):
        raise ClusterError(f"{where}: write `nodes:` and the list of nodes below it")
    _refuse_unknown(data, _KEYS, where)
    nodes = [_node(entry, where, number) for number, entry in enumerate(_entries(data.get("nodes"), where), start=1)]
    names = [node.name for node in nodes]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ClusterError(f"{where}: node {twice} is listed twice; give every node its own name")
    return tuple(nodes)


def dump_nodes(nodes: Iterable[NodeCapability]) -> str:
    """The text of a cluster.yaml with these nodes; fields at their defaults are left out."""
    entries = [node.model_dump(mode="json", exclude_defaults=True) for node in nodes]
    return yaml.safe_dump({"nodes": entries}, sort_keys=False, allow_unicode=True, default_flow_style=None, width=110)


def save_nodes(nodes: Iterable[NodeCapability], path: Path) -> None:
    """Write a cluster.yaml, whole or not at all."""
    text = dump_nodes(nodes)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _entries(nodes: Any, where: str) -> list[Any]:
    if isinstance(nodes, Mapping):
        named = [(name, fields) for name, fields in nodes.items()]
        wrong = next((name for name, fields in named if not isinstance(fields, Mapping)), None)
        if wrong is not None:
            raise ClusterError(f"{where}: node {wrong}: write its `key: value` lines below its name")
        nodes = [{"name": name, **fields} for name, fields in named]
    if not isinstance(nodes, list) or not nodes:
        raise ClusterError(f"{where}: nodes: list at least one node, each with name, cpu_cores and ram_gb")
    return nodes


def _node(entry: Any, where: str, number: int) -> NodeCapability:
    if not isinstance(entry, Mapping):
        raise ClusterError(f"{where}: node {number}: write it as `key: value` lines, not as {entry!r}")
    title = f"{where}: node {entry.get('name') or number}"
    _refuse_unknown(entry, (*NodeCapability.model_fields, *_SHORT_FORMS), title)
    fields = dict(entry)
    if "encoder" in fields:
        if "encoders" in fields:
            raise ClusterError(f"{title}: encoder and encoders say the same thing; keep one of them")
        fields["encoders"] = fields.pop("encoder")
    try:
        return NodeCapability.model_validate({key: value for key, value in fields.items() if value is not None})
    except ValidationError as error:
        raise ClusterError(f"{title}: {_first_fault(error)}") from None


def _refuse_unknown(given: Mapping[Any, Any], known: Sequence[str], where: str) -> None:
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"the keys are {', '.join(known)}"
            raise ClusterError(f"{where}: there is no key {str(key)!r}; {hint}")


def _first_fault(error: ValidationError) -> str:
    fault = error.errors()[0]
    place = [str(part) for part in fault["loc"] if part != "[key]"]
    if fault["type"] == "missing":
        return f"{place[0]} is missing; every node needs name, cpu_cores and ram_gb"
    message = fault["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    if place[:1] == ["name"]:
        message = "must be a host name: letters, digits, dots and dashes"
    if place[:1] == ["speed"] and fault["type"] == "literal_error":
        message = "must be one number, or numbers for analyze, encode and upscale"
    if fault["type"] == "value_error":
        return f"{'.'.join(place)}: {message}" if place else message
    return f"{'.'.join(place)}: {fault['input']!r}: {message}"
