"""ffmpegs that pretend to have hardware encoders: they encode in software, and fail as real ones were seen to.

A stand-in is a program that hands everything to the real ffmpeg, but for commands that name an encoder of its
`behaviours`. Each behaviour is one way a driver works or fails; several, separated by commas, come together.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from montage_assets.assets import rendered_segments
from montage_assets.media import encoder_probe, ffmpeg

BEHAVIOURS = {
    "works": "encodes, with parameters of its own",
    "other": "encodes, with other parameters of its own",
    "broken": "is listed, but has no library",
    "crash": "dies of a signal",
    "hang": "never ends, nor does a child of it",
    "short": "loses the last frame",
    "no header": "leaves out the parameter sets",
    "negative": "encodes other pictures than it is given",
    "no b-frames": "refuses B pictures",
    "open gop": "references pictures across GOPs",
    "few keyframes": "sets one keyframe only",
    "no colours": "does not name its colours",
    "at most 700": "refuses pictures wider than 700",
    "at least 256": "refuses pictures narrower than 256",
    "third fails": "breaks off in the third segment it is given",
    "third crashes": "dies of a signal in the third segment it is given",
    "third hangs": "never ends the third segment it is given",
}

_PROGRAM = """#!{python} -SE
import json, os, re, signal, subprocess, sys, time
REAL, BEHAVIOURS, FOLDER = {real!r}, json.loads({behaviours!r}), {folder!r}
args = sys.argv[1:]
if "-encoders" in args:
    said = subprocess.run([REAL, *args], capture_output=True, text=True).stdout
    print(said + "".join(f" V....D {{name:20}} pretended\\\\n" for name in BEHAVIOURS))
    sys.exit(0)
name = args[args.index("-c:v") + 1] if "-c:v" in args else ""
if name not in BEHAVIOURS:
    os.execv(REAL, [REAL, *args])
does = BEHAVIOURS[name].split(",")
is_test = "pipe:0" in args
with open(os.path.join(FOLDER, "calls"), "a") as calls:
    calls.write(("test " if is_test else "segment ") + name + "\\\\n")

def fail(message):
    sys.stderr.write(f"[{{name}} @ 0x55] {{message}}\\\\n[enc:{{name}} @ 0x56] Error while opening encoder\\\\n")
    sys.exit(187)

def hang():
    child = subprocess.Popen(["sleep", "600"])
    with open(os.path.join(FOLDER, "hanging"), "w") as pids:
        pids.write(f"{{os.getpid()}} {{child.pid}}")
    time.sleep(600)

def width():
    if "-s" in args:
        return int(args[args.index("-s") + 1].split("x")[0])
    return int(re.findall(r"scale=(\\d+):", " ".join(args))[-1])

turn = 0
if not is_test:
    turn = 1 + sum(line.startswith("segment") for line in open(os.path.join(FOLDER, "calls"))) - 1
if "broken" in does: fail("Cannot load libcuda.so.1")
if "crash" in does or ("third crashes" in does and turn == 3): os.kill(os.getpid(), signal.SIGSEGV)
if "hang" in does or ("third hangs" in does and turn == 3): hang()
if "no b-frames" in does and args[args.index("-bf") + 1] != "0": fail("Max B-frames 2 exceed 0")
if "at most 700" in does and width() > 700:
    fail(f"Hardware does not support encoding at size {{width()}}x (constraints: width 128-700).")
if "at least 256" in does and width() < 256:
    fail(f"Hardware does not support encoding at size {{width()}}x (constraints: width 256-4096).")

gop = args[args.index("-g") + 1]
if "few keyframes" in does: gop = "1000"
frames = int(args[args.index("-frames:v") + 1])
if "short" in does: frames -= 1
if "third fails" in does and turn == 3: frames = 2
x264 = "open-gop=1:keyint=" + gop + ":bframes=2:b-adapt=0" if "open gop" in does else "open-gop=0"
refs = "4" if "other" in does else "2"
flags = ["-c:v", "libx264", "-preset", "ultrafast", "-qp", "20", "-profile:v", "main", "-refs", refs, "-threads", "2",
         "-g", gop, "-keyint_min", gop, "-sc_threshold", "0", "-x264-params", x264]
if name.startswith("hevc"):
    params = f"keyint={{gop}}:min-keyint={{gop}}:scenecut=0:open-gop=0:repeat-headers=1:ref=1:pools=2:log-level=none"
    flags = ["-c:v", "libx265", "-preset", "ultrafast", "-x265-params", params]
begin, end = args.index("-c:v"), args.index("-color_primaries")
tags = [] if "no colours" in does else args[end:end + 8]
rest = args[end + 8:]
if "no header" in does: rest = ["-bsf:v", "filter_units=remove_types=7-8", *rest]
args = [*args[:begin], *flags, *tags, *rest]
args[args.index("-frames:v") + 1] = str(frames)
for option in ("-init_hw_device", "-filter_hw_device"):
    if option in args:
        at = args.index(option)
        del args[at:at + 2]
for option in ("-vf", "-filter_complex"):
    if option in args:
        at = args.index(option) + 1
        args[at] = re.sub(r",hwupload[^,\\[]*", "", args[at])
        if "negative" in does: args[at] = args[at].replace("format=nv12", "negate,format=nv12")
        if "no colours" in does:
            args[at] = args[at].replace("format=nv12", "setparams=color_primaries=unknown:color_trc=unknown:"
                                        "colorspace=unknown:range=unknown,format=nv12")
if "third fails" in does and turn == 3:
    subprocess.run([REAL, *args])
    fail("EncodePicture failed!: invalid param (8): ")
os.execv(REAL, [REAL, *args])
"""


class StandIn:
    """The program at `program`; `folder` holds what it wrote down of its calls."""

    def __init__(self, folder: Path, behaviours: Mapping[str, str]) -> None:
        unknown = {one for text in behaviours.values() for one in text.split(",")} - BEHAVIOURS.keys()
        assert not unknown, unknown
        ffmpeg.ffmpeg_program.cache_clear()
        self.folder = folder
        self.program = folder / "ffmpeg"
        text = _PROGRAM.replace("\\\\n", "\\n").format(
            python=sys.executable,
            real=ffmpeg.ffmpeg_program(),
            behaviours=json.dumps(behaviours),
            folder=str(folder),
        )
        self.program.write_text(text)
        self.program.chmod(0o755)

    def calls(self) -> list[str]:
        """`test NAME` and `segment NAME`, in the order of the commands that named one of the encoders."""
        path = self.folder / "calls"
        return path.read_text().splitlines() if path.exists() else []


@contextmanager
def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, behaviours: Mapping[str, str]) -> Iterator[StandIn]:
    """Let the package use a stand-in for as long as the block lasts."""
    monkeypatch.delenv("MONTAGE_FFMPEG", raising=False)
    folder.mkdir(parents=True, exist_ok=True)
    made = StandIn(folder, behaviours)
    with used_instead(made.program, monkeypatch):
        yield made


@contextmanager
def used_instead(program: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the package use another ffmpeg for as long as the block lasts."""
    monkeypatch.setenv("MONTAGE_FFMPEG", str(program))
    forget_ffmpeg()
    try:
        yield
    finally:
        monkeypatch.delenv("MONTAGE_FFMPEG")
        forget_ffmpeg()


def forget_ffmpeg() -> None:
    """As a new process would know it."""
    for remembered in (
        ffmpeg.ffmpeg_program,
        ffmpeg.ffmpeg_version,
        encoder_probe.ffmpeg_identity,
        encoder_probe.listed_encoders,
        rendered_segments._machine_encoders_of,
    ):
        remembered.cache_clear()
