"""Where the capability matrix may come from."""

from __future__ import annotations

import difflib
from enum import Enum

from montage_assets.cluster.errors import ClusterError


class ClusterMode(str, Enum):
    """MONTAGE_CLUSTER_MODE: this machine, the nodes of Kubernetes, a cluster.yaml, or the first of them there is."""

    LOCAL = "local"
    K8S = "k8s"
    CONFIG = "config"
    AUTO = "auto"

    @classmethod
    def parse(cls, text: str) -> ClusterMode:
        """The mode of that name, in any case. Raises ClusterError with one line that names the modes."""
        names = [mode.value for mode in cls]
        wanted = text.strip().lower()
        if wanted in names:
            return cls(wanted)
        near = difflib.get_close_matches(wanted, names, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ClusterError(f"MONTAGE_CLUSTER_MODE is {text!r}; {hint}the modes are {', '.join(names)}")
