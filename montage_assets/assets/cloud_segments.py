"""Segments encoded in the cloud: the pictures are put together here, almost without loss, and encoded there."""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

from montage_assets.cloud.encoder import CGPUEncoder, NvencCodec
from montage_assets.cloud.failures import CloudFailure, CloudFault
from montage_assets.cloud.offload import Offload, Outcome, Session
from montage_assets.cloud.policy import Work
from montage_assets.media import render
from montage_assets.media.encoders import (
    QUALITIES,
    ReadyEncoder,
    container_of,
    encode_flags,
    encoder_named,
    read_encoded_stream,
    software_encoder,
)
from montage_assets.media.errors import MediaError
from montage_assets.media.render import OutputFormat, RenderedSegment, RenderShot

_NEAR_LOSSLESS = 12.0
"""x264's crf for what is encoded once more at once."""
_BYTES_PER_PIXEL = 0.05
"""Of such a segment, for a decision: 0.028 to 0.068 on six clips of camera and animation at 720p."""


def encode(
    offload: Offload, shots: Sequence[RenderShot], fmt: OutputFormat, out: Path, film_s: float
) -> Outcome[RenderedSegment]:
    """The segment at `out`, encoded by the cloud's NVENC with the flags that this machine's would be given; no value
    when it is to be encoded here. `film_s` is the length of the whole film."""
    frames = sum(shot.frames for shot in shots)

    def work() -> Work:
        sent = round(frames * fmt.width * fmt.height * _BYTES_PER_PIXEL)
        return Work(
            "encode",
            float(frames / fmt.fps),
            width=fmt.width,
            height=fmt.height,
            upload_bytes=sent,
            download_bytes=sent // 4,
            latency_first=fmt.quality == "preview",
            film_s=film_s,
        )

    def do(session: Session) -> RenderedSegment:
        with tempfile.TemporaryDirectory(prefix="montage-cloud-") as place:
            pictures = Path(place) / "pictures.ts"
            # Framing, colours and smoothing are done here: only coding is left for the cloud.
            made = render.render_segment(shots, replace(fmt, codec="h264"), pictures, encoders=[near_lossless()])
            return replace(_encoded(session, pictures, fmt, out, frames), stabilised=made.stabilised)

    return offload.attempt(work, do)


def near_lossless() -> ReadyEncoder:
    """x264, quick, for what is encoded once more at once."""
    row = software_encoder("h264")
    quick = dict.fromkeys(QUALITIES, ("-preset", "superfast", "-crf", "{q}"))
    return ReadyEncoder(replace(row, quality=quick), numbers=dict.fromkeys(QUALITIES, _NEAR_LOSSLESS))


def _encoded(session: Session, pictures: Path, fmt: OutputFormat, out: Path, frames: int) -> RenderedSegment:
    nvenc = ReadyEncoder(encoder_named(f"{fmt.codec}_nvenc"), device="0")
    container = container_of(nvenc.encoder)
    flags = encode_flags(nvenc, fmt.quality, fmt.fps, (fmt.width, fmt.height))
    extra = ("-map_metadata", "-1", "-fflags", "+bitexact", *container.flags, "-f", container.format)
    unfinished = out.with_name(f".{out.stem}.cloud{container.suffix}")
    try:
        done = CGPUEncoder(session.client, session.on_sent).encode_remote(
            pictures, unfinished, cast("NvencCodec", nvenc.name), flags=flags, extra=extra
        )
        try:
            written = read_encoded_stream(unfinished, container)
        except MediaError as error:
            raise CloudFailure(CloudFault.WRONG_RESULT, str(error)) from None
        if written.frames != frames or not written.starts_with_keyframe or written.size != (fmt.width, fmt.height):
            raise CloudFailure(CloudFault.WRONG_RESULT, "another number or size of pictures")
        unfinished.replace(out)
    finally:
        unfinished.unlink(missing_ok=True)
    return RenderedSegment(
        path=out,
        frames=written.frames,
        encoder=f"{nvenc.name} ({done.gpu}, cloud)",
        codec_hash=written.parameters,
        size_bytes=done.size_bytes,
        cpu_s=0.0,
    )
