"""What was done before a system could decode: its trainings and searches, their seconds, and the text they read.

This module follows the names in the settings of an arm to the runs that they name. It must not know tables.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.paper.evidence import Measured
from experiments.results.run_folder import Run
from selfspec.records import run_files

OVERLAPPED = ", pearl"  # ending of the names of arms that schedule=pearl adds, each with the draft of the arm before it


@dataclass(frozen=True, slots=True)
class Preparation:
    """The preparation of a system.

    Attributes:
        training_s, search_s: seconds of its trainings and of its searches; 0 if it needs none, None if unknown.
        n_tokens: answer tokens of the stores that it was trained on; 0 without a training, None if unknown.
    """

    training_s: float | None = 0.0
    search_s: float | None = 0.0
    n_tokens: int | None = 0

    @property
    def seconds(self) -> float | None:
        """All seconds; None if a part is unknown."""
        if self.training_s is None or self.search_s is None:
            return None
        return self.training_s + self.search_s


NOTHING = Preparation()


def preparation(arm: Measured, runs: Sequence[Run]) -> Preparation:
    """The preparation of an arm.

    Args:
        arm: an arm of an evaluation.
        runs: the trainings and searches that it may name.
    """
    known = {run.path.resolve(): run for run in runs if run.verb != "evaluate"}
    trained: list[float | None] = []
    searched: list[float | None] = []
    tokens: list[int | None] = []
    to_do, seen = list(_named(arm)), set[str]()
    while to_do:
        word = to_do.pop()
        if word in seen:
            continue
        seen.add(word)
        run = next((known[p] for p in (Path(word).resolve(), *Path(word).resolve().parents) if p in known), None)
        run = run or next((r for r in known.values() if r.id == word), None)
        if run is None:
            if seconds := _of_step(word):
                trained.append(seconds)
            continue
        if run.verb == "search":
            searched.append(run.summary.get("elapsed_s"))
            to_do += [str(word) for word in [run.config().get("trained")] if word]
        else:
            trained.append(run.summary.get("seconds"))
            tokens.append(run.facts.get("n_answer_tokens"))
    return Preparation(_sum(trained), _sum(searched), max((n for n in tokens if n is not None), default=0))


def collecting_s(runs: Sequence[Run]) -> float | None:
    """Seconds that collecting the text of all trainings took; None if no experiment recorded them."""
    stores = {str(store) for run in runs for store in run.facts.get("stores") or ()}
    found = [seconds for store in sorted(stores) if (seconds := _of_step(store)) is not None]
    return sum(found) if found else None


def _named(arm: Measured) -> Iterator[str]:
    """The names of drafts and predictors in the settings of an arm."""
    config = arm.run.config()
    arms: Any = config.get("arms") or {}
    settings: Any = arms.get(arm.row.arm, arms.get(arm.row.arm.removesuffix(OVERLAPPED)))
    if settings is None:
        if arm.row.is_baseline or not arm.row.drafted or arm.about.get("lookup") == "only":
            return
        settings = {"skip": config.get("skip"), "stop": config.get("stop")}
    if isinstance(settings, Mapping) and settings.get("skip") not in (None, "none"):
        yield str(settings["skip"])
    yield from _predictors(settings.get("stop") if isinstance(settings, Mapping) else None)


def _predictors(stop: Any) -> Iterator[str]:
    if isinstance(stop, Mapping):
        for name, value in stop.items():
            if name == "predictor" and value:
                yield str(value)
            else:
                yield from _predictors(value)


def _of_step(word: str) -> float | None:
    """Seconds of the step of an experiment whose run `word` names or lies in; None if there is no such step."""
    path = Path(word).resolve()
    for folder in path.parents if path.exists() else ():
        if (folder / run_files.STEPS).is_file():
            rows = run_files.read_rows(folder / run_files.STEPS)
            return next((float(r["seconds"]) for r in rows if path.is_relative_to(Path(r["run"]).resolve())), None)
    return None


def _sum(seconds: Sequence[float | None]) -> float | None:
    found = [s for s in seconds if s is not None]
    return sum(found) if len(found) == len(seconds) else None
