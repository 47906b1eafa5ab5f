"""How one clip's picture becomes the film's picture: its size, shape and colour, as an ffmpeg filter chain.

Belongs here: the decisions (crop, bars or blurred surround; which colour conversion; in which order, so
that the costly filter sees the smaller picture). All pure. Does not belong here: frame rate, seeking and
trimming (`render`), the encoder's own filters (`encoders`).

ffmpeg turns a rotated picture upright before the chain begins, so the chain sees `upright_size`, and the
sample aspect ratio is of the upright picture. Nothing is ever stretched: one scaling step makes the pixels
square and the picture as large as it is needed, with its proportions kept to within one pixel.

Tone mapping (PQ and HLG to SDR): linear light with 203 cd/m2, the reference white of ITU-R BT.2408, as
1.0; highlights up to 1000 cd/m2 are rolled off by the Moebius curve, which leaves everything below 0.3
as it is. Measured on grey fields: 203 cd/m2 in PQ and 75 % HLG both become luma 202, 1000 cd/m2 becomes
235. The Hable curve with 100 cd/m2 makes the same greys 181, a dull picture; swscale's own tone mapping
blew out skies and took three times as long.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, get_args

from montage_assets.media.clip import Clip
from montage_assets.media.errors import MediaError

Framing = Literal["auto", "fill", "fit", "blur"]
"""`fill`: cover the film's picture, crop the middle. `fit`: whole picture, black bars. `blur`: whole picture
before a blurred, darkened copy of itself. `auto`: `fill` while little is lost, else `blur`."""

FRAMINGS: tuple[Framing, ...] = get_args(Framing)

# Showing 4:3 in 16:9 loses 25 %, a square 44 %, a portrait phone picture 68 %.
MOST_LOST_BY_CROP = Fraction(35, 100)

SCALER = "bicubic"
SDR_TAGS = "setparams=color_primaries=bt709:color_trc=bt709:colorspace=bt709:range=tv"

ZSCALE_RANGES = {"pc": "full", "tv": "limited"}

REFERENCE_WHITE = 203
PEAK = 1000
BACKGROUND_SHRINK = 16
BACKGROUND_BLUR = 2
BACKGROUND_BRIGHTNESS = 0.55


@dataclass(frozen=True)
class Layout:
    """A clip's picture is scaled to `width` x `height` (even, square pixels), then framed."""

    framing: Literal["fill", "fit", "blur"]
    width: int
    height: int


def upright_size(clip: Clip) -> tuple[int, int]:
    """Pixels of the decoded picture once it is turned upright: coded size, sides swapped for 90 and 270."""
    return (clip.height, clip.width) if clip.rotation in (90, 270) else (clip.width, clip.height)


def display_aspect(clip: Clip) -> Fraction:
    """Width to height as a viewer sees it, exactly (the clip's display size is rounded to whole pixels)."""
    coded = Fraction(clip.width, clip.height) * (clip.sample_aspect or 1)
    return 1 / coded if clip.rotation in (90, 270) else coded


def share_lost_by_crop(aspect: Fraction, film_aspect: Fraction) -> Fraction:
    """How much of a picture of `aspect` is cut away when it covers a film of `film_aspect` (0..1)."""
    return 1 - min(aspect / film_aspect, film_aspect / aspect)


def layout(clip: Clip, width: int, height: int, framing: Framing) -> Layout:
    """Place the clip in a film of `width` x `height` pixels. Raises MediaError for an unknown framing."""
    if framing not in FRAMINGS:
        raise MediaError(f"There is no framing {framing!r}; choose one of {', '.join(FRAMINGS)}")
    aspect, film_aspect = display_aspect(clip), Fraction(width, height)
    if framing == "auto":
        framing = "fill" if share_lost_by_crop(aspect, film_aspect) <= MOST_LOST_BY_CROP else "blur"
    wider = aspect > film_aspect
    if framing == "fill":
        scaled = (_even_up(height * aspect), height) if wider else (width, _even_up(width / aspect))
        return Layout("fill", max(scaled[0], width), max(scaled[1], height))
    scaled = (width, _even_near(width / aspect, height)) if wider else (_even_near(height * aspect, width), height)
    # A surround of a pixel or two is no surround; nothing is left to show there.
    return Layout("fill" if scaled == (width, height) else framing, *scaled)


def picture_chain(clip: Clip, width: int, height: int, framing: Framing, label: str, steady: str = "") -> str:
    """The filters from the clip's upright decoded frames to the film's frames, without in- and output pads.

    The result has `width` x `height` square pixels, 8-bit 4:2:0, BT.709, TV range, and is so tagged.
    `label` makes the chain's inner pad names unique in a graph of many chains. `steady` is a filter for the picture of
    the clip alone, scaled but not framed yet.
    Raises MediaError for an unknown framing or an odd film size.
    """
    if width % 2 or height % 2 or width < 2 or height < 2:
        raise MediaError(f"A film of {width}x{height} cannot be made; both sides must be even")
    placed = layout(clip, width, height, framing)
    chain = [scaled_chain(clip, placed), *([steady] if steady else [])]
    if placed.framing == "blur":
        chain.append(_over_blurred_copy(placed, width, height, label))
    elif placed.framing == "fit":
        chain.append(f"pad={width}:{height}:(ow-iw)/2:(oh-ih)/2:black")
    elif (placed.width, placed.height) != (width, height):
        chain.append(f"crop={width}:{height}")
    return ",".join(chain)


def scaled_chain(clip: Clip, placed: Layout) -> str:
    """The first part of `picture_chain`: the clip's whole picture at its place's size, in the film's colours."""
    deinterlace = ["bwdif=mode=send_frame:deint=interlaced"] if clip.interlaced else []
    return ",".join([*deinterlace, *_colour_and_scale(clip, placed.width, placed.height), "setsar=1", SDR_TAGS])


def _colour_and_scale(clip: Clip, width: int, height: int) -> list[str]:
    in_range = "pc" if clip.full_range else "tv"
    if clip.transfer == "sdr" and clip.matrix != "bt2020":
        return [
            f"scale={width}:{height}:flags={SCALER}:in_color_matrix={clip.matrix}:in_range={in_range}"
            ":out_color_matrix=bt709:out_range=tv",
            "format=yuv420p",
        ]
    source_width, source_height = upright_size(clip)
    scale = (
        f"scale={width}:{height}:flags={SCALER}:in_color_matrix=bt2020:out_color_matrix=bt2020"
        f":in_range={in_range}:out_range={in_range}"
    )
    to_sdr = _tone_map(clip, in_range) if clip.transfer != "sdr" else _wide_to_bt709(in_range)
    if width * height <= source_width * source_height:
        return [scale, *to_sdr]
    return [*to_sdr, f"scale={width}:{height}:flags={SCALER}:in_range=tv:out_range=tv", "format=yuv420p"]


def _tone_map(clip: Clip, in_range: str) -> list[str]:
    transfer = {"pq": "smpte2084", "hlg": "arib-std-b67"}[clip.transfer]
    return [
        f"zscale=transferin={transfer}:primariesin=bt2020:matrixin=bt2020nc:rangein={ZSCALE_RANGES[in_range]}"
        f":transfer=linear:npl={REFERENCE_WHITE}",
        "format=gbrpf32le",
        "zscale=primaries=bt709",
        f"tonemap=mobius:desat=0:peak={PEAK / REFERENCE_WHITE:.3f}",
        "zscale=transfer=bt709:matrix=bt709:range=limited",
        "format=yuv420p",
    ]


def _wide_to_bt709(in_range: str) -> list[str]:
    """BT.2020 without HDR: same curve, smaller gamut."""
    return [
        f"zscale=transferin=bt709:primariesin=bt2020:matrixin=bt2020nc:rangein={ZSCALE_RANGES[in_range]}"
        ":transfer=bt709:primaries=bt709:matrix=bt709:range=limited",
        "format=yuv420p",
    ]


def _over_blurred_copy(placed: Layout, width: int, height: int, label: str) -> str:
    """Blurring is cheap at a sixteenth of the size, and enlarging the result blurs it further."""
    small_width = max(2, _even_up(Fraction(width, BACKGROUND_SHRINK)))
    small_height = max(2, _even_up(Fraction(height, BACKGROUND_SHRINK)))
    cover = max(Fraction(small_width, placed.width), Fraction(small_height, placed.height))
    cover_width, cover_height = _even_up(placed.width * cover), _even_up(placed.height * cover)
    back, front, blurred = f"[back{label}]", f"[front{label}]", f"[blurred{label}]"
    return (
        f"split{back}{front};"
        f"{back}scale={cover_width}:{cover_height}:flags=area,crop={small_width}:{small_height},"
        f"gblur=sigma={BACKGROUND_BLUR},"
        f"lutyuv=y=16+(val-16)*{BACKGROUND_BRIGHTNESS}:u=128+(val-128)*0.8:v=128+(val-128)*0.8,"
        f"scale={width}:{height}:flags=bicubic,setsar=1{blurred};"
        f"{blurred}{front}overlay=(W-w)/2:(H-h)/2:format=yuv420,{SDR_TAGS}"
    )


def _even_up(value: Fraction) -> int:
    whole = -(-value.numerator // value.denominator)
    return whole + whole % 2


def _even_near(value: Fraction, most: int) -> int:
    return min(most, max(2, 2 * round(value / 2)))
