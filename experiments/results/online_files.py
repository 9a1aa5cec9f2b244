"""Files of what was learnt while decoding: `online.yaml` is the state of each arm, `online.jsonl` how it came about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from search.online.tried import Tried
from selfspec.errors import InputError
from selfspec.records import run_files

ONLINE, STEPS = "online.yaml", "online.jsonl"


def read_learnt(file: Path) -> dict[str, dict[str, Any]]:
    """Arm to what it learnt: `searcher`, its name; `state`; `n_trials`; `study`, the folder that shows it as a search.

    Raises:
        InputError: if the file is missing or damaged.
    """
    try:
        body = yaml.safe_load(file.read_text(encoding="utf-8"))
        if not isinstance(body, dict) or not all("state" in arm and "searcher" in arm for arm in body.values()):
            raise ValueError("no states of searchers")
    except (OSError, ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
        raise InputError(f"{file} does not hold what a stream learnt ({' '.join(str(error).split())})") from None
    return body


def write_learnt(file: Path, arms: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the file that `read_learnt` reads."""
    run_files.write_text(file, yaml.safe_dump({name: dict(body) for name, body in arms.items()}, sort_keys=False))


def append_step(file: Path, *, arm: str, progress: Mapping[str, Any], trials: Sequence[Tried]) -> None:
    """Append a row with an arm's counts, and with the trials since its last row."""
    run_files.append_row(file, {"arm": arm, **progress, "trials": [trial.to_dict() for trial in trials]})


def read_steps(file: Path) -> dict[str, list[dict[str, Any]]]:
    """The rows of `append_step` by arm; empty without a file."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in run_files.read_rows(file) if file.is_file() else []:
        found.setdefault(str(row["arm"]), []).append(row)
    return found


def trials_of(steps: Sequence[Mapping[str, Any]]) -> list[Tried]:
    """All trials of an arm, in order."""
    return [Tried.from_dict(body) for step in steps for body in step["trials"]]
