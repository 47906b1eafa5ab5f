"""Runs on the cloud machine: what its GPU is, whether its encoder works, and an encode.

    python3 encode.py name
    python3 encode.py probe <ffmpeg arguments of the encoder>
    python3 encode.py encode <ffmpeg arguments>

Needs an ffmpeg there, and nvidia-smi.
"""

import re
import shutil
import subprocess
import sys

PROBE = "probe.mp4"
PROBE_FRAMES = 10
PROBE_LIMIT_S = 60
ASK_LIMIT_S = 20


def main(task: str, *args: str) -> None:
    if task == "name":
        print(f"GPU: {_gpu_name()}")
    elif task == "probe":
        _probe(args)
    else:
        _ffmpeg(args, None)


def _gpu_name() -> str:
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    asked = [program, "--query-gpu=name", "--format=csv,noheader"]
    try:
        said = subprocess.run(asked, check=False, capture_output=True, text=True, timeout=ASK_LIMIT_S)
    except subprocess.TimeoutExpired:
        return ""
    return said.stdout.splitlines()[0].strip() if said.returncode == 0 and said.stdout.strip() else ""


def _probe(flags: tuple[str, ...]) -> None:
    """Encodes a short film, larger than any encoder's least size, with the very flags, and counts what is in it."""
    made_of = f"testsrc2=size=640x368:rate=25,trim=end_frame={PROBE_FRAMES},format=yuv420p"
    _ffmpeg(("-f", "lavfi", "-i", made_of, *flags, PROBE), PROBE_LIMIT_S)
    said = _ffmpeg(("-i", PROBE, "-f", "null", "-"), PROBE_LIMIT_S, level="info")
    counts = re.findall(r"frame=\s*(\d+)", said)
    if not counts or int(counts[-1]) != PROBE_FRAMES:
        sys.exit(f"MONTAGE-FAULT NO_ENCODER {counts[-1] if counts else 0} of {PROBE_FRAMES} frames of a test decode")


def _ffmpeg(args: tuple[str, ...], limit_s: float | None, level: str = "error") -> str:
    program = shutil.which("ffmpeg")
    if program is None:
        sys.exit("MONTAGE-FAULT TOOL_MISSING ffmpeg")
    command = [program, "-hide_banner", "-nostdin", "-y", "-loglevel", level, *args]
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=limit_s, errors="replace")
    except subprocess.TimeoutExpired:
        sys.exit(f"MONTAGE-FAULT WORK_FAILED ffmpeg took longer than {limit_s} s")
    if done.returncode != 0:
        sys.exit(f"MONTAGE-FAULT WORK_FAILED {_cause(done.stderr) or f'ffmpeg ended with {done.returncode}'}")
    return done.stderr


def _cause(log: str) -> str:
    """The encoder's own complaint, else ffmpeg's last line."""
    lines = [re.sub(r"^\[[^]]*\] ", "", line).strip() for line in log.splitlines() if line.strip()]
    told = [line for line in lines if re.search(r"nvenc|cuda|No capable|driver", line, re.IGNORECASE)]
    return (told or lines[-1:] or [""])[0]


if __name__ == "__main__":
    main(*sys.argv[1:])
