"""Node objects of the API become nodes of the matrix."""

from __future__ import annotations

from typing import Any

import pytest

from montage_assets.cluster import ClusterError, GPUType
from montage_assets.cluster.kubernetes_nodes import node_from_api, nodes_from_api
from montage_assets.cluster.quantities import parse_quantity
from tests.cluster.kubernetes import api_node, as_the_python_client_spells_it


def test_cpu_memory_architecture_and_address_are_the_allocatable_ones() -> None:
    node = node_from_api(api_node("a", cpu="7910m", memory="16266296Ki", arch="arm64"))
    assert (node.name, node.arch, node.cpu_cores, node.ram_gb) == ("a", "arm64", 7.91, 15.5)
    assert node.address == "192.168.1.20"
    assert (node.gpu, node.encoders, node.resources) == (None, (), {})
    assert node.closed_to_all == ""


@pytest.mark.parametrize(
    "item",
    [
        api_node("jet", arch="arm64", kernel="5.15.148-tegra", resources={"nvidia.com/gpu": "1"}),
        api_node(
            "off", unschedulable=True, taints=[{"key": "x", "value": "y", "effect": "NoSchedule"}], ready="Unknown"
        ),
        api_node("amd", labels={"amd.com/gpu.vram": "24G"}, resources={"amd.com/gpu": "1"}),
    ],
)
def test_both_spellings_of_a_node_give_the_same(item: dict[str, Any]) -> None:
    other = as_the_python_client_spells_it(item)
    assert "node_info" in other["status"]
    assert node_from_api(other) == node_from_api(item)


def test_an_arm_node_is_not_taken_for_an_intel_one_in_the_clients_spelling() -> None:
    item = as_the_python_client_spells_it(api_node("a", arch="arm64"))
    del item["metadata"]["labels"]
    assert node_from_api(item).arch == "arm64"


def test_empty_fields_of_the_python_client_are_nothing() -> None:
    item = as_the_python_client_spells_it(api_node("a"))
    item["spec"] |= {"taints": None, "unschedulable": None}
    item["metadata"]["labels"] = None
    node = node_from_api(item)
    assert (node.taints, node.schedulable, node.labels) == ((), True, {})


def test_nvidias_labels_give_product_and_memory() -> None:
    labels = {"nvidia.com/gpu.product": "NVIDIA-GeForce-RTX-4090", "nvidia.com/gpu.memory": "24564"}
    node = node_from_api(api_node("a", labels=labels, resources={"nvidia.com/gpu": "2"}))
    assert (node.gpu, node.vram_gb, node.gpu_type) == ("NVIDIA-GeForce-RTX-4090", 24.0, GPUType.NVIDIA)
    assert node.resources == {"nvidia.com/gpu": 2}
    assert node.encoders == ("h264_nvenc", "hevc_nvenc")
    assert node.has_big_gpu


@pytest.mark.parametrize(
    "product",
    [
        "NVIDIA-A100-SXM4-80GB",
        "A30",
        "NVIDIA-H100-PCIe",
        "NVIDIA-H200",
        "NVIDIA-B200",
        "NVIDIA-A100-SXM4-40GB-MIG-1g.5gb",
    ],
)
def test_an_nvidia_chip_without_nvenc_offers_no_encoder_and_says_so(product: str) -> None:
    labels = {"nvidia.com/gpu.product": product, "nvidia.com/gpu.memory": "81920"}
    node = node_from_api(api_node("a", labels=labels, resources={"nvidia.com/gpu": "1"}))
    assert node.gpu_type is GPUType.NVIDIA
    assert node.encoders == ()
    assert "has no video encoder" in node.note


def test_a_shared_gpu_is_known_by_its_plain_name() -> None:
    labels = {"nvidia.com/gpu.product": "Tesla-T4-SHARED"}
    node = node_from_api(api_node("a", labels=labels, resources={"nvidia.com/gpu.shared": "4"}))
    assert (node.gpu, node.gpu_type) == ("Tesla-T4", GPUType.NVIDIA)


def test_slices_of_a_gpu_count_as_one() -> None:
    node = node_from_api(api_node("a", resources={"nvidia.com/gpu": "0", "nvidia.com/mig-1g.5gb": "7"}))
    assert node.gpu_type is GPUType.NVIDIA


def test_a_jetson_is_known_by_its_kernel_and_shares_its_memory() -> None:
    item = api_node("jet", arch="arm64", memory="7577Mi", kernel="5.15.148-tegra", resources={"nvidia.com/gpu": "1"})
    node = node_from_api(item)
    assert node.is_jetson
    assert node.vram_gb == node.ram_gb == 7.4
    assert "h264_nvmpi" in node.encoders


@pytest.mark.parametrize(
    "labels",
    [
        {"amd.com/gpu.vram": "24G", "amd.com/gpu.product-name": "Radeon_RX_7900_XTX"},
        {"beta.amd.com/gpu.vram.24G": "1", "beta.amd.com/gpu.product-name.Radeon_RX_7900_XTX": "1"},
        {"beta.amd.com/gpu.vram": "24G", "amd.com/gpu.product-name": "AMD_Radeon_RX_7900_XTX"},
    ],
)
def test_amds_labels_give_product_and_memory_in_old_and_new_form(labels: dict[str, str]) -> None:
    node = node_from_api(api_node("a", labels=labels, resources={"amd.com/gpu": "1"}))
    assert (node.gpu_type, node.vram_gb) == (GPUType.AMD, 24)
    assert "7900" in str(node.gpu)
    assert node.encoders[:2] == ("h264_vaapi", "hevc_vaapi")


def test_an_amd_gpu_without_labels_is_still_a_big_gpu_of_amd() -> None:
    node = node_from_api(api_node("a", resources={"amd.com/gpu": "1"}))
    assert (node.gpu_type, node.vram_gb, node.has_big_gpu) == (GPUType.AMD, None, True)


def test_an_instinct_of_the_mi300_series_offers_no_encoder() -> None:
    labels = {"amd.com/gpu.product-name": "AMD_Instinct_MI300X_OAM", "amd.com/gpu.vram": "192G"}
    assert node_from_api(api_node("a", labels=labels, resources={"amd.com/gpu": "8"})).encoders == ()


@pytest.mark.parametrize("resource", ["gpu.intel.com/i915", "gpu.intel.com/xe"])
def test_intels_gpus_are_known_by_both_drivers(resource: str) -> None:
    node = node_from_api(api_node("a", resources={resource: "1"}))
    assert (node.gpu_type, node.encoders[0], node.has_big_gpu) == (GPUType.INTEL, "h264_qsv", False)


def test_intels_labels_give_product_and_memory() -> None:
    labels = {"gpu.intel.com/product": "Flex_170", "gpu.intel.com/memory.max": str(16 << 30)}
    node = node_from_api(api_node("a", labels=labels, resources={"gpu.intel.com/i915": "1"}))
    assert (node.gpu, node.vram_gb) == ("intel_flex_170", 16)


@pytest.mark.parametrize(
    ("label", "vendor"),
    [
        ("feature.node.kubernetes.io/pci-0300_8086.present", GPUType.INTEL),
        ("feature.node.kubernetes.io/pci-0300_1002.present", GPUType.AMD),
        ("feature.node.kubernetes.io/pci-0302_10de.present", GPUType.NVIDIA),
        ("feature.node.kubernetes.io/pci-0200_8086.present", GPUType.OTHER),  # a network card
    ],
)
def test_the_generic_device_plugin_gets_its_vendor_from_feature_discovery(label: str, vendor: GPUType) -> None:
    node = node_from_api(api_node("a", labels={label: "true"}, resources={"squat.ai/dri": "4"}))
    assert node.gpu_type is vendor
    assert node.resources == {"squat.ai/dri": 4}


def test_the_generic_device_plugin_beside_a_vendors_is_the_same_gpu() -> None:
    node = node_from_api(api_node("a", resources={"squat.ai/dri": "1", "gpu.intel.com/i915": "1"}))
    assert (node.gpu, node.gpu_type) == ("intel", GPUType.INTEL)


def test_a_card_comes_before_the_graphics_of_the_cpu_and_both_offer_their_encoders() -> None:
    labels = {"nvidia.com/gpu.product": "NVIDIA-RTX-A2000", "nvidia.com/gpu.memory": "6138"}
    node = node_from_api(api_node("a", labels=labels, resources={"gpu.intel.com/i915": "1", "nvidia.com/gpu": "1"}))
    assert node.gpu_type is GPUType.NVIDIA
    assert node.encoders[0] == "h264_nvenc"
    assert "h264_qsv" in node.encoders


@pytest.mark.parametrize(
    "labels",
    [
        {"amd.com/gpu": "present"},
        {"nvidia.com/gpu.present": "true", "nvidia.com/gpu.product": "NVIDIA-L4"},
        {"feature.node.kubernetes.io/pci-0300_8086.present": "true"},
    ],
)
def test_a_gpu_that_no_device_plugin_offers_is_not_counted_but_noted(labels: dict[str, str]) -> None:
    node = node_from_api(api_node("a", labels=labels, resources={"nvidia.com/gpu": "0"}))
    assert node.gpu is None
    assert "device plugin" in node.note


@pytest.mark.parametrize("ready", ["False", "Unknown"])
def test_a_node_that_is_not_ready_takes_no_work(ready: str) -> None:
    assert node_from_api(api_node("a", ready=ready)).closed_to_all == "not ready"


def test_a_node_that_never_reported_is_not_ready() -> None:
    item = api_node("a")
    del item["status"]["conditions"]
    assert not node_from_api(item).ready


def test_a_cordoned_node_takes_no_work() -> None:
    taint = {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}
    node = node_from_api(api_node("a", unschedulable=True, taints=[taint]))
    assert node.closed_to_all == "cordoned"


def test_taints_are_kept_as_kubectl_writes_them() -> None:
    taints = [{"key": "a", "value": "b", "effect": "NoSchedule"}, {"key": "c", "effect": "PreferNoSchedule"}]
    node = node_from_api(api_node("a", taints=taints))
    assert node.taints == ("a=b:NoSchedule", "c:PreferNoSchedule")
    assert node.closed_to_all == "tainted a=b:NoSchedule"


@pytest.mark.parametrize("role", ["control-plane", "master"])
def test_the_control_plane_is_known_by_its_role(role: str) -> None:
    assert node_from_api(api_node("a", labels={f"node-role.kubernetes.io/{role}": "true"})).control_plane
    assert not node_from_api(api_node("a")).control_plane


def test_nodes_come_in_the_order_of_their_names() -> None:
    assert [node.name for node in nodes_from_api([api_node("b"), api_node("a")])] == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8", 8), ("500m", 0.5), ("7910m", 7.91), ("1.5", 1.5), (".5", 0.5), ("100n", 1e-7), ("5u", 5e-6), ("2k", 2000),
        ("16266296Ki", 16266296 * 1024), ("64Mi", 64 * 2**20), ("1.5Gi", 1.5 * 2**30), ("1Ti", 2**40), ("16G", 16e9),
        ("129e6", 129e6), ("129E6", 129e6), ("1E", 1e18), ("1Ei", 2**60), ("128974848", 128974848), (4, 4), ("0", 0),
    ],
)  # fmt: skip
def test_quantities_are_read_in_every_spelling(text: object, value: float) -> None:
    assert parse_quantity(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "many", "1 Gi", "1GiB", "1ki", "--1", None])
def test_what_is_no_quantity_is_refused(text: object) -> None:
    with pytest.raises(ClusterError, match="no Kubernetes quantity"):
        parse_quantity(text)


def test_a_node_with_unreadable_numbers_is_named() -> None:
    with pytest.raises(ClusterError, match="Kubernetes node a: 'lots' is no Kubernetes quantity"):
        node_from_api(api_node("a", cpu="lots"))


def test_an_object_that_is_no_node_is_refused() -> None:
    with pytest.raises(ClusterError, match="no node"):
        node_from_api({"kind": "Pod"})
