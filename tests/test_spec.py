"""montage.yaml: every key is checked, every mistake gets one line that names it."""

from __future__ import annotations

import itertools
import json
from fractions import Fraction

import pytest

from montage_assets.media.errors import MediaError
from montage_assets.spec import (
    MontageSpec,
    exact_rate,
    parse_override,
    parse_spec,
    spec_schema,
    with_default_codec,
    with_overrides,
)


def test_an_empty_file_is_all_defaults() -> None:
    assert parse_spec("", "montage.yaml") == MontageSpec()


def test_values_are_read_as_people_write_them() -> None:
    spec = parse_spec(
        "music_start: 1:05\nduration: 0:01:30.5\nresolution: 1080X1920\nfps: 23.976\npace: fast\nseed: 7",
        "montage.yaml",
    )
    assert spec.music_start == 65.0
    assert spec.duration == 90.5
    assert spec.size() == (1080, 1920)
    assert spec.rate() == Fraction(24000, 1001)
    assert (spec.pace, spec.seed) == ("fast", 7)


def test_off_takes_a_grade_back() -> None:
    spec = parse_spec("grade: warm\nstabilize: on", "montage.yaml")
    assert (spec.grade, spec.stabilize) == ("warm", "on")
    off = with_overrides(spec, {"grade": False, "stabilize": False}, "--set")
    assert (off.grade, off.stabilize) == (None, "off")


@pytest.mark.parametrize(
    ("text", "rate"),
    [("30", Fraction(30)), ("29.97", Fraction(30000, 1001)), ("30000/1001", Fraction(30000, 1001))],
)
def test_frame_rates_are_exact(text: str, rate: Fraction) -> None:
    assert exact_rate(text) == rate


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("grade: wram", "montage.yaml: grade: there is no look 'wram'; did you mean 'warm'"),
        ("grade: [warm]", "grade: ['warm']: must be"),
        ("stabilize: much", "stabilize: 'much': must be 'off' or 'on'"),
        ("musik: a.mp3", "there is no key 'musik'; did you mean 'music'"),
        ("zzz: 1", "there is no key 'zzz'; the keys are music, music_start"),
        ("quality: best", "quality: 'best': must be 'preview', 'standard', 'high' or 'master'"),
        ("duration: -3", "duration: -3: must be greater than 0"),
        ("duration: soon", "duration: 'soon'"),
        ("resolution: big", "resolution: 'big': must be WIDTHxHEIGHT"),
        ("resolution: 641x360", "both sides must be even"),
        ("resolution: 20000x20000", "cannot be encoded"),
        ("fps: 1000", "fps: 1000 is not between 1 and 240"),
        ("fps: 30/0", "fps: '30/0'"),
        ("min_shot: 3\nmax_shot: 1", "min_shot: 3 s is longer than max_shot, 1 s"),
        ("- a\n- b", "must be a list of `key: value` lines"),
        ("a: [1\nb: 2", "line 2: is not YAML"),
        ("seed: true\nseed: {}", "seed:"),
        ("music_start: 2024-02-30", "music_start: '2024-02-30': must be a valid number"),
        ("music_start: 2024-02-03", "music_start: '2024-02-03': must be a valid number"),
        ("music: " + "[" * 600, "is not YAML (nested too deeply)"),
        ("threshold: .inf", "threshold: inf: must be a finite number"),
        ("threshold: .nan", "threshold: nan: must be a finite number"),
        ("music_start: .inf", "music_start: inf: must be a finite number"),
        ("seed: !!timestamp soon", "is not YAML (a value that cannot be read)"),
        ("seed: !!bool soon", "is not YAML (a value that cannot be read)"),
        ("seed: " + "9" * 5000, "is not YAML (a value that cannot be read)"),
        ("seed: 0x" + "f" * 9000, "seed: "),
        ("fps: 0x" + "f" * 9000, "fps: "),
        ("fps: '" + "9" * 5000 + "'", "fps: '999"),
        ("resolution: &x [*x, *x]", "resolution: [[["),
        ("? [a]\n: b", "line 1: is not YAML"),
        ("7: b", "there is no key '7'"),
    ],
)
def test_a_mistake_is_named_in_one_line(text: str, message: str) -> None:
    with pytest.raises(MediaError) as refused:
        parse_spec(text, "montage.yaml")
    assert message in str(refused.value)
    assert str(refused.value).startswith("montage.yaml")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "text",
    [
        "music: [" + "a, " * 5000 + "]",
        "pace: " + "a" * 5000,
        "a" * 5000 + ": 1",
        "music: *" + "a" * 5000,
        "music: !" + "a" * 5000 + " b",
        "music: [&a [x, x, x, x, x, x, x, x], "
        + ", ".join(f"&{new} [{', '.join([f'*{old}'] * 8)}]" for old, new in itertools.pairwise("abcdefghijkl"))
        + "]",
    ],
    ids=["list", "text", "key", "alias", "tag", "growing list"],
)
def test_a_long_mistake_is_cut_short(text: str) -> None:
    with pytest.raises(MediaError) as refused:
        parse_spec(text, "montage.yaml")
    assert len(str(refused.value)) < 350
    assert "\n" not in str(refused.value)


def test_a_yaml_file_cannot_run_code() -> None:
    with pytest.raises(MediaError):
        parse_spec("music: !!python/object/apply:os.system ['true']", "montage.yaml")


def test_overrides_win_over_the_file() -> None:
    spec = parse_spec("pace: calm\nseed: 3", "montage.yaml")
    changed = with_overrides(spec, dict([parse_override("pace=fast"), parse_override("duration=1:10")]), "--set")
    assert (changed.pace, changed.seed, changed.duration) == ("fast", 3, 70.0)


@pytest.mark.parametrize("text", ["pace", "=fast"])
def test_an_override_without_key_or_value_is_refused(text: str) -> None:
    with pytest.raises(MediaError, match="write it as key=value"):
        parse_override(text)


@pytest.mark.parametrize(
    "value", ["[" * 600, "!!bool soon", "9" * 5000, "{", "*" + "a" * 5000], ids=lambda value: value[:8]
)
def test_an_override_that_cannot_be_read_is_refused_in_one_line(value: str) -> None:
    with pytest.raises(MediaError, match=r"^--set '.*: the value cannot be read") as refused:
        parse_override(f"music={value}")
    assert len(str(refused.value)) < 250
    assert "\n" not in str(refused.value)


def test_a_date_is_text() -> None:
    assert parse_override("music=2024-02-30") == ("music", "2024-02-30")


def test_the_schema_names_and_explains_every_key() -> None:
    schema = json.loads(spec_schema())
    assert set(schema["properties"]) == set(MontageSpec.model_fields)
    assert all(entry.get("description") for entry in schema["properties"].values())
    assert schema["additionalProperties"] is False


@pytest.mark.parametrize(
    ("yaml", "output_codec", "codec"),
    [
        ("", None, "h264"),
        ("", "av1", "av1"),
        ("pace: fast", "hevc_vaapi", "hevc"),
        ("codec: h264", "hevc", "h264"),
        ("codec: av1", "h264_nvenc", "av1"),
    ],
)
def test_the_environments_codec_is_taken_where_the_file_names_none(
    yaml: str, output_codec: str | None, codec: str
) -> None:
    assert with_default_codec(parse_spec(yaml, "montage.yaml"), output_codec).codec == codec
