"""Run folders, found by what a user calls them: an id, a folder, a glob, or a part of what is known of a run.

`experiments.results.run_folder` says what a folder is. Readers that make tables of runs take `find_runs`, which refuses
what cannot be read; lists and dashboards take `list_runs`, which returns it with the reason.
"""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path

from experiments.results.run_folder import ROWS, Run, name_of, open_run, run_folders
from selfspec.errors import InputError
from selfspec.records import run_files

MATCHED = ("model", "data", "searcher")  # facts of a run that a part of its name may stand for


@dataclass(frozen=True, slots=True)
class Failure:
    """A job of a sweep that came to nothing: where it ran, why it failed, and its settings."""

    name: str
    error: str
    overrides: Sequence[str]


def list_runs(word: str | None, outputs: Path) -> list[Run]:
    """The runs of every state that a word names, the newest first.

    Args:
        word: a folder, seen from the working folder or from `outputs`; an id; or a part of a name, model, data set or
            searcher, where `*` and `?` stand for anything. None: all runs.
        outputs: the folder of the runs.
    """
    folders = (Path(word).expanduser(), outputs / word) if word else ()
    below = next((paths for folder in folders if (paths := run_folders(folder))), None)
    now = datetime.now(UTC)
    found = [open_run(path, outputs, now=now) for path in below or run_folders(outputs)]
    if word and not below:
        found = [run for run in found if run.id == word] or [run for run in found if _matches(run, word)]
    return newest_first(found)


def newest_first(runs: Sequence[Run]) -> list[Run]:
    """The runs by when they started, the newest first."""
    return sorted(runs, key=lambda run: (run.started or datetime.min.replace(tzinfo=UTC), run.name), reverse=True)


def _matches(run: Run, part: str) -> bool:
    known = " ".join([run.name, *(str(run.facts[name]) for name in MATCHED if name in run.facts)])
    return fnmatchcase(known, f"*{part}*")


def find_runs(patterns: Sequence[str] | str, outputs: Path) -> list[Run]:
    """The runs that the patterns name, in that order, each once.

    Args:
        patterns: each the id of a run, a folder (the run's own, or one with runs anywhere below it) or a glob of
            folders, where `**` crosses folders; seen from the working folder, else from `outputs`. A text holds
            several between commas. Without any: the newest finished evaluate run and the newest finished search run.
        outputs: the folder that holds the runs as verb/name/id.

    Raises:
        InputError: if a pattern names no run, or a run cannot be read or does not say what it ran on.
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
        InputError: if what a job left behind cannot be read.
    """
    files = {file: None for pattern in _words(patterns) for file in _found(pattern, outputs, _failures_below)}
    return [_failure(file, outputs) for file in files]


def _failures_below(folder: Path) -> list[Path]:
    return sorted(folder.resolve().rglob(run_files.FAILURE))


def _failure(file: Path, outputs: Path) -> Failure:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return Failure(name_of(file.parent, outputs), str(found["error"]), [str(word) for word in found["overrides"]])
    except (ValueError, TypeError, KeyError):
        raise InputError(f"{file} does not tell an error and its overrides; leave its folder out") from None


def _words(patterns: Sequence[str] | str) -> list[str]:
    if isinstance(patterns, str):
        # a folder's name may hold a comma; os.path, since pathlib raises where a long list is no possible name
        patterns = [patterns] if os.path.exists(patterns) else patterns.split(",")
    return [pattern.strip() for pattern in patterns if pattern.strip()]


def _named(pattern: str, outputs: Path) -> list[Path]:
    same_id = [path for path in _runs_below(outputs) if path.name == pattern]
    return same_id or _found(pattern, outputs, _runs_below)


def _found(pattern: str, outputs: Path, below: Callable[[Path], list[Path]]) -> list[Path]:
    """What lies below the folders of the pattern, seen from the working folder, else from `outputs`."""
    for base in (Path(), outputs):
        found = {path for hit in _hits(pattern, base) for path in below(hit)}
        if found:
            return sorted(found)
    return []


def _hits(pattern: str, base: Path) -> list[Path]:
    here = base / Path(pattern).expanduser()
    # a folder that exists is meant literally: its name may hold brackets
    return [here] if os.path.exists(here) else [Path(hit) for hit in glob.glob(str(here), recursive=True)]


def _newest_finished(outputs: Path) -> list[Path]:
    newest = []
    for verb in ROWS:
        finished = [path for path in _runs_below(outputs / verb) if run_files.is_finished(path)]
        newest += [max(finished, key=lambda path: path.name)] if finished else []  # a name begins with the time
    if not newest:
        raise InputError(f"no run was named and none is finished; {_what_there_is(outputs)}")
    return newest


def _runs_below(folder: Path) -> list[Path]:
    """The runs that say what they ran on; other folders are none to make a table of."""
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
