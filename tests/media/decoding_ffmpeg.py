"""ffmpegs that pretend to decode on a GPU: they decode in software, and fail as drivers do.

A stand-in hands everything to the real ffmpeg, but for commands with `-hwaccel`. Their frames arrive as a GPU's do, in
NV12 or P010. Several behaviours, separated by commas, come together.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from montage_assets.media import ffmpeg
from tests.media.stand_in_ffmpeg import used_instead

BEHAVIOURS = {
    "exact": "gives the CPU's frames",
    "for nothing": "tells that it took no time",
    "dear": "tells that it took ten times as long",
    "no library": "has no driver",
    "crash": "dies of a signal",
    "hang": "never ends",
    "other pictures": "decodes later frames otherwise",
    "short": "loses a frame",
    "fails later": "stands the comparison, and ends its next work with an error",
    "crashes later": "stands the comparison, and dies in its next work",
    "hangs later": "stands the comparison, and never begins its next work",
    "crashes halfway": "stands the comparison, and dies in the middle of a picture of its next work",
    "hangs halfway": "stands the comparison, and stops in the middle of a picture of its next work",
}

HALFWAY_BYTES = 1_000_003
"""Some frames and a part of one, whatever their size."""

_PROGRAM = """#!{python} -SE
import os, re, signal, subprocess, sys, time
REAL, DOES, FOLDER = {real!r}, {does!r}.split(","), {folder!r}
args = sys.argv[1:]
if "-hwaccel" not in args:
    os.execv(REAL, [REAL, *args])
is_test = "framehash" in args
with open(os.path.join(FOLDER, "calls"), "a") as calls:
    calls.write("test\\n" if is_test else "work\\n")

def fail(message):
    sys.stderr.write(f"[error] [CUDA @ 0x55] {{message}}\\n[error] Device creation failed: -1.\\n")
    sys.exit(187)

if "no library" in DOES: fail("Cannot load libcuda.so.1")
if "crash" in DOES or ("crashes later" in DOES and not is_test): os.kill(os.getpid(), signal.SIGSEGV)
if "hang" in DOES or ("hangs later" in DOES and not is_test): time.sleep(600)
first = "format=nv12|p010le,"
if "yuvj420p" in " ".join(args): first = "scale=in_range=pc:out_range=pc,format=nv12,setparams=range=pc,"
if "other pictures" in DOES: first += "negate=enable='gte(n,5)',"
if "short" in DOES: first += "select='not(eq(n,3))',"
for option in ("-hwaccel", "-hwaccel_device"):
    if option in args:
        at = args.index(option)
        del args[at:at + 2]
args = [first + given if before == "-vf" else given for before, given in zip(["", *args], args)]
if ("crashes halfway" in DOES or "hangs halfway" in DOES) and not is_test:
    begun = subprocess.Popen([REAL, *args], stdout=subprocess.PIPE)
    sys.stdout.buffer.write(begun.stdout.read({halfway}))
    sys.stdout.buffer.flush()
    begun.kill()
    if "hangs halfway" in DOES: time.sleep(600)
    os.kill(os.getpid(), signal.SIGSEGV)
run = subprocess.run([REAL, *args], stderr=subprocess.PIPE, text=True)
factor = 0.0 if "for nothing" in DOES else 10.0 if "dear" in DOES else 1.0
sys.stderr.write(re.sub(r"time=([\\d.]+)s", lambda found: f"time={{factor * float(found[1]):.3f}}s", run.stderr))
if "fails later" in DOES and not is_test: fail("cuvid decode callback error")
sys.exit(run.returncode)
"""


class DecodingStandIn:
    """The program at `program`; `folder` holds what it wrote down of its calls."""

    def __init__(self, folder: Path, does: str) -> None:
        assert set(does.split(",")) <= BEHAVIOURS.keys(), does
        ffmpeg.ffmpeg_program.cache_clear()
        self.folder = folder
        self.program = folder / "ffmpeg"
        real = ffmpeg.ffmpeg_program()
        text = _PROGRAM.format(python=sys.executable, real=real, does=does, folder=str(folder), halfway=HALFWAY_BYTES)
        self.program.write_text(text)
        self.program.chmod(0o755)

    def calls(self) -> list[str]:
        """`test` and `work`, in the order of the commands that were to decode on the GPU."""
        path = self.folder / "calls"
        return path.read_text().split() if path.exists() else []


@contextmanager
def decoding_stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, does: str) -> Iterator[DecodingStandIn]:
    """Let the package use a stand-in for as long as the block lasts."""
    monkeypatch.delenv("MONTAGE_FFMPEG", raising=False)
    folder.mkdir(parents=True, exist_ok=True)
    made = DecodingStandIn(folder, does)
    with used_instead(made.program, monkeypatch):
        yield made
