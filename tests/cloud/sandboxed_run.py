"""Makes a montage and prints, as JSON, whether it was made, what was connected to, and which programs were run.

python -m tests.cloud.sandboxed_run <montage>
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(montage: str) -> None:
    connections: list[str] = []
    programs: list[str] = []

    def listen(event: str, args: tuple[object, ...]) -> None:
        if event == "socket.getaddrinfo" or (event == "socket.connect" and isinstance(args[1], tuple)):
            connections.append(str(args[:2]))
        elif event in ("subprocess.Popen", "os.exec", "os.posix_spawn"):
            programs.append(Path(str(args[0])).name)

    sys.addaudithook(listen)
    import dagster as dg

    from tests.assets.small_montage import run_job

    with dg.DagsterInstance.ephemeral() as instance:
        result = run_job(montage, instance)
    print(json.dumps({"made": result.success, "connections": connections, "programs": sorted(set(programs))}))


if __name__ == "__main__":
    main(sys.argv[1])
