"""What every question is given: the media, and sources made of them with the pinned ffmpeg, kept between runs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from montage_assets.media.clip import Clip
from montage_assets.media.errors import MediaError
from montage_assets.media.ffmpeg import input_args, run_ffmpeg
from montage_assets.media.ingest import AUDIO_SUFFIXES, ingest_clip, media_kind

X264_MEDIUM = ("-c:v", "libx264", "-preset", "medium", "-crf", "20")
X264_EASY = ("-c:v", "libx264", "-preset", "ultrafast", "-tune", "fastdecode", "-crf", "35")


@dataclass(frozen=True)
class Bench:
    """`media` is a folder of clips and songs, looked through with its subfolders; `work` keeps what is made."""

    media: Path
    work: Path

    def clips(self) -> list[Path]:
        """All video files, by name."""
        return [path for path in self._files() if media_kind(path.name) == "video"]

    def songs(self) -> list[Path]:
        """All songs, by name."""
        return [path for path in self._files() if path.suffix.lower() in AUDIO_SUFFIXES]

    def film(self) -> Path:
        """The longest 8-bit H.264 clip. Raises MediaError when there is none."""
        found = [(probed(path).duration_s, path) for path in self.clips() if _is_plain_h264(path)]
        if not found:
            raise MediaError(f"{self.media} holds no H.264 clip; name a folder with one by --media")
        return max(found)[1]

    def scaled(self, width: int, height: int, seconds: float, settings: Sequence[str]) -> Path:
        """The first seconds of `film` at another size, without sound."""
        source = self.film()
        limits = ["-t", f"{seconds:g}", "-vf", f"scale={width}:{height}:flags=bicubic,setsar=1"]
        return self._made(
            f"{source.stem}-{width}x{height}",
            [*input_args(source, "-an", "-sn", "-dn"), "-map", "0:V:0", *limits, *settings],
        )

    def looped(self, source: Path, times: int) -> Path:
        """A source several times over, without a re-encode."""
        looping = ("-an", "-sn", "-dn", "-stream_loop", str(times - 1))
        return self._made(f"{source.stem}-{times}x", [*input_args(source, *looping), "-map", "0:V:0", "-c", "copy"])

    def cut(self, source: Path, name: str, start_s: float, seconds: float, settings: Sequence[str]) -> Path:
        """A piece of a source, re-encoded."""
        return self._made(
            name, [*input_args(source, "-ss", f"{start_s:g}"), "-t", f"{seconds:g}", "-map", "0:V:0", *settings]
        )

    def encoded(self, name: str, suffix: str, source: Path, settings: Sequence[str]) -> Path:
        """A source in another codec."""
        return self._made(name, [*input_args(source, "-an", "-sn", "-dn"), "-map", "0:V:0", *settings], suffix)

    def _made(self, name: str, arguments: Sequence[str], suffix: str = ".mp4") -> Path:
        key = hashlib.blake2b(repr(arguments).encode(), digest_size=5).hexdigest()
        out = self.work / f"{name}-{key}{suffix}"
        if not out.is_file():
            partial = out.with_name(f".{out.name}")
            partial = partial.with_suffix(f".partial{suffix}")
            run_ffmpeg([*arguments, str(partial)], what=f"making {out.name}")
            partial.replace(out)
        return out

    def _files(self) -> list[Path]:
        return sorted(path for path in self.media.rglob("*") if path.is_file())


def probed(path: Path) -> Clip:
    """What ingest knows of a clip."""
    return ingest_clip(path, path.name, path.name).clip


def _is_plain_h264(path: Path) -> bool:
    try:
        clip = probed(path)
    except MediaError:
        return False
    return clip.codec == "h264" and clip.bit_depth == 8 and clip.rotation == 0
