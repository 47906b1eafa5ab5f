"""clip_selections: the edit. Where the film cuts, and which piece of which clip fills each shot."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import dagster as dg

from montage_assets.assets import shard_steps
from montage_assets.assets.common import GROUP, OWNERS, RETRIES, by_name, data_root, task_tags
from montage_assets.assets.footage import Footage
from montage_assets.assets.scene_shards import Scenes
from montage_assets.data_root import DataRoot
from montage_assets.failures import plain_failures
from montage_assets.media.beat_analysis import BeatAnalysis
from montage_assets.media.clip import Clip
from montage_assets.media.edit_list import EditList, EditMusic, cut_errors_s
from montage_assets.media.film_format import film_rate, film_size
from montage_assets.media.frame_scores import FrameScores, load_scores
from montage_assets.media.pacing import choose_duration, pace_named, plan_cuts
from montage_assets.media.pictures import contact_sheet
from montage_assets.media.selection import longest_scene_s, select_shots, usable_footage_s, what_gave_way
from montage_assets.media.signals import clip_signals
from montage_assets.metadata import picture, table
from montage_assets.partitions import montage_partitions

_SHOTS_ON_SHEET = 60
_ROWS_SHOWN = 500


@dataclass(frozen=True)
class Selection:
    """The edit, the clips it may use, and what the user should know of how it came about."""

    edit: EditList
    clips: list[Clip]
    notes: list[str]


@dg.asset(
    partitions_def=montage_partitions,
    group_name=GROUP,
    owners=OWNERS,
    kinds={"python", "numpy"},
    op_tags=task_tags("clip_selection"),
    retry_policy=RETRIES,
    description="The edit: cuts on beats, and for each shot the piece of footage that fits it best, with reasons.",
)
def clip_selections(
    context: dg.AssetExecutionContext, footage: Footage, scene_shards: Scenes, beats: BeatAnalysis
) -> dg.MaterializeResult[Selection]:
    """Decide the edit of one montage."""
    root = data_root()
    with plain_failures():
        scores = _scores(root, footage, scene_shards)
        selection = select(footage, scene_shards, beats, scores)
    for note in selection.notes:
        context.log.info(note)
    metadata = _metadata(selection.edit, selection.notes)
    metadata["contact sheet"] = picture(
        _contact_sheet(selection.edit, scene_shards.clips, scores), "the shots in order"
    )
    return dg.MaterializeResult(value=selection, metadata=metadata)


def select(footage: Footage, scenes: Scenes, beats: BeatAnalysis, scores: Mapping[str, FrameScores]) -> Selection:
    """The edit of the measured footage to the analysed song. Raises MediaError when none is possible."""
    spec = footage.spec
    clips = by_name(scenes.clips)
    signals = [clip_signals(clips[found.clip], scores[found.clip], found) for found in scenes.scenes]
    width, height = film_size(scenes.clips, spec.size())
    fps = film_rate(scenes.clips, spec.rate())
    pace = pace_named(spec.pace, min_shot_s=spec.min_shot, max_shot_s=spec.max_shot)
    duration_s, why = choose_duration(
        beats.duration_s, spec.music_start, usable_footage_s(signals), spec.duration, beats
    )
    plan = plan_cuts(
        beats,
        music_start_s=spec.music_start,
        duration_s=duration_s,
        fps=fps,
        pace=pace,
        longest_scene_s=longest_scene_s(signals, duration_s),
    )
    shots = select_shots(plan, signals, spec.seed)
    edit = EditList(
        fps=fps,
        width=width,
        height=height,
        frames=plan.frames,
        seed=spec.seed,
        music=EditMusic(
            file=footage.music.source.rpartition("/")[2],
            start_s=spec.music_start,
            beats_s=plan.beats_s,
            downbeats_s=plan.downbeats_s,
            tempo_bpm=plan.tempo_bpm,
        ),
        shots=shots,
        loudness_lufs=spec.loudness,
        left_out=sorted([*footage.left_out, *scenes.left_out], key=lambda entry: entry.clip),
    )
    return Selection(
        edit, scenes.clips, [f"Length of the film: {why}", beats.explanation, *plan.notes, *what_gave_way(shots)]
    )


def _scores(root: DataRoot, footage: Footage, scenes: Scenes) -> dict[str, FrameScores]:
    clips = by_name(footage.clips)
    return {
        found.clip: load_scores(root.read_bytes(shard_steps.scores_key(clips[found.clip]))) for found in scenes.scenes
    }


def _contact_sheet(edit: EditList, usable: Sequence[Clip], scores: Mapping[str, FrameScores]) -> bytes:
    clips = by_name(usable)
    shown = edit.shots[:_SHOTS_ON_SHEET]
    pictures = []
    for shot in shown:
        middle_s = shot.source_start_s + float(Fraction(shot.frames) / edit.fps) / 2
        first = int(scores[shot.clip].pts[0])
        pictures.append(scores[shot.clip].thumbnail_near(first + round(middle_s / float(clips[shot.clip].time_base))))
    return contact_sheet(pictures, [f"{shot.id}: {shot.clip}" for shot in shown])


def _metadata(edit: EditList, notes: Sequence[str]) -> dict[str, dg.MetadataValue]:
    errors = cut_errors_s(edit)
    return {
        "shots": dg.MetadataValue.int(len(edit.shots)),
        "length (s)": dg.MetadataValue.float(round(float(Fraction(edit.frames) / edit.fps), 3)),
        "size": dg.MetadataValue.text(f"{edit.width}x{edit.height}, {float(edit.fps):.5g} fps"),
        "worst cut-to-beat error (ms)": dg.MetadataValue.float(round(1000 * max(errors, default=0.0), 2)),
        "notes": dg.MetadataValue.md("\n".join(f"- {note}" for note in notes)),
        "shot table": shot_table(edit),
    }


def shot_table(edit: EditList) -> dg.TableMetadataValue:
    """Every shot with its source, length and reasons, for the UI."""
    names = list(dict.fromkeys(name for shot in edit.shots for name in shot.reasons))
    rows: list[dict[str, str | int | float | bool]] = []
    for shot in edit.shots[:_ROWS_SHOWN]:
        row: dict[str, str | int | float | bool] = {
            "shot": shot.id,
            "at (s)": round(float(Fraction(shot.first_frame) / edit.fps), 3),
            "length (s)": round(float(Fraction(shot.frames) / edit.fps), 3),
            "clip": shot.clip,
            "from (s)": round(shot.source_start_s, 3),
            "score": round(shot.score, 3),
        }
        rows.append(row | {name: round(shot.reasons.get(name, 0.0), 2) for name in names})
    return table(rows)
