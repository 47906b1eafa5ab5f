"""Runs on the cloud machine: the beats of a song, by the tracker in the modules that came along.

    python3 find_beats.py modules.zip song.flac beats.json

Needs numpy, scipy and an ffmpeg there.
"""

import dataclasses
import json
import os
import shutil
import sys
from pathlib import Path


def main(modules: str, song: str, result: str) -> None:
    ffmpeg = shutil.which("ffmpeg")
    if ffmpeg is None:
        sys.exit("MONTAGE-FAULT TOOL_MISSING ffmpeg")
    os.environ["MONTAGE_FFMPEG"] = ffmpeg
    sys.path.insert(0, str(Path(modules).resolve()))
    try:
        from montage_assets.media.beats import analyze_song
    except ImportError as error:
        sys.exit(f"MONTAGE-FAULT TOOL_MISSING {error.name}")
    analysis = analyze_song(song)
    Path(result).write_text(json.dumps(dataclasses.asdict(analysis)))


if __name__ == "__main__":
    main(*sys.argv[1:])
