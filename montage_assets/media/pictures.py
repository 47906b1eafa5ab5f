"""Pictures for people: contact sheets, and the song with its beats and the film's cuts.

Belongs here: drawing with Pillow. Does not belong here: decoding film or song.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction

from montage_assets.media.beat_analysis import BeatAnalysis
from montage_assets.media.edit_list import EditList

_CELL = (160, 90)
_LABEL_HEIGHT = 12
_CHART = (1200, 220)
_BACKGROUND = "#16181d"
_ENERGY = "#2b4468"
_ONSETS = "#7aa2d6"
_BEAT = "#3d444d"
_DOWNBEAT = "#8b949e"
_CUT = "#f0883e"
_TEXT = "#c9d1d9"


def contact_sheet(pictures: Sequence[bytes], labels: Sequence[str], columns: int = 6) -> bytes:
    """JPEG of small pictures in reading order, each with its label below it."""
    from PIL import Image, ImageDraw

    rows = max(1, -(-len(pictures) // columns))
    height = _CELL[1] + _LABEL_HEIGHT
    sheet = Image.new("RGB", (columns * _CELL[0], rows * height), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for number, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        image = Image.open(io.BytesIO(picture)).convert("RGB")
        image.thumbnail(_CELL)
        left, top = number % columns * _CELL[0], number // columns * height
        sheet.paste(image, (left + (_CELL[0] - image.width) // 2, top + (_CELL[1] - image.height) // 2))
        draw.text((left + 2, top + _CELL[1]), label[:26], fill=_TEXT)
    return _jpeg(sheet)


def beat_chart(analysis: BeatAnalysis, edit: EditList) -> bytes:
    """PNG of the film's stretch of the song.

    Energy is dark blue, onsets are light blue, beats grey, downbeats light grey, cuts orange.
    """
    from PIL import Image, ImageDraw

    width, height = _CHART
    film_s = float(Fraction(edit.frames) / edit.fps)
    image = Image.new("RGB", _CHART, _BACKGROUND)
    draw = ImageDraw.Draw(image)

    def across(time_s: float) -> int:
        return round(time_s / max(film_s, 1e-9) * (width - 1))

    for column in range(width):
        song_s = edit.music.start_s + column / width * film_s
        index = min(int(song_s / analysis.hop_s), len(analysis.energy) - 1)
        for curve, colour in ((analysis.energy, _ENERGY), (analysis.onset_strength, _ONSETS)):
            level = round(curve[index] * (height - 60) / 2) if curve else 0
            draw.line([(column, height // 2 - level), (column, height // 2 + level)], fill=colour)
    for beat in edit.music.beats_s:
        draw.line([(across(beat), height - 34), (across(beat), height - 22)], fill=_BEAT)
    for downbeat in edit.music.downbeats_s:
        draw.line([(across(downbeat), height - 40), (across(downbeat), height - 22)], fill=_DOWNBEAT)
    for shot in edit.shots:
        at = across(float(Fraction(shot.first_frame) / edit.fps))
        draw.line([(at, 18), (at, height - 22)], fill=_CUT)
    legend = f"{edit.music.tempo_bpm:.2f} BPM   {len(edit.shots)} shots   orange: cuts, grey: beats, light: downbeats"
    draw.text((4, 2), legend, fill=_TEXT)
    for second in range(0, int(film_s) + 1, max(1, int(film_s // 12))):
        draw.text((min(across(second), width - 30), height - 16), f"{second} s", fill=_TEXT)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _jpeg(image: object) -> bytes:
    from PIL import Image

    assert isinstance(image, Image.Image)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()
