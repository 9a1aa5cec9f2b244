"""The search loop: propose, score and record, until a budget is spent.

It knows a study that proposes, an objective that scores, and a file of rows, but no model. A trial is written to the
study's journal before its row is written to the file, so a kill between the two loses nothing. The file is a view of
the study, with the trials of other workers.
"""

from __future__ import annotations

import itertools
import logging
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from optuna.trial import FrozenTrial, TrialState

from search.ladder import Ladder, best_settings
from search.objective import Objective, Score, ShouldContinue
from search.point import Point
from search.samplers.base import Exhausted
from search.space import Space
from search.study.pruning import WilcoxonPruning
from search.study.study import Proposal, SearchStudy
from selfspec.errors import DrafterError, InputError
from selfspec.measure.stopwatch import Stopwatch
from selfspec.records.run_files import append_row, drop_partial_line, read_rows
from selfspec.skipping.skip_set import SkipSet

log = logging.getLogger(__name__)

Listener = Callable[[dict[str, Any]], None]
Ended = Literal["trials", "seconds", "stagnation", "exhausted", "interrupted"]

STATES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits of a search; the first one that is reached ends it.

    Attributes:
        n_trials: largest number of trials, over all workers and resumed runs; failed and pruned ones count.
        max_s: largest number of seconds, over all resumed runs; the current trial is finished. None: no limit.
        patience: largest number of consecutive proposals without a new best; starts do not count. None: no limit.

    Raises:
        InputError: if a limit allows nothing.
    """

    n_trials: int
    max_s: float | None = None
    patience: int | None = None

    def __post_init__(self) -> None:
        if self.n_trials < 1:
            raise InputError(f"searcher.n_trials={self.n_trials}; a search needs at least 1 trial")
        if self.max_s is not None and self.max_s <= 0:
            raise InputError(f"searcher.max_s={self.max_s}; give seconds above 0, or null for no limit")
        if self.patience is not None and self.patience < 1:
            raise InputError(f"searcher.patience={self.patience}; give 1 trial or more, or null for no limit")

    def spent(self, trials: Sequence[FrozenTrial], elapsed_s: float) -> Ended | None:
        """The limit that these finished trials and seconds have reached; None if the search continues."""
        if len(trials) >= self.n_trials:
            return "trials"
        if self.max_s is not None and trials and elapsed_s >= self.max_s:
            return "seconds"
        if self.patience is not None:
            best = _best(trials)
            since = trials if best is None else trials[best + 1 :]
            if sum(t.user_attrs["origin"] == "searcher" for t in since) >= self.patience:
                return "stagnation"
        return None


@dataclass(frozen=True, slots=True)
class Found:
    """Result of a search: the best completely scored point, and the course of the search.

    Attributes:
        point, value, number: the best point, its value, and the number of its row.
        nothing_value: value of skipping nothing; None if that was not completely scored.
        n_trials, elapsed_s: trials and seconds over all resumed runs.
        ended: the reason for the end.
    """

    point: Point
    value: float
    number: int
    nothing_value: float | None
    n_trials: int
    elapsed_s: float
    ended: Ended

    @property
    def skip(self) -> SkipSet:
        """Skip set of the best point."""
        return self.point.skip


def run_search(
    space: Space,
    objective: Objective,
    study: SearchStudy,
    *,
    starts: Sequence[SkipSet],
    ladder: Ladder | None = None,
    n_trials: int,
    seed: int,
    rows_path: Path | None,
    stopwatch: Stopwatch,
    max_s: float | None = None,
    patience: int | None = None,
    pruning: WilcoxonPruning | None = None,
    listener: Listener | None = None,
) -> Found:
    """Run the search until a budget is spent, of which earlier runs of the same study have spent a part.

    Ctrl-C ends it as well: the current trial is dropped, and the best point so far is returned.

    Args:
        space: the search space.
        objective: scores a point.
        study: proposes and remembers.
        starts: scored first, in order, and always to their end; other dimensions than the skip set at their defaults.
        ladder: scored next, to its end; what it ends at is what searchers search with that know skip sets alone.
        n_trials, max_s, patience: see `Budget`.
        seed: written into each row.
        rows_path: JSON lines, one row a trial; None: no file.
        stopwatch: where the elapsed seconds come from.
        pruning: when the searcher's hopeless trials are stopped; None: never.
        listener: told each row.

    Raises:
        InputError: if the budget allows nothing, or no trial could be scored.
        KeyboardInterrupt: if Ctrl-C comes before a trial was scored.
    """
    budget = Budget(n_trials, max_s, patience)
    if rows_path:
        restore(study, rows_path)
    rows = _Rows(rows_path, study.trials, listener)
    before = max((float(t.user_attrs["elapsed_s"]) for t in study.trials), default=0.0)
    began = stopwatch.now()
    try:
        while True:
            study.sync()
            rows.add(study.trials)
            ended = budget.spent(study.trials, before + stopwatch.now() - began)
            if ended:
                break
            place = study.claim(n_trials)
            if place is None:
                rows.add(study.trials)  # trials that other workers finished in the meantime
                ended = "trials"
                break
            proposal = study.start(starts[place]) if place < len(starts) else _next(study, ladder)
            score, reason = _score(proposal, objective, study.trials, pruning)
            with _uninterrupted():
                elapsed = before + stopwatch.now() - began
                study.tell(proposal, score, elapsed_s=elapsed, seed=seed, reason=reason)
                rows.add(study.trials)
    except Exhausted:
        ended = "exhausted"
    except KeyboardInterrupt:
        if _best(study.trials) is None:
            raise
        ended = "interrupted"
    finally:
        study.release()
    log.info("the search ended after %d trials: %s", len(study.trials), ended)
    return _found(study.trials, space, ended)


def top(study: SearchStudy, k: int) -> list[tuple[Point, float]]:
    """The best `k` distinct, completely scored points with their values, best first."""
    values: dict[Point, float] = {}
    for trial in study.trials:
        if trial.state == TrialState.COMPLETE:
            values.setdefault(study.point(trial), float(trial.user_attrs["value"]))
    return sorted(values.items(), key=lambda item: -item[1])[:k]


def row_of(trial: FrozenTrial, number: int) -> dict[str, Any]:
    """The JSON row of a finished trial; the numbers of a pruned one are over its scored prompts."""
    scored = [f.name for f in fields(Score) if f.name != "pruned"]  # the state holds that
    settings = ["settings"] if "settings" in trial.user_attrs else []
    names = ("origin", "skip", "attn", "mlp", *settings, "acceptance", *scored, "elapsed_s", "seed")
    return {
        "number": number,
        **{name: trial.user_attrs.get(name) for name in names},
        "state": STATES[trial.state],
        "reason": trial.user_attrs.get("reason"),
    }


class _Rows:
    """The file of rows, a view of the study's trials, to which trials are only appended.

    After a kill the row of the last trial may be missing or incomplete; it is written again.
    """

    def __init__(self, path: Path | None, trials: Sequence[FrozenTrial], listener: Listener | None) -> None:
        self._path, self._listener = path, None
        self._n = len(trials) if path is None else _n_written(path, trials)
        self.add(trials)
        self._listener = listener

    def add(self, trials: Sequence[FrozenTrial]) -> None:
        """Append the rows of the trials that have none."""
        for number, trial in enumerate(trials[self._n :], start=self._n):
            row = row_of(trial, number)
            with _uninterrupted():
                if self._path:
                    append_row(self._path, row)
                self._n += 1
            if self._listener:
                self._listener(row)


def restore(study: SearchStudy, path: Path) -> None:
    """Give a study the trials that only the file of rows holds, since its journal was lost or cut off.

    Workers with a common storage are left alone: their file of rows is a view of the storage.
    """
    if study.is_shared or not path.exists():
        return
    drop_partial_line(path)
    rows, n_known = read_rows(path), len(study.trials)
    if len(rows) > n_known and _are_of(rows[:n_known], study.trials):
        log.warning("the study lacks %d trials of %s: they are taken from there", len(rows) - n_known, path)
        for row in rows[n_known:]:
            study.restore(row)


def _are_of(rows: Sequence[dict[str, Any]], trials: Sequence[FrozenTrial]) -> bool:
    """Whether these are the rows of the first trials, in their order."""
    same = ("skip", "state", "elapsed_s")
    known = [row_of(trial, number) for number, trial in enumerate(trials[: len(rows)])]
    return [[row.get(key) for key in same] for row in rows] == [[row[key] for key in same] for row in known]


def _n_written(path: Path, trials: Sequence[FrozenTrial]) -> int:
    """How many of the trials have their row in the file; a file of other rows gets another name."""
    drop_partial_line(path)
    rows = read_rows(path) if path.exists() else []
    if _are_of(rows, trials):
        return len(rows)
    kept = next(file for n in itertools.count(1) if not (file := path.with_name(f"{path.name}.{n}")).exists())
    log.warning("%s has not the rows of the study, in its order: it is kept as %s and written anew", path, kept.name)
    path.rename(kept)
    return 0


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Delay Ctrl-C until the writing is complete."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread gets Ctrl-C
        yield
        return
    held: list[tuple[int, FrameType | None]] = []
    former = signal.signal(signal.SIGINT, lambda number, frame: held.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, former)
        if held and callable(former):
            former(*held[0])


def _next(study: SearchStudy, ladder: Ladder | None) -> Proposal:
    """The ladder's next rung, or the searcher's proposal."""
    if ladder is None:
        return study.ask()
    rungs, point = ladder.climb(values_of(study))
    return study.ask(best_settings(rungs)) if point is None else study.start(point)


def values_of(study: SearchStudy) -> dict[Point, float | None]:
    """The value of every point that was scored; None where it failed."""
    values: dict[Point, float | None] = {}
    for trial in study.trials:
        value = trial.value if trial.state == TrialState.COMPLETE else trial.user_attrs.get("value")
        if value is not None or study.point(trial) not in values:
            values[study.point(trial)] = value
    return values


def _score(
    proposal: Proposal, objective: Objective, trials: Sequence[FrozenTrial], pruning: WilcoxonPruning | None
) -> tuple[Score | None, str | None]:
    """The score (from an earlier trial of the same point if there is one) and a remark; or None and the reason."""
    number = _earlier(trials, proposal)
    if number is not None:
        attrs = trials[number].user_attrs
        known = {f.name: attrs[f.name] for f in fields(Score) if f.name in attrs}
        return Score(**known | {"values": tuple(known.get("values", ()))}), f"known from trial {number}"
    best = None if pruning is None or proposal.origin == "start" else _best(trials)
    should_continue: ShouldContinue | None = None
    if pruning is not None and best is not None:
        should_continue = pruning.against(trials[best].user_attrs.get("values", ()))
    try:
        score = objective(proposal.point, should_continue=should_continue)
    except (RuntimeError, DrafterError) as error:  # includes torch's out-of-memory; any other error ends the search
        return None, str(error).splitlines()[0]
    return score, f"behind trial {best} after {len(score.values)} prompts" if score.pruned else None


def _earlier(trials: Sequence[FrozenTrial], proposal: Proposal) -> int | None:
    """The first trial of the same point, a complete one if possible; for a start only complete ones count."""
    states = [TrialState.COMPLETE] if proposal.origin == "start" else [TrialState.COMPLETE, TrialState.PRUNED]
    point = str(proposal.skip), dict(proposal.point.settings)
    same = [
        (n, t.state) for n, t in enumerate(trials) if (t.user_attrs["skip"], t.user_attrs.get("settings", {})) == point
    ]
    return next((n for wanted in states for n, state in same if state == wanted), None)


def _best(trials: Sequence[FrozenTrial]) -> int | None:
    """Index of the first of the best complete trials; None if there is none."""
    complete = [n for n, t in enumerate(trials) if t.state == TrialState.COMPLETE]
    return max(complete, key=lambda n: float(trials[n].user_attrs["value"]), default=None)


def _found(trials: Sequence[FrozenTrial], space: Space, ended: Ended) -> Found:
    number = _best(trials)
    if number is None:
        why = f"; the first says: {trials[0].user_attrs['reason']}" if trials else ""
        raise InputError(f"none of {len(trials)} trials could be scored{why}")
    best = trials[number].user_attrs
    done = (t.user_attrs for t in trials if t.state == TrialState.COMPLETE)
    default = dict(space.point(SkipSet(space.n_layers)).settings)
    nothing = next((a for a in done if a["skip"] == "none" and a.get("settings", {}) == default), None)
    return Found(
        point=Point.from_row(best, space.n_layers),
        value=float(best["value"]),
        number=number,
        nothing_value=None if nothing is None else float(nothing["value"]),
        n_trials=len(trials),
        elapsed_s=max(float(t.user_attrs["elapsed_s"]) for t in trials),
        ended=ended,
    )
