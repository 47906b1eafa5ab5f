"""footage: look into every file of a montage's folder once; refuse what is broken and say why."""

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import dagster as dg

from montage_assets import layout
from montage_assets.assets.common import GROUP, OWNERS, RETRIES, clip_source, data_root, montage_of, task_tags
from montage_assets.cluster.tasks import FILM_SIZE_TAG, QUALITY_TAG, SOURCE_SIZE_TAG
from montage_assets.data_root import DataRoot, StoredFile
from montage_assets.failures import plain_failures
from montage_assets.io import dump_record, read_record
from montage_assets.media import edit_list as edit_lists
from montage_assets.media import grading
from montage_assets.media.clip import Clip, LeftOut
from montage_assets.media.errors import MediaError, UnusableClip
from montage_assets.media.ffmpeg import ffmpeg_version
from montage_assets.media.film_format import film_size
from montage_assets.media.fingerprint import fingerprint_of, result_key
from montage_assets.media.ingest import AUDIO_SUFFIXES, ingest_clip, media_kind
from montage_assets.media.pictures import contact_sheet
from montage_assets.media.transnet import is_installed
from montage_assets.metadata import picture, table
from montage_assets.partitions import folder_of, montage_partitions, montages_in, no_such_montage
from montage_assets.progress import still_working
from montage_assets.settings import Settings
from montage_assets.spec import (
    SPEC_FILE,
    MontageSpec,
    parse_spec,
    with_chosen_detector,
    with_default_codec,
    with_overrides,
)

ALGORITHM = 2
"""Part of every ingest result's key."""

READ_AT_A_TIME = 8
"""Clips probed side by side: one of 4K takes up to 200 MB, and the run's own pod has 3 GB."""


@dataclass(frozen=True)
class MusicFile:
    """The song: its data-root key (or absolute path) and its content's fingerprint."""

    source: str
    fingerprint: str


@dataclass(frozen=True)
class KnownFile:
    """A file whose fingerprint is known as long as its version (size and time, or ETag) stays the same."""

    name: str
    version: str
    fingerprint: str


@dataclass(frozen=True)
class Grade:
    """How the film is graded: `name` as the user gave it, `lut` the data-root key of the LUT, named by its content."""

    name: str
    lut: str


@dataclass(frozen=True)
class Footage:
    """All that goes into one montage."""

    montage: str
    folder: str
    """Data-root key or absolute path of the folder that the clips' names are relative to."""
    spec: MontageSpec
    clips: list[Clip]
    left_out: list[LeftOut]
    music: MusicFile
    files: list[KnownFile]
    grade: Grade | None = None


@dataclass(frozen=True)
class IngestResult:
    """What ingest found out about one content, stored by its fingerprint. `reason` is set when refused."""

    clip: Clip | None
    reason: str | None


class FootageConfig(dg.Config):
    """Where the footage is, if not in the data root's input folder, and values that overrule montage.yaml."""

    folder: str | None = None
    music: str | None = None
    overrides: dict[str, Any] = {}  # noqa: RUF012 -- Dagster's config classes copy their defaults


@dg.asset(
    partitions_def=montage_partitions,
    group_name=GROUP,
    owners=OWNERS,
    kinds={"python", "ffmpeg"},
    op_tags=task_tags("metadata"),
    retry_policy=RETRIES,
    description="Clips and song of the montage: probed, fingerprinted; what is broken is left out, with the reason.",
)
def footage(context: dg.AssetExecutionContext, config: FootageConfig) -> dg.MaterializeResult[Footage]:
    """Probe the folder of one montage."""
    root = data_root()
    with plain_failures():
        found = survey(root, montage_of(context), config, context.log.info)
    if not context.instance.has_dynamic_partition("montage", montage_of(context)):
        context.instance.add_dynamic_partitions("montage", [montage_of(context)])
    context.instance.add_run_tags(context.run.run_id, size_tags(found))
    for left_out in found.left_out:
        context.log.warning(f"{left_out.clip} is left out: it {left_out.reason}")
    return dg.MaterializeResult(value=found, metadata=_metadata(root, found))


def size_tags(found: Footage) -> dict[str, str]:
    """The run's tags that say how large film and footage are: where steps go depends on it."""
    film = film_size(found.clips, found.spec.size())
    source = max(((clip.width, clip.height) for clip in found.clips), key=lambda size: size[0] * size[1])
    return {
        FILM_SIZE_TAG: f"{film[0]}x{film[1]}",
        SOURCE_SIZE_TAG: f"{source[0]}x{source[1]}",
        QUALITY_TAG: found.spec.quality,
    }


def survey(root: DataRoot, montage: str, config: FootageConfig, log: Any) -> Footage:
    """Ingest a montage's folder. Raises MediaError with one line when no montage can be made of it."""
    abandoned = sum(root.remove_unfinished(folder) for folder in (layout.WORK, layout.OUTPUT))
    if abandoned:
        log(f"{abandoned} unfinished files of killed runs are removed from {root.url}")
    before = _footage_before(root, montage)
    folder = _folder(root, montage, config, before)
    files = _files(root, folder, montage)
    spec = _spec(root, folder, files, config)
    music_source = _music_source(root, folder, files, spec, config)
    grade = _grade(root, folder, files, spec)
    known = {file.name: file for file in before.files} if before else {}
    clips: list[Clip] = []
    left_out: list[LeftOut] = []
    seen: dict[str, KnownFile] = {}
    videos = [
        file
        for file in files
        if clip_source(folder, file.name) != music_source and media_kind(file.name) not in ("other", "audio")
    ]
    reasons = {file.name: _reason_by_name(root, folder, file, files) for file in videos}
    read = _read_at_a_time(root, folder, [file for file in videos if reasons[file.name] is None], known, log)
    for file in videos:
        reason = reasons[file.name]
        if reason is None:
            entry, result = read[file.name]
            twin = seen.setdefault(entry.fingerprint, entry)
            reason = result.reason if twin is entry else f"is the same as {twin.name}"
            if reason is None and result.clip is not None:
                clips.append(replace(result.clip, name=file.name))
                log(f"{file.name}: {_in_words(result.clip)}")
        if reason is not None:
            left_out.append(LeftOut(_printable(file.name), reason))
    if not clips:
        raise MediaError(_nothing_usable(root, folder, left_out))
    music_entry = _known_music(root, music_source, known)
    return Footage(
        montage=montage,
        folder=folder,
        spec=spec,
        clips=clips,
        left_out=left_out,
        music=MusicFile(music_source, music_entry.fingerprint),
        files=[*seen.values(), music_entry],
        grade=grade,
    )


def thumbnail_key(clip: Clip) -> str:
    """Where the picture of a clip lies."""
    return layout.result("thumbnails", _ingest_key(clip.fingerprint), ".jpg")


def _folder(root: DataRoot, montage: str, config: FootageConfig, before: Footage | None) -> str:
    if config.folder:
        return config.folder
    if montage in montages_in(root):
        return folder_of(root, montage)
    if before is not None and root.folder_exists(before.folder):
        return before.folder
    raise MediaError(no_such_montage(montage, montages_in(root), root))


def _footage_before(root: DataRoot, montage: str) -> Footage | None:
    key = layout.record(montage, "footage")
    if not root.exists(key):
        return None
    try:
        return read_record(root, key, Footage)
    except ValueError:  # an older version's record; it is only a shortcut
        return None


def _files(root: DataRoot, folder: str, montage: str) -> list[StoredFile]:
    if not root.folder_exists(folder):
        raise MediaError(f"there is no folder {root.where(folder)}; check its spelling")
    loose_only = montage == layout.DEFAULT_MONTAGE and _same_place(root, folder, layout.INPUT)
    own = [root.where(part) for part in (layout.WORK, layout.OUTPUT, layout.DAGSTER_HOME)] if root.is_local else []
    return [
        file
        for file in root.list_files(folder, recursive=not loose_only)
        # A data root may lie in the folder of footage: what the pipeline made is not footage.
        if not any(Path(root.where(clip_source(folder, file.name))).is_relative_to(place) for place in own)
    ]


def _same_place(root: DataRoot, folder: str, other: str) -> bool:
    if not root.is_local:
        return folder == other
    return Path(root.where(folder)).resolve() == Path(root.where(other)).resolve()


def _reason_by_name(root: DataRoot, folder: str, file: StoredFile, files: Sequence[StoredFile]) -> str | None:
    """Why a file is no footage, when that shows without opening it."""
    if media_kind(file.name) == "still":
        return "is a still picture; only moving pictures are used"
    if not _is_unicode(file.name):
        return "has a name that is not UTF-8; rename it"
    beside = str(PurePosixPath(file.name).with_suffix(".json"))
    if any(other.name == beside for other in files) and _is_edit_list(root, clip_source(folder, beside)):
        return "is a film that was made here: its edit list lies beside it"
    return None


def _is_edit_list(root: DataRoot, key: str) -> bool:
    try:
        edit_lists.from_json(root.read_bytes(key).decode("utf-8", "replace"))
    except MediaError:
        return False
    return True


def _is_unicode(name: str) -> bool:
    return _printable(name) == name


def _printable(name: str) -> str:
    """A name that can be stored and shown; bytes that are no UTF-8 come out as `\\udc..`."""
    return name.encode("utf-8", "backslashreplace").decode()


def _spec(root: DataRoot, folder: str, files: Sequence[StoredFile], config: FootageConfig) -> MontageSpec:
    spec = MontageSpec()
    if any(file.name == SPEC_FILE for file in files):
        where = clip_source(folder, SPEC_FILE)
        spec = parse_spec(root.read_bytes(where).decode("utf-8", "replace"), root.where(where))
    spec = with_default_codec(with_overrides(spec, config.overrides, "--set"), Settings.from_environment().output_codec)
    return with_chosen_detector(spec, network_is_there=is_installed())


def _music_source(
    root: DataRoot, folder: str, files: Sequence[StoredFile], spec: MontageSpec, config: FootageConfig
) -> str:
    if config.music:
        if not root.exists(config.music):
            raise MediaError(f"the song {config.music} is not there; check its spelling")
        return config.music
    if spec.music:
        source = clip_source(folder, spec.music)
        if PurePosixPath(spec.music).is_absolute() or ".." in PurePosixPath(spec.music).parts:
            raise MediaError(f"music: {spec.music!r} lies outside the montage's folder; copy the song into it")
        if not root.exists(source):
            raise MediaError(f"the song {spec.music!r} that montage.yaml names is not in {root.where(folder)}")
        return source
    songs = [file.name for file in files if PurePosixPath(file.name).suffix.lower() in AUDIO_SUFFIXES]
    if not songs:
        raise MediaError(
            f"there is no song in {root.where(folder)}; put one audio file there, or name one with --music"
        )
    if len(songs) > 1:
        raise MediaError(
            f"there are {len(songs)} songs in {root.where(folder)} ({', '.join(songs)}); "
            f"name one in montage.yaml, e.g. music: {songs[0]}"
        )
    return clip_source(folder, songs[0])


def _grade(root: DataRoot, folder: str, files: Sequence[StoredFile], spec: MontageSpec) -> Grade | None:
    """The LUT that the spec names, checked and kept by its content, so that every node finds the same."""
    if spec.grade is None:
        return None
    if spec.grade in grading.LOOKS:
        lut = grading.look_lut(spec.grade)
    else:
        lut = grading.parse_cube(_cube_file(root, folder, files, spec.grade), _on_one_line(spec.grade))
    text = grading.cube_text(lut)
    kept_at = layout.result("luts", fingerprint_of(io.BytesIO(text), len(text)), grading.SUFFIX)
    if not root.exists(kept_at):
        root.write_bytes(kept_at, text)
    return Grade(_on_one_line(spec.grade), kept_at)


def _cube_file(root: DataRoot, folder: str, files: Sequence[StoredFile], name: str) -> bytes:
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise MediaError(f"grade: {name!r} lies outside the montage's folder; copy the LUT into it")
    if not any(file.name == name for file in files):
        raise MediaError(f"the LUT {name!r} that grade names is not in {root.where(folder)}; copy it there")
    with root.open(clip_source(folder, name)) as stream:
        return stream.read(grading.MOST_BYTES + 1)


def _on_one_line(name: str) -> str:
    return name if name.isprintable() else repr(name)


def _known_file(root: DataRoot, source: str, file: StoredFile, known: dict[str, KnownFile]) -> KnownFile:
    entry = known.get(file.name)
    if entry is not None and entry.version == file.version:
        return entry
    return KnownFile(file.name, file.version, _fingerprint(root, source))


def _read_at_a_time(
    root: DataRoot, folder: str, files: Sequence[StoredFile], known: dict[str, KnownFile], log: Any
) -> dict[str, tuple[KnownFile, IngestResult]]:
    """What is known of each file by its content. Several at a time, since the whole cluster waits for the last of them;
    of a bucket one by one, since each is fetched whole."""

    def read(file: StoredFile) -> tuple[KnownFile, IngestResult]:
        source = clip_source(folder, file.name)
        entry = _known_file(root, source, file, known)
        return entry, _ingested(root, source, file.name, entry.fingerprint)

    side_by_side = READ_AT_A_TIME if root.is_local else 1
    with still_working(log, f"reading {len(files)} clips"), ThreadPoolExecutor(side_by_side) as pool:
        return dict(zip([file.name for file in files], pool.map(read, files), strict=True))


def _known_music(root: DataRoot, source: str, known: dict[str, KnownFile]) -> KnownFile:
    folder, _, name = source.rpartition("/")
    file = next((file for file in root.list_files(folder, recursive=False) if file.name == name), None)
    if file is None:
        raise MediaError(f"the song {root.where(source)} is not there; check its spelling")
    return _known_file(root, source, StoredFile(f"music:{source}", file.size, file.version), known)


def _fingerprint(root: DataRoot, source: str) -> str:
    path = root.local_file(source)
    with path.open("rb") as stream:
        return fingerprint_of(stream, path.stat().st_size)


def _ingest_key(fingerprint: str) -> str:
    return result_key(fingerprint=fingerprint, algorithm=ALGORITHM, ffmpeg=ffmpeg_version())


def _ingested(root: DataRoot, source: str, name: str, fingerprint: str) -> IngestResult:
    """The result of an earlier ingest of the same content, else of a new one."""
    key = _ingest_key(fingerprint)
    stored = layout.result("ingest", key, ".json")
    if root.exists(stored):
        return read_record(root, stored, IngestResult)
    try:
        ingested = ingest_clip(root.local_file(source), name, fingerprint)
    except UnusableClip as error:
        result = IngestResult(None, str(error))
    else:
        root.write_bytes(layout.result("thumbnails", key, ".jpg"), ingested.thumbnail)
        result = IngestResult(ingested.clip, None)
    root.write_bytes(stored, dump_record(result))
    return result


def _nothing_usable(root: DataRoot, folder: str, left_out: Sequence[LeftOut]) -> str:
    if not left_out:
        return f"there is no video in {root.where(folder)}; put clips there"
    reasons = "; ".join(f"{entry.clip} {entry.reason}" for entry in left_out[:5])
    more = f"; and {len(left_out) - 5} more" if len(left_out) > 5 else ""
    return f"none of the {len(left_out)} files in {root.where(folder)} can be used: {reasons}{more}"


def _in_words(clip: Clip) -> str:
    traits = [f"{clip.display_width}x{clip.display_height}", f"{float(clip.fps):.4g} fps", clip.codec]
    if clip.rotation:
        traits.append(f"turned {clip.rotation}°")
    if clip.variable_rate:
        traits.append("variable frame rate")
    if clip.transfer != "sdr":
        traits.append(f"HDR ({clip.transfer.upper()})")
    if clip.interlaced:
        traits.append("interlaced")
    traits.append({0: "no sound", 1: "mono sound"}.get(clip.audio_channels, "sound"))
    return f"{clip.duration_s:.2f} s, " + ", ".join(traits)


def _metadata(root: DataRoot, found: Footage) -> dict[str, dg.MetadataValue]:
    shown = found.clips[:24]
    sheet = contact_sheet([root.read_bytes(thumbnail_key(clip)) for clip in shown], [clip.name for clip in shown])
    return {
        "clips": dg.MetadataValue.int(len(found.clips)),
        "left out": dg.MetadataValue.int(len(found.left_out)),
        "length (s)": dg.MetadataValue.float(round(sum(clip.duration_s for clip in found.clips), 2)),
        "size (MB)": dg.MetadataValue.float(round(sum(clip.size_bytes for clip in found.clips) / 1e6, 1)),
        "music": dg.MetadataValue.path(root.where(found.music.source)),
        "detector": dg.MetadataValue.text(found.spec.detector),
        **({"grade": dg.MetadataValue.text(found.grade.name)} if found.grade else {}),
        "thumbnails": picture(sheet, "one picture of each clip"),
        "clip table": table([{"clip": clip.name, "what it is": _in_words(clip)} for clip in found.clips]),
        "left out table": table([{"clip": entry.clip, "reason": entry.reason} for entry in found.left_out]),
    }
