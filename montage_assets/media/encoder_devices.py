"""The devices a video encoder may run on here, and what they and their drivers can be told by.

Belongs here: looking at device files and drivers, without ever opening a device. Does not belong here: whether an
encoder works on one (`encoder_probe`), or what the machine is for a cluster.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from montage_assets.media.encoder_table import FAMILIES, HARDWARE_FAMILIES, JETSON_FAMILIES, DeviceKind, Family

_NVIDIA, _INTEL = "0x10de", "0x8086"

_DRIVER_TEXTS = (
    "/proc/driver/nvidia/version", "/sys/module/*/version", "/etc/nv_tegra_release",
    "/sys/class/drm/renderD*/device/vendor", "/sys/class/drm/renderD*/device/device",
    "/sys/class/drm/renderD*/device/revision",
)  # fmt: skip
_DRIVER_MODULES = frozenset({"amdgpu", "i915", "xe", "nvidia", "nouveau", "radeon", "virtio_gpu"})
_LIBRARY_FOLDERS = (
    "/usr/lib", "/usr/lib64", "/usr/lib/*-linux-gnu", "/usr/lib/*-linux-gnu/tegra", "/usr/local/lib",
    "/usr/local/nvidia/lib64", "/opt/amdgpu*/lib/*",
)  # fmt: skip
_DRIVER_LIBRARIES = (
    "dri/*_drv_video.so", "libcuda.so*", "libnvidia-encode.so*", "libamfrt64.so*", "libva.so*", "libvpl.so*",
    "libmfx*.so*", "libvulkan*.so*", "libnvmpi.so*",
)  # fmt: skip
_DEVICE_FILES = ("/dev/dri/renderD*", "/dev/nvidia[0-9]*", "/dev/video[0-9]*", "/dev/dxg")


@dataclass(frozen=True)
class Host:
    """The machine as seen through its files below `root`, so that tests can put another one in its place."""

    root: Path = Path("/")
    system: str = field(default_factory=platform.system)

    def matching(self, pattern: str) -> list[str]:
        """Absolute paths that match a glob pattern, in order."""
        try:
            found = sorted(self.root.glob(pattern.lstrip("/")))
        except OSError:
            return []
        return ["/" + path.relative_to(self.root).as_posix() for path in found]

    def read(self, path: str) -> str:
        """The text of a small file, empty if it cannot be read."""
        try:
            return (self.root / path.lstrip("/")).read_text(errors="replace").strip()
        except OSError:
            return ""


def devices_of(family: Family, host: Host) -> list[str]:
    """ffmpeg's names of the family's devices; the empty one where there is nothing to choose, none where none is."""
    return {
        "none": lambda: [""],
        "cuda": lambda: _cuda(host),
        "render node": lambda: [node for node in _render_nodes(host) if _vendor(host, node) != _NVIDIA],
        "intel render node": lambda: [node for node in _render_nodes(host) if _vendor(host, node) in (_INTEL, "")],
        "vulkan": lambda: [str(number) for number in range(max(1, len(_render_nodes(host))))],
    }[_kind(family)]()


def seems_present(family: Family, host: Host) -> bool:
    """Whether the machine shows any sign of such hardware. A look at file names: costs nothing, proves nothing."""
    traits = FAMILIES[family]
    return host.system in traits.systems and any(host.matching(sign) for sign in traits.signs)


def families_in_order(host: Host) -> tuple[Family, ...]:
    """Hardware families in the order in which to try them while nothing is measured."""
    if not is_jetson(host):
        return HARDWARE_FAMILIES
    return (*JETSON_FAMILIES, *(family for family in HARDWARE_FAMILIES if family not in JETSON_FAMILIES))


def is_jetson(host: Host) -> bool:
    """Whether this is an NVIDIA Jetson, by its release file or its device tree."""
    model = host.read("/proc/device-tree/model") + host.read("/sys/firmware/devicetree/base/model")
    return bool(host.read("/etc/nv_tegra_release")) or "jetson" in model.lower()


def driver_identity(host: Host, variables: Sequence[tuple[str, str]] = ()) -> str:
    """A hash that changes with kernel, drivers, their libraries, the devices, and `variables` of the environment."""
    described = hashlib.sha256(f"{platform.release()} {host.system} {sorted(variables)}".encode())
    for line in _driver_facts(host):
        described.update(line.encode() + b"\n")
    return described.hexdigest()[:16]


def _driver_facts(host: Host) -> Iterator[str]:
    for pattern in _DRIVER_TEXTS:
        for path in host.matching(pattern):
            if not path.startswith("/sys/module/") or Path(path).parts[3] in _DRIVER_MODULES:
                yield f"{path} {host.read(path)}"
    for pattern in _DEVICE_FILES:
        for path in host.matching(pattern):
            yield f"{path} {os.access(host.root / path.lstrip('/'), os.R_OK | os.W_OK)}"
    for folder in _LIBRARY_FOLDERS:
        for name in _DRIVER_LIBRARIES:
            for path in host.matching(f"{folder}/{name}"):
                yield f"{path} {_size_and_time(host.root / path.lstrip('/'))}"


def _size_and_time(path: Path) -> str:
    try:
        found = path.stat()
    except OSError:
        return "gone"
    return f"{found.st_size} {found.st_mtime_ns}"


def _kind(family: Family) -> DeviceKind:
    return FAMILIES[family].devices


def _cuda(host: Host) -> list[str]:
    """CUDA counts the GPUs it may use from 0. Where no device file is seen, the first is tried all the same: WSL."""
    return [str(number) for number in range(max(1, len(host.matching("/dev/nvidia[0-9]*"))))]


def _render_nodes(host: Host) -> list[str]:
    return host.matching("/dev/dri/renderD*")


def _vendor(host: Host, node: str) -> str:
    return host.read(f"/sys/class/drm/{Path(node).name}/device/vendor")
