"""The server's end of a WebSocket on a connection that began as an HTTP request."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.utils import accept_key

_PIECE = 65536


def handshake(key: str, subprotocol: str) -> dict[str, str]:
    """The headers that accept a WebSocket. `key`: the client's Sec-WebSocket-Key.

    Not the library's own, since that takes no slash in a subprotocol's name and Kubernetes has one there.
    """
    return {
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Accept": accept_key(key),
        "Sec-WebSocket-Protocol": subprotocol,
    }


class WebSocket:
    """A connection after the handshake."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._protocol = ServerProtocol(state=State.OPEN, max_size=None)
        self._lock = threading.Lock()

    def send(self, message: bytes) -> None:
        """Send a binary message; from any thread. When the client has gone, nothing happens."""
        with self._lock:
            if self._protocol.state is State.OPEN:
                self._protocol.send_binary(message)
                self._flush()

    def close(self) -> None:
        """Begin to close; `messages` ends when the client has agreed."""
        with self._lock:
            if self._protocol.state is State.OPEN:
                self._protocol.send_close(1000)
                self._flush()

    def messages(self) -> Iterator[bytes]:
        """The client's messages until it has gone. Whoever iterates also has pings answered."""
        parts: list[bytes] = []
        while piece := self._receive():
            with self._lock:
                self._protocol.receive_data(piece)
                frames = self._protocol.events_received()
                self._flush()
            for frame in frames:
                if isinstance(frame, Frame) and frame.opcode in (Opcode.BINARY, Opcode.TEXT, Opcode.CONT):
                    parts.append(bytes(frame.data))
                    if frame.fin:
                        yield b"".join(parts)
                        parts.clear()
            if self._protocol.close_expected():
                return

    def _receive(self) -> bytes:
        try:
            return self._connection.recv(_PIECE)
        except OSError:  # the client has gone without a word
            return b""

    def _flush(self) -> None:
        for data in self._protocol.data_to_send():
            try:
                self._connection.sendall(data)
            except OSError:
                return
