"""The HTTP side: paths, verbs, selectors and watches of the part of the Kubernetes API that jobs need.

Belongs here: reading requests and writing answers. Does not belong here: what a request does (`cluster`).
"""

from __future__ import annotations

import json
import re
import threading
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from tests.cluster.emulator.objects import ApiError, Object, field_query, label_query

if TYPE_CHECKING:
    from tests.cluster.emulator.cluster import KubernetesEmulator

_WATCH_S = 300.0


@dataclass(frozen=True)
class Resource:
    """A kind of object. `fields` are those a fieldSelector may name."""

    api_version: str
    kind: str
    namespaced: bool = True
    fields: tuple[str, ...] = ("metadata.name", "metadata.namespace")

    @property
    def root(self) -> str:
        return f"/api{'s' if '/' in self.api_version else ''}/{self.api_version}"


_NAMED = ("metadata.name", "metadata.namespace")
RESOURCES: Mapping[str, Resource] = {
    "jobs": Resource("batch/v1", "Job", fields=(*_NAMED, "status.successful")),
    "pods": Resource(
        "v1", "Pod", fields=(*_NAMED, "spec.nodeName", "spec.restartPolicy", "status.phase", "status.podIP")
    ),
    "events": Resource(
        "v1", "Event",
        fields=(*_NAMED, *(f"involvedObject.{name}" for name in ("name", "kind", "uid")), "reason", "type"),
    ),
    "configmaps": Resource("v1", "ConfigMap"),
    "secrets": Resource("v1", "Secret"),
    "nodes": Resource("v1", "Node", namespaced=False, fields=("metadata.name", "spec.unschedulable")),
    "namespaces": Resource("v1", "Namespace", namespaced=False, fields=("metadata.name", "status.phase")),
}  # fmt: skip

_VERSION = {"major": "1", "minor": "34", "gitVersion": "v1.34.1+k3s1", "platform": "linux/amd64"}
_MERGES = ("application/merge-patch+json", "application/strategic-merge-patch+json", "application/json")


@dataclass(frozen=True)
class _Target:
    resource: str
    namespace: str | None
    name: str | None
    part: str | None

    @property
    def place(self) -> str:
        return self.namespace or ""


class Server:
    """The HTTP server, on a free port of 127.0.0.1."""

    def __init__(self, emulator: KubernetesEmulator) -> None:
        handler = type("Handler", (_Handler,), {"emulator": emulator})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(
            target=self._http.serve_forever, args=(0.05,), name="kubernetes-api", daemon=True
        )

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        if self._thread.is_alive():
            self._http.shutdown()
            self._thread.join()
        self._http.server_close()


class _Handler(BaseHTTPRequestHandler):
    emulator: KubernetesEmulator
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        """Say nothing: tests read the records."""

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def do_PUT(self) -> None:
        self._answer(self._put)

    def do_PATCH(self) -> None:
        self._answer(self._patch)

    def do_DELETE(self) -> None:
        self._answer(self._delete)

    def _answer(self, act: Callable[[], None]) -> None:
        self._answered = False
        split = urlsplit(self.path)
        self._path, self._query = split.path, dict(parse_qsl(split.query))
        length = int(self.headers.get("Content-Length") or 0)
        try:
            self._body: Any = json.loads(self.rfile.read(length) or b"null")
            act()
        except ApiError as error:
            self._send(error.status(), error.code)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        except Exception as error:
            # A traceback in a server's thread would be seen by nobody.
            self.emulator.note_fault(traceback.format_exc())
            if not self._answered:
                self._send(ApiError(500, f"{type(error).__name__}: {error}").status(), 500)

    def _get(self) -> None:
        if self._path == "/version":
            self._send(_VERSION)
            return
        if self._path in ("/healthz", "/livez", "/readyz"):
            self._send_text("ok")
            return
        if self._path == "/api":
            self._send({"kind": "APIVersions", "versions": ["v1"]})
            return
        target = self._target()
        if target.name is None:
            self._list(target)
        elif target.part == "log":
            self._allowed(target, "get")
            self._log(target, target.name)
        else:
            self._allowed(target, "get")
            self._send(self.emulator.get(target.resource, target.place, target.name))

    def _list(self, target: _Target) -> None:
        chosen = self._chosen(target.resource)
        if self._query.get("watch", "").lower() in ("1", "true"):
            self._allowed(target, "watch")
            self._watch(target, chosen)
            return
        self._allowed(target, "list")
        items, version = self.emulator.list(target.resource, target.namespace, chosen)
        kind = RESOURCES[target.resource]
        self._send(
            {
                "kind": f"{kind.kind}List",
                "apiVersion": kind.api_version,
                "metadata": {"resourceVersion": str(version)},
                "items": items,
            }
        )

    def _watch(self, target: _Target, chosen: Callable[[Object], bool]) -> None:
        timeout_s = float(self._query.get("timeoutSeconds") or _WATCH_S)
        since = int(self._query.get("resourceVersion") or 0)
        events = self.emulator.watch(target.resource, target.namespace, chosen, since, timeout_s)
        self._stream("application/json", (json.dumps(event).encode() + b"\n" for event in events))

    def _log(self, target: _Target, name: str) -> None:
        file = self.emulator.log_file(target.place, name)
        if self._query.get("follow", "").lower() in ("1", "true"):
            with file.open("rb") as log:
                self._stream("text/plain", (log.read() for _ in self.emulator.follow_log(target.place, name)))
            return
        lines = file.read_text(errors="replace").splitlines(keepends=True)
        if "tailLines" in self._query:
            count = int(self._query["tailLines"])
            lines = lines[-count:] if count else []
        self._send_text("".join(lines))

    def _post(self) -> None:
        target = self._target()
        self._allowed(target, "create")
        dry_run = self._query.get("dryRun") == "All"
        body = {
            "apiVersion": RESOURCES[target.resource].api_version, "kind": RESOURCES[target.resource].kind,
            **(self._body or {}),
        }  # fmt: skip
        self._send(self.emulator.create(target.resource, target.place, body, dry_run), 201)

    def _put(self) -> None:
        target = self._target()
        self._allowed(target, "update")
        self._send(self.emulator.replace(target.resource, target.place, _name(target), self._body))

    def _patch(self) -> None:
        target = self._target()
        self._allowed(target, "patch")
        if self.headers.get_content_type() not in _MERGES:
            raise ApiError(415, f"the emulator takes merge patches, not {self.headers.get_content_type()}")
        self._send(self.emulator.patch(target.resource, target.place, _name(target), self._body))

    def _delete(self) -> None:
        target = self._target()
        self._allowed(target, "delete")
        options = {**(self._body or {}), **self._query}
        grace = options.get("gracePeriodSeconds")
        deleted = self.emulator.delete(
            target.resource,
            target.place,
            _name(target),
            options.get("propagationPolicy"),
            None if grace is None else float(grace),
        )
        if target.resource == "pods":
            self._send(deleted)
            return
        details = {"name": target.name, "kind": target.resource, "uid": deleted["metadata"]["uid"]}
        self._send({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})

    def _target(self) -> _Target:
        pattern = r"(/api/v1|/apis/batch/v1)(?:/namespaces/([^/]+))?/([a-z]+)(?:/([^/]+)(?:/(status|log))?)?"
        match = re.fullmatch(pattern, self._path) or re.fullmatch(r"(/api/v1)()/(namespaces)/([^/]+)()", self._path)
        kind = RESOURCES.get(match[3]) if match else None
        if match is None or kind is None or kind.root != match[1]:
            raise ApiError(404, f"the server could not find the requested resource {self._path}", "NotFound")
        return _Target(match[3], match[2] or None if kind.namespaced else "", match[4], match[5])

    def _allowed(self, target: _Target, verb: str) -> None:
        self.emulator.authorise(f"{target.resource}/{target.part}" if target.part else target.resource, verb)

    def _chosen(self, resource: str) -> Callable[[Object], bool]:
        by_label = label_query(self._query.get("labelSelector", ""))
        by_field = field_query(self._query.get("fieldSelector", ""), RESOURCES[resource].fields)
        return lambda item: by_label(item) and by_field(item)

    def _send(self, body: object, code: int = 200) -> None:
        self._write(json.dumps(body).encode(), "application/json", code)

    def _send_text(self, text: str) -> None:
        self._write(text.encode(), "text/plain", 200)

    def _write(self, content: bytes, kind: str, code: int) -> None:
        self._answered = True
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _stream(self, kind: str, pieces: Iterable[bytes]) -> None:
        self._answered = True
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for piece in pieces:
            if piece:
                self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        self.wfile.write(b"0\r\n\r\n")


def _name(target: _Target) -> str:
    if target.name is None:
        raise ApiError(405, f"the emulator acts on single {target.resource} only")
    return target.name
