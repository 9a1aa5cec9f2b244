"""The search loop: propose, score, record, until the budget is spent.

It knows no model and no Optuna: only a study that proposes, an objective that scores, and a file of rows. A trial is in
the study's journal before its row is in the file, so a kill between the two loses nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from search.objective import Objective, Score
from search.space import Space
from search.study import Proposal, SearchStudy
from selfspec.errors import InputError
from selfspec.records import append_row, drop_partial_line, read_rows
from selfspec.skip import SkipSet, deepest_attention, evenly_spaced
from selfspec.timing import Stopwatch

Listener = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Found:
    """The best skip set that was run, its value and its trial; and the value of skipping nothing."""

    skip: SkipSet
    value: float
    number: int
    nothing_value: float | None
    n_trials: int
    elapsed_s: float


def default_starts(n_layers: int) -> list[SkipSet]:
    """Skip nothing; a quarter of the layers, evenly spaced; the attention of the deepest half."""
    return [
        SkipSet(n_layers),
        evenly_spaced(n_layers, max(0, min(n_layers // 4, n_layers - 2))),
        deepest_attention(n_layers, n_layers // 2),
    ]


def run_search(
    space: Space,
    objective: Objective,
    study: SearchStudy,
    *,
    starts: Sequence[SkipSet],
    n_trials: int,
    seed: int,
    rows_path: Path,
    stopwatch: Stopwatch,
    listener: Listener | None = None,
) -> Found:
    """Run the search up to `n_trials` trials in all, those of an earlier run of the same study included.

    Args:
        space: what is searched.
        objective: scores a skip set.
        study: proposes and remembers.
        starts: scored first, in order.
        n_trials: the budget.
        seed: written into each row.
        rows_path: JSON lines, one row a trial.
        stopwatch: where the elapsed seconds come from.
        listener: told each row.

    Raises:
        InputError: for a budget of no trials, or if none could be scored.
    """
    if n_trials < 1:
        raise InputError(f"searcher.n_trials={n_trials}; a search needs at least 1 trial")
    _repair_rows(rows_path, study)
    known: dict[str, FrozenTrial] = {}
    for trial in study.trials:
        if trial.state == TrialState.COMPLETE:
            known.setdefault(trial.user_attrs["skip"], trial)
    before = max((float(t.user_attrs["elapsed_s"]) for t in study.trials), default=0.0)
    began = stopwatch.now()
    while (number := len(study.trials)) < n_trials:
        proposal = study.start(starts[number]) if number < len(starts) else study.ask()
        score, reason = _score(proposal, objective, known)
        elapsed = before + stopwatch.now() - began
        told = study.tell(proposal, score, elapsed_s=elapsed, seed=seed, reason=reason)
        if score:
            known.setdefault(str(proposal.skip), told)
        row = row_of(told, number)
        append_row(rows_path, row)
        if listener:
            listener(row)
    return _best(study, space)


def row_of(trial: FrozenTrial, number: int) -> dict[str, Any]:
    """The JSON row of a finished trial."""
    fields = ("origin", "skip", "attn", "mlp", "value", "acceptance", "drafted", "accepted", "n_rounds", "n_tokens")
    attrs = trial.user_attrs
    state = "complete" if trial.state == TrialState.COMPLETE else "failed"
    times = {name: attrs.get(name) for name in ("seconds", "elapsed_s", "seed")}
    return {
        "number": number,
        **{f: attrs.get(f) for f in fields},
        **times,
        "state": state,
        "reason": attrs.get("reason"),
    }


def _score(proposal: Proposal, objective: Objective, known: dict[str, FrozenTrial]) -> tuple[Score | None, str | None]:
    """The score, from memory where this set was run before; or None and the reason why there is none."""
    earlier = known.get(str(proposal.skip))
    if earlier is not None:
        fields = ("value", "n_tokens", "n_rounds", "drafted", "accepted", "seconds")
        return Score(**{f: earlier.user_attrs[f] for f in fields}), f"known from trial {earlier.number}"
    try:
        return objective(proposal.skip), None
    except RuntimeError as error:  # torch's out-of-memory is one; anything else ends the search
        return None, str(error).splitlines()[0]


def _repair_rows(rows_path: Path, study: SearchStudy) -> None:
    """Give each trial of the journal its row; the last one may lack it, or have half of one."""
    drop_partial_line(rows_path)
    n_rows = len(read_rows(rows_path)) if rows_path.exists() else 0
    for number, trial in enumerate(study.trials[n_rows:], start=n_rows):
        append_row(rows_path, row_of(trial, number))


def _best(study: SearchStudy, space: Space) -> Found:
    trials = study.trials
    complete = [(n, t) for n, t in enumerate(trials) if t.state == TrialState.COMPLETE]
    if not complete:
        raise InputError(
            f"none of {len(trials)} trials could be scored; the first says: {trials[0].user_attrs['reason']}"
        )
    number, best = max(complete, key=lambda nt: float(nt[1].user_attrs["value"]))
    nothing = next((t for _, t in complete if t.user_attrs["skip"] == "none"), None)
    return Found(
        skip=SkipSet.parse(best.user_attrs["skip"], space.n_layers),
        value=float(best.user_attrs["value"]),
        number=number,
        nothing_value=None if nothing is None else float(nothing.user_attrs["value"]),
        n_trials=len(trials),
        elapsed_s=max(float(t.user_attrs["elapsed_s"]) for t in trials),
    )
