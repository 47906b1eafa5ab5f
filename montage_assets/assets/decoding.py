"""What decodes a clip for its analysis on this machine, and what takes over when that fails.

Belongs here: asking for a judgement where it can pay, doing the work, falling back to the CPU. Does not belong here:
the judgement itself (`media.hardware_decode`), or rendering, which decodes a few frames here and there: a GPU takes
longer to start than that takes.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from montage_assets.media.clip import Clip
from montage_assets.media.encoder_devices import Host
from montage_assets.media.errors import ClipChanged, FfmpegFailed, UnusableClip
from montage_assets.media.hardware_decode import LONG, DecoderChoice, HardwareDecoder, decoders_here
from montage_assets.media.proxies import decode_ms_per_frame
from montage_assets.settings import Settings

ON_THE_CPU = "CPU"

CHEAP_FRAME_MS = 4.0
"""Fetching a frame from a GPU and looking at it costs about as much as decoding one so cheap: nothing to gain."""

Result = TypeVar("Result")


def decoded(
    path: Path, clip: Clip, settings: Settings, work: Callable[[HardwareDecoder | None], Result]
) -> tuple[Result, str]:
    """What `work` makes of a clip with the best decoder here, and which one that was, in words.

    A decoder that fails is not asked again in this process. Raises what `work` raises on the CPU.
    """
    decoder = _decoder_for(path, clip, settings)
    if decoder is None:
        return work(None), ON_THE_CPU
    try:
        return work(decoder), decoder.name
    except ClipChanged:
        raise
    except (FfmpegFailed, UnusableClip) as error:
        _failed.add(decoder)
        return work(None), f"{ON_THE_CPU}, since {decoder.name} failed: {error}"


_failed: set[HardwareDecoder] = set()


def _decoder_for(path: Path, clip: Clip, settings: Settings) -> HardwareDecoder | None:
    if decode_ms_per_frame(clip) < CHEAP_FRAME_MS or clip.frames_estimate < LONG:
        return None
    choice = _choice_of(settings.encoder_cache, settings.driver_variables)
    here = [one for one in decoders_here(settings.hwaccel, settings.force_cpu, choice.host) if one not in _failed]
    return choice.judgement(path, clip, here).decoder


@functools.cache
def _choice_of(folder: Path | None, variables: tuple[tuple[str, str], ...]) -> DecoderChoice:
    return DecoderChoice(folder, variables, Host())
