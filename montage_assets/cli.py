"""The command line: argument parsing and printing; each command calls what does the work.

Exit codes: 0 done, 1 the work failed, 2 wrong usage or input.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

import click

from montage_assets.cluster.errors import ClusterError
from montage_assets.media.errors import FfmpegFailed, MediaError

if TYPE_CHECKING:
    from montage_assets.local_run import RunOutcome
    from montage_assets.media.clip import Clip
    from montage_assets.media.frame_scores import FrameScores
    from montage_assets.media.scenes import SceneList
    from montage_assets.media.small_frames import SmallFrames
    from montage_assets.run_view import RunDisplay

DONE, FAILED, WRONG_INPUT = 0, 1, 2


def main() -> NoReturn:
    """Run the command line."""
    run(commands)


def run(command: click.Command) -> NoReturn:
    """Run a command line; a fault the user can mend is one line on stderr."""
    try:
        sys.exit(command.main(standalone_mode=False) or DONE)
    except click.ClickException as error:
        error.show()
        sys.exit(WRONG_INPUT)
    except (click.Abort, KeyboardInterrupt):
        _complain("stopped; finished work is kept, run the same command again to go on")
        sys.exit(FAILED)
    except FfmpegFailed as error:
        _complain(str(error))
        sys.exit(FAILED)
    except (MediaError, ClusterError) as error:
        _complain(str(error))
        sys.exit(WRONG_INPUT)
    except BrokenPipeError:
        sys.exit(FAILED)
    except Exception as error:
        from montage_assets.failures import describe_cause

        fault = describe_cause(error)
        if fault is None:  # a fault of the program's own must show where it is
            raise
        _complain(fault)
        sys.exit(FAILED)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="montage-assets")
def commands() -> None:
    """A folder of clips and a song become a beat-synced montage."""


@commands.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--music", type=click.Path(path_type=Path), help="The song, if it is not in the folder.")
@click.option("--duration", type=str, help="Length of the film in seconds or m:ss.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Overrule a key of montage.yaml.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Where the film is to go as well.")
def make(folder: Path, music: Path | None, duration: str | None, settings: Sequence[str], output: Path | None) -> int:
    """Make the montage of FOLDER."""
    from montage_assets.local_run import (
        folder_in_input,
        montage_name,
        refuse_full_disk,
        run_montage,
        stderr_for_the_display,
        use_default_dagster_home,
    )
    from montage_assets.settings import Settings
    from montage_assets.spec import make_spec, parse_override

    overrides = dict(parse_override(text) for text in settings)
    if duration is not None:
        overrides["duration"] = duration
    make_spec(overrides, "--set")
    _require(folder.is_dir(), f"there is no folder {folder}; check its spelling")
    _require(music is None or music.is_file(), f"there is no song {music}; check its spelling")
    if output is not None:
        _refuse_unwritable(output)
        _refuse_overwriting(output, folder, music)
    environment = Settings.from_environment()
    root = environment.data_root()
    use_default_dagster_home(environment)
    refuse_full_disk(root)
    montage = montage_name(root, folder)
    config: dict[str, Any] = {"overrides": overrides}
    if folder_in_input(root, folder) is None:
        config["folder"] = str(folder.resolve())
    if music is not None:
        config["music"] = str(music.resolve())
    with stderr_for_the_display() as terminal:
        outcome = run_montage(environment, montage, config, _bytes_in(folder), _display(terminal))
    return _report(root, outcome, output)


@commands.command()
@click.argument("video", type=click.Path(path_type=Path))
@click.option("--shards", type=click.IntRange(1, 256), default=1, show_default=True, help="Score in so many shards.")
@click.option(
    "--detector",
    default="auto",
    show_default=True,
    help="auto, adaptive, content, hash, histogram, threshold, transnetv2, hybrid.",
)
@click.option("--threshold", type=float, help="The detector's threshold. Default: its own.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def scenes(video: Path, shards: int, detector: str, threshold: float | None, as_json: bool) -> None:
    """Print the cuts of VIDEO."""
    from montage_assets.media.neural_scenes import NEURAL_DETECTORS
    from montage_assets.media.scenes import DETECTORS, detect_scenes
    from montage_assets.media.transnet import is_installed
    from montage_assets.spec import chosen_detector

    known = ("auto", *DETECTORS, *NEURAL_DETECTORS)
    _require(detector in known, f"there is no scene detector {detector!r}; choose one of {', '.join(known)}")
    clip = _probed(video)
    if detector == "auto":
        detector = chosen_detector(threshold, network_is_there=is_installed())
    if detector in NEURAL_DETECTORS:
        found = _neural_scenes(video, clip, shards, detector, threshold)
    else:
        found = detect_scenes(clip, _scores(video, clip, shards)[0], detector, threshold)  # type: ignore[arg-type]
    if as_json:
        document = {
            "detector": detector,
            "fps": float(found.fps),
            "frames": found.frames,
            "cuts": found.cuts,
            "cuts_s": found.cuts_s,
        }
        click.echo(json.dumps(document))
        return
    click.echo(f"{video}: {found.frames} frames, {float(found.fps):.5g} fps, {len(found.cuts)} cuts")
    for frame, second in zip(found.cuts, found.cuts_s, strict=True):
        click.echo(f"{frame:8d}  {second:10.3f} s")


@commands.command()
@click.argument("audio", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def beats(audio: Path, as_json: bool) -> None:
    """Print the beats of AUDIO."""
    from montage_assets.media.beats import analyze_song

    analysis = analyze_song(audio)
    if as_json:
        document = {
            "beats_s": analysis.beats_s,
            "downbeats_s": analysis.downbeats_s,
            "tempo_bpm": analysis.tempo_bpm,
            "energy": analysis.energy,
            "onset_strength": analysis.onset_strength,
            "hop_s": analysis.hop_s,
            "confidence": analysis.confidence,
            "source": analysis.source,
            "explanation": analysis.explanation,
        }
        click.echo(json.dumps(document))
        return
    click.echo(f"{audio}: {analysis.tempo_bpm:.2f} BPM, {len(analysis.beats_s)} beats in {analysis.duration_s:.1f} s")
    click.echo(analysis.explanation)
    downbeats = set(analysis.downbeats_s)
    for beat in analysis.beats_s:
        click.echo(f"{beat:10.3f} s{'  bar' if beat in downbeats else ''}")


@commands.command()
@click.argument("film", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(film: Path, as_json: bool) -> int:
    """Check FILM against the edit list beside it."""
    from montage_assets.media.film_check import ADVISORY, check_film_file

    _require(film.is_file(), f"there is no film {film}; check its spelling")
    results = check_film_file(film)
    passed = all(result.passed or result.name in ADVISORY for result in results)
    if as_json:
        rows = [{"name": r.name, "passed": r.passed, "detail": r.detail, "values": r.values} for r in results]
        click.echo(json.dumps({"film": str(film), "passed": passed, "checks": rows}, indent=1))
    else:
        for result in results:
            verdict = "ok  " if result.passed else "warn" if result.name in ADVISORY else "FAIL"
            click.echo(f"{verdict} {result.name}: {result.detail}")
    return DONE if passed else FAILED


@commands.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def nodes(as_json: bool) -> None:
    """Print the nodes, and which of them each task would go to."""
    from montage_assets.cluster.manager import get_cluster_manager
    from montage_assets.cluster.summary import print_summary, summary_document

    cluster = get_cluster_manager()
    if as_json:
        click.echo(json.dumps(summary_document(cluster), indent=1))
    else:
        print_summary(cluster)


@commands.command()
@click.argument("name")
@click.option("--coordinator", metavar="URL", help="The coordinator's web address. Default: COORDINATOR_URL.")
@click.option("--duration", type=str, help="Length of the film in seconds or m:ss.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Overrule a key of montage.yaml.")
@click.option("--detach", is_flag=True, help="Only submit the run.")
def launch(name: str, coordinator: str | None, duration: str | None, settings: Sequence[str], detach: bool) -> int:
    """Have the coordinator make the montage of the folder NAME in its input/, and follow the run.

    Ctrl-C cancels the run; a second one leaves it to itself.
    """
    from montage_assets.partitions import unfit_as_key
    from montage_assets.remote_run import Coordinator
    from montage_assets.settings import Settings
    from montage_assets.spec import make_spec, parse_override

    overrides = dict(parse_override(text) for text in settings)
    if duration is not None:
        overrides["duration"] = duration
    make_spec(overrides, "--set")
    unfit = unfit_as_key(name)
    _require(unfit is None and "/" not in name and bool(name), f"{name!r} cannot be a montage: {unfit or 'no folder'}")
    there = Coordinator(coordinator or Settings.from_environment().coordinator_url)
    run = there.launch(name, overrides)
    click.echo(f"run:        {there.page_of(run)}")
    if detach:
        return DONE
    with _display(sys.stderr) as display:
        there.follow(run, display, lambda line: click.echo(f"  {line}", err=True))
    for fault in run.faults:
        _complain(fault.message)
    if run.status == "CANCELED":
        _complain("the run was cancelled; finished work is kept, launch it again to go on")
    if run.status != "SUCCESS":
        if any(fault.is_input and fault.step == "footage" for fault in run.faults):
            there.take_back(name)
        return WRONG_INPUT if any(fault.is_input for fault in run.faults) else FAILED
    for line in run.summary():
        click.echo(line)
    return DONE


@commands.command()
@click.option("--queue", type=click.Choice(["analyze", "encode", "upscale"]), help="Serve this queue alone.")
@click.option("--until-idle", type=click.FloatRange(min=0), metavar="SECONDS", help="End after so long without work.")
@click.option("--alive", is_flag=True, help="Only tell (by the exit code) whether a worker of this host is at work.")
def worker(queue: str | None, until_idle: float | None, alive: bool) -> int:
    """Carry out steps of the Redis queues (REDIS_URL): those that WORKER_TYPE serves, WORKER_CONCURRENCY at a time."""
    from montage_assets.cluster.worker import is_at_work, serve
    from montage_assets.settings import Settings

    settings = Settings.from_environment()
    if alive:
        return DONE if is_at_work(settings) else FAILED
    return serve(settings, queue, until_idle)


@commands.group()
def cloud() -> None:
    """The cloud GPU behind cgpu: what is sent there, and whether it works."""


@cloud.command()
@click.option("--ask", is_flag=True, help="Ask the service for the account's GPUs.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(ask: bool, as_json: bool) -> None:
    """Print consent, login, what would be sent, what was, and what failed."""
    from montage_assets.cloud.status import status_document, status_lines
    from montage_assets.settings import Settings

    settings = Settings.from_environment()
    document = status_document(settings, settings.data_root(), ask=ask)
    click.echo(json.dumps(document, indent=1) if as_json else "\n".join(status_lines(document)))


@cloud.command()
@click.argument("song", type=click.Path(path_type=Path))
@click.argument("video", type=click.Path(path_type=Path))
def prove(song: Path, video: Path) -> int:
    """Do every kind of work once in the cloud and once here, on SONG and VIDEO, and compare."""
    from montage_assets.cloud.proof import prove as proved
    from montage_assets.settings import Settings

    for path in (song, video):
        _require(path.is_file(), f"there is no file {path}; check its spelling")
    settings = Settings.from_environment()
    _require(
        settings.cgpu_enabled, "CGPU_GPU_ENABLED is not true, so nothing is sent; set it to true to prove the cloud"
    )
    all_worked = True
    for each in proved(settings, settings.data_root(), song, video):
        click.echo(f"{'ok  ' if each.worked else 'FAIL'} {each.what}, {each.seconds:.1f} s: {each.told}")
        all_worked = all_worked and each.worked
    return DONE if all_worked else FAILED


@commands.command()
@click.option(
    "--quality", default="standard", show_default=True, help="Measure this level: preview, standard, high, master."
)
@click.option("--fresh", is_flag=True, help="Test and measure everything again.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def encoders(quality: str, fresh: bool, as_json: bool) -> None:
    """Test this machine's video encoders; print which work, why others do not, their speed and quality."""
    from montage_assets.encoder_report import document, encoder_report, lines
    from montage_assets.media.encoder_table import QUALITIES
    from montage_assets.settings import Settings

    _require(quality in QUALITIES, f"there is no quality {quality!r}; choose one of {', '.join(QUALITIES)}")
    report = encoder_report(Settings.from_environment(), quality, fresh)  # type: ignore[arg-type]
    click.echo(json.dumps(document(report), indent=1) if as_json else "\n".join(lines(report)))


@commands.command()
@click.argument("video", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def decoders(video: Path, as_json: bool) -> None:
    """Decode the beginning of VIDEO on the CPU and on this machine's GPUs; compare frames and costs."""
    from dataclasses import asdict

    from montage_assets.media.encoder_devices import Host
    from montage_assets.media.hardware_decode import compare, decoders_here
    from montage_assets.settings import Settings

    settings = Settings.from_environment()
    found = compare(video, _probed(video), decoders_here(settings.hwaccel, settings.force_cpu, Host()))
    if as_json:
        click.echo(json.dumps(asdict(found), indent=1))
        return
    for trial in found.trials:
        click.echo(f"{trial.decoder.name}: {trial.fault or f'gives the frames of the CPU, for {trial.cost}'}")
    click.echo(f"{video} is decoded by {found.decoder.name if found.decoder else 'the CPU'}: {found.reason}")


@commands.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(as_json: bool) -> int:
    """Check this deployment from here: storage, database, queues, nodes, GPUs, encoders, rights."""
    from dataclasses import asdict

    from montage_assets.doctor import examine
    from montage_assets.settings import Settings

    findings = examine(Settings.from_environment())
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        for finding in findings:
            click.echo(finding.line)
    return FAILED if any(finding.state == "FAIL" for finding in findings) else DONE


@commands.command()
def schema() -> None:
    """Print the JSON schema of montage.yaml."""
    from montage_assets.spec import spec_schema

    click.echo(spec_schema())


def _complain(message: str) -> None:
    click.echo(f"montage: {message}", err=True)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise MediaError(message)


def _refuse_unwritable(output: Path) -> None:
    import os

    folder = output.resolve().parent
    _require(folder.is_dir(), f"there is no folder {folder} for {output.name}; make it first")
    _require(os.access(folder, os.W_OK), f"{folder} cannot be written to; choose another place for {output.name}")
    _require(output.suffix.lower() == ".mp4", f"{output.name}: films are MP4 files; name it {output.stem}.mp4")


def _refuse_overwriting(output: Path, folder: Path, music: Path | None) -> None:
    """Only a film that this program has made may be overwritten, and nothing goes among the sources."""
    target = output.resolve()
    _require(
        not target.is_relative_to(folder.resolve()),
        f"{output} lies among the clips of {folder}; choose another place for the film",
    )
    _require(
        music is None or target != music.resolve(), f"{output} is the song itself; choose another place for the film"
    )
    for path in (output, output.with_suffix(".json")):
        _require(
            not (path.exists() or path.is_symlink()) or _is_our_edit_list(output.with_suffix(".json")),
            f"{path} is there already and is no film of this program; choose another place, or remove it first",
        )


def _is_our_edit_list(path: Path) -> bool:
    from montage_assets.media.edit_list import from_json

    try:
        from_json(path.read_text())
    except (OSError, ValueError, MediaError):
        return False
    return True


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _display(terminal: TextIO) -> RunDisplay:
    from montage_assets.run_view import LiveDisplay, PlainDisplay

    if terminal.isatty():
        return LiveDisplay(terminal)
    return PlainDisplay(lambda line: print(line, file=terminal, flush=True))


def _report(root: Any, outcome: RunOutcome, output: Path | None) -> int:
    from montage_assets import layout
    from montage_assets.data_root import copy_atomically
    from montage_assets.media import edit_list as edit_lists

    if outcome.faults:
        for fault in outcome.faults:
            _complain(fault.message)
        return WRONG_INPUT if any(fault.is_input for fault in outcome.faults) else FAILED
    film = root.where(layout.film(outcome.montage))
    text = root.read_bytes(layout.edit_list(outcome.montage)).decode()
    if output is not None:
        copy_atomically(root.local_file(layout.film(outcome.montage)), output)
        copy_atomically(root.local_file(layout.edit_list(outcome.montage)), output.with_suffix(".json"))
        film = str(output)
    edit = edit_lists.from_json(text)
    worst_ms = 1000 * max(edit_lists.cut_errors_s(edit), default=0.0)
    frame_ms = 1000 / float(edit.fps)
    click.echo(f"film:       {film}")
    length_s = float(Fraction(edit.frames) / edit.fps)
    click.echo(f"length:     {length_s:.2f} s, {edit.width}x{edit.height}, {float(edit.fps):.5g} fps")
    click.echo(f"cuts:       {len(edit.shots) - 1}, at {edit.music.tempo_bpm:.2f} BPM")
    click.echo(f"worst cut:  {worst_ms:.1f} ms from its beat (a frame lasts {frame_ms:.1f} ms)")
    for left_out in edit.left_out:
        click.echo(f"left out:   {left_out.clip}: {left_out.reason}")
    times = [(name, asset.seconds) for name, asset in outcome.view.assets.items() if asset.seconds is not None]
    click.echo("seconds:    " + ", ".join(f"{name} {seconds:.1f}" for name, seconds in times))
    return DONE


def _probed(video: Path) -> Clip:
    from montage_assets.media.errors import UnusableClip
    from montage_assets.media.ingest import ingest_clip

    _require(video.is_file(), f"there is no video {video}; check its spelling")
    try:
        return ingest_clip(video, video.name, "").clip
    except UnusableClip as error:
        raise MediaError(f"{video} {error}") from None


def _neural_scenes(video: Path, clip: Clip, shards: int, detector: str, threshold: float | None) -> SceneList:
    from montage_assets.assets.neural_steps import compute_of
    from montage_assets.media import neural_scenes, transnet
    from montage_assets.settings import Settings

    transnet.refuse_without_network(detector)
    _require(threshold is None or threshold < 1, f"--threshold {threshold} is no probability; give one below 1")
    scores, small = _scores(video, clip, shards)
    windows = neural_scenes.windows_for(detector, scores)  # type: ignore[arg-type]
    looks = transnet.look(small.pictures, windows, compute_of(Settings.from_environment())) if windows else None
    for note in looks.notes if looks else []:
        _complain(note)
    return neural_scenes.scenes_of_answers(
        detector,  # type: ignore[arg-type]
        clip,
        scores,
        looks.answers if looks else [],
        threshold,
    )


def _scores(video: Path, clip: Clip, shards: int) -> tuple[FrameScores, SmallFrames]:
    """Score in so many shards side by side, as the asset's steps do; and the pictures for neural detectors."""
    import os
    from concurrent.futures import ThreadPoolExecutor

    from montage_assets.media.frame_scores import ShardsDoNotFit, merge_scores, score_range
    from montage_assets.media.keyframes import keyframe_finder
    from montage_assets.media.shards import ClipRange, cut_into_ranges
    from montage_assets.media.small_frames import SmallFrameRecorder, merge_small_frames

    def scored(part: ClipRange) -> tuple[FrameScores, SmallFrames]:
        recorder = SmallFrameRecorder(part)
        return score_range(video, clip, part, watch=recorder.add), recorder.recorded()

    with keyframe_finder(video, clip) as keyframe_before:
        ranges = cut_into_ranges(clip, shards, keyframe_before)
    with ThreadPoolExecutor(max_workers=min(len(ranges), os.cpu_count() or 1)) as pool:
        parts = list(pool.map(scored, ranges))
    try:
        return merge_scores([scores for scores, _ in parts]), merge_small_frames([small for _, small in parts])
    except ShardsDoNotFit:
        (whole,) = cut_into_ranges(clip, 1, lambda _: None)
        return scored(whole)


if __name__ == "__main__":
    main()
