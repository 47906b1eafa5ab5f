"""GPUs by their names: the vendor, and the video encoders of ffmpeg's that such a chip may offer.

Belongs here: what follows from a product name alone. Does not belong here: finding GPUs (`hardware`,
`kubernetes_nodes`), or whether an encoder truly works on a machine: only a test encode there tells that.
"""

from __future__ import annotations

import re
from enum import Enum


class GPUType(str, Enum):
    """Who made the GPU; OTHER is one that is known only by what it offers (a bare VAAPI device, say)."""

    NVIDIA = "nvidia"
    AMD = "amd"
    INTEL = "intel"
    APPLE = "apple"
    QUALCOMM = "qualcomm"
    OTHER = "other"
    NONE = "none"


_VENDORS: tuple[tuple[GPUType, str], ...] = (
    (GPUType.NVIDIA, r"nvidia|geforce|quadro|tesla|jetson|tegra|xavier|orin|\b[rg]tx|\brtx|\bgrid\b"),
    (GPUType.QUALCOMM, r"qualcomm|adreno|snapdragon"),
    (GPUType.APPLE, r"apple"),
    (GPUType.AMD, r"\bamd|radeon|instinct|\brx ?\d|\bmi\d{2,3}|navi|vega"),
    (GPUType.INTEL, r"intel|\biris\b|\buhd\b|\barc\b|\bflex \d|\bmax \d|i915"),
)


def gpu_type(name: str | None) -> GPUType:
    """The vendor of a GPU of that name, e.g. `amd_rx7900xtx` or `NVIDIA-GeForce-RTX-4090`; NONE for None."""
    if not name:
        return GPUType.NONE
    words = _words(name)
    return next((kind for kind, pattern in _VENDORS if re.search(pattern, words)), GPUType.OTHER)


def is_jetson(name: str | None) -> bool:
    """Whether the GPU is part of a Jetson module, which shares its memory with the CPU."""
    return name is not None and re.search(r"jetson|tegra|xavier|\borin\b|nvgpu", _words(name)) is not None


_NVENC_LESS = re.compile(
    r"\b(a100x?|a800|a30x?|h100|h200|h800|h20|gh200|b100|b200|b300|gb200|gb300"  # data centre, compute only
    r"|gt 10[13]0|mx ?\d{3}|cmp \d+hx"  # GP108, GeForce MX of laptops, mining cards
    r"|orin nano)\b"
)

_VCN_WITHOUT_ENCODER = re.compile(
    r"\b(mi3\d\d[ax]?|rx ?6300m?|rx ?6400|rx ?6450m|rx ?6500 ?m|rx ?6500 ?xt|rx ?6550[ms]|w6300m?|w6400|navi ?24)\b"
)


def has_no_encoder(name: str) -> bool:
    """Whether a GPU of that name is known to have no video encoder.

    NVIDIA: Video Encode and Decode GPU Support Matrix
    (developer.nvidia.com/video-encode-and-decode-gpu-support-matrix-new), where GA100, Hopper and the data centre
    Blackwells have NVDEC only; "Software Encode in Orin Nano" in the Jetson Linux Developer Guide (r36.5).
    AMD: Linux, drivers/gpu/drm/amd/amdgpu: soc15.c lists no encode codecs for VCN 4.0.3 and 5.0.1 (MI300, MI350
    series), nv.c none for Beige Goby (Navi 24).
    """
    words = _words(name)
    return bool(_NVENC_LESS.search(words) or _VCN_WITHOUT_ENCODER.search(words))


_CODECS = ("h264", "hevc")


def likely_encoders(name: str | None) -> tuple[str, ...]:
    """ffmpeg's encoders that a GPU of that name may offer, the likeliest to work first; none when it is known to.

    AMF comes after VAAPI: it needs AMD's own runtime, which Linux images rarely have. A Jetson's NVENC answers
    to NVIDIA's own ffmpeg interfaces; the ordinary one works only on the newest modules.
    """
    if name is None or has_no_encoder(name):
        return ()
    kind = gpu_type(name)
    families = {
        GPUType.NVIDIA: ("nvmpi", "v4l2m2m", "nvenc") if is_jetson(name) else ("nvenc",),
        GPUType.AMD: ("vaapi", "amf"),
        GPUType.INTEL: ("qsv", "vaapi"),
        GPUType.APPLE: ("videotoolbox",),
        GPUType.OTHER: ("vaapi",),
    }.get(kind, ())
    return tuple(f"{codec}_{family}" for family in families for codec in _CODECS)


def _words(name: str) -> str:
    return re.sub(r"[-_\s/()]+", " ", name.lower())
