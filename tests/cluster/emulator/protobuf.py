"""Objects in Kubernetes' protobuf encoding, in which kubectl sends the secrets that it makes itself.

Source: k8s.io/apimachinery/pkg/runtime/generated.proto (Unknown), meta/v1 (ObjectMeta) and k8s.io/api/core/v1 (Secret).
Belongs here: reading. Answers are JSON, which every client takes.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

from tests.cluster.emulator.objects import ApiError, Object

CONTENT_TYPE = "application/vnd.kubernetes.protobuf"
_MAGIC = b"k8s\0"
_TYPE_META, _RAW = 1, 2
_METADATA = {1: "name", 2: "generateName", 3: "namespace", 11: "labels", 12: "annotations"}
_SECRET = {1: "metadata", 2: "data", 3: "type", 4: "stringData"}
_MAPS = ("labels", "annotations", "data", "stringData")
_VARINT, _SIZED = 0, 2


def decoded(content: bytes) -> Object:
    """The object. Raises ApiError for kinds and fields that are not known here."""
    envelope = dict(_fields(content.removeprefix(_MAGIC)))
    api_version, kind = (value.decode() for _, value in sorted(_fields(envelope[_TYPE_META])))
    if (api_version, kind) != ("v1", "Secret"):
        raise ApiError(415, f"the emulator reads no {kind} of {api_version} in protobuf")
    return {"apiVersion": api_version, "kind": kind, **_message(envelope[_RAW], _SECRET)}


def _message(content: bytes, names: dict[int, str]) -> Object:
    found: Object = {}
    for number, value in _fields(content):
        name = names.get(number)
        if name is None:
            if value:  # fields without a value are sent as well
                raise ApiError(415, f"the emulator does not know field {number} in protobuf")
        elif name == "metadata":
            found[name] = _message(value, _METADATA)
        elif name in _MAPS:
            key, entry = (part for _, part in sorted(_fields(value)))
            is_data = name == "data"
            found.setdefault(name, {})[key.decode()] = (base64.b64encode(entry) if is_data else entry).decode()
        elif value:
            found[name] = value.decode()
    return found


def _fields(content: bytes) -> Iterator[tuple[int, Any]]:
    """Number and value of each field of a message: a whole number, or bytes."""
    place = 0
    while place < len(content):
        key, place = _number(content, place)
        size, place = _number(content, place)
        if key & 7 == _VARINT:
            yield key >> 3, size
        elif key & 7 == _SIZED:
            yield key >> 3, content[place : place + size]
            place += size
        else:
            raise ApiError(415, f"the emulator does not know field {key >> 3} in protobuf")


def _number(content: bytes, place: int) -> tuple[int, int]:
    """A varint and the place behind it."""
    value = shift = 0
    while True:
        byte = content[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value, place
