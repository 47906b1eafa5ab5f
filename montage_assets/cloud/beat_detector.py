"""The beats of a song, found on the cloud machine by the same tracker that this machine has.

Belongs here: what is sent of the song (its sound alone, mono), and the check of what comes back. Does not belong here:
tracking (`media.beats`, which is sent along).
"""

from __future__ import annotations

import math
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

from montage_assets.cloud.client import CGPUClient
from montage_assets.cloud.failures import CloudFailure, CloudFault
from montage_assets.cloud.shipped import MODULES, SCRIPTS, packed_modules, run_script
from montage_assets.cloud.workspace import OnSent, Workspace, in_workspace
from montage_assets.media.beat_analysis import BeatAnalysis
from montage_assets.media.ffmpeg import input_args, run_ffmpeg
from montage_assets.media.onsets import RATE

FLAC_BYTES_PER_S = 43_000
"""Of mono music at 24 kHz and 16 bits, for a decision: 30 to 54 kB on three songs."""
_WORK_S = 300.0
_SCRIPT = SCRIPTS / "find_beats.py"


class CGPUBeatDetector:
    """Beat detection on a cloud machine. `on_sent` is told of every upload."""

    def __init__(self, client: CGPUClient, on_sent: OnSent | None = None) -> None:
        self._client = client
        self._on_sent = on_sent

    def detect_beats_remote(self, audio: Path) -> dict[str, Any]:
        """`beats` (seconds), `tempo` (BPM), `energy` and `onset_strength` (curves of 0..1) of an audio file.

        Raises CloudFailure, and MediaError for a file that cannot be decoded here.
        """
        analysis = self.analyze_remote(audio)
        return {
            "beats": analysis.beats_s,
            "tempo": analysis.tempo_bpm,
            "energy": analysis.energy,
            "onset_strength": analysis.onset_strength,
        }

    def analyze_remote(self, audio: Path) -> BeatAnalysis:
        """The whole record of a song, as `media.beats.analyze_song` gives it. Raises as `detect_beats_remote`."""
        with tempfile.TemporaryDirectory(prefix="montage-cloud-") as place:
            song = Path(place) / "song.flac"
            write_song(audio, song)
            modules = Path(place) / MODULES
            modules.write_bytes(packed_modules(["montage_assets.media.beats"]))
            result = Path(place) / "beats.json"

            def work(workspace: Workspace) -> None:
                workspace.put([song, modules, _SCRIPT], "the sound of the song (mono FLAC) and the tracker")
                run_script(workspace, _SCRIPT, MODULES, song.name, result.name, timeout_s=_WORK_S)
                workspace.get(result.name, result)

            in_workspace(self._client, work, self._on_sent)
            return read_analysis(result.read_bytes())


def write_song(audio: Path, song: Path) -> None:
    """The sound of a file as the tracker wants it: mono, 24 kHz, as FLAC of 16 bits; no tags, no pictures."""
    args = [
        *input_args(audio, "-vn", "-sn", "-dn"), "-map", "0:a:0", "-map_metadata", "-1", "-ac", "1", "-ar", str(RATE),
        "-c:a", "flac", "-sample_fmt", "s16", str(song),
    ]  # fmt: skip
    run_ffmpeg(args, what=f"preparing the sound of {audio.name}")


def song_length_s(audio: Path) -> float:
    """Seconds of sound by the container's account; 0 where it does not say."""
    import av
    from av.error import FFmpegError

    try:
        with av.open(str(audio)) as container:
            return (container.duration or 0) / av.time_base
    except FFmpegError:  # what it is that cannot be read, the tracker here says best
        return 0.0


def read_analysis(data: bytes) -> BeatAnalysis:
    """The record in the script's JSON. Raises WRONG_RESULT for anything that is none."""
    from pydantic import TypeAdapter, ValidationError

    try:
        analysis = TypeAdapter(BeatAnalysis).validate_json(data)
    except ValidationError as error:
        raise CloudFailure(CloudFault.WRONG_RESULT, error.errors()[0]["msg"]) from None
    fault = _fault_in(analysis)
    if fault is not None:
        raise CloudFailure(CloudFault.WRONG_RESULT, fault)
    return analysis


def _fault_in(analysis: BeatAnalysis) -> str | None:
    beats = analysis.beats_s
    numbers = [*beats, *analysis.downbeats_s, *analysis.energy, *analysis.onset_strength, analysis.tempo_bpm]
    if not all(math.isfinite(number) for number in numbers):
        return "a number that is none"
    if not beats or any(later <= earlier for earlier, later in pairwise(beats)):
        return "beats that do not follow each other"
    if beats[0] < 0.0 or beats[-1] > analysis.duration_s or analysis.tempo_bpm <= 0.0:
        return "beats outside of the song"
    return None
