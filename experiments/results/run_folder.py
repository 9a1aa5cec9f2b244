"""One run folder in any state: finished, running, stopped, failed or unreadable.

`docs/run_folder.md` lists the contents of a folder; `experiments.results.find_runs` finds folders by name. This module
must not know how a run is shown.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from experiments.results.rows import CurveStep, Raced, Record, Rows, Trial, parse_row, read_rows
from experiments.results.run_facts import Settings, is_busy, read_failure, read_provenance, read_settings, read_summary
from selfspec.errors import InputError
from selfspec.records import run_files

Verb = Literal["evaluate", "search", "train"]
State = Literal["finished", "interrupted", "running", "stopped", "failed", "unreadable"]
Stamp = tuple[tuple[str, int, int], ...]

ROWS: Mapping[Verb, str] = {"evaluate": run_files.RECORDS, "search": run_files.TRIALS, "train": run_files.CURVE}
_KINDS: Mapping[Verb, type[Any]] = {"evaluate": Record, "search": Trial, "train": CurveStep}  # of their rows
QUIET_S = 600.0  # an unfinished run has stopped if it wrote nothing for this long; chosen, not tuned
_STAMPED = (run_files.PROVENANCE, run_files.SUMMARY, run_files.CONFIG, run_files.FAILURE, *ROWS.values())


@dataclass(frozen=True, slots=True)
class Run:
    """A folder that is a run of search, evaluate or train, or looks like one.

    Attributes:
        path: resolved path of the folder.
        verb: verb of the run.
        name: name that finds the run again: its path below the outputs folder, or the path of a folder elsewhere.
        state: state of the run; `interrupted`: a search that Ctrl-C ended; `stopped`: unfinished and silent; `failed`:
            a failed job of a sweep.
        started: start time, UTC; None if unknown.
        n_rows: number of trials, of answers of all arms, or of steps.
        provenance, summary: the recorded facts; empty if the run recorded none.
        problem: the reason why the run failed or the folder is unreadable.
    """

    path: Path
    verb: Verb
    name: str
    state: State
    started: datetime | None = None
    n_rows: int = 0
    provenance: Mapping[str, Any] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""

    @property
    def id(self) -> str:
        """Name of the folder, `<UTC time>-<hash>`."""
        return self.path.name

    @property
    def is_readable(self) -> bool:
        """Whether it recorded what it ran on; the rows of an unfinished run are valid but not complete."""
        return self.state not in ("failed", "unreadable")

    @property
    def is_finished(self) -> bool:
        """Whether the run came to its end."""
        return self.state == "finished"

    @property
    def facts(self) -> Mapping[str, Any]:
        """Model, data, dtype, device and so on; the `run` part of the provenance."""
        return self.provenance.get("run") or {}

    def about(self, arm: str) -> Mapping[str, Any]:
        """The settings of an arm of an evaluation; empty if the run did not record them."""
        about = (self.facts.get("arms") or {}).get(arm)
        return about if isinstance(about, dict) else {}

    @property
    def is_busy(self) -> bool:
        """Whether other programs were busy when a session of it began, so that its seconds are in doubt."""
        sessions = [self.provenance, *self.provenance.get("resumed", [])]
        return any(map(is_busy, sessions))

    @property
    def command(self) -> str:
        """The typed command that repeats the run; without settings if the run did not record them."""
        path = self.path / run_files.OVERRIDES
        words = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
        return " ".join(["selfspec", self.verb, *map(shlex.quote, words)])

    def trials(self, *, holding: str = "") -> Rows[Trial]:
        """The trials of a search that are on disk now; see `read_rows`."""
        return read_rows(self.path / run_files.TRIALS, Trial, holding=holding)

    def records(self) -> Rows[Record]:
        """The answers of an evaluation that are on disk now."""
        return read_rows(self.path / run_files.RECORDS, Record)

    def finals(self) -> Rows[Raced]:
        """The finalists of a search, the winner first; empty without a race."""
        return read_rows(self.path / run_files.FINALS, Raced)

    def steps(self) -> Rows[CurveStep]:
        """The steps of a training that are on disk now."""
        return read_rows(self.path / run_files.CURVE, CurveStep)

    def rows(self) -> Rows[Any]:
        """The trials of a search, the answers of an evaluation, or the steps of a training."""
        return read_rows(self.path / ROWS[self.verb], _KINDS[self.verb])

    def config(self) -> Settings:
        """The resolved configuration; empty if the run did not record it.

        Raises:
            InputError: if the file is unreadable.
        """
        try:
            return read_settings(self.path)
        except ValueError as error:
            raise InputError(f"{self.path}: {error}; mend it, or leave the run out") from None


def flagged(run: str, *, is_finished: bool, is_busy: bool) -> str:
    """The name of a run, with marks for an unfinished run and for a busy machine."""
    flags = [word for word, is_so in (("unfinished", not is_finished), ("busy machine", is_busy)) if is_so]
    return f"{run} ({', '.join(flags)})" if flags else run


def verb_of(path: Path, files: Sequence[str]) -> Verb | None:
    """The verb of the run with these files; None if the folder does not look like a run of a verb of `ROWS`.

    Its rows identify a copied run; its place identifies a run that was killed before its first row. Decode writes other
    rows.
    """
    place = path.parent.parent.name
    if place == "decode":
        return None
    for verb, file in ROWS.items():
        if file in files or (place == verb and (files or not any(path.iterdir()))):
            return verb
    return None


def run_folders(outputs: Path) -> dict[Path, Stamp]:
    """The folders that are runs or look like runs, each with its stamp: `outputs` itself and the folders below it.

    A folder with an unchanged stamp need not be read again.
    """
    found: dict[Path, Stamp] = {}
    for folder, below, files in os.walk(outputs):
        below[:] = sorted(name for name in below if not name.startswith("."))  # such as a folder that is being made
        path = Path(folder).resolve()
        if verb_of(path, files) is not None:
            below.clear()  # a run folder holds no other runs
            found[path] = stamp(path)
    return found


def stamp(path: Path) -> Stamp:
    """Names, times and sizes of the files of a run: equal stamps mean that nothing has changed."""
    stamps = []
    for name in _STAMPED:
        try:
            status = (path / name).stat()
        except OSError:
            continue
        stamps.append((name, status.st_mtime_ns, status.st_size))
    return tuple(stamps)


def open_run(path: Path, outputs: Path, *, now: datetime | None = None) -> Run:
    """The run of a folder; bad contents of the folder never raise.

    Args:
        path: path of the folder.
        outputs: folder of the runs.
        now: time of the call, which tells a running run from a stopped one; None for the present time.
    """
    path = path.resolve()
    verb, name = verb_of(path, os.listdir(path)) or "search", name_of(path, outputs)
    if (path / run_files.FAILURE).is_file():
        return Run(path, verb, name, "failed", started=_when(path.name), problem=_reason(path))
    provenance: Mapping[str, Any] = {}
    try:
        provenance = read_provenance(path)
        if not isinstance(provenance.get("run"), dict):
            raise ValueError(f"{run_files.PROVENANCE} does not say what ran (no `run` object)")
        summary = read_summary(path) if (path / run_files.SUMMARY).exists() else {}
        n_rows = _count(path / ROWS[verb], verb)
    except (OSError, ValueError) as error:
        when = _when(path.name)
        return Run(path, verb, name, "unreadable", started=when, provenance=provenance, problem=str(error))
    return Run(
        path,
        verb,
        name,
        _state(path, now or datetime.now(UTC)),
        started=_when(provenance.get("started")) or _when(path.name),
        n_rows=n_rows,
        provenance=provenance,
        summary=summary,
    )


def name_of(path: Path, outputs: Path) -> str:
    """A name that finds a folder again: its path below `outputs`, or below the working folder, or the whole path."""
    for base in (outputs.resolve(), Path().resolve()):
        if path != base and path.is_relative_to(base):
            return path.relative_to(base).as_posix()
    return str(path)


def _reason(path: Path) -> str:
    try:
        return read_failure(path)["error"]
    except ValueError as error:
        return f"failed for an unknown reason ({error})"


def _count(file: Path, verb: Verb) -> int:
    """Number of rows of a file; this function checks the first and the last row, `read_rows` checks all."""
    lines = list(run_files.read_lines(file))
    for number, line in [*lines[:1], *lines[1:][-1:]]:
        try:
            parse_row(line, _KINDS[verb])
        except ValueError as error:
            raise ValueError(f"{file.name}, line {number}: {error}") from None
    return len(lines)


def _state(path: Path, now: datetime) -> State:
    if run_files.is_finished(path):
        return "finished"
    if (path / run_files.SUMMARY).is_file():
        return "interrupted"
    newest = max((changed for _, changed, _ in stamp(path)), default=0) / 1e9
    return "running" if now.timestamp() - newest < QUIET_S else "stopped"


def _when(text: object) -> datetime | None:
    for form in ("%Y-%m-%dT%H:%M:%SZ", "%Y%m%dT%H%M%SZ"):
        try:
            return datetime.strptime(str(text).partition("Z")[0] + "Z", form).replace(tzinfo=UTC)
        except ValueError:
            continue
    return None
