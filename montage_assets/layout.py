"""Where everything lies below the data root.

    input/<montage>/            clips, one song, optional montage.yaml; never written to
    work/                       results by content key, and the records of each montage
    output/<montage>/           montage.mp4 and its edit list, montage.json

Keys use forward slashes and are relative to the data root.
"""

from __future__ import annotations

INPUT = "input"
WORK = "work"
OUTPUT = "output"
DAGSTER_HOME = "dagster"
"""Where the command line keeps its Dagster instance."""
DEFAULT_MONTAGE = "default"
"""The montage made of the media files that lie loose in input/, if there are any."""

FILM = "montage.mp4"
EDIT_LIST = "montage.json"


def input_folder(montage: str) -> str:
    """Where a montage's footage lies; for `default`, where the loose files do. What is there decides: see
    `partitions.folder_of`."""
    return INPUT if montage == DEFAULT_MONTAGE else f"{INPUT}/{montage}"


def clip_source(folder: str, name: str) -> str:
    """The data-root key (or absolute path) of a clip of a footage folder."""
    return f"{folder}/{name}"


def record(montage: str, asset: str) -> str:
    """The JSON record of one asset of one montage."""
    return f"{WORK}/montages/{montage}/{asset}.json"


def step_record(identifier: list[str]) -> str:
    """The JSON record that one step of a run hands to the next; `identifier` is run, step, output."""
    return f"{WORK}/runs/" + "/".join(identifier) + ".json"


def job_file(job: str, name: str) -> str:
    """A file of one Kubernetes job's, for example what one of its shards found."""
    return f"{WORK}/jobs/{job}/{name}"


def result(kind: str, key: str, suffix: str) -> str:
    """A content-addressed result, spread over 256 folders."""
    return f"{WORK}/{kind}/{key[:2]}/{key}{suffix}"


def film(montage: str) -> str:
    """The finished film."""
    return f"{OUTPUT}/{montage}/{FILM}"


def edit_list(montage: str) -> str:
    """The edit list beside the film."""
    return f"{OUTPUT}/{montage}/{EDIT_LIST}"
