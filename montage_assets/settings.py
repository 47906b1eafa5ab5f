"""The environment: every variable the program reads, its default, and what is wrong with a bad value."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from montage_assets.data_root import DEFAULT_CACHE_BYTES, DataRoot
from montage_assets.media.errors import MediaError


@dataclass(frozen=True)
class Settings:
    """Settings of this process.

    `data`: MONTAGE_DATA, a folder or an s3:// URL. `workers`: MONTAGE_WORKERS, how many steps may work at a
    time, None to decide by machine and footage. `cache`, `cache_bytes`: MONTAGE_CACHE and MONTAGE_CACHE_GB,
    where and how much of a remote data root is kept locally.
    """

    data: str = "data"
    workers: int | None = None
    cache: Path | None = None
    cache_bytes: int = DEFAULT_CACHE_BYTES

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Settings:
        """Read the variables. Raises MediaError with one line for a value that cannot be used."""
        cache = environment.get("MONTAGE_CACHE")
        return cls(
            data=environment.get("MONTAGE_DATA") or "data",
            workers=_positive(environment, "MONTAGE_WORKERS"),
            cache=Path(cache).expanduser() if cache else None,
            cache_bytes=(_positive(environment, "MONTAGE_CACHE_GB") or (DEFAULT_CACHE_BYTES >> 30)) << 30,
        )

    def data_root(self) -> DataRoot:
        """The data root these settings name."""
        return DataRoot(self.data, self.cache, self.cache_bytes)


def _positive(environment: Mapping[str, str], name: str) -> int | None:
    text = environment.get(name, "").strip()
    if not text:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise MediaError(f"{name} is {text!r}; set it to a whole number from 1 on, or unset it")
    return int(text)
