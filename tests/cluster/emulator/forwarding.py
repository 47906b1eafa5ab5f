"""`kubectl port-forward`: TCP connections as streams of SPDY/3.1, which kubectl sends through a WebSocket.

Source: SPDY Protocol, draft 3.1 (frames: section 2.2 to 2.6), and Kubernetes' KEP-4006. For each connection the client
opens a stream for errors and one for data, both with the port's number among their headers. Kubernetes'
implementation of SPDY has no flow control.
"""

from __future__ import annotations

import socket
import struct
import threading
import zlib
from collections.abc import Mapping

from tests.cluster.emulator.websocket import WebSocket

PROTOCOL = "SPDY/3.1+portforward.k8s.io"

_SYN_STREAM, _SYN_REPLY, _RST_STREAM, _PING = 1, 2, 3, 6
_FIN = 1
_PIECE = 32768


def _dictionary() -> bytes:
    """The text that the compression of headers begins with (section 2.6.10.1)."""
    words = (
        "options head post put delete trace accept accept-charset accept-encoding accept-language accept-ranges age "
        "allow authorization cache-control connection content-base content-encoding content-language content-length "
        "content-location content-md5 content-range content-type date etag expect expires from host if-match "
        "if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards pragma "
        "proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade "
        "user-agent vary via warning www-authenticate method get status 200_OK version HTTP/1.1 url public set-cookie "
        "keep-alive origin"
    )
    rest = (
        "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505"
        "203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized"
        "403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable"
        "Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT"
        "chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,"
        "text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0."
    )
    return b"".join(_counted(word.replace("_", " ").encode()) for word in words.split()) + rest.encode()


def _counted(text: bytes) -> bytes:
    return struct.pack(">I", len(text)) + text


_DICTIONARY = _dictionary()


def serve(client: WebSocket, ports: Mapping[int, int]) -> None:
    """Forward until the client goes. `ports`: of the pod, to those of 127.0.0.1 that stand for them."""
    session = _Session(client, ports)
    buffer = b""
    for message in client.messages():
        buffer += message
        while len(buffer) >= 8 and len(buffer) >= 8 + int.from_bytes(buffer[5:8], "big"):
            size = 8 + int.from_bytes(buffer[5:8], "big")
            session.take(buffer[:size])
            buffer = buffer[size:]
    session.close()


class _Session:
    """The streams of one client."""

    def __init__(self, client: WebSocket, ports: Mapping[int, int]) -> None:
        self._client, self._ports = client, ports
        self._inflate = zlib.decompressobj(zdict=_DICTIONARY)
        self._deflate = zlib.compressobj(zdict=_DICTIONARY)
        self._connections: dict[int, socket.socket] = {}
        self._error_streams: dict[str, int] = {}

    def take(self, frame: bytes) -> None:
        """Act on a frame: 4 bytes of stream or version and type, flags, 3 bytes of length, content."""
        head, flags, content = int.from_bytes(frame[:4], "big"), frame[4], frame[8:]
        if not head >> 31:
            self._take_data(head, content, bool(flags & _FIN))
            return
        kind = head & 0xFFFF
        if kind == _PING:
            self._client.send(frame)
        stream = int.from_bytes(content[:4], "big") & 0x7FFFFFFF
        if kind == _SYN_STREAM:
            self._open(stream, self._headers(content[10:]))
        elif kind == _RST_STREAM and stream in self._connections:
            _hang_up(self._connections[stream])

    def close(self) -> None:
        """End all connections."""
        for connection in list(self._connections.values()):
            _hang_up(connection)

    def _headers(self, block: bytes) -> dict[str, str]:
        text = self._inflate.decompress(block)
        fields: list[str] = []
        place = 4
        while place < len(text):
            size = int.from_bytes(text[place : place + 4], "big")
            fields.append(text[place + 4 : place + 4 + size].decode())
            place += 4 + size
        return dict(zip(fields[::2], fields[1::2], strict=True))

    def _open(self, stream: int, headers: Mapping[str, str]) -> None:
        no_headers = self._deflate.compress(struct.pack(">I", 0)) + self._deflate.flush(zlib.Z_SYNC_FLUSH)
        reply = struct.pack(">I", stream) + no_headers
        self._client.send(struct.pack(">HHI", 0x8003, _SYN_REPLY, len(reply)) + reply)
        request, port = headers["requestid"], int(headers["port"])
        if headers["streamtype"] == "error":
            self._error_streams[request] = stream
            return
        errors = self._error_streams.pop(request)
        try:
            connection = socket.create_connection(("127.0.0.1", self._ports[port]))
        except (KeyError, OSError) as error:
            self._send(errors, f"nothing listens on port {port} in the pod: {error}".encode(), is_last=True)
            self._send(stream, b"", is_last=True)
            return
        self._connections[stream] = connection
        threading.Thread(
            target=self._bring_back, args=(connection, stream, errors), name="port-forward", daemon=True
        ).start()

    def _bring_back(self, connection: socket.socket, stream: int, errors: int) -> None:
        try:
            while piece := connection.recv(_PIECE):
                self._send(stream, piece)
        except OSError as error:  # closed by the client, or broken
            self._send(errors, str(error).encode())
        self._connections.pop(stream).close()
        self._send(stream, b"", is_last=True)
        self._send(errors, b"", is_last=True)

    def _take_data(self, stream: int, content: bytes, is_last: bool) -> None:
        connection = self._connections.get(stream)
        if connection is None:
            return
        try:
            connection.sendall(content)
            if is_last:
                connection.shutdown(socket.SHUT_WR)
        except OSError:  # the other end has gone, which `_bring_back` tells the client
            return

    def _send(self, stream: int, content: bytes, is_last: bool = False) -> None:
        self._client.send(struct.pack(">II", stream, (_FIN if is_last else 0) << 24 | len(content)) + content)


def _hang_up(connection: socket.socket) -> None:
    """End it for whoever waits for it as well."""
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:  # the other end was first
        return
