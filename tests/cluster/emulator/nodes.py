"""Nodes of the capability matrix as Node objects, as kubelet, device plugins and labellers would write them."""

from __future__ import annotations

from typing import Any

from montage_assets.cluster import GPUType, NodeCapability
from tests.cluster.emulator.objects import Object

_PLUGINS = {
    GPUType.NVIDIA: "nvidia.com/gpu",
    GPUType.AMD: "amd.com/gpu",
    GPUType.INTEL: "gpu.intel.com/i915",
    GPUType.OTHER: "squat.ai/dri",
}
PODS_PER_NODE = "110"


def node_object(node: NodeCapability) -> Object:
    """The Node of a record. Where the record lists no device resources, its GPU's usual plugin offers one device."""
    amounts = {
        "cpu": f"{round(node.cpu_cores * 1000)}m",
        "memory": f"{round(node.ram_gb * 2**20)}Ki",
        "ephemeral-storage": "200Gi",
        "pods": PODS_PER_NODE,
        **{name: str(count) for name, count in device_resources(node).items()},
    }
    spec: dict[str, Any] = {"podCIDR": "10.42.0.0/24"}
    if not node.schedulable:
        spec["unschedulable"] = True
    if node.taints:
        spec["taints"] = [_taint(text) for text in node.taints]
    item: Object = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": node.name, "labels": _labels(node), "annotations": {}},
        "spec": spec,
        "status": {
            "capacity": amounts,
            "allocatable": dict(amounts),
            "addresses": [
                {"type": "InternalIP", "address": node.address or "192.168.1.20"},
                {"type": "Hostname", "address": node.name},
            ],
            "nodeInfo": _node_info(node),
        },
    }
    set_ready(item, node.ready)
    return item


def device_resources(node: NodeCapability) -> dict[str, int]:
    """What the device plugins on a node offer."""
    plugin = _PLUGINS.get(node.gpu_type)
    return dict(node.resources) or ({plugin: 1} if plugin else {})


def set_ready(item: Object, ready: bool) -> None:
    """The Ready condition, and the taints that the node lifecycle controller sets on a node that is lost."""
    reason = "KubeletReady" if ready else "NodeStatusUnknown"
    item["status"]["conditions"] = [
        {"type": "MemoryPressure", "status": "False", "reason": "KubeletHasSufficientMemory"},
        {"type": "Ready", "status": "True" if ready else "Unknown", "reason": reason},
    ]
    taints = [taint for taint in item["spec"].get("taints", []) if taint["key"] != "node.kubernetes.io/unreachable"]
    if not ready:
        taints += [
            {"key": "node.kubernetes.io/unreachable", "effect": effect} for effect in ("NoSchedule", "NoExecute")
        ]
    item["spec"].pop("taints", None)
    if taints:
        item["spec"]["taints"] = taints


def _labels(node: NodeCapability) -> dict[str, str]:
    labels = {
        "kubernetes.io/hostname": node.name,
        "kubernetes.io/arch": node.arch,
        "kubernetes.io/os": "linux",
    }
    if node.control_plane:
        labels["node-role.kubernetes.io/control-plane"] = "true"
    if node.gpu_type is GPUType.NVIDIA:
        labels["nvidia.com/gpu.product"] = str(node.gpu)
        if node.vram_gb and not node.is_jetson:
            labels["nvidia.com/gpu.memory"] = str(round(node.vram_gb * 1024))
    if node.gpu_type is GPUType.AMD:
        labels["amd.com/gpu.product-name"] = str(node.gpu)
        if node.vram_gb:
            labels["amd.com/gpu.vram"] = f"{round(node.vram_gb)}G"
    return {**labels, **node.labels}


def _node_info(node: NodeCapability) -> dict[str, str]:
    return {
        "architecture": node.arch,
        "bootID": f"boot-{node.name}",
        "containerRuntimeVersion": "containerd://2.0.5-k3s1",
        "kernelVersion": "5.15.148-tegra" if node.is_jetson else "6.1.0-18-amd64",
        "kubeProxyVersion": "",
        "kubeletVersion": "v1.34.1+k3s1",
        "machineID": f"machine-{node.name}",
        "operatingSystem": "linux",
        "osImage": "Debian GNU/Linux 12 (bookworm)",
        "systemUUID": f"system-{node.name}",
    }


def _taint(text: str) -> dict[str, str]:
    what, _, effect = text.rpartition(":")
    key, _, value = what.partition("=")
    return {"key": key, "effect": effect, **({"value": value} if value else {})}
