"""From recorded scores to the signals that selection reads, and how lively a clip is in one picture."""

from __future__ import annotations

import numpy as np

from montage_assets.media.clip import Clip, ClipSignals
from montage_assets.media.frame_scores import FrameScores
from montage_assets.media.scenes import SceneList


def clip_signals(clip: Clip, scores: FrameScores, scenes: SceneList) -> ClipSignals:
    """The measurements of one clip, on its own time axis that starts at its first frame."""
    seconds = (scores.pts - scores.pts[0]).astype(np.float64) * float(clip.time_base)
    return ClipSignals(
        clip=clip.name,
        times_s=seconds,
        scene_starts=scenes.starts,
        sharpness=scores.sharpness,
        motion=(scores.delta_val / np.float32(scores.pixels)).astype(np.float32),
        brightness=scores.brightness,
        contrast=scores.contrast,
        clipped=scores.clipped,
        signature_frames=np.searchsorted(scores.pts, scores.signature_pts).astype(np.int64),
        signatures=scores.signatures,
    )
