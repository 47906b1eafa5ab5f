"""cluster.yaml: what the shipped file holds, round trips, and one line for every mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from montage_assets.cluster import ClusterError, GPUType
from montage_assets.cluster.catalog import dump_nodes, load_nodes, parse_nodes, save_nodes
from montage_assets.cluster.node import NodeCapability
from tests.cluster.clusters import AMD, CONTROL_PLANE, ESPRIMO, JETSON, PI, SHIPPED, THINKPAD, VAAPI, WORKER, node, plan


def shipped(name: str) -> NodeCapability:
    return next(entry for entry in plan() if entry.name == name)


def test_the_shipped_file_holds_the_eight_nodes() -> None:
    assert [entry.name for entry in plan()] == [AMD, JETSON, THINKPAD, ESPRIMO, VAAPI, WORKER, PI, CONTROL_PLANE]


@pytest.mark.parametrize(
    ("name", "gpu", "vram_gb", "ram_gb", "cpu_cores", "optimal_for", "first_encoder"),
    [
        (AMD, "amd_rx7900xtx", 24, 47, 8, ("4k_encoding", "8k_encoding", "final_render"), "h264_amf"),
        (JETSON, "nvidia_jetson", 8, 7.4, 6, ("1080p_encoding", "preview_render"), "h264_nvenc"),
        (THINKPAD, None, None, 29, 12, ("scene_detection", "audio_analysis", "cpu_intensive"), None),
        (ESPRIMO, None, None, 31, 8, ("4k_analysis", "memory_intensive", "batch_processing"), None),
    ],
)
def test_the_shipped_file_says_what_the_plan_says(
    name: str,
    gpu: str | None,
    vram_gb: float | None,
    ram_gb: float,
    cpu_cores: int,
    optimal_for: tuple[str, ...],
    first_encoder: str | None,
) -> None:
    entry = shipped(name)
    assert (entry.gpu, entry.vram_gb, entry.ram_gb, entry.cpu_cores) == (gpu, vram_gb, ram_gb, cpu_cores)
    assert entry.optimal_for == optimal_for
    assert next(iter(entry.encoders), None) == first_encoder
    assert not {"gpu", "vram_gb", "ram_gb", "cpu_cores", "optimal_for", "encoders"} & set(entry.assumed)


def test_what_the_plan_does_not_give_is_marked() -> None:
    for name in (VAAPI, WORKER, PI, CONTROL_PLANE):
        assert {"cpu_cores", "ram_gb"} <= set(shipped(name).assumed)
    assert shipped(VAAPI).encoders == ("h264_vaapi",)
    assert [entry.name for entry in plan() if entry.control_plane] == [CONTROL_PLANE]


def test_the_vendors_are_known_by_the_plans_names() -> None:
    assert shipped(AMD).gpu_type is GPUType.AMD
    assert shipped(JETSON).gpu_type is GPUType.NVIDIA
    assert shipped(JETSON).is_jetson
    assert shipped(VAAPI).gpu_type is GPUType.OTHER
    assert shipped(THINKPAD).gpu_type is GPUType.NONE


def test_saving_and_loading_gives_the_same_nodes(tmp_path: Path) -> None:
    everything = node(
        "all",
        arch="arm64",
        cpu_cores=7.5,
        ram_gb=7.4,
        gpu="NVIDIA GeForce RTX 4090",
        vram_gb=23.99,
        encoders=["h264_nvenc", "libx264"],
        optimal_for=["scene_detection", "final_render"],
        speed={"analyze": 1.25, "encode": 15},
        labels={"a/b": "c"},
        address="10.0.0.7",
        control_plane=True,
        ready=False,
        schedulable=False,
        taints=["x=y:NoSchedule", "z:NoExecute"],
        resources={"nvidia.com/gpu": 2},
        assumed=["arch"],
        note="Größe: 'x', \"y\"",
    )
    nodes = (*plan(), everything)
    save_nodes(nodes, tmp_path / "cluster.yaml")
    assert load_nodes(tmp_path / "cluster.yaml") == nodes
    assert [path.name for path in tmp_path.iterdir()] == ["cluster.yaml"]


def test_whole_numbers_are_written_as_such() -> None:
    text = dump_nodes([node("a", vram_gb=24, gpu="amd", speed=2)])
    assert "cpu_cores: 8\n" in text or "cpu_cores: 8," in text
    assert "24.0" not in text
    assert "2.0" not in text


def test_the_plans_own_form_is_read_too() -> None:
    text = """
nodes:
  desk:
    gpu: amd_rx7900xtx
    vram_gb: 24
    ram_gb: 47
    cpu_cores: 8
    optimal_for: [4k_encoding]
    encoder: h264_amf
  plain:
    gpu: null
    ram_gb: 29
    cpu_cores: 12
"""
    desk, plain = parse_nodes(text, "x")
    assert (desk.name, desk.encoders) == ("desk", ("h264_amf",))
    assert (plain.gpu, plain.encoders) == (None, ())


def test_one_number_is_the_speed_of_all_kinds_of_work() -> None:
    assert node("a", speed=2).speed == {"analyze": 2, "encode": 2, "upscale": 2}


@pytest.mark.parametrize(("written", "read"), [("x86_64", "amd64"), ("aarch64", "arm64"), ("ARM64", "arm64")])
def test_architectures_are_read_by_all_their_names(written: str, read: str) -> None:
    assert node("a", arch=written).arch == read


GOOD = "name: a, cpu_cores: 8, ram_gb: 16"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nodes: [", "f, line 1: this is not usable YAML: "),
        ("a: b: c", "f, line 1: this is not usable YAML: mapping values are not allowed here"),
        ("", "f: write `nodes:` and the list of nodes below it"),
        ("- a", "f: write `nodes:` and the list of nodes below it"),
        ("node: []", "f: there is no key 'node'; did you mean 'nodes'?"),
        ("nodes: []", "f: nodes: list at least one node, each with name, cpu_cores and ram_gb"),
        ("nodes: 3", "f: nodes: list at least one node, each with name, cpu_cores and ram_gb"),
        ("nodes: [3]", "f: node 1: write it as `key: value` lines, not as 3"),
        ("nodes: {a: 3}", "f: node a: write its `key: value` lines below its name"),
        (
            "nodes: {a: {cpu_cores: 1, ram_gb: 1}, a: {cpu_cores: 2, ram_gb: 2}}",
            "f, line 1: this is not usable YAML: 'a' is given twice",
        ),
        (f"nodes: [{{{GOOD}}}, {{{GOOD}}}]", "f: node a is listed twice; give every node its own name"),
        (
            "nodes: [{name: a, cpu_cores: 8}]",
            "f: node a: ram_gb is missing; every node needs name, cpu_cores and ram_gb",
        ),
        (
            "nodes: [{cpu_cores: 8, ram_gb: 8}]",
            "f: node 1: name is missing; every node needs name, cpu_cores and ram_gb",
        ),
        (
            "nodes: [{name: a, cpu_cors: 8, ram_gb: 8}]",
            "f: node a: there is no key 'cpu_cors'; did you mean 'cpu_cores'?",
        ),
        (f"nodes: [{{{GOOD}, memory: 3}}]", "f: node a: there is no key 'memory'; "),
        (f"nodes: [{{{GOOD}, qqq: 3}}]", "f: node a: there is no key 'qqq'; the keys are name, arch, cpu_cores, "),
        ("nodes: [{name: a, cpu_cores: eight, ram_gb: 8}]", "f: node a: cpu_cores: 'eight': must be a valid number"),
        ("nodes: [{name: a, cpu_cores: 0, ram_gb: 8}]", "f: node a: cpu_cores: 0: must be greater than 0"),
        ("nodes: [{name: a, cpu_cores: 1, ram_gb: -8}]", "f: node a: ram_gb: -8: must be greater than 0"),
        ("nodes: [{name: 'a b', cpu_cores: 1, ram_gb: 8}]", "f: node a b: name: 'a b': must be a host name"),
        (f"nodes: [{{{GOOD}, vram_gb: 8}}]", "f: node a: vram_gb is 8, but there is no gpu"),
        (f"nodes: [{{{GOOD}, encoders: [h264_nvnc]}}]", "f: node a: encoders: 'h264_nvnc' is no encoder of ffmpeg's"),
        (f"nodes: [{{{GOOD}, encoder: h264_amf, encoders: []}}]", "f: node a: encoder and encoders say the same thing"),
        (
            f"nodes: [{{{GOOD}, optimal_for: [final_rendr]}}]",
            "f: node a: optimal_for: there is no task 'final_rendr'; did you mean final_render?",
        ),
        (f"nodes: [{{{GOOD}, speed: fast}}]", "f: node a: speed: "),
        (
            f"nodes: [{{{GOOD}, speed: {{analyse: 1}}}}]",
            "f: node a: speed.analyse: 'analyse': must be one number, or numbers for analyze, encode and upscale",
        ),
        (f"nodes: [{{{GOOD}, speed: 0}}]", "f: node a: speed.analyze: 0: must be greater than 0"),
        (f"nodes: [{{{GOOD}, taints: [x]}}]", "f: node a: taints: 'x' is no taint; write it as key=value:NoSchedule"),
        (f"nodes: [{{{GOOD}, assumed: [colour]}}]", "f: node a: assumed: 'colour' is no key of a node"),
    ],
)
def test_a_mistake_is_one_line_that_names_file_node_and_key(text: str, expected: str) -> None:
    with pytest.raises(ClusterError) as error:
        parse_nodes(text, "f")
    assert str(error.value).startswith(expected)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"there is no cluster file .*missing\.yaml"):
        load_nodes(tmp_path / "missing.yaml")


def test_a_film_in_place_of_the_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "film.mp4").write_bytes(b"\x00\xff\xfe\x80")
    with pytest.raises(ClusterError, match=r"film\.mp4 is not a text file"):
        load_nodes(tmp_path / "film.mp4")


def test_a_folder_in_place_of_the_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="cannot be read: Is a directory"):
        load_nodes(tmp_path)


def test_hidden_gpus_leave_a_cpu_node_with_its_own_speeds() -> None:
    hidden = shipped(AMD).without_gpu()
    assert (hidden.gpu, hidden.vram_gb, hidden.encoders, hidden.resources) == (None, None, (), {})
    assert hidden.speed_for("encode") == hidden.cpu_cores / 8


def test_the_shipped_file_stands_where_the_docs_say() -> None:
    assert SHIPPED.is_file()
