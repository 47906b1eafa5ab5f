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
    """Stores what steps hand on at work/runs/<run>/, and assets also at work/montages/<montage>/<asset>.json.

    A step reads what its own run made, so two runs of one montage never mix; an asset that its run did not make
    (a part of the graph was chosen) is the montage's latest.
    """

    def __init__(self, root: DataRoot) -> None:
        self._root = root

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        """Write one record atomically. A step without a result (None) stores nothing."""
        if obj is None:
            return
        data = dump_record(obj)
        if _is_asset(context):
            name = context.asset_key.path[-1]
            self._root.write_bytes(layout.step_record([context.run_id, name]), data)
            self._root.write_bytes(layout.record(context.partition_key, name), data)
        else:
            self._root.write_bytes(layout.step_record(list(context.get_identifier())), data)

    def load_input(self, context: dg.InputContext) -> Any:
        """Read the record that the upstream step stored."""
        if _is_asset(context):
            name = context.asset_key.path[-1]
            of_this_run = layout.step_record([context.step_context.run_id, name])
            latest = layout.record(context.partition_key, name)
            return load_record(self._root.read_bytes(of_this_run if self._root.exists(of_this_run) else latest))
        if context.upstream_output is None:
            raise ValueError(f"{context.name} has no upstream step whose record could be read")
        return load_record(self._root.read_bytes(layout.step_record(list(context.upstream_output.get_identifier()))))


def _is_asset(context: dg.InputContext | dg.OutputContext) -> bool:
    return bool(context.has_asset_key and context.has_partition_key)


@dg.io_manager
def json_records(_: dg.InitResourceContext) -> JsonRecords:
    """The IO manager on the data root that the environment names."""
    from montage_assets.settings import Settings

    return JsonRecords(Settings.from_environment().data_root())
