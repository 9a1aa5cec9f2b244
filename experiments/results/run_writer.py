"""The folder of one run: it is made before anything long is computed, and finished when its summary is written."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from experiments.results.run_facts import Provenance, is_busy, read_provenance
from selfspec.errors import InputError
from selfspec.records import provenance, run_files
from selfspec.records.names import path_part

KEPT = "what was finished is in {}"  # note of an interruption

# files of a run before it does anything
OF_EVERY_RUN = {run_files.CONFIG, run_files.OVERRIDES, run_files.PROVENANCE, run_files.LOG, run_files.PROMPTS}

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Folder:
    """`outputs/VERB/NAME/TIME-HASH/`.

    Attributes:
        path: path of the folder.
        started: environment of this session; a resumed run has one for each session.
    """

    path: Path
    started: Mapping[str, Any]

    @property
    def id(self) -> str:
        """The name of the folder: start time and hash of the configuration."""
        return self.path.name

    @property
    def is_busy(self) -> bool:
        """Whether other programs were busy when a session began: the load was above that of its own threads."""
        first = provenance_of(self.path)
        return any(map(is_busy, [first, *first.get("resumed", [])]))

    def warn_if_busy(self) -> None:
        """Log one line if a busy machine puts measured seconds in doubt."""
        if is_busy(self.started):
            log.warning(
                "busy machine: load average %s before the start, with %d threads; the speeds of this run are in doubt",
                self.started["load_before"],
                self.started["threads"],
            )

    def add_facts(self, facts: Mapping[str, Any]) -> None:
        """Add facts about the run to its provenance; those that are there stay."""
        body = provenance_of(self.path)
        run_files.write_json(self.path / run_files.PROVENANCE, {**body, "run": {**facts, **body["run"]}})

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write the summary, which marks the run as finished."""
        load = {"load_before": self.started["load_before"], "load_after": provenance.load_average()}
        run_files.write_json(
            self.path / run_files.SUMMARY,
            {**summary, "finished": provenance.now(), **load, "busy": self.is_busy},
        )


def provenance_of(path: Path) -> Provenance:
    """The provenance of a run that goes on.

    Raises:
        InputError: if it is missing or damaged.
    """
    try:
        return read_provenance(path)
    except ValueError as error:
        raise InputError(f"the run in {path} cannot go on ({error}); start another one") from None


@contextmanager
def open_folder(
    outputs: Path, verb: str, name: str, *, config: str, overrides: list[str], facts: Mapping[str, Any]
) -> Iterator[Folder]:
    """A new run folder with its configuration and provenance; log lines go to its `log.txt` while it is open.

    If the run is refused before it writes anything, its folder is removed: otherwise it would look like a running run.

    Args:
        outputs: folder for run folders.
        verb, name: verb and name of the run.
        config: the resolved configuration, YAML.
        overrides: settings from the command line.
        facts: facts about the run (model, data, dtype, ...), for readers that do not read configurations.
    """
    started = provenance.environment()
    facts_of_run = {**started, "run": dict(facts)}
    path = new_folder(outputs, verb, name, config=config, overrides=overrides, provenance_of_run=facts_of_run)
    try:
        with _only_writer(path), logging_to(path):
            yield Folder(path, started)
    except KeyboardInterrupt as end:
        end.add_note(KEPT.format(path))
        raise
    except InputError:
        if {p.name for p in path.iterdir()} <= OF_EVERY_RUN:
            shutil.rmtree(path)
        raise


def new_folder(
    outputs: Path,
    verb: str,
    name: str,
    *,
    config: str,
    overrides: list[str],
    provenance_of_run: Mapping[str, Any] | None = None,
) -> Path:
    """A new folder with these files; without provenance it is not the folder of a run.

    It gets its name when its files are complete, so a kill or a full disk leaves no folder that looks like a run.
    """
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    parent = outputs / verb / path_part(name, "name")
    parent.mkdir(parents=True, exist_ok=True)
    hidden = Path(tempfile.mkdtemp(prefix=".new-", dir=parent))
    try:
        hidden.chmod(0o755)
        run_files.write_text(hidden / run_files.CONFIG, config)
        run_files.write_text(hidden / run_files.OVERRIDES, "".join(f"{o}\n" for o in overrides))
        if provenance_of_run is not None:
            run_files.write_json(hidden / run_files.PROVENANCE, provenance_of_run)
        return _named(hidden, parent / f"{stamp}-{provenance.digest(config)[:8]}")
    except BaseException:
        shutil.rmtree(hidden, ignore_errors=True)
        raise


@contextmanager
def reopen_folder(path: Path) -> Iterator[Folder]:
    """The folder of a resumed run; its provenance holds the start and the load of each session.

    Raises:
        InputError: if another process writes to it, or it cannot go on.
    """
    started = provenance.environment()
    session = {name: started[name] for name in ("started", "argv", "load_before", "threads", "process")}
    with _only_writer(path):
        first = provenance_of(path)
        for leftover in path.glob(".*"):  # of a kill while a file was written
            leftover.unlink()
        run_files.write_json(path / run_files.PROVENANCE, {**first, "resumed": [*first.get("resumed", []), session]})
        try:
            with logging_to(path):
                yield Folder(path, started)
        except KeyboardInterrupt as end:
            end.add_note(KEPT.format(path))
            raise


@contextmanager
def _only_writer(path: Path) -> Iterator[None]:
    """A context in which this process is the only one that writes to a run folder.

    The system releases the lock when the process ends, however it ends. Some network file systems have no such locks:
    there the context does nothing.

    Raises:
        InputError: if another process writes to the folder.
    """
    folder = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                first = provenance_of(path)
                process = [first, *first.get("resumed", [])][-1].get("process", "another process")
                raise InputError(f"{path} is being written by {process}; wait for its end, or end it") from None
        yield
    finally:
        os.close(folder)


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """A context that also writes the log lines of this project to `log.txt` of the folder."""
    handler = _LogFile(path / run_files.LOG, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()


class _LogFile(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # logging's name
        """Raise the error of a full disk, for which `logging` prints a traceback."""
        if isinstance(sys.exc_info()[1], OSError):
            raise
        super().handleError(record)


def _named(hidden: Path, path: Path) -> Path:
    """Rename to `path`, with a number at its end if another run, also of another process, took the name."""
    candidate, n = path, 2
    while True:
        try:
            return hidden.rename(candidate)
        except OSError:
            if not candidate.exists():
                raise
            candidate, n = path.with_name(f"{path.name}-{n}"), n + 1
