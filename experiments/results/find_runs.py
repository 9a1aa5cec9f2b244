"""Run folders, found by what a user calls them.

Knows where runs lie and how to read one; knows nothing of arms, trials or what is made of them, nor of models.
"""

from __future__ import annotations

import glob
import json
import os
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from experiments.results.folder import is_busy
from selfspec.errors import InputError
from selfspec.records import run_files

Verb = Literal["evaluate", "search"]

ROWS: Mapping[Verb, str] = {"evaluate": run_files.RECORDS, "search": run_files.TRIALS}


@dataclass(frozen=True, slots=True)
class Failure:
    """A job of a sweep that came to nothing: where it ran, why it failed, and what it had been asked."""

    name: str
    error: str
    overrides: Sequence[str]


@dataclass(frozen=True, slots=True)
class RunFolder:
    """One run, finished or not.

    Attributes:
        path: of the folder, resolved.
        verb: what the run did.
        id: the folder's own name, `<UTC time>-<hash>`.
        name: what finds it again: its path below the outputs folder, or where it lies if that is elsewhere.
        provenance: what it ran on.
        is_finished: whether it came to its end; the rows of one that did not are true, but not all.
    """

    path: Path
    verb: Verb
    id: str
    name: str
    provenance: Mapping[str, Any]
    is_finished: bool

    @property
    def facts(self) -> Mapping[str, Any]:
        """What ran: model, data, dtype, device and so on; the `run` part of the provenance."""
        facts = self.provenance.get("run")
        return facts if isinstance(facts, dict) else {}

    def about(self, arm: str) -> Mapping[str, Any]:
        """What an arm of an evaluation decodes with; empty where the run does not say."""
        told = (self.facts.get("arms") or {}).get(arm)
        return told if isinstance(told, dict) else {}

    @property
    def is_busy(self) -> bool:
        """Whether others were at work when a session of it began: its seconds are in doubt."""
        sessions = [self.provenance, *self.provenance.get("resumed", [])]
        return any("threads" in s and "load_before" in s and is_busy(s) for s in sessions)

    @property
    def command(self) -> str:
        """What makes the run again, as it was typed; without settings if they were not recorded."""
        path = self.path / run_files.OVERRIDES
        words = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        return " ".join(["selfspec", self.verb, *map(shlex.quote, words)])

    def rows(self) -> list[dict[str, Any]]:
        """The rows as they are on disk now; none if the run was killed before its first."""
        path = self.path / ROWS[self.verb]
        return run_files.read_rows(path) if path.is_file() else []

    def summary(self) -> dict[str, Any]:
        """What it ended with; empty if it has not come to its end."""
        path = self.path / run_files.SUMMARY
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}

    def config(self) -> dict[str, Any]:
        """The resolved configuration; empty if it was not recorded."""
        path = self.path / run_files.CONFIG
        try:
            config = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
        except yaml.YAMLError:
            raise InputError(f"{path} is not YAML; mend it, or leave the run out") from None
        return config if isinstance(config, dict) else {}


def flagged(name: str, *, is_finished: bool, is_busy: bool) -> str:
    """The name of a run, with what a reader of its numbers must know of it."""
    flags = [word for word, is_so in (("unfinished", not is_finished), ("busy machine", is_busy)) if is_so]
    return f"{name} ({', '.join(flags)})" if flags else name


def find_runs(patterns: Sequence[str] | str, outputs: Path) -> list[RunFolder]:
    """The runs that the patterns name, in that order, each once.

    Args:
        patterns: each the id of a run, a folder (the run's own, or one with runs anywhere below it) or a glob of
            folders, where `**` crosses folders; seen from the working folder, else from `outputs`. A text holds
            several between commas. Without any: the newest finished evaluate run and the newest finished search run.
        outputs: the folder that holds the runs as verb/name/id.

    Raises:
        InputError: if a pattern names no run, or a run does not say what it ran on.
    """
    asked = _asked(patterns)
    if not asked:
        return [_read(path, outputs) for path in _newest_finished(outputs)]
    found: dict[Path, None] = {}
    for pattern in asked:
        paths = _named(pattern, outputs)
        if not paths:
            raise InputError(f"no run {pattern!r}: not an id, a folder or a glob of runs; {_what_there_is(outputs)}")
        found.update(dict.fromkeys(paths))
    return [_read(path, outputs) for path in found]


def find_failures(patterns: Sequence[str] | str, outputs: Path) -> list[Failure]:
    """The failed jobs in the folders that the patterns of `find_runs` name.

    Raises:
        InputError: if what a job left behind cannot be read.
    """
    files = {file: None for pattern in _asked(patterns) for file in _found(pattern, outputs, _failures_below)}
    return [_failure(file, outputs) for file in files]


def _failures_below(folder: Path) -> list[Path]:
    return sorted(folder.resolve().rglob(run_files.FAILURE))


def _failure(file: Path, outputs: Path) -> Failure:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return Failure(_name(file.parent, outputs), str(found["error"]), [str(word) for word in found["overrides"]])
    except (ValueError, TypeError, KeyError):
        raise InputError(f"{file} does not tell an error and its overrides; leave its folder out") from None


def _asked(patterns: Sequence[str] | str) -> list[str]:
    if isinstance(patterns, str):
        # a folder's name may hold a comma; os.path, since pathlib raises where a long list is no possible name
        patterns = [patterns] if os.path.exists(patterns) else patterns.split(",")
    return [pattern.strip() for pattern in patterns if pattern.strip()]


def _named(pattern: str, outputs: Path) -> list[Path]:
    same_id = [path for path in _runs_below(outputs) if path.name == pattern]
    if same_id:
        return same_id
    return _found(pattern, outputs, _runs_below)


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
    return sorted(
        file.parent for file in folder.resolve().rglob(run_files.PROVENANCE) if _verb(file.parent) is not None
    )


def _verb(path: Path) -> Verb | None:
    place = path.parent.parent.name
    for verb, file in ROWS.items():
        # a copied run is known by its rows, one killed before its first row by its place; decode has rows of its own
        if place == verb or (place != "decode" and (path / file).is_file()):
            return verb
    return None


def _what_there_is(outputs: Path) -> str:
    paths = _runs_below(outputs)
    if not paths:
        return f"{outputs} holds no run yet; make one with `selfspec evaluate` or `selfspec search`"
    names = [_name(path, outputs) for path in sorted(paths, key=lambda path: path.name, reverse=True)[:3]]
    n_finished = sum(map(run_files.is_finished, paths))
    return (
        f"{outputs} holds {len(paths)} ({n_finished} finished), the newest {', '.join(names)}; "
        "name one with runs=ID, runs=FOLDER or runs=GLOB"
    )


def _name(path: Path, outputs: Path) -> str:
    bases: Iterable[Path] = (outputs.resolve(), Path().resolve())
    return next((path.relative_to(base).as_posix() for base in bases if path.is_relative_to(base)), str(path))


def _read(path: Path, outputs: Path) -> RunFolder:
    verb = _verb(path)
    assert verb is not None  # only such folders are found
    file = path / run_files.PROVENANCE
    try:
        provenance = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{file} is not JSON ({error}); what the run ran on is unknown, so leave it out") from None
    if not isinstance(provenance, dict):
        raise InputError(f"{file} holds no object; what the run ran on is unknown, so leave it out")
    return RunFolder(path, verb, path.name, _name(path, outputs), provenance, run_files.is_finished(path))
