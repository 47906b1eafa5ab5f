"""beats: beats, downbeats, tempo, energy and sections of the song."""

from pathlib import Path

import dagster as dg

from montage_assets import layout
from montage_assets.assets.common import GROUP, OWNERS, RETRIES, data_root, task_tags
from montage_assets.assets.footage import Footage
from montage_assets.cloud.beat_detector import FLAC_BYTES_PER_S, CGPUBeatDetector, song_length_s
from montage_assets.cloud.offload import Offload, Outcome, Session
from montage_assets.cloud.policy import Work
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
from montage_assets.settings import Settings


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
        offload = Offload(Settings.from_environment(), root, context.run.run_id, context.log)
        analysis, where = analysis_of(root, footage, offload)
    context.log.info(analysis.explanation)
    return dg.MaterializeResult(value=analysis, metadata={**_metadata(analysis), **offload.metadata(where)})


def analysis_of(root: DataRoot, footage: Footage, offload: Offload) -> tuple[BeatAnalysis, str]:
    """The stored analysis of the song, else a new one, and where it was made. Raises MediaError for a song that
    cannot be used."""
    ingredients = {"source": footage.music.fingerprint, "algorithm": ALGORITHM, "ffmpeg": ffmpeg_version()}
    stored = layout.result("beats", result_key(**ingredients), ".json")
    if root.exists(stored):
        return read_record(root, stored, BeatAnalysis), "here, earlier"
    # The cloud's beats are the same within milliseconds, but not bit for bit.
    stored_cloud = layout.result("beats", result_key(**ingredients, place="cloud"), ".json")
    if offload.accepts("beats") and root.exists(stored_cloud):
        return read_record(root, stored_cloud, BeatAnalysis), "in the cloud, earlier"
    song = root.local_file(footage.music.source)
    outcome = _in_cloud(offload, footage, song)
    if outcome.value is not None:
        root.write_bytes(stored_cloud, dump_record(outcome.value))
        return outcome.value, outcome.told
    analysis = analyze_song(song)
    root.write_bytes(stored, dump_record(analysis))
    return analysis, outcome.told


def _in_cloud(offload: Offload, footage: Footage, song: Path) -> Outcome[BeatAnalysis]:
    def work() -> Work:
        length_s = song_length_s(song)
        upload_bytes = round(length_s * FLAC_BYTES_PER_S)
        return Work("beats", length_s, upload_bytes=upload_bytes, latency_first=footage.spec.quality == "preview")

    def find(session: Session) -> BeatAnalysis:
        return CGPUBeatDetector(session.client, session.on_sent).analyze_remote(song)

    return offload.attempt(work, find)


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
