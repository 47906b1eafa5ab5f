"""Which video encoder a segment is given to, and which ones follow when it fails: a pure decision.

Belongs here: what may be tried for a need and a wish, the order, and the reasons in words. Does not belong here:
test encodes (`encoder_probe`), measurements (`calibration`), bringing both together on a machine
(`machine_encoders`), or running an encode (`render`).

The last one in every order is the codec's software encoder, so a film is always made. Hardware comes first where it
works: by measured speed at equal quality where both are measured, else in the order that `encoder_devices` gives.
A wish for one encoder puts it first and leaves the others behind it; a wish for one kind leaves out all others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from montage_assets.media.encoder_table import ENCODERS, Codec, Encoder, Family, Quality

HWACCEL_FAMILIES: dict[str, Family] = {
    "cuda": "nvenc", "nvenc": "nvenc", "vaapi": "vaapi", "qsv": "qsv", "amf": "amf", "videotoolbox": "videotoolbox",
    "v4l2m2m": "v4l2m2m", "nvmpi": "nvmpi", "vulkan": "vulkan",
}  # fmt: skip
"""What FFMPEG_HWACCEL names; `auto` and `none` name no family."""


@dataclass(frozen=True)
class Need:
    """What has to be encoded: codec, size in pixels, level, bits a sample."""

    codec: Codec
    width: int
    height: int
    quality: Quality
    bit_depth: int = 8


@dataclass(frozen=True)
class Wish:
    """What the user said. `cpu_because` is why no device may be used, empty when one may.

    `encoder` is ffmpeg's name of the one to try first; that of another codec stands for its kind.
    """

    gpu_encode: Literal["auto", "on", "off"] = "auto"
    hwaccel: str = "auto"
    encoder: str | None = None
    cpu_because: str = ""


@dataclass(frozen=True)
class Candidate:
    """An encoder on one device, after its test encodes. `fps` is its measured speed at this level, None if unknown."""

    encoder: Encoder
    device: str = ""
    works: bool = True
    reason: str = ""
    b_frames: int = 0
    fps: float | None = None


@dataclass(frozen=True)
class LeftOut:
    """An encoder that is not tried, and why."""

    encoder: str
    reason: str


@dataclass(frozen=True)
class Choice:
    """`order` is what to try, software last. `note` is what a user must be told: a wish unmet, hardware that fails."""

    order: tuple[Candidate, ...]
    left_out: tuple[LeftOut, ...]
    note: str


def wish_of(gpu_encode: Literal["auto", "on", "off"], hwaccel: str, force_cpu: bool, output_codec: str | None) -> Wish:
    """The wish that LOCAL_GPU_ENCODE, FFMPEG_HWACCEL, MONTAGE_FORCE_CPU and OUTPUT_CODEC make."""
    because = (
        "MONTAGE_FORCE_CPU=1"
        if force_cpu
        else "LOCAL_GPU_ENCODE=off"
        if gpu_encode == "off"
        else "FFMPEG_HWACCEL=none"
        if hwaccel == "none"
        else ""
    )
    names_encoder = any(encoder.name == output_codec for encoder in ENCODERS)
    return Wish(gpu_encode, hwaccel, output_codec if names_encoder else None, because)


def encoder_asked(wish: Wish, codec: Codec) -> str | None:
    """The encoder of `codec` that the wish names, None when any will do. Part of a segment's key.

    So what was encoded by hardware is never taken for what a run without it would have made.
    """
    if wish.cpu_because:
        return _software(codec).name
    if wish.encoder is None:
        return None
    family = next(encoder.family for encoder in ENCODERS if encoder.name == wish.encoder)
    return next((e.name for e in ENCODERS if e.family == family and e.codec == codec), None)


def with_plan(wish: Wish, planned: str | None) -> Wish:
    """A machine's own wish, joined with the encoder that the run was planned for (`encoder_asked`).

    A run planned for the CPU stays there; else the machine's own choice of encoder goes before the plan's.
    """
    if planned is None:
        return wish
    if _named(planned).family == "cpu":
        return Wish(wish.gpu_encode, wish.hwaccel, planned, f"the run is planned for {planned}")
    return Wish(wish.gpu_encode, wish.hwaccel, wish.encoder or planned, wish.cpu_because)


def worth_trying(need: Need, wish: Wish, present: Iterable[Family]) -> tuple[list[Encoder], list[LeftOut]]:
    """The hardware encoders of the need's codec to test, and why each other one is not.

    `present` are the families of which the machine shows a sign; `auto` tries no other, an explicit wish does.
    """
    seen = frozenset(present)
    asked = encoder_asked(wish, need.codec)
    trying: list[Encoder] = []
    left_out: list[LeftOut] = []
    for encoder in ENCODERS:
        if encoder.codec != need.codec or encoder.family == "cpu":
            continue
        reason = _unwanted(encoder, wish, asked) or unable(encoder, need)
        if reason is None and wish.gpu_encode == "auto" and encoder.name != asked and wish.hwaccel == "auto":
            reason = None if encoder.family in seen else "there is no sign of such hardware here"
        if reason is None:
            trying.append(encoder)
        else:
            left_out.append(LeftOut(encoder.name, reason))
    return trying, left_out


def _unwanted(encoder: Encoder, wish: Wish, asked: str | None) -> str | None:
    if wish.cpu_because:
        return wish.cpu_because
    if asked is not None and _named(asked).family == "cpu":
        return f"OUTPUT_CODEC={wish.encoder}"
    family = HWACCEL_FAMILIES.get(wish.hwaccel)
    if family is not None and encoder.family != family and encoder.name != asked:
        return f"FFMPEG_HWACCEL={wish.hwaccel}"
    return None


def unable(encoder: Encoder, need: Need) -> str | None:
    """Why the need is beyond what such an encoder takes at best; None when it is not."""
    if need.bit_depth not in encoder.depths:
        return f"it does not encode {need.bit_depth}-bit video"
    size = f"{need.width}x{need.height}"
    if need.width < encoder.smallest[0] or need.height < encoder.smallest[1]:
        return f"{size} is below its smallest picture, {encoder.smallest[0]}x{encoder.smallest[1]}"
    if need.width > encoder.largest[0] or need.height > encoder.largest[1]:
        return f"{size} is beyond its largest picture, {encoder.largest[0]}x{encoder.largest[1]}"
    return None


def choose(
    need: Need,
    wish: Wish,
    tried: Sequence[Candidate],
    left_out: Sequence[LeftOut],
    families: Sequence[Family],
    software_fps: float | None = None,
) -> Choice:
    """Order the tried candidates. `families` is the order of hardware that is not measured, likeliest first."""
    asked = encoder_asked(wish, need.codec)
    software = Candidate(_software(need.codec), fps=software_fps)
    working = [candidate for candidate in tried if candidate.works]
    failed = [LeftOut(_label(candidate), candidate.reason) for candidate in tried if not candidate.works]

    def place(candidate: Candidate) -> tuple[bool, bool, bool, float, int]:
        is_software = candidate.encoder.family == "cpu"
        slower = is_software if wish.gpu_encode == "on" else _slower(candidate, software, is_software)
        return (
            candidate.encoder.name != asked,
            slower,
            candidate.fps is None,
            -(candidate.fps or 0.0),
            len(families) if is_software else _rank(candidate.encoder.family, families),
        )

    ordered = sorted([*working, software], key=place)
    order = tuple(ordered[: ordered.index(software) + 1])
    reason = f"{software.encoder.name} is faster here"
    slow = [LeftOut(_label(candidate), reason) for candidate in ordered[len(order) :]]
    return Choice(order, (*left_out, *failed, *slow), _note(need, wish, asked, order, [*left_out, *failed], failed))


def _slower(candidate: Candidate, software: Candidate, is_software: bool) -> bool:
    """Hardware goes after software only where both are measured and it is slower; unmeasured software is the last."""
    if is_software or software.fps is None or candidate.fps is None:
        return is_software
    return candidate.fps < software.fps


def _rank(family: Family, families: Sequence[Family]) -> int:
    return families.index(family) if family in families else len(families)


def _note(
    need: Need,
    wish: Wish,
    asked: str | None,
    order: Sequence[Candidate],
    left_out: Sequence[LeftOut],
    failed: Sequence[LeftOut],
) -> str:
    first = order[0].encoder.name
    if wish.cpu_because:
        forbidden = wish.encoder is not None and _named(wish.encoder).family != "cpu"
        return f"{wish.encoder} was asked for, but {wish.cpu_because}; {first} encodes" if forbidden else ""
    if asked is not None and asked != first:
        reason = next((one.reason for one in left_out if one.encoder.split(" ")[0] == asked), "it cannot be tried here")
        return f"{asked} was asked for, but cannot be used ({reason}); {first} encodes instead"
    if asked is None and wish.encoder is not None:
        return f"{wish.encoder} was asked for, but its kind has no {need.codec} encoder; {first} encodes instead"
    if order[0].encoder.family != "cpu" or asked is not None:
        return ""
    reasons = "; ".join(f"{one.encoder}: {one.reason}" for one in failed)
    if wish.gpu_encode == "on":
        every = "; ".join(f"{one.encoder}: {one.reason}" for one in left_out)
        return f"LOCAL_GPU_ENCODE=on, but no video encoder of this machine can be used ({every}); {first} encodes"
    if wish.hwaccel != "auto":
        return (
            f"FFMPEG_HWACCEL={wish.hwaccel}, but it cannot be used ({reasons or 'nothing of it fits'}); {first} encodes"
        )
    return f"{first} encodes, since the video encoders of this machine do not work ({reasons})" if reasons else ""


def _label(candidate: Candidate) -> str:
    return f"{candidate.encoder.name} on {candidate.device}" if candidate.device else candidate.encoder.name


def _software(codec: Codec) -> Encoder:
    return next(encoder for encoder in ENCODERS if encoder.codec == codec and encoder.family == "cpu")


def _named(name: str) -> Encoder:
    return next(encoder for encoder in ENCODERS if encoder.name == name)
