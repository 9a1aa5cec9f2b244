"""The folder of one run: made when all it needs is known to be there, finished when its summary is written."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from selfspec import provenance, records


@dataclass(frozen=True, slots=True)
class Folder:
    """`outputs/VERB/NAME/TIME-HASH/`."""

    path: Path

    @property
    def id(self) -> str:
        """The name of the run: time and hash of its configuration."""
        return self.path.name

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Say that the run has come to its end; until then it does not look finished."""
        records.write_json(
            self.path / records.SUMMARY,
            {**summary, "finished": provenance.now(), "load_after": provenance.load_average()},
        )


@contextmanager
def open_folder(
    outputs: Path, verb: str, name: str, *, config: str, overrides: list[str], facts: Mapping[str, Any]
) -> Iterator[Folder]:
    """A new run folder with its configuration and provenance; log lines go to its `log.txt` while it is open.

    Args:
        outputs: where run folders go.
        verb, name: of the run.
        config: the resolved configuration, YAML.
        overrides: what was given on the command line.
        facts: about the run (model, data, dtype, ...), for readers that know no configuration.
    """
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    parent = outputs / verb / name
    parent.mkdir(parents=True, exist_ok=True)
    path = _unused(parent / f"{stamp}-{provenance.digest(config)[:8]}")
    path.mkdir()
    records.write_text(path / records.CONFIG, config)
    records.write_text(path / records.OVERRIDES, "".join(f"{o}\n" for o in overrides))
    records.write_json(path / records.PROVENANCE, {**provenance.environment(), "run": dict(facts)})
    with logging_to(path):
        yield Folder(path)


@contextmanager
def reopen_folder(path: Path) -> Iterator[Folder]:
    """The folder of a run that goes on."""
    with logging_to(path):
        yield Folder(path)


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Log lines of this project also go to `log.txt` of the folder."""
    handler = logging.FileHandler(path / records.LOG, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()


def _unused(path: Path) -> Path:
    """`path`, or with a number behind it where two runs began in the same second."""
    candidate, n = path, 2
    while candidate.exists():
        candidate, n = path.with_name(f"{path.name}-{n}"), n + 1
    return candidate
