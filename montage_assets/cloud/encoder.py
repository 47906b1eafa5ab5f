"""Encoding on the NVENC of a cloud machine's GPU.

Belongs here: the command that is run there, the check that its GPU can encode before anything is sent, and the check of
the film that comes back. Does not belong here: encoders of this machine (`media.encoders`).

An encode is the one work for which whole pictures are sent; it is off unless CGPU_ENCODE asks for it, and then only
for films longer than CGPU_ENCODE_THRESHOLD.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from montage_assets.cloud.client import CGPUClient
from montage_assets.cloud.failures import CloudFailure, CloudFault
from montage_assets.cloud.shipped import SCRIPTS, run_script
from montage_assets.cloud.workspace import OnSent, Workspace, in_workspace
from montage_assets.cluster.gpus import has_no_encoder
from montage_assets.data_root import unfinished_beside

NvencCodec = Literal["h264_nvenc", "hevc_nvenc", "av1_nvenc"]
CODECS: tuple[NvencCodec, ...] = get_args(NvencCodec)
PRESET = "p7"
QUALITY = 20
"""NVENC's constant quality, `-cq`."""
SUFFIXES = (".mp4", ".mkv", ".mov", ".ts")
_PROBE_S = 120.0
_WORK_S = 300.0
_SECONDS_PER_FRAME = 0.5
_SCRIPT = SCRIPTS / "encode.py"
_NAME = "GPU: "


@dataclass(frozen=True)
class RemoteEncode:
    """A film that came back whole."""

    output: Path
    codec: NvencCodec
    gpu: str
    frames: int
    size_bytes: int


class CGPUEncoder:
    """Encoding on a cloud machine. `on_sent` is told of every upload."""

    def __init__(self, client: CGPUClient, on_sent: OnSent | None = None) -> None:
        self._client = client
        self._on_sent = on_sent

    def encode_remote(
        self,
        source: Path,
        output: Path,
        codec: NvencCodec = "h264_nvenc",
        *,
        flags: Sequence[str] | None = None,
        extra: Sequence[str] = (),
    ) -> RemoteEncode:
        """Encode the pictures of a file anew, keep its sound as it is; `output` appears when it is whole.

        `flags` are ffmpeg's for the encoder, `-c:v` included (default: `quality_flags`), with which it is tested
        first; `extra` more of them for the output, such as its container's. Raises CloudFailure (NO_ENCODER before
        anything is sent, when the GPU there cannot encode), and MediaError when the source cannot be read.
        """
        if codec not in CODECS:
            raise ValueError(f"{codec!r} is no encoder of NVENC; choose one of {', '.join(CODECS)}")
        if source.suffix.lower() not in SUFFIXES or output.suffix.lower() not in SUFFIXES:
            raise ValueError(f"a source and an output of an encode in the cloud are one of {', '.join(SUFFIXES)}")
        frames = frames_in(source)[0]
        chosen = quality_flags(codec) if flags is None else flags

        def work(workspace: Workspace) -> RemoteEncode:
            gpu = _gpu_that_encodes(workspace, chosen)
            made = f"output{output.suffix.lower()}"
            with tempfile.TemporaryDirectory(prefix="montage-cloud-") as place:
                nameless = Path(place) / f"input{source.suffix.lower()}"
                nameless.symlink_to(source.resolve())
                workspace.put([nameless], "a film to encode")
            command = encode_command(nameless.name, made, codec, flags=chosen, extra=extra)
            run_script(workspace, _SCRIPT, "encode", *command, timeout_s=_WORK_S + _SECONDS_PER_FRAME * frames)
            return _fetch(workspace, made, RemoteEncode(output, codec, gpu, frames, 0))

        return in_workspace(self._client, work, self._on_sent)


def encode_command(
    source: str, output: str, codec: NvencCodec, *, flags: Sequence[str] | None = None, extra: Sequence[str] = ()
) -> list[str]:
    """The ffmpeg arguments of an encode there: decoded and encoded on the GPU, without the frames leaving it."""
    return [
        "-hwaccel", "cuda", "-hwaccel_output_format", "cuda", "-i", source, "-map", "0:v:0", "-map", "0:a?",
        *(quality_flags(codec) if flags is None else flags), "-c:a", "copy", *extra, output,
    ]  # fmt: skip


def quality_flags(codec: NvencCodec) -> list[str]:
    """The encoder and its constant quality. `-cq` alone would be held back by ffmpeg's default of 2 Mbit/s, hence
    `-rc vbr -b:v 0`."""
    return ["-c:v", codec, "-preset", PRESET, "-rc", "vbr", "-cq", str(QUALITY), "-b:v", "0"]


def frames_in(film: Path) -> tuple[int, str]:
    """Pictures of a file (its packets, nothing is decoded) and its codec. Raises MediaError for what is no video."""
    import av
    from av.error import FFmpegError

    from montage_assets.media.errors import MediaError

    try:
        with av.open(str(film)) as container:
            if not container.streams.video:
                raise MediaError(f"{film.name} has no pictures; nothing of it can be encoded")
            stream = container.streams.video[0]
            return sum(1 for packet in container.demux(stream) if packet.size), stream.codec_context.name
    except FFmpegError as error:
        raise MediaError(f"{film.name} cannot be read ({error}); nothing of it can be encoded") from None


def _gpu_that_encodes(workspace: Workspace, flags: Sequence[str]) -> str:
    """The GPU's name. Raises NO_ENCODER when it is known to have none, or a short encode there does not work."""
    workspace.put([_SCRIPT], "a script")
    told = run_script(workspace, _SCRIPT, "name", timeout_s=_PROBE_S).lines
    name = next((line.removeprefix(_NAME) for line in told if line.startswith(_NAME)), "")
    if not name:
        raise CloudFailure(CloudFault.NO_ENCODER, "the cloud machine has no NVIDIA GPU")
    if has_no_encoder(name):
        raise CloudFailure(CloudFault.NO_ENCODER, f"{name} has none")
    try:
        run_script(workspace, _SCRIPT, "probe", *flags, timeout_s=_PROBE_S)
    except CloudFailure as failure:
        if failure.fault is CloudFault.WORK_FAILED:
            raise CloudFailure(CloudFault.NO_ENCODER, f"{name}: {failure.detail}") from None
        raise
    return name


def _fetch(workspace: Workspace, made: str, wanted: RemoteEncode) -> RemoteEncode:
    output = wanted.output
    temporary = unfinished_beside(output)
    try:
        workspace.get(made, temporary)
        _check(temporary, wanted.codec, wanted.frames)
        size = temporary.stat().st_size
        temporary.replace(output)
    finally:
        temporary.unlink(missing_ok=True)
    return replace(wanted, size_bytes=size)


def _check(film: Path, codec: NvencCodec, frames: int) -> None:
    from montage_assets.media.errors import MediaError

    try:
        found, name = frames_in(film)
    except MediaError:
        raise CloudFailure(CloudFault.WRONG_RESULT, "no video that can be read") from None
    wanted = codec.removesuffix("_nvenc")
    # PyAV names the decoder; AV1's is libdav1d.
    if wanted not in name and not (wanted == "av1" and "av1d" in name):
        raise CloudFailure(CloudFault.WRONG_RESULT, f"{name} instead of {wanted}")
    if found != frames:
        raise CloudFailure(CloudFault.WRONG_RESULT, f"{found} of {frames} frames")
