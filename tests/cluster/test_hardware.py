"""This machine as a node, on machines made up of files and small programs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from montage_assets.cluster import GPUType
from montage_assets.cluster.gpus import gpu_type, has_no_encoder, is_jetson, likely_encoders
from montage_assets.cluster.hardware import Machine, cpu_cores, local_node, ram_gb

GIB = 1 << 30


class FakeMachine(Machine):
    """A machine below a folder: its files, its programs, so many processors."""

    def __init__(
        self, folder: Path, cpus: int = 16, system: str = "Linux", architecture: str = "x86_64", timeout_s: float = 5
    ) -> None:
        self.files, self.programs, self.cpus = folder / "root", folder / "bin", cpus
        self.files.mkdir()
        self.programs.mkdir()
        super().__init__(self.files, str(self.programs), system, architecture, timeout_s)

    def usable_cpus(self) -> int:
        return self.cpus

    def file(self, path: str, text: str | int) -> None:
        place = self.files / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(f"{text}\n")

    def program(self, name: str, script: str) -> None:
        place = self.programs / name
        place.write_text(f"#!/bin/sh\n{script}\n")
        place.chmod(0o755)

    def prints(self, name: str, text: str) -> None:
        (self.programs / f"{name}.txt").write_text(text)
        self.program(name, f"while read -r line; do echo \"$line\"; done < '{self.programs / name}.txt'")

    def memory(self, gib: float) -> None:
        self.file("/proc/meminfo", f"MemTotal:       {int(gib * 1024 * 1024)} kB\nMemFree: 1 kB")

    def render_node(self, number: int, vendor: str, **files: str | int) -> None:
        folder = f"/sys/class/drm/renderD{number}/device"
        for name, text in {"vendor": vendor, **files}.items():
            self.file(f"{folder}/{name}", text)


@pytest.fixture
def machine(tmp_path: Path) -> FakeMachine:
    return FakeMachine(tmp_path)


VAINFO_AMD = """\
libva info: VA-API version 1.20.0
vainfo: Driver version: Mesa Gallium driver 24.0.5 for AMD Radeon RX 7900 XTX (radeonsi, navi31, LLVM 17.0.6, DRM 3.57)
      VAProfileH264High               : VAEntrypointVLD
      VAProfileH264High               : VAEntrypointEncSlice
      VAProfileHEVCMain               : VAEntrypointEncSlice
      VAProfileAV1Profile0            : VAEntrypointVLD
      VAProfileAV1Profile0            : VAEntrypointEncSlice
"""
VAINFO_INTEL = """\
vainfo: Driver version: Intel iHD driver for Intel(R) Gen Graphics - 23.1.1 ()
      VAProfileH264Main               : VAEntrypointVLD
      VAProfileH264Main               : VAEntrypointEncSliceLP
      VAProfileHEVCMain               : VAEntrypointVLD
"""


def test_this_very_machine_is_a_node_that_can_work() -> None:
    node = local_node()
    assert 0 < node.cpu_cores <= (os.cpu_count() or 1)
    meminfo = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    assert 0 < node.ram_gb <= int(meminfo["MemTotal"].split()[0]) / (1 << 20) + 0.05
    assert node.closed_to_all == ""


def test_a_bare_machine_is_a_cpu_node(machine: FakeMachine) -> None:
    machine.memory(31.2)
    node = local_node(machine)
    assert (node.arch, node.cpu_cores, node.ram_gb, node.gpu, node.encoders) == ("amd64", 16, 31.2, None, ())


def test_a_machine_that_tells_nothing_is_still_a_node(machine: FakeMachine) -> None:
    node = local_node(machine)
    assert (node.ram_gb, node.assumed) == (4, ("ram_gb",))


# Control groups


def test_the_cpu_quota_of_version_2_counts(machine: FakeMachine) -> None:
    machine.file("/proc/self/cgroup", "0::/")
    machine.file("/sys/fs/cgroup/cpu.max", "150000 100000")
    assert cpu_cores(machine) == 1.5


def test_no_quota_is_no_limit(machine: FakeMachine) -> None:
    machine.file("/proc/self/cgroup", "0::/")
    machine.file("/sys/fs/cgroup/cpu.max", "max 100000")
    machine.file("/sys/fs/cgroup/memory.max", "max")
    machine.memory(8)
    assert (cpu_cores(machine), ram_gb(machine)) == (16, 8)


def test_a_quota_above_the_machine_is_no_gain(machine: FakeMachine) -> None:
    machine.file("/proc/self/cgroup", "0::/")
    machine.file("/sys/fs/cgroup/cpu.max", "6400000 100000")
    assert cpu_cores(machine) == 16


def test_the_tightest_level_of_nested_groups_counts(machine: FakeMachine) -> None:
    machine.memory(64)
    machine.file("/proc/self/cgroup", "0::/kubepods/pod1/main")
    machine.file("/sys/fs/cgroup/kubepods/pod1/main/memory.max", "max")
    machine.file("/sys/fs/cgroup/kubepods/pod1/memory.max", 8 * GIB)
    machine.file("/sys/fs/cgroup/kubepods/memory.max", 48 * GIB)
    machine.file("/sys/fs/cgroup/kubepods/cpu.max", "400000 100000")
    assert (cpu_cores(machine), ram_gb(machine)) == (4, 8)


@pytest.mark.parametrize("mount", ["cpu,cpuacct", "cpu"])
def test_the_limits_of_version_1_count(machine: FakeMachine, mount: str) -> None:
    machine.memory(64)
    machine.file("/proc/self/cgroup", f"9:{mount}:/docker/abc\n4:memory:/docker/abc\n0::/")
    machine.file(f"/sys/fs/cgroup/{mount}/docker/abc/cpu.cfs_quota_us", 250000)
    machine.file(f"/sys/fs/cgroup/{mount}/docker/abc/cpu.cfs_period_us", 100000)
    machine.file("/sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes", 6 * GIB)
    assert (cpu_cores(machine), ram_gb(machine)) == (2.5, 6)


def test_a_container_of_version_1_sees_its_group_as_the_root(machine: FakeMachine) -> None:
    machine.memory(64)
    machine.file("/proc/self/cgroup", "4:memory:/docker/abc")
    machine.file("/sys/fs/cgroup/memory/memory.limit_in_bytes", 6 * GIB)
    assert ram_gb(machine) == 6


def test_unlimited_groups_of_version_1_are_no_limit(machine: FakeMachine) -> None:
    machine.memory(64)
    machine.file("/proc/self/cgroup", "4:memory:/\n1:cpu:/")
    machine.file("/sys/fs/cgroup/memory/memory.limit_in_bytes", 9223372036854771712)
    machine.file("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", -1)
    machine.file("/sys/fs/cgroup/cpu/cpu.cfs_period_us", 100000)
    assert (cpu_cores(machine), ram_gb(machine)) == (16, 64)


def test_an_unlimited_group_is_no_memory_to_count_on(machine: FakeMachine) -> None:
    machine.file("/proc/self/cgroup", "4:memory:/")
    machine.file("/sys/fs/cgroup/memory/memory.limit_in_bytes", 9223372036854771712)
    assert local_node(machine).assumed == ("ram_gb",)


# NVIDIA


def test_nvidia_smi_gives_name_memory_and_nvenc(machine: FakeMachine) -> None:
    machine.prints("nvidia-smi", "NVIDIA GeForce RTX 4090, 24564\n")
    node = local_node(machine)
    assert (node.gpu, node.vram_gb, node.gpu_type) == ("NVIDIA GeForce RTX 4090", 24.0, GPUType.NVIDIA)
    assert node.encoders == ("h264_nvenc", "hevc_nvenc")


def test_nvidia_smi_is_asked_for_just_that(machine: FakeMachine, tmp_path: Path) -> None:
    machine.program("nvidia-smi", f'echo "$*" > {tmp_path}/asked; echo "Tesla T4, 15360"')
    assert local_node(machine).gpu == "NVIDIA Tesla T4"
    assert (tmp_path / "asked").read_text() == "--query-gpu=name,memory.total --format=csv,noheader,nounits\n"


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA A100-SXM4-80GB",
        "A30",
        "NVIDIA H100 80GB HBM3",
        "NVIDIA H200",
        "NVIDIA B200",
        "NVIDIA GeForce GT 1030",
        "NVIDIA GeForce MX450",
    ],
)
def test_chips_without_nvenc_offer_no_encoder(machine: FakeMachine, name: str) -> None:
    machine.prints("nvidia-smi", f"{name}, 81559\n")
    node = local_node(machine)
    assert node.gpu_type is GPUType.NVIDIA
    assert node.encoders == ()
    assert "has no video encoder" in node.note


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA RTX A3000",
        "NVIDIA A10",
        "Tesla T4",
        "NVIDIA L40S",
        "NVIDIA A2",
        "Quadro P2000",
        "NVIDIA GeForce RTX 3050",
    ],
)
def test_their_neighbours_by_name_have_nvenc(name: str) -> None:
    assert not has_no_encoder(name)


def test_the_gpu_with_an_encoder_is_the_nodes_gpu(machine: FakeMachine) -> None:
    machine.prints("nvidia-smi", "NVIDIA H100 PCIe, 81559\nNVIDIA L4, 23034\n")
    node = local_node(machine)
    assert (node.gpu, node.encoders) == ("NVIDIA L4", ("h264_nvenc", "hevc_nvenc"))


@pytest.mark.parametrize(
    "script", ["echo 'NVIDIA-SMI has failed'; exit 9", "echo nonsense", "exec sleep 30", "printf '\\377\\376'"]
)
def test_a_broken_driver_is_no_gpu(tmp_path: Path, script: str) -> None:
    machine = FakeMachine(tmp_path, timeout_s=0.3)
    machine.program("nvidia-smi", script.replace("sleep", "/bin/sleep"))
    assert local_node(machine).gpu is None


def test_unknown_memory_of_a_gpu_stays_unknown(machine: FakeMachine) -> None:
    machine.prints("nvidia-smi", "NVIDIA GB10, [N/A]\n")
    assert (local_node(machine).gpu, local_node(machine).vram_gb) == ("NVIDIA GB10", None)


def test_force_cpu_leaves_gpus_unasked(machine: FakeMachine, tmp_path: Path) -> None:
    machine.program("nvidia-smi", f"touch {tmp_path}/asked; echo 'NVIDIA GeForce RTX 4090, 24564'")
    assert local_node(machine, force_cpu=True).gpu is None
    assert not (tmp_path / "asked").exists()


# Jetson


@pytest.mark.parametrize("place", ["/proc/device-tree/model", "/sys/firmware/devicetree/base/model"])
def test_a_jetson_is_known_by_its_device_tree(machine: FakeMachine, place: str) -> None:
    machine.memory(7.4)
    machine.file(place, "NVIDIA Jetson Xavier NX Developer Kit\0")
    machine.prints("nvidia-smi", "Xavier (nvgpu), [N/A]\n")
    node = local_node(machine)
    assert (node.gpu, node.is_jetson, node.vram_gb) == ("NVIDIA Jetson Xavier NX Developer Kit", True, 7.4)
    assert node.encoders[0] == "h264_nvmpi"


def test_a_jetson_in_a_container_is_known_by_its_release_file(machine: FakeMachine) -> None:
    machine.file("/etc/nv_tegra_release", "# R35 (release), REVISION: 3.1")
    assert local_node(machine).is_jetson


def test_an_orin_nano_has_no_encoder(machine: FakeMachine) -> None:
    machine.file("/proc/device-tree/model", "NVIDIA Jetson Orin Nano Developer Kit\0")
    node = local_node(machine)
    assert (node.is_jetson, node.encoders) == (True, ())


def test_a_raspberry_pi_is_no_jetson(machine: FakeMachine) -> None:
    machine.file("/proc/device-tree/model", "Raspberry Pi 4 Model B Rev 1.4\0")
    assert local_node(machine).gpu is None


# AMD and Intel


def test_an_amd_card_is_described_by_sysfs_and_vainfo(machine: FakeMachine) -> None:
    machine.render_node(128, "0x1002", mem_info_vram_total=24 * GIB)
    machine.prints("vainfo", VAINFO_AMD)
    node = local_node(machine)
    assert (node.gpu, node.vram_gb, node.gpu_type) == ("AMD Radeon RX 7900 XTX", 24, GPUType.AMD)
    assert node.encoders == ("h264_vaapi", "hevc_vaapi", "av1_vaapi")


def test_vainfo_is_asked_about_each_render_node(machine: FakeMachine, tmp_path: Path) -> None:
    machine.render_node(128, "0x1002", mem_info_vram_total=GIB)
    machine.render_node(129, "0x8086")
    machine.program("vainfo", f'echo "$*" >> {tmp_path}/asked')
    local_node(machine)
    asked = set((tmp_path / "asked").read_text().splitlines())
    assert asked == {"--display drm --device /dev/dri/renderD128", "--display drm --device /dev/dri/renderD129"}


def test_without_vainfo_amds_usual_encoders_are_candidates(machine: FakeMachine) -> None:
    machine.render_node(128, "0x1002", mem_info_vram_total=24 * GIB, device="0x744c")
    node = local_node(machine)
    assert (node.gpu, node.vram_gb, node.encoders[0]) == ("AMD 0x744c", 24, "h264_vaapi")


def rocm_json(name_key: str, name: str, gib: int) -> str:
    card = {"VRAM Total Memory (B)": str(gib * GIB), name_key: name}
    return json.dumps({"card0": card, "system": {"Driver version": "6.7"}}) + "\n"


def test_rocm_smi_names_the_card(machine: FakeMachine) -> None:
    machine.render_node(128, "0x1002", mem_info_vram_total=24 * GIB)
    machine.prints("rocm-smi", rocm_json("Card Series", "Radeon RX 7900 XTX", 24))
    node = local_node(machine)
    assert (node.gpu, node.vram_gb) == ("AMD Radeon RX 7900 XTX", 24)


def test_rocm_smi_alone_is_enough(machine: FakeMachine) -> None:
    machine.prints("rocm-smi", rocm_json("Card series", "AMD Instinct MI300X OAM", 192))
    node = local_node(machine)
    assert (node.gpu, node.vram_gb, node.encoders) == ("AMD Instinct MI300X OAM", 192, ())


@pytest.mark.parametrize("text", ["", "[]", "not json", '{"card0": 3}'])
def test_rocm_smi_that_makes_no_sense_is_no_gpu(machine: FakeMachine, text: str) -> None:
    machine.prints("rocm-smi", text + "\n")
    assert local_node(machine).gpu is None


def test_intel_graphics_offer_what_vainfo_lists(machine: FakeMachine) -> None:
    machine.render_node(128, "0x8086")
    machine.prints("vainfo", VAINFO_INTEL)
    node = local_node(machine)
    assert (node.gpu_type, node.vram_gb) == (GPUType.INTEL, None)
    assert node.encoders == ("h264_qsv", "h264_vaapi")  # HEVC is only decoded
    assert not node.has_big_gpu


def test_a_driver_that_vainfo_cannot_open_offers_no_encoder(machine: FakeMachine) -> None:
    machine.render_node(128, "0x8086")
    machine.program("vainfo", "echo 'vaInitialize failed with error code -1'; exit 3")
    node = local_node(machine)
    assert (node.gpu_type, node.encoders) == (GPUType.INTEL, ())


def test_a_laptop_with_two_gpus_offers_the_encoders_of_both(machine: FakeMachine) -> None:
    machine.render_node(128, "0x8086")
    machine.render_node(129, "0x10de")
    machine.prints("nvidia-smi", "NVIDIA GeForce RTX 4060 Laptop GPU, 8188\n")
    node = local_node(machine)
    assert node.gpu == "NVIDIA GeForce RTX 4060 Laptop GPU"
    assert node.encoders == ("h264_nvenc", "hevc_nvenc", "h264_qsv", "hevc_qsv", "h264_vaapi", "hevc_vaapi")


def test_the_display_of_a_virtual_machine_is_no_gpu(machine: FakeMachine) -> None:
    machine.render_node(128, "0x1af4")
    assert local_node(machine).gpu is None


# Apple and Qualcomm


def test_apple_silicon_has_videotoolbox_and_one_memory(tmp_path: Path) -> None:
    machine = FakeMachine(tmp_path, cpus=10, system="Darwin", architecture="arm64")
    machine.program("sysctl", f'case "$2" in hw.memsize) echo {16 * GIB};; *) echo "Apple M2 Pro";; esac')
    node = local_node(machine)
    assert (node.arch, node.gpu, node.gpu_type, node.vram_gb) == ("arm64", "Apple M2 Pro", GPUType.APPLE, 16)
    assert node.encoders == ("h264_videotoolbox", "hevc_videotoolbox")


@pytest.mark.parametrize(
    ("device", "encoders"),
    [("Qualcomm Venus video encoder", ("h264_v4l2m2m", "hevc_v4l2m2m")), ("Qualcomm Venus video decoder", ())],
)
def test_an_adreno_encodes_only_with_qualcomms_encoder_device(
    tmp_path: Path, device: str, encoders: tuple[str, ...]
) -> None:
    machine = FakeMachine(tmp_path, architecture="aarch64")
    machine.file("/sys/class/kgsl/kgsl-3d0/gpu_model", "Adreno740v2")
    machine.file("/sys/class/video4linux/video0/name", device)
    node = local_node(machine)
    assert (node.gpu_type, node.arch, node.encoders) == (GPUType.QUALCOMM, "arm64", encoders)


def test_an_adreno_with_the_mainline_driver_is_found_too(machine: FakeMachine) -> None:
    machine.file("/sys/class/drm/card0/device/uevent", "DRIVER=msm_dpu\nOF_COMPATIBLE_0=qcom,adreno-750.1")
    assert local_node(machine).gpu == "Qualcomm Adreno"


# Names


@pytest.mark.parametrize(
    ("name", "vendor"),
    [
        ("amd_rx7900xtx", GPUType.AMD), ("AMD-Radeon_RX_7900_XTX", GPUType.AMD), ("Radeon Pro W6800", GPUType.AMD),
        ("nvidia_jetson", GPUType.NVIDIA), ("NVIDIA-GeForce-RTX-4090", GPUType.NVIDIA), ("Tesla-T4", GPUType.NVIDIA),
        ("Orin (nvgpu)", GPUType.NVIDIA), ("intel_flex_170", GPUType.INTEL), ("Intel Arc A770", GPUType.INTEL),
        ("Apple M1", GPUType.APPLE), ("Qualcomm Adreno 740", GPUType.QUALCOMM), ("vaapi", GPUType.OTHER),
        ("matrox", GPUType.OTHER), (None, GPUType.NONE), ("", GPUType.NONE),
    ],
)  # fmt: skip
def test_the_vendor_is_known_by_the_name(name: str | None, vendor: GPUType) -> None:
    assert gpu_type(name) is vendor


@pytest.mark.parametrize("name", ["RX 6400", "AMD Radeon RX 6500 XT", "AMD Instinct MI300X", "AMD Instinct MI355X"])
def test_amd_chips_without_an_encoder_are_known(name: str) -> None:
    assert likely_encoders(name) == ()


@pytest.mark.parametrize("name", ["AMD Radeon RX 6600", "AMD Radeon RX 7900 XTX", "AMD Instinct MI210"])
def test_other_amd_chips_are_given_a_try(name: str) -> None:
    assert likely_encoders(name)[0] == "h264_vaapi"


def test_a_desktop_card_is_no_jetson() -> None:
    assert not is_jetson("NVIDIA GeForce RTX 4090")
    assert not is_jetson(None)
