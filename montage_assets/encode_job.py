"""Encoding one video anew, as a command line: the program of the encoding jobs, usable by hand as well.

    python -m montage_assets.encode_job --input input/holiday/a.mov --output output/a.mp4 --codec hevc

The encoder is the best that works on the machine this runs on, by test encodes and the same settings as a film's
segments (LOCAL_GPU_ENCODE, FFMPEG_HWACCEL, OUTPUT_CODEC); the codec's software encoder is the last to be tried. The
picture becomes upright, square-pixel, BT.709; frames keep their times, and the sound is copied as it is.

Belongs here: this one work. Does not belong here: films made of shots (`media.render`), starting jobs
(`cluster.job_submitter`).
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from montage_assets import layout
from montage_assets.data_root import DataRoot
from montage_assets.media.clip import Clip
from montage_assets.media.encoder_router import Need, wish_of
from montage_assets.media.encoders import (
    CODECS,
    MP4,
    MP4_TAGS,
    QUALITIES,
    Codec,
    Quality,
    ReadyEncoder,
    encode_flags,
    encoder_filters,
    read_encoded_stream,
)
from montage_assets.media.errors import FfmpegFailed, MediaError, UnusableClip
from montage_assets.media.ffmpeg import DISK_FULL, input_args, run_ffmpeg
from montage_assets.media.ingest import ingest_clip
from montage_assets.media.machine_encoders import MachineEncoders
from montage_assets.media.picture import picture_chain
from montage_assets.media.render import HARDWARE_STALL_S
from montage_assets.progress import FrameCounter
from montage_assets.settings import Settings

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EncodedVideo:
    """A finished encode. `fallback` says which encoders failed before, and why; empty when the first one did it."""

    output: str
    encoder: str
    frames: int
    size: tuple[int, int]
    fallback: str = ""


def encode_video(
    root: DataRoot, settings: Settings, source: str, output: str, codec: Codec = "h264", quality: Quality = "standard"
) -> EncodedVideo:
    """Encode `source` into the MP4 `output`; both are keys of the data root or full paths.

    The file appears whole or not at all. Raises MediaError for a source or output that cannot be, FfmpegFailed when
    the software encoder fails as well.
    """
    source, output = root.key_of(source), root.key_of(output)
    _refuse_bad_output(root, source, output)
    path = root.local_file(source)
    try:
        clip = ingest_clip(path, Path(source).name, "").clip
    except UnusableClip as error:
        raise MediaError(f"{root.where(source)} {error}") from None
    size = (clip.display_width + clip.display_width % 2, clip.display_height + clip.display_height % 2)
    machine = MachineEncoders(settings.encoder_cache, settings.driver_variables)
    wish = wish_of(settings.gpu_encode, settings.hwaccel, settings.force_cpu, settings.output_codec)
    routing = machine.routing(Need(codec, *size, quality), wish)
    if routing.note:
        _log.warning(routing.note)
    failures: list[str] = []
    with root.writing(output) as out:
        for ready in routing.encoders:
            try:
                frames = _encode(path, clip, ready, quality, size, out)
                break
            except FfmpegFailed as failure:
                if ready.on_cpu or DISK_FULL in failure.log:
                    raise
                failures.append(f"{ready.name}: {failure}")
                _log.warning("%s failed, the next encoder takes over: %s", ready.name, failure)
    return EncodedVideo(root.where(output), ready.name, frames, size, "; ".join(failures))


def _refuse_bad_output(root: DataRoot, source: str, output: str) -> None:
    if not root.exists(source):
        raise MediaError(f"there is no video {root.where(source)}; check its spelling")
    if not output.lower().endswith(".mp4"):
        raise MediaError(f"{output} is no MP4; encodes are MP4 files")
    if output == source or output.startswith(f"{layout.INPUT}/"):
        raise MediaError(f"{root.where(output)} is among the sources, which are never written to; choose another place")


def _encode(path: Path, clip: Clip, ready: ReadyEncoder, quality: Quality, size: tuple[int, int], out: Path) -> int:
    counter = FrameCounter(_log.info, f"{clip.name} by {ready.name}", clip.frames_estimate)
    filters = ",".join([picture_chain(clip, *size, "fit", "0"), *encoder_filters(ready)])
    run_ffmpeg(
        [
            *ready.device_flags,
            *input_args(path, "-sn", "-dn"),
            "-map", "0:V:0", "-map", "0:a?", "-map_metadata", "-1",
            "-vf", filters, "-fps_mode", "passthrough", "-enc_time_base", "demux",
            *encode_flags(ready, quality, clip.fps, size),
            "-tag:v", MP4_TAGS[ready.encoder.codec], "-c:a", "copy", "-movflags", "+faststart", "-f", "mp4", str(out),
        ],
        what=f"Encoding {clip.name} by {ready.name}",
        on_progress=lambda progress: counter(progress.frames),
        stall_s=None if ready.on_cpu else HARDWARE_STALL_S,
    )  # fmt: skip
    frames = read_encoded_stream(out, MP4).frames
    if frames < 0.98 * clip.frames_estimate - 2:
        raise FfmpegFailed(f"Encoding {clip.name} by {ready.name} gave {frames} of {clip.frames_estimate} frames")
    return frames


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--input", "source", required=True, metavar="VIDEO", help="The video: a full path, or below the data root."
)
@click.option("--output", required=True, metavar="FILE.mp4", help="Where it goes, likewise.")
@click.option("--codec", type=click.Choice(CODECS), default="h264", show_default=True)
@click.option("--quality", type=click.Choice(QUALITIES), default="standard", show_default=True)
def command(source: str, output: str, codec: Codec, quality: Quality) -> None:
    """Encode a video anew with the best encoder of this machine."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    settings = Settings.from_environment()
    click.echo(json.dumps(asdict(encode_video(settings.data_root(), settings, source, output, codec, quality))))


if __name__ == "__main__":
    from montage_assets.cli import run

    run(command)
