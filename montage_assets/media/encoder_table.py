"""The video encoders the pipeline knows, as data: one row each, and the kinds of hardware they run on.

Belongs here: everything that is peculiar to one encoder or one kind of hardware. Does not belong here: any
code that knows an encoder by name, building a command (`encoders`), which devices a machine has
(`encoder_devices`), whether an encoder works there (`encoder_probe`), and which one is taken (`encoder_router`).

What every row keeps to, so that segments from different machines join without a re-encode:
- closed GOP of fixed length (2 s), every GOP begins with an IDR picture, 4:2:0, BT.709, TV range;
- headers that depend on the format alone, never on the pictures (x264: `stitchable`);
- the CPU's encoders give the same bits on every machine: the number of threads is fixed, because x264's output
  depends on it, and x264 is told not to pick its algorithms by the CPU's instruction sets (`cpu-independent`).
  Measured with 1 and 2 cores allowed: equal output for all three. x265 and SVT-AV1 do not depend on the
  thread count (measured: 1, 2 and 4), x265 does on the number of frame threads and on having a pool at all.

Lookahead is kept short (20 frames in x264, 15 in x265) and SVT-AV1 at parallelism 2, since at 4K every frame
held back is 12 MB and more: with four 4K sources open, each of the three stays below 2 GB (see `render`).

In a row's flags `{q}` stands for the quality number, `{bitrate}` for bits per second made of it (rows whose number
is bits per pixel: V4L2's and Jetson's encoders know no constant quality), `{gop}` for frames per GOP,
`{b_frames}` for B pictures between references, `{device}` for the device's name.

Sources of the flags: `ffmpeg -h encoder=NAME` of the pinned build; ffmpeg's videotoolboxenc.c (constant quality on
Apple's own chips only, open GOP off by `cgop`); jetson-ffmpeg's nvmpi_enc.c (planar 4:2:0, IDR interval is `-g`,
dts taken as pts, so no B pictures). QSV's HEVC and AV1 encoders make every I frame an IDR at `idr_interval 0`, as
H.264's does. The numbers of the CPU's rows are measured (docs/GPU.md); those of hardware are starting points until
`python -m benchmarks.encoders --calibrate` has measured them on a machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

Codec = Literal["h264", "hevc", "av1"]
Quality = Literal["preview", "standard", "high", "master"]
Family = Literal["cpu", "nvenc", "vaapi", "qsv", "amf", "videotoolbox", "v4l2m2m", "nvmpi", "vulkan"]
DeviceKind = Literal["none", "cuda", "render node", "intel render node", "vulkan"]

CODECS: tuple[Codec, ...] = get_args(Codec)
QUALITIES: tuple[Quality, ...] = get_args(Quality)


@dataclass(frozen=True)
class FamilyTraits:
    """One kind of hardware. `devices` is how its devices are told apart.

    `signs` are paths (glob patterns) one of which is there when such hardware is; none is needed where `systems`
    (Python's `platform.system()`) decides alone. Only a sign makes `auto` try an encoder.
    """

    devices: DeviceKind
    signs: tuple[str, ...]
    systems: tuple[str, ...] = ("Linux", "Windows", "Darwin")


_LIBRARIES = ("/usr/lib", "/usr/lib64", "/usr/lib/*-linux-gnu", "/usr/local/lib", "/opt/amdgpu*/lib/*")

FAMILIES: Mapping[Family, FamilyTraits] = MappingProxyType(
    {
        "cpu": FamilyTraits("none", ()),
        "nvenc": FamilyTraits("cuda", ("/dev/nvidia[0-9]*", "/dev/dxg"), ("Linux", "Windows")),
        "vaapi": FamilyTraits("render node", ("/dev/dri/renderD*",), ("Linux",)),
        "qsv": FamilyTraits("intel render node", ("/dev/dri/renderD*",), ("Linux",)),
        "amf": FamilyTraits(
            "none", tuple(f"{folder}/libamfrt64.so*" for folder in _LIBRARIES), ("Linux", "Windows")
        ),
        "videotoolbox": FamilyTraits("none", ("/System/Library/Frameworks/VideoToolbox.framework",), ("Darwin",)),
        "v4l2m2m": FamilyTraits("none", ("/dev/video[0-9]*",), ("Linux",)),
        "nvmpi": FamilyTraits("none", ("/etc/nv_tegra_release", "/dev/nvhost-msenc", "/dev/v4l2-nvenc"), ("Linux",)),
        "vulkan": FamilyTraits("vulkan", ("/dev/dri/renderD*", "/dev/nvidia[0-9]*"), ("Linux", "Windows")),
    }
)  # fmt: skip

HARDWARE_FAMILIES: tuple[Family, ...] = ("nvenc", "qsv", "vaapi", "amf", "videotoolbox", "v4l2m2m", "nvmpi", "vulkan")
"""Likeliest to work first: on Linux AMD's GPUs have VAAPI, AMF only where its runtime was installed."""

JETSON_FAMILIES: tuple[Family, ...] = ("nvmpi", "v4l2m2m", "nvenc")
"""A Jetson's encoder answers to NVIDIA's own interfaces; the desktop's NVENC only on the newest modules."""


@dataclass(frozen=True)
class Depth:
    """How an encoder is asked for so many bits a sample: what its input is, and its flags."""

    pixel_format: str
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Encoder:
    """One encoder of ffmpeg's. `flags` are always given, `quality` by level, `numbers` are what `{q}` stands for.

    `depths`: by bits a sample. `upload`: filters after the pixel format, `device_flags`: before the inputs.
    `b_frames`: what to try, best first; older GPUs know none. `smallest`, `largest`: picture sizes (width, height)
    that the hardware of this kind takes at best; a single GPU may take less, which a test encode of the film's
    own size shows. `stream_filters`: bitstream filters for what the encoder leaves out of the stream's headers.
    `scale`: the quality number's worst and best value.
    """

    name: str
    codec: Codec
    family: Family
    quality: Mapping[Quality, tuple[str, ...]]
    numbers: Mapping[Quality, float]
    flags: tuple[str, ...]
    depths: Mapping[int, Depth]
    upload: tuple[str, ...] = ()
    device_flags: tuple[str, ...] = ()
    b_frames: tuple[int, ...] = (0,)
    smallest: tuple[int, int] = (2, 2)
    largest: tuple[int, int] = (8192, 8192)
    stream_filters: tuple[str, ...] = ()
    scale: tuple[float, float] = (51, 1)


def _levels(*flags: str) -> Mapping[Quality, tuple[str, ...]]:
    """The flags of each level, given as one text each."""
    return MappingProxyType({level: tuple(text.split()) for level, text in zip(QUALITIES, flags, strict=True)})


def _numbers(*numbers: float) -> Mapping[Quality, float]:
    return MappingProxyType(dict(zip(QUALITIES, numbers, strict=True)))


def _depths(eight: Depth, ten: Depth | None = None) -> Mapping[int, Depth]:
    return MappingProxyType({8: eight} if ten is None else {8: eight, 10: ten})


_NV12 = Depth("nv12")
_HIGH = ("-profile:v", "high")
_MAIN = ("-profile:v", "main")
_MAIN10 = ("-profile:v", "main10")

# What V4L2's and Jetson's encoders do not write themselves.
_H264_TAGS = (
    "h264_metadata=video_full_range_flag=0:colour_primaries=1:transfer_characteristics=1:matrix_coefficients=1"
    ":sample_aspect_ratio=1/1"
)
_HEVC_TAGS = _H264_TAGS.replace("h264_", "hevc_")

_CPU = (
    Encoder(
        name="libx264", codec="h264", family="cpu",
        quality=_levels(
            "-preset superfast -crf {q}",
            "-preset veryfast -crf {q}",
            "-preset medium -crf {q} -rc-lookahead 20",
            "-preset slow -crf {q} -rc-lookahead 20",
        ),
        numbers=_numbers(28, 21, 18, 14),
        flags=(
            "-threads", "6",
            "-g", "{gop}", "-keyint_min", "{gop}", "-sc_threshold", "0", "-flags", "+cgop",
            "-x264-params", "open-gop=0:stitchable=1:cpu-independent=1",
        ),
        depths=_depths(Depth("yuv420p", _HIGH), Depth("yuv420p10le", ("-profile:v", "high10"))),
        largest=(16384, 16384),
    ),
    Encoder(
        name="libx265", codec="hevc", family="cpu",
        quality=_levels(
            "-preset ultrafast -crf {q}",
            "-preset veryfast -crf {q}",
            "-preset medium -crf {q}",
            "-preset slow -crf {q}",
        ),
        numbers=_numbers(27, 22, 19, 16),
        flags=(
            "-g", "{gop}", "-keyint_min", "{gop}",
            "-x265-params",
            "open-gop=0:scenecut=0:keyint={gop}:min-keyint={gop}:rc-lookahead=15:pools=4:frame-threads=2:repeat-headers=1"
            ":log-level=error",
        ),
        depths=_depths(Depth("yuv420p", _MAIN), Depth("yuv420p10le", _MAIN10)),
        largest=(16384, 16384),
    ),
    Encoder(
        name="libsvtav1", codec="av1", family="cpu",
        quality=_levels("-preset 11 -crf {q}", "-preset 9 -crf {q}", "-preset 7 -crf {q}", "-preset 5 -crf {q}"),
        numbers=_numbers(37, 30, 16, 13),
        flags=("-g", "{gop}", "-svtav1-params", "lp=2:scd=0:irefresh-type=2"),
        depths=_depths(Depth("yuv420p"), Depth("yuv420p10le")),
        smallest=(64, 64), largest=(16384, 8704), scale=(63, 1),
    ),
)  # fmt: skip

_NVENC_GOP = (
    "-tune", "hq", "-spatial-aq", "1", "-gpu", "{device}", "-g", "{gop}", "-bf", "{b_frames}", "-no-scenecut", "1",
    "-forced-idr", "1", "-strict_gop", "1",
)  # fmt: skip
_NVENC_QUALITY = _levels(
    "-preset p1 -rc vbr -cq {q} -b:v 0",
    "-preset p4 -rc vbr -cq {q} -b:v 0",
    "-preset p5 -rc vbr -cq {q} -b:v 0",
    "-preset p7 -rc vbr -cq {q} -b:v 0",
)

_NVENC = (
    Encoder(
        name="h264_nvenc", codec="h264", family="nvenc", quality=_NVENC_QUALITY, numbers=_numbers(32, 25, 21, 17),
        flags=_NVENC_GOP, depths=_depths(Depth("nv12", _HIGH)), b_frames=(2, 0),
        smallest=(146, 50), largest=(4096, 4096),
    ),
    Encoder(
        name="hevc_nvenc", codec="hevc", family="nvenc", quality=_NVENC_QUALITY, numbers=_numbers(33, 27, 23, 19),
        flags=_NVENC_GOP, depths=_depths(Depth("nv12", _MAIN), Depth("p010le", _MAIN10)), b_frames=(2, 0),
        smallest=(130, 34), largest=(8192, 8192),
    ),
    Encoder(
        name="av1_nvenc", codec="av1", family="nvenc", quality=_NVENC_QUALITY, numbers=_numbers(42, 33, 27, 21),
        flags=_NVENC_GOP, depths=_depths(_NV12, Depth("p010le")), b_frames=(2, 0),
        smallest=(192, 128), largest=(8192, 8192), scale=(63, 1),
    ),
)  # fmt: skip

_VAAPI_DEVICE = ("-init_hw_device", "vaapi=va:{device}", "-filter_hw_device", "va")
_VAAPI_GOP = ("-g", "{gop}", "-idr_interval", "0", "-bf", "{b_frames}")
_VAAPI_QUALITY = _levels(*4 * ("-rc_mode CQP -qp {q}",))

_VAAPI = (
    Encoder(
        name="h264_vaapi", codec="h264", family="vaapi", quality=_VAAPI_QUALITY, numbers=_numbers(30, 23, 20, 16),
        flags=_VAAPI_GOP, depths=_depths(Depth("nv12", _HIGH)), upload=("hwupload",), device_flags=_VAAPI_DEVICE,
        b_frames=(2, 0), smallest=(256, 128), largest=(4096, 4096),
    ),
    Encoder(
        name="hevc_vaapi", codec="hevc", family="vaapi", quality=_VAAPI_QUALITY, numbers=_numbers(31, 25, 22, 18),
        flags=_VAAPI_GOP, depths=_depths(Depth("nv12", _MAIN), Depth("p010le", _MAIN10)), upload=("hwupload",),
        device_flags=_VAAPI_DEVICE, b_frames=(2, 0), smallest=(256, 128), largest=(8192, 8192),
    ),
    Encoder(
        name="av1_vaapi", codec="av1", family="vaapi",
        quality=_levels(*4 * ("-rc_mode CQP -global_quality {q}",)), numbers=_numbers(150, 110, 85, 60),
        flags=_VAAPI_GOP, depths=_depths(_NV12, Depth("p010le")), upload=("hwupload",), device_flags=_VAAPI_DEVICE,
        b_frames=(2, 0), smallest=(256, 128), largest=(8192, 8192), scale=(255, 1),
    ),
)  # fmt: skip

_QSV_DEVICE = ("-init_hw_device", "qsv=qs:hw,child_device={device}", "-filter_hw_device", "qs")
_QSV_UPLOAD = ("hwupload=extra_hw_frames=64",)
_QSV_GOP = ("-g", "{gop}", "-bf", "{b_frames}", "-flags", "+cgop")
_QSV_QUALITY = _levels(
    "-preset veryfast -global_quality {q}",
    "-preset fast -global_quality {q}",
    "-preset medium -global_quality {q}",
    "-preset slow -global_quality {q}",
)

_QSV = (
    Encoder(
        name="h264_qsv", codec="h264", family="qsv", quality=_QSV_QUALITY, numbers=_numbers(30, 23, 20, 16),
        flags=(*_QSV_GOP, "-idr_interval", "0", "-adaptive_i", "0"), depths=_depths(Depth("nv12", _HIGH)),
        upload=_QSV_UPLOAD, device_flags=_QSV_DEVICE, b_frames=(2, 0), smallest=(32, 32), largest=(4096, 4096),
    ),
    Encoder(
        name="hevc_qsv", codec="hevc", family="qsv", quality=_QSV_QUALITY, numbers=_numbers(31, 25, 22, 18),
        flags=(*_QSV_GOP, "-idr_interval", "0", "-adaptive_i", "0"),
        depths=_depths(Depth("nv12", _MAIN), Depth("p010le", _MAIN10)),
        upload=_QSV_UPLOAD, device_flags=_QSV_DEVICE, b_frames=(2, 0), smallest=(128, 128), largest=(8192, 8192),
    ),
    Encoder(
        name="av1_qsv", codec="av1", family="qsv", quality=_QSV_QUALITY, numbers=_numbers(36, 29, 25, 20),
        flags=(*_QSV_GOP, "-forced_idr", "1", "-adaptive_i", "0"), depths=_depths(_NV12, Depth("p010le")),
        upload=_QSV_UPLOAD, device_flags=_QSV_DEVICE, b_frames=(2, 0), smallest=(128, 128), largest=(8192, 8192),
    ),
)  # fmt: skip

_AMF_COMMON = ("-usage", "transcoding", "-rc", "cqp", "-g", "{gop}", "-preanalysis", "0")

_AMF = (
    Encoder(
        name="h264_amf", codec="h264", family="amf",
        quality=_levels(
            "-quality speed -qp_i {q} -qp_p {q} -qp_b {q}",
            "-quality balanced -qp_i {q} -qp_p {q} -qp_b {q}",
            "-quality quality -qp_i {q} -qp_p {q} -qp_b {q}",
            "-quality quality -qp_i {q} -qp_p {q} -qp_b {q}",
        ),
        numbers=_numbers(30, 23, 20, 16),
        flags=(*_AMF_COMMON, "-bf", "0", "-forced_idr", "1", "-header_spacing", "{gop}"),
        depths=_depths(Depth("nv12", _HIGH)), smallest=(256, 128), largest=(4096, 4096),
    ),
    Encoder(
        name="hevc_amf", codec="hevc", family="amf",
        quality=_levels(
            "-quality speed -qp_i {q} -qp_p {q}", "-quality balanced -qp_i {q} -qp_p {q}",
            "-quality quality -qp_i {q} -qp_p {q}", "-quality quality -qp_i {q} -qp_p {q}",
        ),
        numbers=_numbers(31, 25, 22, 18),
        flags=(*_AMF_COMMON, "-gops_per_idr", "1", "-header_insertion_mode", "idr"),
        depths=_depths(Depth("nv12", _MAIN), Depth("p010le", _MAIN10)), smallest=(256, 128), largest=(8192, 4352),
    ),
    Encoder(
        name="av1_amf", codec="av1", family="amf",
        quality=_levels(
            "-quality speed -qp_i {q} -qp_p {q}", "-quality balanced -qp_i {q} -qp_p {q}",
            "-quality quality -qp_i {q} -qp_p {q}", "-quality quality -qp_i {q} -qp_p {q}",
        ),
        numbers=_numbers(150, 110, 85, 60),
        flags=(*_AMF_COMMON, "-bf", "0", "-forced_idr", "1", "-header_insertion_mode", "gop", "-align", "none"),
        depths=_depths(_NV12, Depth("p010le")), smallest=(320, 128), largest=(8192, 4352), scale=(255, 1),
    ),
)  # fmt: skip

_VIDEOTOOLBOX_QUALITY = _levels(*4 * ("-q:v {q}",))
_VIDEOTOOLBOX_GOP = ("-g", "{gop}", "-bf", "{b_frames}", "-flags", "+cgop", "-allow_sw", "0")

_VIDEOTOOLBOX = (
    Encoder(
        name="h264_videotoolbox", codec="h264", family="videotoolbox", quality=_VIDEOTOOLBOX_QUALITY,
        numbers=_numbers(45, 60, 68, 80), flags=_VIDEOTOOLBOX_GOP, depths=_depths(Depth("nv12", _HIGH)),
        b_frames=(2, 0), smallest=(64, 64), largest=(4096, 2304), scale=(1, 100),
    ),
    Encoder(
        name="hevc_videotoolbox", codec="hevc", family="videotoolbox", quality=_VIDEOTOOLBOX_QUALITY,
        numbers=_numbers(45, 58, 66, 78), flags=_VIDEOTOOLBOX_GOP,
        depths=_depths(Depth("nv12", _MAIN), Depth("p010le", _MAIN10)),
        b_frames=(2, 0), smallest=(64, 64), largest=(8192, 4320), scale=(1, 100),
    ),
)  # fmt: skip

_V4L2 = (
    Encoder(
        name="h264_v4l2m2m", codec="h264", family="v4l2m2m", quality=_levels(*4 * ("-b:v {bitrate}",)),
        numbers=_numbers(0.05, 0.12, 0.2, 0.4), flags=("-g", "{gop}", "-bf", "0"), depths=_depths(_NV12),
        smallest=(96, 96), largest=(4096, 2304), stream_filters=(_H264_TAGS,), scale=(0.01, 2),
    ),
    Encoder(
        name="hevc_v4l2m2m", codec="hevc", family="v4l2m2m", quality=_levels(*4 * ("-b:v {bitrate}",)),
        numbers=_numbers(0.03, 0.08, 0.14, 0.28), flags=("-g", "{gop}", "-bf", "0"), depths=_depths(_NV12),
        smallest=(96, 96), largest=(4096, 2304), stream_filters=(_HEVC_TAGS,), scale=(0.01, 2),
    ),
)  # fmt: skip

_NVMPI_QUALITY = _levels(
    "-preset ultrafast -rc vbr -b:v {bitrate}",
    "-preset fast -rc vbr -b:v {bitrate}",
    "-preset medium -rc vbr -b:v {bitrate}",
    "-preset slow -rc vbr -b:v {bitrate}",
)

_NVMPI = (
    Encoder(
        name="h264_nvmpi", codec="h264", family="nvmpi", quality=_NVMPI_QUALITY, numbers=_numbers(0.05, 0.12, 0.2, 0.4),
        flags=("-g", "{gop}", "-bf", "0"), depths=_depths(Depth("yuv420p", _HIGH)),
        smallest=(48, 48), largest=(4096, 4096), stream_filters=(_H264_TAGS,), scale=(0.01, 2),
    ),
    Encoder(
        name="hevc_nvmpi", codec="hevc", family="nvmpi", quality=_NVMPI_QUALITY,
        numbers=_numbers(0.03, 0.08, 0.14, 0.28), flags=("-g", "{gop}", "-bf", "0"), depths=_depths(Depth("yuv420p")),
        smallest=(144, 144), largest=(4096, 4096), stream_filters=(_HEVC_TAGS,), scale=(0.01, 2),
    ),
)  # fmt: skip

_VULKAN_DEVICE = ("-init_hw_device", "vulkan=vk:{device}", "-filter_hw_device", "vk")
_VULKAN_GOP = ("-usage", "transcode", "-g", "{gop}", "-idr_interval", "0", "-bf", "{b_frames}")
_VULKAN_QUALITY = _levels(*4 * ("-rc_mode cqp -qp {q}",))

_VULKAN = (
    Encoder(
        name="h264_vulkan", codec="h264", family="vulkan", quality=_VULKAN_QUALITY, numbers=_numbers(30, 23, 20, 16),
        flags=_VULKAN_GOP, depths=_depths(Depth("nv12", _HIGH)), upload=("hwupload",), device_flags=_VULKAN_DEVICE,
        b_frames=(2, 0), smallest=(256, 128), largest=(4096, 4096),
    ),
    Encoder(
        name="hevc_vulkan", codec="hevc", family="vulkan", quality=_VULKAN_QUALITY, numbers=_numbers(31, 25, 22, 18),
        flags=_VULKAN_GOP, depths=_depths(Depth("nv12", _MAIN), Depth("p010le", _MAIN10)), upload=("hwupload",),
        device_flags=_VULKAN_DEVICE, b_frames=(2, 0), smallest=(256, 128), largest=(8192, 8192),
    ),
    Encoder(
        name="av1_vulkan", codec="av1", family="vulkan", quality=_VULKAN_QUALITY, numbers=_numbers(150, 110, 85, 60),
        flags=_VULKAN_GOP, depths=_depths(_NV12, Depth("p010le")), upload=("hwupload",), device_flags=_VULKAN_DEVICE,
        b_frames=(2, 0), smallest=(256, 128), largest=(8192, 8192), scale=(255, 1),
    ),
)  # fmt: skip

ENCODERS: tuple[Encoder, ...] = (
    *_CPU, *_NVENC, *_QSV, *_VAAPI, *_AMF, *_VIDEOTOOLBOX, *_V4L2, *_NVMPI, *_VULKAN,
)  # fmt: skip
