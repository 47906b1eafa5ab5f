"""beats: beats, downbeats, tempo, energy and sections of the song."""

import dagster as dg

from montage_assets import layout
from montage_assets.assets.common import GROUP, OWNERS, RETRIES, data_root, task_tags
from montage_assets.assets.footage import Footage
from montage_assets.data_root import DataRoot
from montage_assets.failures import plain_failures
from montage_assets.io import dump_record, read_record
from montage_assets.media.beat_analysis import BeatAnalysis
from montage_assets.media.beats import ALGORITHM, analyze_song
from montage_assets.media.ffmpeg import ffmpeg_version
from montage_assets.media.fingerprint import result_key
from montage_assets.metadata import table
from montage_assets.partitions import montage_partitions
from montage_assets.progress import still_working


@dg.asset(
    partitions_def=montage_partitions,
    group_name=GROUP,
    owners=OWNERS,
    kinds={"python", "numpy"},
    op_tags=task_tags("audio_analysis"),
    retry_policy=RETRIES,
    description="Beats, downbeats, tempo, energy and sections of the song, and how sure they are.",
)
def beats(context: dg.AssetExecutionContext, footage: Footage) -> dg.MaterializeResult[BeatAnalysis]:
    """Analyse the song once per content."""
    root = data_root()
    with plain_failures(), still_working(context.log.info, "finding the beats"):
        analysis = analysis_of(root, footage)
    context.log.info(analysis.explanation)
    return dg.MaterializeResult(value=analysis, metadata=_metadata(analysis))


def analysis_of(root: DataRoot, footage: Footage) -> BeatAnalysis:
    """The stored analysis of the song, else a new one. Raises MediaError for a song that cannot be used."""
    key = result_key(source=footage.music.fingerprint, algorithm=ALGORITHM, ffmpeg=ffmpeg_version())
    stored = layout.result("beats", key, ".json")
    if root.exists(stored):
        return read_record(root, stored, BeatAnalysis)
    analysis = analyze_song(root.local_file(footage.music.source))
    root.write_bytes(stored, dump_record(analysis))
    return analysis


def _metadata(analysis: BeatAnalysis) -> dict[str, dg.MetadataValue]:
    sections = [
        {"from (s)": section.start_s, "to (s)": section.end_s, "energy": section.energy, "label": section.label}
        for section in analysis.sections
    ]
    return {
        "tempo (BPM)": dg.MetadataValue.float(analysis.tempo_bpm),
        "beats": dg.MetadataValue.int(len(analysis.beats_s)),
        "downbeats": dg.MetadataValue.int(len(analysis.downbeats_s)),
        "confidence": dg.MetadataValue.float(round(analysis.confidence, 3)),
        "how found": dg.MetadataValue.text(analysis.explanation),
        "length (s)": dg.MetadataValue.float(round(analysis.duration_s, 2)),
        "sections": table(sections),
    }
