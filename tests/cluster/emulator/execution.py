"""`kubectl exec`: a process's output and its end over a WebSocket, by the protocols of `channel.k8s.io`.

Each message begins with the number of its channel. The command gets no input.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from typing import IO

from tests.cluster.emulator.objects import Object
from tests.cluster.emulator.websocket import WebSocket

EXEC_PROTOCOLS = ("v5.channel.k8s.io", "v4.channel.k8s.io")
"""They differ in how input ends."""
_OUTPUT, _ERRORS, _STATUS = b"\1", b"\2", b"\3"
_PIECE = 32768


def run_command(client: WebSocket, process: subprocess.Popen[bytes]) -> None:
    """Bring the process's output and end to the client; returns when the client has gone."""
    threading.Thread(target=_report, args=(client, process), name="exec", daemon=True).start()
    for _ in client.messages():
        pass  # input is not taken; listening answers pings and tells when the client goes


def end_command(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to a command that still runs, and to what it started."""
    if process.poll() is not None:
        return
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:  # it has ended just now
        return
    process.wait()


def _report(client: WebSocket, process: subprocess.Popen[bytes]) -> None:
    pumps = []
    for channel, stream in ((_OUTPUT, process.stdout), (_ERRORS, process.stderr)):
        assert stream is not None
        pumps.append(threading.Thread(target=_pump, args=(client, channel, stream), daemon=True))
    for pump in pumps:
        pump.start()
    for pump in pumps:
        pump.join()
    client.send(_STATUS + json.dumps(_status(process.wait())).encode())
    client.close()


def _pump(client: WebSocket, channel: bytes, stream: IO[bytes]) -> None:
    with stream:
        while piece := os.read(stream.fileno(), _PIECE):
            client.send(channel + piece)


def _status(code: int) -> Object:
    if code == 0:
        return {"metadata": {}, "status": "Success"}
    shown = str(code if code > 0 else 128 - code)
    return {
        "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
        "message": f"command terminated with non-zero exit code: exit status {shown}",
        "details": {"causes": [{"reason": "ExitCode", "message": shown}]},
    }  # fmt: skip
