"""An ffmpeg that stands in for one with a GPU's NVENC: it takes NVENC's flags and encodes in software.

python nvenc_program.py <none, broken or short> <ffmpeg> <ffmpeg arguments>
"""

from __future__ import annotations

import subprocess
import sys

SOFTWARE = {"h264_nvenc": "libx264", "hevc_nvenc": "libx265", "av1_nvenc": "libsvtav1"}
QUICKLY = {
    "libx264": ["-preset", "ultrafast", "-crf", "30"],
    "libx265": ["-preset", "ultrafast", "-crf", "30"],
    "libsvtav1": ["-preset", "12"],
}
FLAWS = {"none": [], "broken": ["-no-such-option", "1"], "short": ["-frames:v", "7"]}
NVENC_ONLY = (
    "-hwaccel", "-hwaccel_output_format", "-preset", "-rc", "-cq", "-b:v", "-tune", "-spatial-aq", "-gpu",
    "-no-scenecut", "-forced-idr", "-strict_gop",
)  # fmt: skip


def in_software(flaw: str, args: list[str]) -> list[str]:
    out: list[str] = []
    given = iter(args)
    for arg in given:
        if arg in NVENC_ONLY:
            next(given)
        elif arg == "-c:v":
            asked = next(given)
            name = SOFTWARE.get(asked, asked)
            out += [arg, name, *QUICKLY[name], *(FLAWS[flaw] if asked in SOFTWARE else [])]
        else:
            out.append(arg)
    return out


if __name__ == "__main__":
    _, flaw, ffmpeg, *args = sys.argv
    sys.exit(subprocess.run([ffmpeg, *in_software(flaw, args)]).returncode)
