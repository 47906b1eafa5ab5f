"""Records between steps: readable JSON on the data root.

Belongs here: how a record becomes JSON and back, and the Dagster IO manager that stores them. Media never
passes through here; records name it by key.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
from typing import Any, TypeVar

import dagster as dg
from pydantic import TypeAdapter

from montage_assets import layout
from montage_assets.data_root import DataRoot

Record = TypeVar("Record")
_PACKAGE = "montage_assets."


@functools.cache
def _adapter(kind: type) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def dump_record(record: Any) -> bytes:
    """A dataclass as indented JSON that names its type."""
    kind = type(record)
    if not (dataclasses.is_dataclass(kind) and kind.__module__.startswith(_PACKAGE)):
        raise TypeError(f"{kind.__name__} is no record of this package")
    value = _adapter(kind).dump_python(record, mode="json")
    return json.dumps({"record": f"{kind.__module__}:{kind.__name__}", **value}, indent=1).encode()


def load_record(data: bytes) -> Any:
    """The record in `dump_record`'s JSON. Raises ValueError when it names no record of this package."""
    value = json.loads(data)
    module, _, name = value.pop("record").partition(":")
    if not module.startswith(_PACKAGE):
        raise ValueError(f"{module}:{name} is no record of this package")
    kind = getattr(importlib.import_module(module), name)
    if not dataclasses.is_dataclass(kind):
        raise ValueError(f"{module}:{name} is no record")
    return _adapter(kind).validate_python(value)  # type: ignore[arg-type]


def read_record(root: DataRoot, key: str, kind: type[Record]) -> Record:
    """The record at a key. Raises FileNotFoundError, or ValueError when it is of another kind or version."""
    record = load_record(root.read_bytes(key))
    if not isinstance(record, kind):
        raise ValueError(f"{root.where(key)} holds a {type(record).__name__}, not a {kind.__name__}")
    return record


class JsonRecords(dg.IOManager):
    """Stores assets at work/montages/<montage>/<asset>.json and hand-overs of steps at work/runs/."""

    def __init__(self, root: DataRoot) -> None:
        self._root = root

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        """Write one record atomically. A step without a result (None) stores nothing."""
        if obj is not None:
            self._root.write_bytes(_key(context), dump_record(obj))

    def load_input(self, context: dg.InputContext) -> Any:
        """Read the record that the upstream step stored."""
        upstream = context.upstream_output
        if upstream is None:
            raise ValueError(f"{context.name} has no upstream step whose record could be read")
        key = layout.record(context.partition_key, context.asset_key.path[-1]) if _is_asset(context) else _key(upstream)
        return load_record(self._root.read_bytes(key))


def _is_asset(context: dg.InputContext | dg.OutputContext) -> bool:
    return bool(context.has_asset_key and context.has_partition_key)


def _key(context: dg.OutputContext) -> str:
    if _is_asset(context):
        return layout.record(context.partition_key, context.asset_key.path[-1])
    return layout.step_record(list(context.get_identifier()))


@dg.io_manager
def json_records(_: dg.InitResourceContext) -> JsonRecords:
    """The IO manager on the data root that the environment names."""
    from montage_assets.settings import Settings

    return JsonRecords(Settings.from_environment().data_root())
