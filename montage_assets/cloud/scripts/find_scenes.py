"""Runs on the cloud machine: the scenes of videos, by the detectors in the modules that came along.

    python3 find_scenes.py modules.zip job.json scenes.json

The job names the detector and its threshold, the packages that may have to be fetched, and for every video its file,
its clip record and its frames' timestamps. Needs OpenCV and pydantic there.
"""

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

PACKAGES = "packages"


def main(modules: str, job: str, result: str) -> None:
    work = json.loads(Path(job).read_text())
    sys.path.insert(0, str(Path(modules).resolve()))
    sys.path.append(str(Path(PACKAGES).resolve()))
    _fetch_unless_there("scenedetect", work["packages"])
    tasks = [(video, work["detector"], work["threshold"]) for video in work["videos"]]
    if len(tasks) == 1:
        rows = [_scenes_of(tasks[0])]
    else:
        with ProcessPoolExecutor() as pool:
            rows = list(pool.map(_scenes_of, tasks))
    Path(result).write_text(json.dumps(rows))


def _fetch_unless_there(module: str, packages: list[str]) -> None:
    try:
        importlib.import_module(module)
        return
    except ImportError:
        pass  # fetched below
    # Without what they depend on: OpenCV and NumPy are there, in the versions that fit the machine.
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", PACKAGES, *packages]
    fetched = subprocess.run(pip, check=False, capture_output=True, text=True)
    importlib.invalidate_caches()
    try:
        importlib.import_module(module)
    except ImportError:
        said = fetched.stderr.strip().splitlines()
        sys.exit(f"MONTAGE-FAULT TOOL_MISSING {module} {said[-1] if said else ''}")


def _scenes_of(task: tuple[dict[str, Any], str, float | None]) -> dict[str, Any]:
    video, detector, threshold = task
    try:
        return _found(video, detector, threshold)
    except Exception as error:  # of one video; the others go on, and this one is done again at home
        return {"failure": f"{type(error).__name__}: {error}"}


def _found(video: dict[str, Any], detector: Any, threshold: float | None) -> dict[str, Any]:
    from pydantic import TypeAdapter

    from montage_assets.media.clip import Clip
    from montage_assets.media.frame_scores import score_frames
    from montage_assets.media.scenes import detect_scenes
    from montage_assets.media.shards import ClipRange

    clip = TypeAdapter(Clip).validate_python(video["clip"])
    pts = video["pts"]
    whole = ClipRange(clip.name, 0, 1, None, None, 1.0, len(pts))
    scores = score_frames(_timed(video["file"], pts), clip, whole)
    return {"frames": scores.frames, "cuts": detect_scenes(clip, scores, detector, threshold).cuts}


def _timed(file: str, pts: list[int]) -> Iterator[tuple[int, Any]]:
    import cv2

    capture = cv2.VideoCapture(file)
    for time in pts:
        there, frame = capture.read()
        if not there:
            raise ValueError(f"{file} ends before its last frame")
        yield time, frame
    if capture.read()[0]:
        raise ValueError(f"{file} has more frames than it was announced with")


if __name__ == "__main__":
    main(*sys.argv[1:])
