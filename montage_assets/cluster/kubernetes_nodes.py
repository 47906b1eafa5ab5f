"""Node objects of the Kubernetes API, read into the capability matrix.

Belongs here: pure parsing of one node, given as a dict in the API's own spelling (nodeInfo) or the Python
client's (node_info). Does not belong here: asking the API (`kubernetes_api`).

What is read: allocatable CPU, memory and GPUs; architecture and kernel; Ready, cordon and taints; the
control-plane role; GPU product and memory from the labels of
- NVIDIA GPU Feature Discovery: `nvidia.com/gpu.product`, `nvidia.com/gpu.memory` (MiB);
- AMD's node labeller: `amd.com/gpu.product-name`, `amd.com/gpu.vram` (e.g. 24G), its older `beta.amd.com/gpu.vram.24G`;
- Intel's node feature rules: `gpu.intel.com/product`, `gpu.intel.com/family`, `gpu.intel.com/memory.max` (bytes);
- Node Feature Discovery: `feature.node.kubernetes.io/pci-<class>[_<vendor>].present`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from montage_assets.cluster.errors import ClusterError
from montage_assets.cluster.gpus import GPUType, gpu_type, has_no_encoder, is_jetson, likely_encoders
from montage_assets.cluster.node import GPU_VENDOR_DOMAINS, NodeCapability, normal_arch
from montage_assets.cluster.quantities import parse_quantity

_CONTROL_PLANE_LABELS = ("node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master")
_PCI_VENDORS = {"10de": "nvidia", "1002": "amd", "8086": "intel"}
_PCI_DISPLAY = re.compile(r"feature\.node\.kubernetes\.io/pci-03\d\d_([0-9a-f]{4})(?:_[0-9a-f]{4})*\.present")
_GPU_RESOURCES = (
    ("nvidia", re.compile(r"nvidia\.com/(gpu(\.shared)?|mig-.+)")),
    ("amd", re.compile(r"amd\.com/gpu")),
    ("intel", re.compile(r"gpu\.intel\.com/(i915|xe)")),
    ("generic", re.compile(r"squat\.ai/.+")),
)  # in the order in which the node's main GPU is chosen


def nodes_from_api(items: Iterable[Mapping[str, Any]]) -> tuple[NodeCapability, ...]:
    """The nodes of a NodeList's `items`, ordered by name. Raises ClusterError for an object that is no node."""
    return tuple(sorted((node_from_api(item) for item in items), key=lambda node: node.name))


def node_from_api(item: Mapping[str, Any]) -> NodeCapability:
    """One node. Raises ClusterError, naming the node, when its numbers cannot be read."""
    metadata, spec, status = (_part(item, name) for name in ("metadata", "spec", "status"))
    name = str(metadata.get("name") or "")
    if not name:
        raise ClusterError("the Kubernetes API answered with an object that is no node")
    try:
        return _node(name, metadata, spec, status)
    except ClusterError as error:
        raise ClusterError(f"Kubernetes node {name}: {error}") from None
    except ValidationError as error:
        fault = error.errors()[0]
        raise ClusterError(f"Kubernetes node {name}: {'.'.join(map(str, fault['loc']))}: {fault['msg']}") from None


def _node(name: str, metadata: Mapping[str, Any], spec: Mapping[str, Any], status: Mapping[str, Any]) -> NodeCapability:
    labels = {str(key): str(value) for key, value in _part(metadata, "labels").items()}
    info = _part(status, "nodeInfo", "node_info")
    amounts = _part(status, "allocatable") or _part(status, "capacity")
    resources = {
        key: int(parse_quantity(amount)) for key, amount in amounts.items() if key.startswith(GPU_VENDOR_DOMAINS)
    }
    kernel = str(info.get("kernelVersion") or info.get("kernel_version") or "")
    gpus = _gpus(labels, resources, kernel)
    gpu, vram_gb = gpus[0] if gpus else (None, None)
    ram_gb = round(parse_quantity(amounts.get("memory", "0")) / 2**30, 1)
    if vram_gb is None and is_jetson(gpu):
        vram_gb = ram_gb  # one memory for both
    return NodeCapability(
        name=name,
        arch=normal_arch(str(info.get("architecture") or labels.get("kubernetes.io/arch") or "amd64")),
        cpu_cores=round(parse_quantity(amounts.get("cpu", "0")), 2),
        ram_gb=ram_gb,
        gpu=gpu,
        vram_gb=vram_gb,
        encoders=tuple(dict.fromkeys(encoder for product, _ in gpus for encoder in likely_encoders(product))),
        labels=labels,
        address=_address(status),
        control_plane=any(label in labels for label in _CONTROL_PLANE_LABELS),
        ready=_is_ready(status),
        schedulable=not spec.get("unschedulable"),
        taints=tuple(_taint(taint) for taint in spec.get("taints") or ()),
        resources=resources,
        note=_note(labels, resources, gpu),
    )


def _gpus(labels: Mapping[str, str], resources: Mapping[str, int], kernel: str) -> list[tuple[str, float | None]]:
    """Name and memory (GiB) of each GPU that pods may ask for, the main one first."""
    available = [key for key, count in resources.items() if count]
    offered = [vendor for vendor, pattern in _GPU_RESOURCES if any(pattern.fullmatch(key) for key in available)]
    if "generic" in offered and len(offered) > 1:
        offered.remove("generic")  # the same device by another name
    describe = {"nvidia": _nvidia, "amd": _amd, "intel": _intel, "generic": _generic}
    return [describe[vendor](labels, resources, kernel) for vendor in offered]


def _nvidia(labels: Mapping[str, str], _: Mapping[str, int], kernel: str) -> tuple[str, float | None]:
    product = labels.get("nvidia.com/gpu.product", "").removesuffix("-SHARED")
    memory = labels.get("nvidia.com/gpu.memory", "")
    if "tegra" in kernel and not is_jetson(product):  # the kernel of Jetson modules says so where no label does
        product = "nvidia_jetson"
    vram_gb = round(int(memory) / 1024, 1) if memory.isdecimal() and int(memory) else None
    return product if gpu_type(product) is GPUType.NVIDIA else f"NVIDIA-{product}".rstrip("-"), vram_gb


def _amd(labels: Mapping[str, str], _: Mapping[str, int], __: str) -> tuple[str, float | None]:
    product = _amd_label(labels, "product-name")
    if not product:
        device = _amd_label(labels, "device-id")
        product = f"amd_{device}" if device else "amd"
    return product if "amd" in product.lower() else f"AMD-{product}", _amd_vram_gb(_amd_label(labels, "vram"))


def _amd_label(labels: Mapping[str, str], what: str) -> str:
    """`amd.com/gpu.vram=24G`, or the older way of counting the GPUs of each value: `beta.amd.com/gpu.vram.24G=1`."""
    for prefix in ("amd.com/gpu.", "beta.amd.com/gpu."):
        if labels.get(prefix + what):
            return labels[prefix + what]
        for label in labels:
            if label.startswith(f"{prefix}{what}."):
                return label.removeprefix(f"{prefix}{what}.")
    return ""


def _amd_vram_gb(text: str) -> float | None:
    match = re.fullmatch(r"(\d+)([MG])i?B?", text)
    if match is None:
        return None
    return round(int(match[1]) / (1024 if match[2] == "M" else 1), 1)


def _intel(labels: Mapping[str, str], resources: Mapping[str, int], __: str) -> tuple[str, float | None]:
    product = labels.get("gpu.intel.com/product") or labels.get("gpu.intel.com/family") or ""
    memory = resources.get("gpu.intel.com/memory.max", 0)
    if not memory and labels.get("gpu.intel.com/memory.max", "").isdecimal():
        memory = int(labels["gpu.intel.com/memory.max"])
    return f"intel_{product.lower()}" if product else "intel", round(memory / 2**30, 1) if memory else None


def _generic(labels: Mapping[str, str], _: Mapping[str, int], __: str) -> tuple[str, float | None]:
    vendor = next((_PCI_VENDORS[match[1]] for match in _display_devices(labels) if match[1] in _PCI_VENDORS), None)
    return vendor or "vaapi", None


def _display_devices(labels: Mapping[str, str]) -> list[re.Match[str]]:
    return [match for label in labels if (match := _PCI_DISPLAY.fullmatch(label))]


def _note(labels: Mapping[str, str], resources: Mapping[str, int], gpu: str | None) -> str:
    if gpu is not None:
        return f"{gpu} has no video encoder" if has_no_encoder(gpu) else ""
    for vendor, label in (("nvidia", "nvidia.com/gpu"), ("amd", "amd.com/gpu"), ("intel", "gpu.intel.com/")):
        if any(key.startswith(label) and value.lower() not in ("false", "0") for key, value in labels.items()):
            return f"labelled with a GPU of {vendor}, but its device plugin offers none"
    if _display_devices(labels) and not any(resources.values()):
        return "has a display device that no device plugin offers"
    return ""


def _is_ready(status: Mapping[str, Any]) -> bool:
    conditions = status.get("conditions") or ()
    return any(condition.get("type") == "Ready" and condition.get("status") == "True" for condition in conditions)


def _taint(taint: Mapping[str, Any]) -> str:
    value = taint.get("value")
    return f"{taint.get('key')}{f'={value}' if value else ''}:{taint.get('effect')}"


def _address(status: Mapping[str, Any]) -> str | None:
    addresses = status.get("addresses") or ()
    found = {entry.get("type"): str(entry.get("address")) for entry in addresses}
    return found.get("InternalIP") or found.get("Hostname")


def _part(item: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    found = next((item[name] for name in names if item.get(name)), None)
    return found if isinstance(found, Mapping) else {}
