"""The HTTP side: paths, verbs, selectors, watches and upgraded connections of the Kubernetes API.

Belongs here: reading requests and writing answers. Does not belong here: what a request does (`cluster`).
"""

from __future__ import annotations

import itertools
import json
import re
import threading
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from tests.cluster.emulator import forwarding, kinds, protobuf
from tests.cluster.emulator.execution import EXEC_PROTOCOLS, end_command, run_command
from tests.cluster.emulator.kinds import RESOURCES
from tests.cluster.emulator.objects import ApiError, Object, field_query, label_query
from tests.cluster.emulator.websocket import WebSocket, handshake

if TYPE_CHECKING:
    from tests.cluster.emulator.cluster import KubernetesEmulator

_WATCH_S = 300.0


_VERSION = {"major": "1", "minor": "34", "gitVersion": "v1.34.1+k3s1", "platform": "linux/amd64"}
_STRATEGIC = "application/strategic-merge-patch+json"
_MERGES = ("application/merge-patch+json", _STRATEGIC, "application/json")
_ACCESS_REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"


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
        self._path, self._words = split.path, parse_qsl(split.query)
        self._query = dict(self._words)
        length = int(self.headers.get("Content-Length") or 0)
        try:
            content = self.rfile.read(length)
            is_protobuf = self.headers.get_content_type() == protobuf.CONTENT_TYPE
            self._body: Any = protobuf.decoded(content) if is_protobuf else json.loads(content or b"null")
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
        known = kinds.document(self._path)
        if known is not None:
            self._send(known)
            return
        target = self._target()
        if target.name is None:
            self._list(target)
            return
        self._allowed(target, "get")
        if target.part == "log":
            self._log(target, target.name)
        elif target.part == "exec":
            self._exec(target, target.name)
        elif target.part == "portforward":
            self._forward_ports(target, target.name)
        elif target.part == "scale":
            self._send(_scale(self.emulator.get(target.resource, target.place, target.name)))
        else:
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
        first: list[Object] = []
        if self._query.get("sendInitialEvents") == "true":
            items, since = self.emulator.list(target.resource, target.namespace, chosen)
            first = [{"type": "ADDED", "object": item} for item in items]
            first.append({"type": "BOOKMARK", "object": _end_of_list(RESOURCES[target.resource], since)})
        later = self.emulator.watch(target.resource, target.namespace, chosen, since, timeout_s)
        events = itertools.chain(first, later)
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

    def _exec(self, target: _Target, name: str) -> None:
        command = [value for key, value in self._words if key == "command"]
        process = self.emulator.execute(target.place, name, self._query.get("container"), command)
        try:
            run_command(self._upgraded(*EXEC_PROTOCOLS), process)
        finally:
            end_command(process)

    def _forward_ports(self, target: _Target, name: str) -> None:
        self.emulator.running(target.place, name)
        forwarding.serve(self._upgraded(forwarding.PROTOCOL), self.emulator.forwarded_ports)

    def _upgraded(self, *known: str) -> WebSocket:
        """The connection as a WebSocket; it is over when the request is."""
        offered = map(str.strip, self.headers.get("Sec-WebSocket-Protocol", "").split(","))
        subprotocol = next((name for name in offered if name in known), None)
        if subprotocol is None:
            raise ApiError(400, f"the emulator takes WebSockets of {' or '.join(known)} only")
        self._answered = self.close_connection = True
        self.send_response(101)
        for name, value in handshake(self.headers["Sec-WebSocket-Key"], subprotocol).items():
            self.send_header(name, value)
        self.end_headers()
        return WebSocket(self.connection)

    def _review_access(self) -> None:
        wanted = self._body["spec"]["resourceAttributes"]
        resource = "/".join(filter(None, (wanted["resource"], wanted.get("subresource"))))
        allowed = self.emulator.allows(resource, wanted["verb"])
        self._send({**self._body, "status": {"allowed": allowed}}, 201)

    def _post(self) -> None:
        if self._path == _ACCESS_REVIEWS:
            self._review_access()
            return
        target = self._target()
        self._allowed(target, "create")
        if target.part is not None:
            self.emulator.running(target.place, _name(target))  # what is wrong with the pod comes first
            raise ApiError(400, f"the emulator takes WebSockets only for {target.part}")
        dry_run = self._query.get("dryRun") == "All"
        body = {
            "apiVersion": RESOURCES[target.resource].api_version, "kind": RESOURCES[target.resource].kind,
            **(self._body or {}),
        }  # fmt: skip
        self._send(self.emulator.create(target.resource, target.place, body, dry_run), 201)

    def _put(self) -> None:
        target = self._target()
        self._allowed(target, "update")
        if target.part == "scale":
            raise ApiError(405, "the emulator takes patches of a scale only")
        self._send(self.emulator.replace(target.resource, target.place, _name(target), self._body))

    def _patch(self) -> None:
        target = self._target()
        self._allowed(target, "patch")
        kind = self.headers.get_content_type()
        if kind not in _MERGES:
            raise ApiError(415, f"the emulator takes merge patches, not {kind}")
        changed = self.emulator.patch(target.resource, target.place, _name(target), self._body, kind == _STRATEGIC)
        self._send(_scale(changed) if target.part == "scale" else changed)

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
        pattern = r"(/api/v1|/apis/[^/]+/[^/]+)(?:/namespaces/([^/]+))?/([a-z]+)(?:/([^/]+)(?:/([a-z]+))?)?"
        match = re.fullmatch(pattern, self._path) or re.fullmatch(r"(/api/v1)()/(namespaces)/([^/]+)()", self._path)
        kind = RESOURCES.get(match[3]) if match else None
        if match is None or kind is None or kind.root != match[1] or match[5] not in (None, "", *kind.parts):
            raise ApiError(404, f"the server could not find the requested resource {self._path}", "NotFound")
        return _Target(match[3], match[2] or None if kind.namespaced else "", match[4], match[5])

    def _allowed(self, target: _Target, verb: str) -> None:
        self.emulator.authorise(f"{target.resource}/{target.part}" if target.part else target.resource, verb)
        if "dryRun" in self._query and verb != "create":
            raise ApiError(400, f"the emulator cannot try out what {verb} would do")

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


def _end_of_list(resource: kinds.Resource, version: int) -> Object:
    """What a watch that began with all that is there says after that (KEP-3157)."""
    metadata = {"resourceVersion": str(version), "annotations": {"k8s.io/initial-events-end": "true"}}
    return {"kind": resource.kind, "apiVersion": resource.api_version, "metadata": metadata}


def _scale(item: Object) -> Object:
    """The Scale that stands for how many replicas an object has."""
    metadata = {key: item["metadata"][key] for key in ("name", "namespace", "uid", "resourceVersion")}
    return {
        "apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": metadata,
        "spec": {"replicas": item["spec"]["replicas"]},
        "status": {"replicas": item.get("status", {}).get("replicas", 0)},
    }  # fmt: skip
