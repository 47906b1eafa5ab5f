"""Node objects as the Kubernetes API gives them, and a small server that gives them out."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


def api_node(
    name: str,
    *,
    cpu: str = "8",
    memory: str = "32Gi",
    arch: str = "amd64",
    kernel: str = "6.1.0-18-amd64",
    labels: dict[str, str] | None = None,
    resources: dict[str, str] | None = None,
    ready: str = "True",
    unschedulable: bool | None = None,
    taints: list[dict[str, str]] | None = None,
) -> dict[str, Any]:
    """One node, as `kubectl get node -o json` prints it; fields that Kubernetes leaves out are left out."""
    spec: dict[str, Any] = {"podCIDR": "10.42.0.0/24"}
    if unschedulable:
        spec["unschedulable"] = True
    if taints:
        spec["taints"] = taints
    return {
        "metadata": {
            "name": name,
            "labels": {"kubernetes.io/arch": arch, "kubernetes.io/os": "linux", **(labels or {})},
        },
        "spec": spec,
        "status": {
            "capacity": {"cpu": "64", "memory": "999Gi"},
            "allocatable": {"cpu": cpu, "memory": memory, "pods": "110", **(resources or {})},
            "conditions": [
                {"type": "MemoryPressure", "status": "False"},
                {"type": "Ready", "status": ready},
            ],
            "addresses": [
                {"type": "InternalIP", "address": "192.168.1.20"},
                {"type": "Hostname", "address": name},
            ],
            "nodeInfo": {"architecture": arch, "kernelVersion": kernel, "osImage": "Debian GNU/Linux 12 (bookworm)"},
        },
    }


def as_the_python_client_spells_it(value: Any) -> Any:
    """The same object with the field names of `V1Node.to_dict()`; labels and resources keep theirs."""
    if isinstance(value, list):
        return [as_the_python_client_spells_it(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    return {
        key if "/" in key else re.sub(r"(?<=[a-z])([A-Z])", r"_\1", key).lower(): as_the_python_client_spells_it(entry)
        for key, entry in value.items()
    }


@contextmanager
def api_server(
    body: object = None, status: int = 200, silent: bool = False, asked: list[str] | None = None
) -> Iterator[str]:
    """A server on this machine that answers /api/v1/nodes with `body`, or never answers at all. Yields its URL.

    The paths asked for are added to `asked`.
    """
    released = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if asked is not None:
                asked.append(self.path)
            if silent:
                released.wait(30)
                return
            found = self.path.split("?")[0] == "/api/v1/nodes"
            self.send_response(status if found else 404)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(body if isinstance(body, bytes) else json.dumps(body).encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        released.set()
        server.shutdown()
        server.server_close()
        thread.join()


def kubeconfig(folder: Path, url: str) -> Path:
    """A kubeconfig that names the server."""
    path = folder / "kubeconfig"
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": url}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    path.write_text(json.dumps(document))
    return path
