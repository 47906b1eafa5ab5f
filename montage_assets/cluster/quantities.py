"""Kubernetes' quantities: `8`, `7910m`, `16266296Ki`, `1.5Gi`, `129e6` as numbers."""

from __future__ import annotations

import re

from montage_assets.cluster.errors import ClusterError

_SCALES = {
    "": 1.0, "n": 1e-9, "u": 1e-6, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18,
    "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50, "Ei": 2.0**60,
}  # fmt: skip

_QUANTITY = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))(?:([eE][+-]?\d+)|([numkMGTPE]|[KMGTPE]i))?")


def parse_quantity(quantity: object) -> float:
    """A quantity in its base unit: cores, or bytes. Raises ClusterError for anything else.

    The grammar is that of k8s.io/apimachinery/pkg/api/resource: a number, then an exponent or one suffix.
    """
    match = _QUANTITY.fullmatch(str(quantity).strip())
    if match is None:
        raise ClusterError(f"{quantity!r} is no Kubernetes quantity such as 500m or 16Gi")
    number, exponent, suffix = match.groups()
    return float(number + (exponent or "")) * _SCALES[suffix or ""]
