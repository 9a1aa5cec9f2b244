"""What lies in an outputs folder: runs of every state, and what only looks like one, each said to be so.

Built on `experiments.results.find_runs`, but where that refuses a folder that cannot be read, this lists it with the
reason: a dashboard must survive what a killed job or another program left behind. Knows nothing of how it is shown.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import yaml

from experiments.results.find_runs import ROWS, RunFolder, Verb
from selfspec.records import run_files

State = Literal["finished", "running", "stopped", "unreadable"]
Stamp = tuple[tuple[str, int, int], ...]

QUIET_S = 600.0  # an unfinished run that wrote nothing for so long has stopped; chosen, not tuned
_FILES = (run_files.PROVENANCE, run_files.SUMMARY, run_files.CONFIG, *ROWS.values())


@dataclass(frozen=True, slots=True)
class Entry:
    """One folder that is a run or looks like one.

    Attributes:
        path: of the folder, resolved.
        name: its path below the scanned folder.
        verb: what the run did, or would have done.
        state: unreadable if it is malformed or foreign; then `problem` says why.
        started: when, UTC; None if unknown.
        n_rows: trials, or prompts times arms.
        facts, summary: as the run recorded them; empty where it did not.
        problem: why the folder cannot be read, or what of it cannot.
    """

    path: Path
    name: str
    verb: Verb
    state: State
    started: datetime | None = None
    n_rows: int = 0
    facts: Mapping[str, Any] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""

    @property
    def id(self) -> str:
        """The folder's own name."""
        return self.path.name

    @property
    def run(self) -> RunFolder:
        """As the report knows it."""
        return RunFolder(self.path, self.verb, self.id, self.name, self.provenance, self.state == "finished")


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows that could be read, and a line about each one that could not."""

    rows: list[dict[str, Any]]
    problems: list[str]


def find(outputs: Path) -> dict[Path, Stamp]:
    """The folders below `outputs` that are runs or look like them, each with the stamp of what it holds.

    A folder whose stamp is as before need not be read again.
    """
    found: dict[Path, Stamp] = {}
    for folder, below, files in os.walk(outputs):
        path = Path(folder)
        if _verb(path, files) is not None:
            below.clear()  # a run holds no runs
            found[path.resolve()] = stamp(path)
    return found


def stamp(path: Path) -> Stamp:
    """Names, times and sizes of the files that a run is read from: equal where nothing has changed."""
    stamps = []
    for name in _FILES:
        try:
            status = (path / name).stat()
        except OSError:
            continue
        stamps.append((name, status.st_mtime_ns, status.st_size))
    return tuple(stamps)


def _verb(path: Path, files: list[str]) -> Verb | None:
    place = path.parent.parent.name
    if place == "decode":
        return None
    for verb, file in ROWS.items():
        if file in files or (place == verb and (files or not any(path.iterdir()))):
            return verb
    return None


def read(path: Path, outputs: Path, *, now: datetime) -> Entry:
    """What one folder is; never raises for what is in it.

    Args:
        path: of the folder.
        outputs: the scanned folder.
        now: when it is looked at, to tell a running run from one that stopped.
    """
    root = outputs.resolve()
    name = path.relative_to(root).as_posix() if path.is_relative_to(root) and path != root else path.name
    verb = _verb(path, os.listdir(path)) or "search"
    rows_path = path / ROWS[verb]
    try:
        provenance = _json(path / run_files.PROVENANCE)
        summary = _json(path / run_files.SUMMARY) if run_files.is_finished(path) else {}
        n_rows = _count(rows_path)
    except (OSError, ValueError) as error:
        return Entry(path, name, verb, "unreadable", started=_when(path.name), problem=str(error))
    facts = provenance.get("run")
    if not isinstance(facts, dict):
        problem = f"{run_files.PROVENANCE} does not say what ran (no `run` object)"
        return Entry(path, name, verb, "unreadable", provenance=provenance, problem=problem)
    return Entry(
        path,
        name,
        verb,
        _state(path, now),
        started=_when(provenance.get("started")) or _when(path.name),
        n_rows=n_rows,
        facts=facts,
        summary=summary,
        provenance=provenance,
    )


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ValueError(f"no {file.name}: not a run, or one that was killed while it started")
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file.name} is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{file.name} holds no object")
    return value


def _count(file: Path) -> int:
    """Rows of a file, whose first and last are looked at; all are when they are read."""
    if not file.is_file():
        return 0
    *lines, _ = file.read_bytes().split(b"\n")
    for number in sorted({1, len(lines)}) if lines else ():
        _row(lines[number - 1], file, number)
    return len(lines)


def _row(line: bytes, file: Path, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        raise ValueError(f"{file.name}, line {number}: not JSON") from None
    if not isinstance(row, dict) or row.get("schema") != run_files.SCHEMA:
        raise ValueError(f"{file.name}, line {number}: not a row of schema {run_files.SCHEMA}")
    return row


def _state(path: Path, now: datetime) -> State:
    if run_files.is_finished(path):
        return "finished"
    newest = max((changed for _, changed, _ in stamp(path)), default=0) / 1e9
    return "running" if now.timestamp() - newest < QUIET_S else "stopped"


def _when(text: object) -> datetime | None:
    for form in ("%Y-%m-%dT%H:%M:%SZ", "%Y%m%dT%H%M%SZ"):
        try:
            return datetime.strptime(str(text).partition("Z")[0] + "Z", form).replace(tzinfo=UTC)
        except ValueError:
            continue
    return None


def read_rows(entry: Entry, *, holding: str = "") -> Rows:
    """The rows of a run as they are now; a line that is none is told and left out.

    A last line without its newline is being written, or was when the run was killed: it is not yet a row.

    Args:
        entry: the run.
        holding: leave lines without this text unread; one trial of many is found sooner so.
    """
    file, found, problems = entry.path / ROWS[entry.verb], [], []
    lines = file.read_bytes().split(b"\n")[:-1] if file.is_file() else []
    need = ("number", "state", "skip") if entry.verb == "search" else ("arm", "prompt_id")
    for number, line in enumerate(lines, start=1):
        if holding.encode() not in line:
            continue
        try:
            row = _row(line, file, number)
        except ValueError as error:
            problems.append(str(error))
            continue
        lacking = [name for name in need if name not in row]
        if lacking:
            problems.append(f"{file.name}, line {number}: no {', '.join(lacking)}")
        else:
            found.append(row)
    return Rows(found, problems)


def read_config(entry: Entry) -> dict[str, Any]:
    """The settings of a run; empty if they cannot be read."""
    try:
        body = yaml.safe_load((entry.path / run_files.CONFIG).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return body if isinstance(body, dict) else {}
