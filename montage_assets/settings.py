"""The environment: every variable the program reads, its default, and what is wrong with a bad value."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from montage_assets.cluster.mode import ClusterMode
from montage_assets.data_root import DEFAULT_CACHE_BYTES, DataRoot
from montage_assets.media.errors import MediaError


@dataclass(frozen=True)
class Settings:
    """Settings of this process.

    `data`: MONTAGE_DATA, a folder or an s3:// URL. `workers`: MONTAGE_WORKERS, how many steps may work at a
    time, None to decide by machine and footage. `cache`, `cache_bytes`: MONTAGE_CACHE and MONTAGE_CACHE_GB,
    where and how much of a remote data root is kept locally. `cluster_mode`, `cluster_config`:
    MONTAGE_CLUSTER_MODE and MONTAGE_CLUSTER_CONFIG, where the nodes are known from. `force_cpu`:
    MONTAGE_FORCE_CPU, leave GPUs unused.
    """

    data: str = "data"
    workers: int | None = None
    cache: Path | None = None
    cache_bytes: int = DEFAULT_CACHE_BYTES
    cluster_mode: ClusterMode = ClusterMode.AUTO
    cluster_config: Path | None = None
    force_cpu: bool = False

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Settings:
        """Read the variables. Raises MediaError or ClusterError with one line for a value that cannot be used."""
        cache = environment.get("MONTAGE_CACHE")
        cluster_config = environment.get("MONTAGE_CLUSTER_CONFIG")
        return cls(
            data=environment.get("MONTAGE_DATA") or "data",
            workers=_positive(environment, "MONTAGE_WORKERS"),
            cache=Path(cache).expanduser() if cache else None,
            cache_bytes=(_positive(environment, "MONTAGE_CACHE_GB") or (DEFAULT_CACHE_BYTES >> 30)) << 30,
            cluster_mode=ClusterMode.parse(environment.get("MONTAGE_CLUSTER_MODE") or "auto"),
            cluster_config=Path(cluster_config).expanduser() if cluster_config else None,
            force_cpu=_switch(environment, "MONTAGE_FORCE_CPU"),
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


def _switch(environment: Mapping[str, str], name: str) -> bool:
    text = environment.get(name, "").strip().lower()
    if text not in _ON | _OFF:
        raise MediaError(f"{name} is {text!r}; set it to 1 or 0, or unset it")
    return text in _ON


_ON = {"1", "true", "yes", "on"}
_OFF = {"", "0", "false", "no", "off"}
