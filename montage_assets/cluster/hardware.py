"""This machine as a node: its CPU, memory and GPUs, as far as this process may use them.

Belongs here: reading them from the system, without ever failing: what cannot be read is left out. Does not
belong here: what a GPU's name implies (`gpus`), or testing encoders. All looks at the machine go through
`Machine`, so that tests can put another one in its place.
"""

from __future__ import annotations

import csv
import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from montage_assets.cluster.gpus import GPUType, gpu_type, has_no_encoder, is_jetson, likely_encoders
from montage_assets.cluster.node import NodeCapability, normal_arch

PROGRAM_TIMEOUT_S = 5.0
_UNLIMITED_BYTES = 1 << 60
_UNKNOWN_RAM_GB = 4.0


class Machine:
    """The machine this process runs on: its files below `root`, its programs on `path`."""

    def __init__(
        self,
        root: Path = Path("/"),
        path: str | None = None,
        system: str = platform.system(),
        architecture: str = platform.machine(),
        timeout_s: float = PROGRAM_TIMEOUT_S,
    ) -> None:
        self._root = root
        self._path = path
        self._timeout_s = timeout_s
        self.system = system
        self.architecture = architecture

    def read(self, path: str) -> str | None:
        """The text of a file without padding (device trees end strings with NUL), None if it cannot be read."""
        try:
            return (self._root / path.lstrip("/")).read_text(errors="replace").strip(" \t\r\n\0")
        except OSError:
            return None

    def matching(self, pattern: str) -> list[str]:
        """Absolute paths that match a glob pattern, in order."""
        try:
            found = sorted(self._root.glob(pattern.lstrip("/")))
        except OSError:
            return []
        return ["/" + path.relative_to(self._root).as_posix() for path in found]

    def run(self, *command: str) -> str | None:
        """What a program prints, None if there is no such program, it fails or takes too long."""
        program = shutil.which(command[0], path=self._path)
        if program is None:
            return None
        try:
            done = subprocess.run(
                [program, *command[1:]],
                capture_output=True,
                timeout=self._timeout_s,
                check=False,
                stdin=subprocess.DEVNULL,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.decode(errors="replace") if done.returncode == 0 else None

    def has_program(self, name: str) -> bool:
        """Whether there is such a program."""
        return shutil.which(name, path=self._path) is not None

    def usable_cpus(self) -> int:
        """Processors that this process may run on, before any quota."""
        if hasattr(os, "sched_getaffinity"):
            return len(os.sched_getaffinity(0))
        return os.cpu_count() or 1


@dataclass(frozen=True)
class Gpu:
    """One GPU found: its name, its memory (GiB, None if unknown), and the encoders that may work on it."""

    name: str
    vram_gb: float | None
    encoders: tuple[str, ...]


def local_node(machine: Machine | None = None, force_cpu: bool = False) -> NodeCapability:
    """This machine as a node. `force_cpu` leaves GPUs unasked."""
    machine = machine or Machine()
    memory = ram_gb(machine)
    gpus = [] if force_cpu else find_gpus(machine)
    main = gpus[0] if gpus else None
    shares_memory = main is not None and (is_jetson(main.name) or gpu_type(main.name) is GPUType.APPLE)
    return NodeCapability(
        name=_host_name(),
        arch=normal_arch(machine.architecture or "amd64"),
        cpu_cores=cpu_cores(machine),
        ram_gb=memory or _UNKNOWN_RAM_GB,
        gpu=main.name if main else None,
        vram_gb=(memory if shares_memory else main.vram_gb) if main else None,
        encoders=tuple(dict.fromkeys(encoder for gpu in gpus for encoder in gpu.encoders)),
        assumed=() if memory else ("ram_gb",),
        note=f"{main.name} has no video encoder" if main and has_no_encoder(main.name) else "",
    )


def cpu_cores(machine: Machine) -> float:
    """Cores this process may keep busy: its affinity, or its control group's quota where that is less."""
    quotas = [quota for quota in _cpu_quotas(machine) if quota > 0]
    return round(min([float(machine.usable_cpus()), *quotas]), 2)


def ram_gb(machine: Machine) -> float | None:
    """Memory (GiB) this process may fill: the machine's, or its control group's limit where that is less."""
    limits = [limit for limit in (_total_memory(machine), *_memory_limits(machine)) if limit]
    limits = [limit for limit in limits if limit < _UNLIMITED_BYTES]
    return round(min(limits) / 2**30, 1) if limits else None


def find_gpus(machine: Machine) -> list[Gpu]:
    """The GPUs, those with an encoder first, then those with more memory."""
    found = [*_nvidia(machine), *_jetson(machine), *_render_nodes(machine), *_adreno(machine), *_apple(machine)]
    distinct = list({gpu.name: gpu for gpu in reversed(found)}.values())[::-1]
    return sorted(distinct, key=lambda gpu: (not gpu.encoders, -(gpu.vram_gb or 0.0)))


def _host_name() -> str:
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", platform.node()).strip("-._")
    return name or "localhost"


def _total_memory(machine: Machine) -> int | None:
    meminfo = machine.read("/proc/meminfo") or ""
    match = re.search(r"^MemTotal:\s+(\d+) kB", meminfo, re.MULTILINE)
    if match:
        return int(match[1]) * 1024
    size = (machine.run("sysctl", "-n", "hw.memsize") or "").strip()
    return int(size) if size.isdecimal() else None


def _control_groups(machine: Machine) -> Iterator[tuple[tuple[str, ...], str]]:
    """The controllers and path of each control group of this process; no controllers for version 2."""
    for line in (machine.read("/proc/self/cgroup") or "").splitlines():
        parts = line.split(":", 2)
        if len(parts) == 3:
            yield tuple(filter(None, parts[1].split(","))), parts[2]


def _group_folders(machine: Machine, controller: str) -> Iterator[str]:
    """Folders of the process's control group and all above it: each level may limit. Version 1 and 2.

    A container sees its own group as the root of the mount, whatever path the host gave it; the root is included.
    """
    for controllers, path in _control_groups(machine):
        if controllers and controller not in controllers:
            continue
        mounts = [f"/sys/fs/cgroup/{','.join(controllers)}", f"/sys/fs/cgroup/{controller}"] if controllers else []
        mounts = mounts or ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
        levels = [PurePosixPath(path), *PurePosixPath(path).parents]
        for mount in dict.fromkeys(mounts):
            yield from (f"{mount}/{str(level).lstrip('/')}".rstrip("/") for level in levels)


def _cpu_quotas(machine: Machine) -> Iterator[float]:
    for folder in _group_folders(machine, "cpu"):
        quota, _, period = (machine.read(f"{folder}/cpu.max") or "").partition(" ")
        if not quota:
            quota = machine.read(f"{folder}/cpu.cfs_quota_us") or ""
            period = machine.read(f"{folder}/cpu.cfs_period_us") or ""
        if quota.isdecimal() and period.isdecimal() and int(period):
            yield int(quota) / int(period)


def _memory_limits(machine: Machine) -> Iterator[int]:
    for folder in _group_folders(machine, "memory"):
        for file in ("memory.max", "memory.limit_in_bytes"):
            limit = machine.read(f"{folder}/{file}") or ""
            if limit.isdecimal():
                yield int(limit)


def _nvidia(machine: Machine) -> list[Gpu]:
    printed = machine.run("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits")
    if not printed or _jetson(machine):
        return []
    rows = [[cell.strip() for cell in row] for row in csv.reader(printed.splitlines()) if len(row) >= 2]
    named = [(_with_vendor("NVIDIA", name), _mib_to_gb(memory)) for name, memory, *_ in rows]
    return [Gpu(name, vram_gb, likely_encoders(name)) for name, vram_gb in named]


def _mib_to_gb(text: str) -> float | None:
    return round(int(text) / 1024, 1) if text.isdecimal() else None


def _with_vendor(vendor: str, name: str) -> str:
    return name if vendor.lower() in name.lower() else f"{vendor} {name}"


def _jetson(machine: Machine) -> list[Gpu]:
    """A Jetson says so in its device tree; its release file tells it where the tree is hidden from a container."""
    model = machine.read("/proc/device-tree/model") or machine.read("/sys/firmware/devicetree/base/model") or ""
    if not is_jetson(model):
        if machine.read("/etc/nv_tegra_release") is None:
            return []
        model = "NVIDIA Jetson"
    return [Gpu(_with_vendor("NVIDIA", model), None, likely_encoders(_with_vendor("NVIDIA", model)))]


_PCI_VENDORS = {"0x1002": "AMD", "0x8086": "Intel"}


def _render_nodes(machine: Machine) -> list[Gpu]:
    """AMD's and Intel's GPUs, by their render nodes; vainfo, where installed, decides which encoders they have."""
    gpus = []
    for folder in machine.matching("/sys/class/drm/renderD*"):
        vendor = _PCI_VENDORS.get(machine.read(f"{folder}/device/vendor") or "")
        if vendor is None:
            continue
        vainfo = machine.run("vainfo", "--display", "drm", "--device", f"/dev/dri/{PurePosixPath(folder).name}")
        name = _name_in_vainfo(vendor, vainfo or "") or _sysfs_name(machine, vendor, folder)
        memory = machine.read(f"{folder}/device/mem_info_vram_total") or ""
        vram_gb = round(int(memory) / 2**30, 1) if memory.isdecimal() else None
        if vendor == "AMD":
            rocm_name, rocm_vram_gb = _rocm_card(machine, memory)
            name, vram_gb = rocm_name or name, vram_gb or rocm_vram_gb
        encoders = _vaapi_encoders(vendor, vainfo) if machine.has_program("vainfo") else likely_encoders(name)
        gpus.append(Gpu(name, vram_gb, () if has_no_encoder(name) else encoders))
    if not gpus:
        gpus = [Gpu(name, vram_gb, likely_encoders(name)) for name, vram_gb in _rocm_cards(machine)]
    return gpus


def _name_in_vainfo(vendor: str, vainfo: str) -> str | None:
    """E.g. `AMD Radeon RX 7900 XTX` of `... for AMD Radeon RX 7900 XTX (radeonsi, navi31, ...)`."""
    match = re.search(rf"Driver version:.* for ({vendor}[^(\n]*)", vainfo)
    return match[1].strip() if match else None


def _sysfs_name(machine: Machine, vendor: str, folder: str) -> str:
    product = machine.read(f"{folder}/device/product_name")
    device = machine.read(f"{folder}/device/device")
    return _with_vendor(vendor, product) if product else f"{vendor} {device or 'GPU'}"


_VA_PROFILES = (("h264", "VAProfileH264"), ("hevc", "VAProfileHEVC"), ("av1", "VAProfileAV1"))


def _vaapi_encoders(vendor: str, vainfo: str | None) -> tuple[str, ...]:
    lines = [line for line in (vainfo or "").splitlines() if "VAEntrypointEncSlice" in line]
    codecs = [codec for codec, profile in _VA_PROFILES if any(profile in line for line in lines)]
    families = ("qsv", "vaapi") if vendor == "Intel" else ("vaapi",)
    return tuple(f"{codec}_{family}" for family in families for codec in codecs)


def _rocm_cards(machine: Machine) -> list[tuple[str, float | None]]:
    printed = machine.run("rocm-smi", "--showproductname", "--showmeminfo", "vram", "--json")
    try:
        cards = json.loads(printed or "{}")
    except json.JSONDecodeError:
        return []
    found: list[tuple[str, float | None]] = []
    for _, card in sorted(cards.items()) if isinstance(cards, dict) else ():
        if not isinstance(card, dict):
            continue
        values = {str(key).lower(): str(value) for key, value in card.items()}
        memory = values.get("vram total memory (b)", "")
        name = next((values[key] for key in ("card series", "card model", "card sku") if values.get(key)), "GPU")
        if memory.isdecimal():
            found.append((_with_vendor("AMD", name), round(int(memory) / 2**30, 1)))
    return found


def _rocm_card(machine: Machine, memory_bytes: str) -> tuple[str | None, float | None]:
    """The card of that memory, or the only one; rocm-smi's cards and render nodes share no number."""
    cards = _rocm_cards(machine)
    vram_gb = round(int(memory_bytes) / 2**30, 1) if memory_bytes.isdecimal() else None
    same = [card for card in cards if card[1] == vram_gb] or (cards if len(cards) == 1 else [])
    return same[0] if same else (None, None)


def _adreno(machine: Machine) -> list[Gpu]:
    """Qualcomm's: by the vendor kernel's KGSL, else the device tree; its encoder is a separate V4L2 device."""
    model = machine.read("/sys/class/kgsl/kgsl-3d0/gpu_model")
    if not model:
        drivers = [machine.read(f"{card}/device/uevent") or "" for card in machine.matching("/sys/class/drm/card[0-9]")]
        if not any("DRIVER=msm" in driver or "qcom,adreno" in driver for driver in drivers):
            return []
        model = "Adreno"
    names = [machine.read(path) or "" for path in machine.matching("/sys/class/video4linux/video*/name")]
    encodes = any(re.search(r"(venus|iris|msm_vidc).*enc", name, re.IGNORECASE) for name in names)
    return [Gpu(_with_vendor("Qualcomm", model), None, ("h264_v4l2m2m", "hevc_v4l2m2m") if encodes else ())]


def _apple(machine: Machine) -> list[Gpu]:
    if machine.system != "Darwin" or normal_arch(machine.architecture) != "arm64":
        return []
    chip = (machine.run("sysctl", "-n", "machdep.cpu.brand_string") or "").strip() or "Apple Silicon"
    return [Gpu(_with_vendor("Apple", chip), None, likely_encoders(_with_vendor("Apple", chip)))]


__all__: Sequence[str] = ("Gpu", "Machine", "cpu_cores", "find_gpus", "local_node", "ram_gb")
