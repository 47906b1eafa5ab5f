"""Colour grading: a 3D LUT over the finished picture.

Belongs here: the built-in looks, reading a user's .cube file, and the filters that apply one. Both kinds end as a
.cube text that this module wrote itself (`cube_text`): domain 0 to 1, red fastest, so that ffmpeg has one thing to
read, whose every line is known to be sound. Does not belong here: where that text is kept (`assets.footage`).

Format: Adobe's "Cube LUT Specification 1.0", and DaVinci Resolve's LUT_3D_INPUT_RANGE. ffmpeg's own reader is not shown
users' files: it takes no DOMAIN_MIN into account and no domain narrower than 1, and says of no fault where it is.

Precision. The LUT is applied to 14-bit RGB: there lut3d gives the same on every x86 CPU. At 16 bits and in floating
point it takes less than half the time where there is AVX2, but rounds otherwise than without (109 samples of 12
million).
"""

from __future__ import annotations

import difflib
import io
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from montage_assets.media.errors import MediaError
from montage_assets.media.ffmpeg import filter_value
from montage_assets.media.picture import SDR_TAGS

if TYPE_CHECKING:
    from numpy.typing import NDArray

Colours: TypeAlias = "NDArray[np.float64]"
"""(..., 3) red, green, blue, as coded for BT.709 displays, 0 to 1."""

ALGORITHM = 1
"""Part of a graded segment's key; raised whenever a change here changes a pixel."""

SUFFIX = ".cube"
LEAST_SIZE, MOST_SIZE = 2, 65
MOST_BYTES = 16 << 20
"""Of a file: the largest LUT has 274625 lines of some 40 bytes."""
MOST_VALUE = 10.0
"""Of an entry: around 0 to 1 is meant; what was written for 0 to 255 or 1023 would turn all white."""
MOST_DOMAIN = 1000.0
MOST_OF_A_LINE = 1000
"""Characters; the format allows 250."""
LOOK_SIZE = 33

_LUMA = np.array([0.2126, 0.7152, 0.0722])
_CONVERT = "flags=bicubic+accurate_rnd+full_chroma_int+full_chroma_inp"
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d{1,3})?")
_IGNORED = frozenset({"TITLE"})


@dataclass(frozen=True)
class Lut:
    """`values` is (blue, green, red, 3), `size` a side, over the domain 0 to 1 of every channel."""

    values: NDArray[np.float64]

    @property
    def size(self) -> int:
        """Points on a side."""
        return len(self.values)


def _warm(rgb: Colours) -> Colours:
    """Daylight turned towards evening; brightness stays."""
    return _as_bright(rgb * np.array([1.08, 1.0, 0.86]), rgb)


def _cool(rgb: Colours) -> Colours:
    """Daylight turned towards shade; brightness stays."""
    return _as_bright(rgb * np.array([0.90, 1.0, 1.12]), rgb)


def _vivid(rgb: Colours) -> Colours:
    """Stronger colours and a little more contrast."""
    return _saturated(_contrasted(rgb, 0.25), 1.35)


def _muted(rgb: Colours) -> Colours:
    """Weak colours, soft contrast."""
    return _saturated(_contrasted(rgb, -0.25), 0.6)


def _monochrome(rgb: Colours) -> Colours:
    """Black and white, with a little more contrast."""
    return _contrasted(_saturated(rgb, 0.0), 0.2)


def _cinema(rgb: Colours) -> Colours:
    """Shadows towards teal, lights towards orange, more contrast."""
    light = _luma(rgb)
    towards = light * np.array([0.06, 0.01, -0.07]) + (1 - light) * np.array([-0.05, 0.015, 0.05])
    # Black and white stay what they are.
    return _contrasted(rgb + towards * 4 * light * (1 - light), 0.3)


LOOKS: Mapping[str, Callable[[Colours], Colours]] = MappingProxyType(
    {
        "warm": _warm,
        "cool": _cool,
        "vivid": _vivid,
        "muted": _muted,
        "monochrome": _monochrome,
        "cinema": _cinema,
    }
)
"""Built-in looks: pure functions of a picture's colours. Values beyond 0 and 1 are cut off afterwards."""


def look_lut(name: str) -> Lut:
    """The LUT of a built-in look."""
    return Lut(LOOKS[name](_grid(LOOK_SIZE)).clip(0.0, 1.0))


def refuse_unknown(grade: str, where: str) -> None:
    """Raises MediaError, with the names there are, for what is neither a look nor the name of a .cube file. `where`
    says who named it."""
    if grade in LOOKS or grade.lower().endswith(SUFFIX):
        return
    near = difflib.get_close_matches(grade[:40], LOOKS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(LOOKS)}, or name a {SUFFIX} file"
    raise MediaError(f"{where}: grade: there is no look {_shown(grade)}; {hint}")


def parse_cube(data: bytes, name: str) -> Lut:
    """The 3D LUT in a .cube file's content. `name` is the file's, for errors.

    A domain other than 0 to 1 is worked into the values (at the largest size). Raises MediaError with one line that
    says what is wrong in which line, and what to do.
    """
    if len(data) > MOST_BYTES:
        raise MediaError(f"{name} is larger than {MOST_BYTES >> 20} MiB, and no 3D LUT is; check what file it is")
    return _CubeReader(name).read(data)


def cube_text(lut: Lut) -> bytes:
    """The LUT as a .cube file that ffmpeg reads; equal LUTs give equal bytes."""
    rows = lut.values.reshape(-1, 3).tolist()
    lines = [f"LUT_3D_SIZE {lut.size}", *(f"{red:.6f} {green:.6f} {blue:.6f}" for red, green, blue in rows)]
    return ("\n".join(lines) + "\n").encode()


def grade_filters(lut: Path) -> list[str]:
    """The filters that apply a .cube file of `cube_text` to BT.709 pictures in 8-bit 4:2:0, which they stay."""
    return [
        f"scale=in_color_matrix=bt709:in_range=tv:out_range=pc:{_CONVERT}",
        "format=gbrp14le",
        f"lut3d=file={filter_value(lut)}:interp=tetrahedral",
        f"scale=out_color_matrix=bt709:in_range=pc:out_range=tv:{_CONVERT}",
        "format=yuv420p",
        SDR_TAGS,
    ]


class _CubeReader:
    """Reads one file, line by line."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._line = 0
        self._size: int | None = None
        self._domain = [[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]
        self._values: list[list[float]] = []

    def read(self, data: bytes) -> Lut:
        # Line by line: a file of nothing but line ends would be a list of a gigabyte.
        lines = io.StringIO(data.decode("utf-8-sig", "replace"), newline=None)
        for self._line, line in enumerate(lines, start=1):
            if len(line) > MOST_OF_A_LINE:
                raise self._fault("is far longer than a line of a .cube file; check what file it is")
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            if _NUMBER.fullmatch(words[0]) or words[0].lower() in ("nan", "inf", "-nan", "-inf", "+inf"):
                self._entry(words)
            else:
                self._keyword(words)
        return self._lut()

    def _entry(self, words: list[str]) -> None:
        if self._size is None:
            raise self._fault("comes before the line LUT_3D_SIZE; put that one first")
        if len(words) != 3:
            raise self._fault(f"has {len(words)} numbers where red, green and blue are expected; export the LUT again")
        if len(self._values) == self._size**3:
            raise self._fault(
                f"is one entry more than the {self._size**3} of a LUT of size {self._size}; export the LUT again"
            )
        entry = [self._number(word) for word in words]
        if max(map(abs, entry)) > MOST_VALUE:
            raise self._fault(f"has a value far outside 0 to 1 ({max(entry, key=abs):g}); export the LUT for 0 to 1")
        self._values.append(entry)

    def _keyword(self, words: list[str]) -> None:
        keyword = words[0].upper()
        if keyword.startswith("LUT_1D"):
            raise self._fault(f"says that this is a 1D LUT ({keyword}); export a 3D LUT without a 1D part instead")
        if self._values and keyword not in _IGNORED:
            raise self._fault(f"has {_shown(words[0])} after the first entry; export the LUT again")
        if keyword == "LUT_3D_SIZE":
            self._set_size(words)
        elif keyword in ("DOMAIN_MIN", "DOMAIN_MAX"):
            self._domain[keyword == "DOMAIN_MAX"] = self._numbers(words, 3)
        elif keyword == "LUT_3D_INPUT_RANGE":
            low, high = self._numbers(words, 2)
            self._domain = [[low] * 3, [high] * 3]
        elif keyword not in _IGNORED:
            raise self._fault(f"has {_shown(words[0])}, which no 3D .cube file has; export the LUT again as .cube")

    def _set_size(self, words: list[str]) -> None:
        if self._size is not None:
            raise self._fault("has a second LUT_3D_SIZE; export the LUT again")
        if len(words) != 2 or re.fullmatch(r"[0-9]{1,6}", words[1]) is None:
            raise self._fault("has no whole number after LUT_3D_SIZE; export the LUT again")
        size = int(words[1])
        if not LEAST_SIZE <= size <= MOST_SIZE:
            raise self._fault(f"has the size {size}; only {LEAST_SIZE} to {MOST_SIZE} are read, e.g. export with 33")
        self._size = size

    def _numbers(self, words: list[str], count: int) -> list[float]:
        if len(words) != count + 1:
            raise self._fault(f"has {len(words) - 1} numbers after {words[0]} instead of {count}; export the LUT again")
        numbers = [self._number(word) for word in words[1:]]
        if max(map(abs, numbers)) > MOST_DOMAIN:
            raise self._fault(f"has a domain far outside 0 to 1 ({max(numbers, key=abs):g}); export the LUT for 0 to 1")
        return numbers

    def _number(self, word: str) -> float:
        value = float(word) if _NUMBER.fullmatch(word) else math.nan
        if not math.isfinite(value):
            raise self._fault(f"has {_shown(word)} where a finite number is expected; export the LUT again")
        return value

    def _lut(self) -> Lut:
        if self._size is None:
            raise MediaError(f"{self._name} has no line LUT_3D_SIZE: it is no 3D LUT; export one as .cube")
        if len(self._values) != self._size**3:
            raise MediaError(
                f"{self._name} ends after {len(self._values)} of the {self._size**3} entries of a LUT of size "
                f"{self._size}; copy or export it again"
            )
        low, high = np.array(self._domain)
        if (high - low < 1e-3).any():
            raise MediaError(
                f"{self._name} has a DOMAIN_MAX that is not above its DOMAIN_MIN; export the LUT for 0 to 1"
            )
        lut = Lut(np.array(self._values).reshape(self._size, self._size, self._size, 3))
        return lut if (low == 0).all() and (high == 1).all() else _over_unit_domain(lut, low, high)

    def _fault(self, what: str) -> MediaError:
        return MediaError(f"{self._name}, line {self._line}, {what}")


def _over_unit_domain(lut: Lut, low: NDArray[np.float64], high: NDArray[np.float64]) -> Lut:
    """The same LUT sampled over 0 to 1; colours outside its own domain get those of its edge."""
    from scipy.ndimage import map_coordinates

    places = ((_grid(MOST_SIZE) - low) / (high - low)).clip(0.0, 1.0) * (lut.size - 1)
    blue_green_red = np.moveaxis(places, -1, 0)[::-1]
    channels = [map_coordinates(lut.values[..., channel], blue_green_red, order=1) for channel in range(3)]
    return Lut(np.stack(channels, axis=-1))


def _grid(size: int) -> Colours:
    """(blue, green, red, 3): the colour at every point of a LUT."""
    steps = np.linspace(0.0, 1.0, size)
    blue, green, red = np.meshgrid(steps, steps, steps, indexing="ij")
    return np.stack([red, green, blue], axis=-1)


def _luma(rgb: Colours) -> Colours:
    light: Colours = (rgb @ _LUMA)[..., np.newaxis]
    return light


def _saturated(rgb: Colours, factor: float) -> Colours:
    light = _luma(rgb)
    return light + (rgb - light) * factor


def _contrasted(rgb: Colours, amount: float) -> Colours:
    """Towards (or away from) the curve 3x²-2x³, which leaves black, middle grey and white where they are."""
    held: Colours = rgb.clip(0.0, 1.0)
    return rgb + amount * (held * held * (3 - 2 * held) - held)


def _as_bright(rgb: Colours, before: Colours) -> Colours:
    """The colours at the luma they had. Near white, where that would need more than there is, they turn to white."""
    kept: Colours = rgb * (_luma(before) / np.maximum(_luma(rgb), 1e-9))
    near_white: Colours = _luma(before) ** 8
    return kept * (1 - near_white) + before * near_white


def _shown(word: str) -> str:
    return repr(word if len(word) <= 40 else f"{word[:39]}…")
