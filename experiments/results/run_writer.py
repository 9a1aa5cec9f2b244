"""The folder of one run: made when all it needs is known to be there, finished when its summary is written."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from selfspec.errors import InputError
from selfspec.records import provenance, run_files

OWN_LOAD = 0.5  # of a machine that does nothing else: its services; chosen, not tuned

# before it does anything
OF_EVERY_RUN = {run_files.CONFIG, run_files.OVERRIDES, run_files.PROVENANCE, run_files.LOG, run_files.PROMPTS}

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Folder:
    """`outputs/VERB/NAME/TIME-HASH/`.

    Attributes:
        path: of the folder.
        started: the environment of this session; of a run that goes on, not of the session that began it.
    """

    path: Path
    started: Mapping[str, Any]

    @property
    def id(self) -> str:
        """The name of the run: time and hash of its configuration."""
        return self.path.name

    @property
    def is_busy(self) -> bool:
        """Whether others were at work when a session began: more than its own threads could account for."""
        return any(map(is_busy, _sessions(self.path)))

    def warn_if_busy(self) -> None:
        """One line if seconds measured from now on are in doubt."""
        if is_busy(self.started):
            log.warning(
                "busy machine: load average %s before the start, with %d threads; the speeds of this run are in doubt",
                self.started["load_before"],
                self.started["threads"],
            )

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Say that the run has come to its end; until then it does not look finished."""
        load = {"load_before": self.started["load_before"], "load_after": provenance.load_average()}
        run_files.write_json(
            self.path / run_files.SUMMARY,
            {**summary, "finished": provenance.now(), **load, "busy": self.is_busy},
        )


def is_busy(environment: Mapping[str, Any]) -> bool:
    """Whether the load before a run is above what a run of so many threads causes itself.

    A run before it may just have ended, so its own threads are granted to it already before the start.
    """
    load = environment["load_before"]
    return load is not None and bool(load > environment["threads"] + OWN_LOAD)


def _sessions(path: Path) -> list[Mapping[str, Any]]:
    """The environment of the run's first session, and of those that went on with it."""
    first = json.loads((path / run_files.PROVENANCE).read_text(encoding="utf-8"))
    return [first, *first.get("resumed", [])]


@contextmanager
def open_folder(
    outputs: Path, verb: str, name: str, *, config: str, overrides: list[str], facts: Mapping[str, Any]
) -> Iterator[Folder]:
    """A new run folder with its configuration and provenance; log lines go to its `log.txt` while it is open.

    Where the run is refused before it wrote anything itself, its folder goes, too: it would look as if it went on.

    Args:
        outputs: where run folders go.
        verb, name: of the run.
        config: the resolved configuration, YAML.
        overrides: what was given on the command line.
        facts: about the run (model, data, dtype, ...), for readers that know no configuration.
    """
    path = new_folder(outputs, verb, name, config=config, overrides=overrides)
    started = provenance.environment()
    run_files.write_json(path / run_files.PROVENANCE, {**started, "run": dict(facts)})
    try:
        with logging_to(path):
            yield Folder(path, started)
    except InputError:
        if {p.name for p in path.iterdir()} <= OF_EVERY_RUN:
            shutil.rmtree(path)
        raise


def new_folder(outputs: Path, verb: str, name: str, *, config: str, overrides: list[str]) -> Path:
    """`open_folder` without what makes it the folder of a run: only what was asked."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    parent = outputs / verb / name
    parent.mkdir(parents=True, exist_ok=True)
    path = _created(parent / f"{stamp}-{provenance.digest(config)[:8]}")
    run_files.write_text(path / run_files.CONFIG, config)
    run_files.write_text(path / run_files.OVERRIDES, "".join(f"{o}\n" for o in overrides))
    return path


@contextmanager
def reopen_folder(path: Path) -> Iterator[Folder]:
    """The folder of a run that goes on; its provenance tells each session's start and load."""
    started = provenance.environment()
    session = {name: started[name] for name in ("started", "argv", "load_before", "threads")}
    first, *later = _sessions(path)
    run_files.write_json(path / run_files.PROVENANCE, {**first, "resumed": [*later, session]})
    with logging_to(path):
        yield Folder(path, started)


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Log lines of this project also go to `log.txt` of the folder."""
    handler = logging.FileHandler(path / run_files.LOG, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()


def _created(path: Path) -> Path:
    """`path`, or with a number behind it where two runs began in the same second; they may be two processes."""
    candidate, n = path, 2
    while True:
        try:
            candidate.mkdir()
            return candidate
        except FileExistsError:
            candidate, n = path.with_name(f"{path.name}-{n}"), n + 1
