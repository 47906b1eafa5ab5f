"""What decodes a clip for its analysis on this machine, and what takes over when that fails.

Belongs here: asking for a judgement where it can pay, doing the work, falling back to the CPU. Does not belong here:
the judgement itself (`media.hardware_decode`), or rendering, which decodes a few frames here and there: a GPU takes
longer to start than that takes.
"""

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from montage_assets.media.clip import Clip
from montage_assets.media.encoder_devices import Host
from montage_assets.media.errors import ClipChanged, FfmpegFailed, UnusableClip
from montage_assets.media.ffmpeg import DISK_FULL
from montage_assets.media.hardware_decode import LONG, DecoderChoice, HardwareDecoder, decoders_here, first_devices
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

    A decoder that hangs, crashes, or fails on two clips is not asked again in this process: one clip may be damaged.
    Raises what `work` raises on the CPU, and at once what no other decoder mends.
    """
    decoder = _decoder_for(path, clip, settings)
    if decoder is None:
        return work(None), ON_THE_CPU
    try:
        return work(decoder), decoder.name
    except ClipChanged:
        raise
    except (FfmpegFailed, UnusableClip) as error:
        if isinstance(error, FfmpegFailed) and DISK_FULL in error.log:
            raise
        is_the_drivers = isinstance(error, FfmpegFailed) and (error.hung or error.from_outside)
        _failures.setdefault(decoder, set()).update({clip.fingerprint, *(["any"] if is_the_drivers else [])})
        return work(None), f"{ON_THE_CPU}, since {decoder.name} failed: {error}"


_failures: dict[HardwareDecoder, set[str]] = {}
"""The fingerprints of the clips that a decoder failed on."""


def _decoder_for(path: Path, clip: Clip, settings: Settings) -> HardwareDecoder | None:
    if decode_ms_per_frame(clip) < CHEAP_FRAME_MS or clip.frames_estimate < LONG:
        return None
    choice = _choice_of(settings.encoder_cache, settings.driver_variables)
    here = decoders_here(settings.hwaccel, settings.force_cpu, choice.host)
    chosen = choice.judgement(path, clip, first_devices(here)).decoder
    able = [one for one in here if chosen and one.method == chosen.method and not _is_left_alone(one, clip)]
    # Processes share a machine's devices out by their numbers.
    return able[os.getpid() % len(able)] if able else None


def _is_left_alone(decoder: HardwareDecoder, clip: Clip) -> bool:
    failed = _failures.get(decoder, set())
    return clip.fingerprint in failed or len(failed) > 1


@functools.cache
def _choice_of(folder: Path | None, variables: tuple[tuple[str, str], ...]) -> DecoderChoice:
    return DecoderChoice(folder, variables, Host())
