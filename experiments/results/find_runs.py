"""The run folders that a user's word names: an id, a folder, a glob, or a part of the facts of a run.

`experiments.results.run_folder` defines run folders. Readers that make tables use `find_runs`, which refuses unreadable
runs; lists and dashboards use `list_runs`, which returns them with the reason.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path

from experiments.results.run_facts import read_failure
from experiments.results.run_folder import ROWS, Run, name_of, open_run, run_folders
from selfspec.errors import InputError
from selfspec.records import run_files

MATCHED = ("model", "data", "searcher")  # facts of a run that a word may match in part


@dataclass(frozen=True, slots=True)
class Failure:
    """A failed job of a sweep: its folder, the reason, and its settings."""

    name: str
    error: str
    overrides: Sequence[str]


def list_runs(word: str | None, outputs: Path) -> list[Run]:
    """The runs of every state that a word names, the newest first.

    Args:
        word: a folder, relative to the working folder or to `outputs`; an id; or a part of a name, model, data set or
            searcher, with the wildcards `*` and `?`. None names all runs.
        outputs: folder of the runs.
    """
    folders = (Path(word).expanduser(), outputs / word) if word else ()
    below = next((paths for folder in folders if (paths := run_folders(folder))), None)
    now = datetime.now(UTC)
    found = [open_run(path, outputs, now=now) for path in below or run_folders(outputs)]
    if word and not below:
        found = [run for run in found if run.id == word] or [run for run in found if _matches(run, word)]
    return newest_first(found)


def newest_first(runs: Sequence[Run]) -> list[Run]:
    """The runs by start time, the newest first."""
    return sorted(runs, key=lambda run: (run.started or datetime.min.replace(tzinfo=UTC), run.name), reverse=True)


def _matches(run: Run, part: str) -> bool:
    known = " ".join([run.name, *(str(run.facts[name]) for name in MATCHED if name in run.facts)])
    return fnmatchcase(known, f"*{part}*")


def find_runs(patterns: Sequence[str] | str, outputs: Path) -> list[Run]:
    """The runs that the patterns name, in the order of the patterns, each once.

    Args:
        patterns: ids of runs, folders (of a run, or with runs anywhere below) or globs of folders, in which `**`
            crosses folders; relative to the working folder, or else to `outputs`. A text holds several patterns
            between commas. No pattern names the newest finished run of each verb.
        outputs: folder that holds the runs as verb/name/id.

    Raises:
        InputError: if a pattern names no run, or a run is unreadable or lacks the facts of what it ran on.
    """
    words = _words(patterns)
    if not words:
        return [_open(path, outputs) for path in _newest_finished(outputs)]
    found: dict[Path, None] = {}
    for pattern in words:
        paths = _named(pattern, outputs)
        if not paths:
            raise InputError(f"no run {pattern!r}: not an id, a folder or a glob of runs; {_what_there_is(outputs)}")
        found.update(dict.fromkeys(paths))
    return [_open(path, outputs) for path in found]


def find_failures(patterns: Sequence[str] | str, outputs: Path) -> list[Failure]:
    """The failed jobs in the folders that the patterns of `find_runs` name.

    Raises:
        InputError: if the file of a failed job is unreadable.
    """
    files = {file: None for pattern in _words(patterns) for file in _found(pattern, outputs, _failures_below)}
    return [_failure(file, outputs) for file in files]


def _failures_below(folder: Path) -> list[Path]:
    return sorted(folder.resolve().rglob(run_files.FAILURE))


def _failure(file: Path, outputs: Path) -> Failure:
    try:
        found = read_failure(file.parent)
    except ValueError as error:
        raise InputError(f"{file.parent}: {error}; leave the folder out") from None
    return Failure(name_of(file.parent, outputs), found["error"], found["overrides"])


def _words(patterns: Sequence[str] | str) -> list[str]:
    if isinstance(patterns, str):
        # a folder's name may hold a comma; os.path, because pathlib raises if a long list is no possible file name
        patterns = [patterns] if os.path.exists(patterns) else patterns.split(",")
    return [pattern.strip() for pattern in patterns if pattern.strip()]


def _named(pattern: str, outputs: Path) -> list[Path]:
    same_id = [path for path in _runs_below(outputs) if path.name == pattern]
    return same_id or _found(pattern, outputs, _runs_below)


def _found(pattern: str, outputs: Path, below: Callable[[Path], list[Path]]) -> list[Path]:
    """The results of `below` for the folders of the pattern, relative to the working folder, or else to `outputs`."""
    for base in (Path(), outputs):
        found = {path for hit in _hits(pattern, base) for path in below(hit)}
        if found:
            return sorted(found)
    return []


def _hits(pattern: str, base: Path) -> list[Path]:
    here = base / Path(pattern).expanduser()
    # the name of an existing folder is no glob: it may hold brackets
    return [here] if os.path.exists(here) else [Path(hit) for hit in glob.glob(str(here), recursive=True)]


def _newest_finished(outputs: Path) -> list[Path]:
    newest = []
    for verb in ROWS:
        finished = [path for path in _runs_below(outputs / verb) if run_files.is_finished(path)]
        newest += [max(finished, key=lambda path: path.name)] if finished else []  # a run's name begins with its time
    if not newest:
        raise InputError(f"no run was named and none is finished; {_what_there_is(outputs)}")
    return newest


def _runs_below(folder: Path) -> list[Path]:
    """The runs with recorded facts of what they ran on; tables cannot show other folders."""
    return sorted(path for path in run_folders(folder) if (path / run_files.PROVENANCE).is_file())


def _what_there_is(outputs: Path) -> str:
    paths = _runs_below(outputs)
    if not paths:
        return f"{outputs} holds no run yet; make one with `selfspec evaluate` or `selfspec search`"
    names = [name_of(path, outputs) for path in sorted(paths, key=lambda path: path.name, reverse=True)[:3]]
    n_finished = sum(map(run_files.is_finished, paths))
    return (
        f"{outputs} holds {len(paths)} ({n_finished} finished), the newest {', '.join(names)}; "
        "name one with runs=ID, runs=FOLDER or runs=GLOB"
    )


def _open(path: Path, outputs: Path) -> Run:
    run = open_run(path, outputs)
    if not run.is_readable:
        raise InputError(f"{path}: {run.problem}; leave the run out")
    return run
