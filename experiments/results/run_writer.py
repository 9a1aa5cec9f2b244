"""The folder of one run: it is made before anything long is computed, and finished when its summary is written."""

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

OWN_LOAD = 0.5  # load of an idle machine, from its services; chosen, not tuned

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
        return any(map(is_busy, _sessions(self.path)))

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
        body = json.loads((self.path / run_files.PROVENANCE).read_text(encoding="utf-8"))
        run_files.write_json(self.path / run_files.PROVENANCE, {**body, "run": {**facts, **body["run"]}})

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write the summary, which marks the run as finished."""
        load = {"load_before": self.started["load_before"], "load_after": provenance.load_average()}
        run_files.write_json(
            self.path / run_files.SUMMARY,
            {**summary, "finished": provenance.now(), **load, "busy": self.is_busy},
        )


def is_busy(environment: Mapping[str, Any]) -> bool:
    """Whether the load before a run is above the load of a run with this number of threads.

    Another run may just have ended before it, so a load of this number of threads does not count as busy.
    """
    load = environment["load_before"]
    return load is not None and bool(load > environment["threads"] + OWN_LOAD)


def _sessions(path: Path) -> list[Mapping[str, Any]]:
    """The environments of the run's first session and of the sessions that resumed it."""
    first = json.loads((path / run_files.PROVENANCE).read_text(encoding="utf-8"))
    return [first, *first.get("resumed", [])]


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
    """A new folder with configuration and settings only; without provenance it is not yet the folder of a run."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    parent = outputs / verb / name
    parent.mkdir(parents=True, exist_ok=True)
    path = _created(parent / f"{stamp}-{provenance.digest(config)[:8]}")
    run_files.write_text(path / run_files.CONFIG, config)
    run_files.write_text(path / run_files.OVERRIDES, "".join(f"{o}\n" for o in overrides))
    return path


@contextmanager
def reopen_folder(path: Path) -> Iterator[Folder]:
    """The folder of a resumed run; its provenance holds the start and the load of each session."""
    started = provenance.environment()
    session = {name: started[name] for name in ("started", "argv", "load_before", "threads")}
    first, *later = _sessions(path)
    run_files.write_json(path / run_files.PROVENANCE, {**first, "resumed": [*later, session]})
    with logging_to(path):
        yield Folder(path, started)


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """A context that also writes the log lines of this project to `log.txt` of the folder."""
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
    """Create and return `path`, with a number at its end if another run, also of another process, took the name."""
    candidate, n = path, 2
    while True:
        try:
            candidate.mkdir()
            return candidate
        except FileExistsError:
            candidate, n = path.with_name(f"{path.name}-{n}"), n + 1
