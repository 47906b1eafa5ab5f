"""Kubernetes' common conventions: errors, timestamps, selectors."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from typing import Any

Object = dict[str, Any]
"""An API object as its JSON."""


_REASONS = {
    400: "BadRequest", 403: "Forbidden", 404: "NotFound", 405: "MethodNotAllowed", 409: "AlreadyExists",
    415: "UnsupportedMediaType", 422: "Invalid", 500: "InternalError",
}  # fmt: skip


class ApiError(Exception):
    """An answer other than success."""

    def __init__(self, code: int, message: str, reason: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason or _REASONS[code]

    def status(self) -> Object:
        """The Status object that the API answers with."""
        return {
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": str(self), "reason": self.reason, "code": self.code,
        }  # fmt: skip


def not_found(resource: str, name: str) -> ApiError:
    return ApiError(404, f'{resource} "{name}" not found')


def timestamp(seconds: float) -> str:
    """Seconds since the epoch as the API writes them, in whole seconds."""
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def labels_of(item: Mapping[str, Any]) -> Mapping[str, str]:
    return item.get("metadata", {}).get("labels") or {}


def meets(labels: Mapping[str, str], key: str, operator: str, values: list[str]) -> bool:
    """One requirement on labels. NotIn also holds where the label is missing; Gt and Lt compare whole numbers."""
    value = labels.get(key)
    if operator == "In":
        return value in values
    if operator == "NotIn":
        return value not in values
    if operator == "Exists":
        return value is not None
    if operator == "DoesNotExist":
        return value is None
    if value is None or not re.fullmatch(r"-?\d+", value):
        return False
    return int(value) > int(values[0]) if operator == "Gt" else int(value) < int(values[0])


def matches_label_selector(labels: Mapping[str, str], selector: Mapping[str, Any] | None) -> bool:
    """A LabelSelector object. None selects nothing, an empty one everything."""
    if selector is None:
        return False
    return all(labels.get(key) == value for key, value in (selector.get("matchLabels") or {}).items()) and all(
        meets(labels, entry["key"], entry["operator"], entry.get("values") or [])
        for entry in selector.get("matchExpressions") or []
    )


def label_query(query: str) -> Callable[[Object], bool]:
    """The query parameter labelSelector: `a=b,c!=d,e in (f,g),h notin (i),j,!k`. Raises ApiError."""
    requirements = [_requirement(part.strip()) for part in re.split(r",(?![^(]*\))", query) if part.strip()]
    return lambda item: all(meets(labels_of(item), *requirement) for requirement in requirements)


def _requirement(text: str) -> tuple[str, str, list[str]]:
    if match := re.fullmatch(r"(\S+)\s+(in|notin)\s*\(([^)]*)\)", text):
        return match[1], {"in": "In", "notin": "NotIn"}[match[2]], [value.strip() for value in match[3].split(",")]
    if match := re.fullmatch(r"([^=!\s]+)\s*(==|=|!=)\s*([^=!\s]*)", text):
        return match[1], "NotIn" if match[2] == "!=" else "In", [match[3]]
    if match := re.fullmatch(r"(!?)\s*([^=!\s]+)", text):
        return match[2], "DoesNotExist" if match[1] else "Exists", []
    raise ApiError(400, f"unable to parse requirement: {text!r}")


def field_query(query: str, known: tuple[str, ...]) -> Callable[[Object], bool]:
    """The query parameter fieldSelector: `metadata.name=x,status.phase!=Failed`. Raises ApiError for other fields."""
    terms: list[tuple[list[str], str, bool]] = []
    for part in filter(None, query.split(",")):
        match = re.fullmatch(r"([A-Za-z.]+)(==|=|!=)(.*)", part)
        if match is None or match[1] not in known:
            raise ApiError(400, f'field label not supported: "{part}"')
        terms.append((match[1].split("."), match[3], match[2] != "!="))
    return lambda item: all((_at(item, path) == value) is wanted for path, value, wanted in terms)


def _at(item: Object, path: list[str]) -> str:
    value: Any = item
    for name in path:
        value = value.get(name, "") if isinstance(value, dict) else ""
    return str(value)
