"""montage.yaml: what a user may say about a montage, and what is said about a mistake in it.

Belongs here: the keys, their defaults and limits, and the error texts. Does not belong here: what the
pipeline makes of them.
"""

from __future__ import annotations

import difflib
import json
import re
import reprlib
from collections.abc import Mapping
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from montage_assets.media.encoder_table import ENCODERS
from montage_assets.media.errors import MediaError
from montage_assets.media.grading import LOOKS, refuse_unknown

SPEC_FILE = "montage.yaml"
_MOST_SHOWN = 80
"""Characters of a user's value that an error text repeats."""


def _seconds(value: Any) -> Any:
    """`75`, `75.5`, `1:15` and `0:01:15.5` alike, in seconds."""
    if isinstance(value, str) and re.fullmatch(r"\d+(:\d{1,2}){1,2}(\.\d+)?", value.strip()):
        total = 0.0
        for part in value.strip().split(":"):
            total = total * 60 + float(part)
        return total
    return value


def _switch(value: Any) -> Any:
    """YAML reads `on` and `off` as true and false."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


def _grade(value: Any) -> Any:
    """YAML reads `off` as false; `grade: off` takes back what montage.yaml says."""
    return None if value is False or value in ("off", "none") else value


def _resolution(value: Any) -> Any:
    if isinstance(value, str):
        return value.strip().lower().replace("×", "x")
    return value


def _rate(value: Any) -> Any:
    return str(value).strip() if isinstance(value, (int, float, str)) and not isinstance(value, bool) else value


_RATE = r"^(auto|[0-9]{1,9}(\.[0-9]{1,9})?|[0-9]{1,9}/[1-9][0-9]{0,8})$"
Seconds = Annotated[float, BeforeValidator(_seconds)]


class MontageSpec(BaseModel):
    """Every key of montage.yaml; all are optional."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    music: str | None = Field(
        None, description="The song, relative to the montage folder. Default: the only audio file there."
    )
    music_start: Annotated[Seconds, Field(ge=0)] = Field(
        0.0, description="Where in the song the film starts, in seconds or m:ss."
    )
    duration: Annotated[Seconds, Field(gt=0, le=6 * 3600)] | None = Field(
        None,
        description="Length of the film in seconds or m:ss. Default: the song's, but no longer than the good footage.",
    )
    resolution: Annotated[str, BeforeValidator(_resolution), Field(pattern=r"^(auto|[1-9]\d{1,4}x[1-9]\d{1,4})$")] = (
        Field(
            "auto",
            description="WIDTHxHEIGHT, also vertical. Default: the size of most of the footage, at most 1080 lines.",
        )
    )
    fps: Annotated[str, BeforeValidator(_rate), Field(pattern=_RATE)] = Field(
        "auto",
        description="Frames per second, e.g. 30, 23.976 or 30000/1001. Default: the rate of most of the footage.",
    )
    framing: Literal["auto", "fill", "fit"] = Field(
        "auto",
        description="Clips of another shape: crop to fill, show whole, or (auto) crop unless too much would be lost.",
    )
    quality: Literal["preview", "standard", "high", "master"] = Field(
        "standard", description="Picture quality of the film."
    )
    codec: Literal["h264", "hevc", "av1"] = Field(
        "h264", description="Video codec of the film. Default: that of OUTPUT_CODEC in the environment, else h264."
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(
        0, description="Another seed gives another edit of the same material."
    )
    detector: Literal["auto", "adaptive", "content", "hash", "histogram", "threshold", "transnetv2", "hybrid"] = Field(
        "auto",
        description="Scene detector: one of PySceneDetect's, the neural network TransNet V2, or hybrid, which asks the "
        "network only where there is doubt. Default: hybrid where the extra `neural` is installed and no threshold is "
        "given, else adaptive.",
    )
    threshold: Annotated[float, Field(gt=0)] | None = Field(
        None, description="The detector's threshold. Default: its own."
    )
    pace: Literal["calm", "normal", "fast"] = Field("normal", description="How densely the film is cut.")
    min_shot: Annotated[float, Field(ge=0.1, le=10)] | None = Field(
        None, description="Shortest shot in seconds. Default: the pace's."
    )
    max_shot: Annotated[float, Field(ge=0.5, le=60)] | None = Field(
        None, description="Longest shot in seconds. Default: the pace's."
    )
    upscale: Annotated[Literal["off", "auto", "on"], BeforeValidator(_switch)] = Field(
        "off",
        description="Enlarge shots whose source is smaller than the film by a neural network: on, off, or (auto) only "
        "where a GPU, here or in the cloud, does it. Needs the extra `upscale`; slow on a CPU.",
    )
    grade: Annotated[Annotated[str, Field(min_length=1, max_length=1000)] | None, BeforeValidator(_grade)] = Field(
        None,
        description=f"Colours: a look ({', '.join(LOOKS)}), or a .cube file (3D LUT) in the montage folder.",
    )
    stabilize: Annotated[Literal["off", "on"], BeforeValidator(_switch)] = Field(
        "off",
        description="Smooth shots that shake. They are enlarged by up to 10 % so that no border shows; shots that are "
        "steady or very short stay as they are.",
    )
    original_audio: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="Level of the clips' own sound under the music, 0 to 1."
    )
    loudness: Annotated[float, Field(ge=-36, le=-8)] = Field(
        -14.0, description="Integrated loudness of the film in LUFS."
    )

    def size(self) -> tuple[int, int] | None:
        """Width and height in pixels, None for auto."""
        if self.resolution == "auto":
            return None
        width, height = self.resolution.split("x")
        return int(width), int(height)

    def rate(self) -> Fraction | None:
        """Exact frame rate, None for auto."""
        return None if self.fps == "auto" else exact_rate(self.fps)


def exact_rate(text: str) -> Fraction:
    """`30`, `30000/1001` or a rounded NTSC rate such as 23.976, as an exact fraction."""
    rate = Fraction(text)
    for nominal in (24, 30, 48, 60, 120):
        ntsc = Fraction(nominal * 1000, 1001)
        if rate.denominator != 1 and abs(rate - ntsc) < Fraction(6, 1000):
            return ntsc
    return rate


def parse_spec(text: str, where: str) -> MontageSpec:
    """The spec in a montage.yaml's text. Raises MediaError with one line that names the key."""
    try:
        data = _read_yaml(text)
    except _YamlError as error:
        line = "" if error.line is None else f", line {error.line}"
        raise MediaError(f"{where}{line}: is not YAML ({error})") from error
    if data is None:
        return MontageSpec()
    if not isinstance(data, dict):
        raise MediaError(f"{where}: must be a list of `key: value` lines")
    return make_spec(data, where)


def make_spec(data: Mapping[str, Any], where: str) -> MontageSpec:
    """A spec of these values. Raises MediaError with one line that names the key and the fault."""
    for key in data:
        if key not in MontageSpec.model_fields:
            name = key if isinstance(key, str) else _shown(key)
            near = difflib.get_close_matches(name[:_MOST_SHOWN], MontageSpec.model_fields, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"the keys are {', '.join(MontageSpec.model_fields)}"
            raise MediaError(f"{where}: there is no key {_shown(name)}; {hint}")
    try:
        spec = MontageSpec.model_validate(dict(data))
    except ValidationError as error:
        raise MediaError(f"{where}: {_first_fault(error)}") from error
    return _plausible(spec, where)


def with_overrides(spec: MontageSpec, overrides: Mapping[str, Any], where: str) -> MontageSpec:
    """The spec with some values replaced. Raises MediaError as `make_spec`."""
    return make_spec({**spec.model_dump(exclude_unset=True), **overrides}, where) if overrides else spec


def with_default_codec(spec: MontageSpec, output_codec: str | None) -> MontageSpec:
    """The spec with OUTPUT_CODEC's codec (it names a codec or an encoder), unless montage.yaml or --set name one."""
    if output_codec is None or "codec" in spec.model_fields_set:
        return spec
    named = [encoder.codec for encoder in ENCODERS if output_codec in (encoder.name, encoder.codec)]
    return spec.model_copy(update={"codec": named[0]})


def with_chosen_detector(spec: MontageSpec, *, network_is_there: bool) -> MontageSpec:
    """The spec with a detector in place of `auto`. Chosen once, where the run begins, so that all nodes find the same
    cuts."""
    if spec.detector != "auto":
        return spec
    return spec.model_copy(update={"detector": chosen_detector(spec.threshold, network_is_there=network_is_there)})


def chosen_detector(threshold: float | None, *, network_is_there: bool) -> Literal["adaptive", "hybrid"]:
    """What `auto` means; a threshold without a detector is the adaptive one's."""
    return "hybrid" if network_is_there and threshold is None else "adaptive"


def parse_override(text: str) -> tuple[str, Any]:
    """`key=value` of the command line; the value is read as YAML. Raises MediaError."""
    key, separator, value = text.partition("=")
    if not separator or not key.strip():
        raise MediaError(f"--set {_shown(text)}: write it as key=value, e.g. --set pace=fast")
    try:
        return key.strip(), _read_yaml(value)
    except _YamlError as error:
        raise MediaError(f"--set {_shown(text)}: the value cannot be read ({error})") from error


def spec_schema() -> str:
    """The JSON schema of montage.yaml."""
    return json.dumps(MontageSpec.model_json_schema(), indent=2)


class _YamlError(ValueError):
    """Why a text cannot be read as YAML, cut to one short line. `line` counts from 1; None where unknown."""

    def __init__(self, problem: str, line: int | None = None) -> None:
        super().__init__(_cut(" ".join(problem.split())))
        self.line = line


def _read_yaml(text: str) -> Any:
    """The plain values in a YAML text; dates stay text, since no key takes one. Raises _YamlError."""
    import yaml

    class Loader(yaml.SafeLoader):
        """A SafeLoader that knows no dates."""

    Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    try:
        return yaml.load(text, Loader)  # noqa: S506 -- a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise _YamlError(
            getattr(error, "problem", None) or "unreadable", None if mark is None else mark.line + 1
        ) from error
    except RecursionError:
        raise _YamlError("nested too deeply") from None
    except (ValueError, LookupError, AttributeError, ArithmeticError) as error:
        # PyYAML's constructors let through what Python says of `!!int x`, `!!bool x` or a number of 5000 digits.
        raise _YamlError("a value that cannot be read") from error


def _shown(value: Any) -> str:
    """A user's value, quoted, on one line and cut to a length that people read."""
    limits = reprlib.Repr()
    limits.maxstring = limits.maxother = limits.maxlong = _MOST_SHOWN
    try:
        return _cut(limits.repr(value))
    except ValueError:  # Python writes out no whole number of more than 4300 digits
        return "a number too long to show"


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_SHOWN else f"{text[: _MOST_SHOWN - 1]}…"


def _plausible(spec: MontageSpec, where: str) -> MontageSpec:
    size, rate = spec.size(), spec.rate()
    if size is not None and (max(size) > 8192 or min(size) < 64 or size[0] % 2 or size[1] % 2):
        raise MediaError(
            f"{where}: resolution: {spec.resolution} cannot be encoded; both sides must be even, 64 to 8192"
        )
    if rate is not None and not 1 <= rate <= 240:
        raise MediaError(f"{where}: fps: {spec.fps} is not between 1 and 240")
    if spec.detector in ("transnetv2", "hybrid") and spec.threshold is not None and spec.threshold >= 1:
        raise MediaError(f"{where}: threshold: {spec.threshold:g} is no probability; {spec.detector} wants one below 1")
    if spec.grade is not None:
        refuse_unknown(spec.grade, where)
    if spec.min_shot and spec.max_shot and spec.min_shot > spec.max_shot:
        raise MediaError(f"{where}: min_shot: {spec.min_shot:g} s is longer than max_shot, {spec.max_shot:g} s")
    return spec


def _first_fault(error: ValidationError) -> str:
    fault = error.errors()[0]
    key = ".".join(str(part) for part in fault["loc"] if str(part) in MontageSpec.model_fields) or "value"
    text = fault["msg"].replace("Input should be", "must be").replace("String should match pattern", "must match")
    if key == "resolution":
        text = "must be WIDTHxHEIGHT, e.g. 1920x1080, or auto"
    if key == "fps":
        text = "must be a number, e.g. 30, 23.976 or 30000/1001, or auto"
    return f"{key}: {_shown(fault['input'])}: {text}"
