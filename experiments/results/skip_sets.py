"""The skip sets that can be compared: sets of searches, sets of evaluations, and published sets.

Model and skipped sublayers link a searched set to its evaluations. This module knows sets and rows only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from experiments.results.run_folder import Run
from experiments.results.tables import ArmRow
from selfspec.errors import InputError
from selfspec.skipping.skip_set import SkipSet
from selfspec.skipping.skip_set_files import load_skip_set, published


@dataclass(frozen=True, slots=True)
class KnownSet:
    """One skip set with its known facts.

    Attributes:
        label: unique name of the set.
        source: search, evaluation or published.
        model: name of the model; None if unknown.
        predicted: speedup that the search predicted; None for another objective.
        measured: arms of evaluations that skip this set.
    """

    label: str
    source: str
    model: str | None
    skip: SkipSet
    acceptance: float | None = None
    draft_cost: float | None = None
    tokens_per_round: float | None = None
    predicted: float | None = None
    measured: Sequence[ArmRow] = field(default_factory=tuple)


def searched_set(run: Run, rows: Sequence[Mapping[str, Any]]) -> KnownSet | None:
    """The set of a search: its winner, or else its best trial so far; None if it has neither."""
    n_layers, model = run.facts.get("n_layers"), run.facts.get("model")
    valued = [row for row in rows if row.get("state") == "complete" and row.get("value") is not None]
    winner = run.summary.get("winner") or {}
    best = max(valued, key=lambda row: float(row["value"]), default=None)
    same = [row for row in valued if row["skip"] == winner.get("skip")]
    trial = max(same, key=lambda row: float(row["value"]), default=best)
    if trial is None or not isinstance(n_layers, int):
        return None
    try:
        skip = SkipSet.parse(str(winner.get("skip", trial["skip"])), n_layers)
    except InputError:
        return None
    is_speedup = run.facts.get("objective") == "expected_speedup"
    n_rounds, accepted = trial.get("n_rounds"), trial.get("accepted")
    return KnownSet(
        label=f"{run.facts.get('searcher', 'search')} · {run.facts.get('model')} · {run.id[-8:]}",
        source="search",
        model=model if isinstance(model, str) else None,
        skip=skip,
        acceptance=trial.get("acceptance"),
        draft_cost=trial.get("draft_cost"),
        tokens_per_round=(accepted + n_rounds) / n_rounds if n_rounds and accepted is not None else None,
        predicted=(winner.get("expected") or winner.get("fresh_value", trial["value"])) if is_speedup else None,
    )


@cache
def published_sets() -> tuple[KnownSet, ...]:
    """The published sets that ship with this package."""
    return tuple(KnownSet(name, "published", name.partition("/")[0], load_skip_set(name)) for name in published())


def collect(searches: Iterable[KnownSet], arms: Sequence[ArmRow]) -> dict[str, KnownSet]:
    """Label to set: searched sets, sets of evaluations only, and published sets, each with its evaluations."""
    drafts = [row for row in arms if row.skips and not row.is_baseline]
    found: dict[str, KnownSet] = {}
    seen: set[tuple[str | None, str]] = set()
    for one in (*searches, *published_sets()):
        key = (one.model, str(one.skip))
        seen.add(key)
        ours = [row for row in drafts if (row.model, row.skip) == key and row.n_layers == one.skip.n_layers]
        found[one.label] = _with(one, ours)
    for row in drafts:
        skip = row.skip_set
        if (row.model, str(row.skip)) in seen or skip is None:
            continue
        seen.add((row.model, str(row.skip)))
        ours = [other for other in drafts if (other.model, other.skip) == (row.model, row.skip)]
        one = KnownSet(f"{row.arm} · {row.model} · {row.run[-8:]}", "evaluation", row.model, skip)
        found[one.label] = _with(one, ours)
    return found


def _with(one: KnownSet, measured: Sequence[ArmRow]) -> KnownSet:
    names = ("label", "source", "model", "skip", "acceptance", "draft_cost", "tokens_per_round", "predicted")
    known = {name: getattr(one, name) for name in names}
    if measured and known["acceptance"] is None:
        known |= {"acceptance": measured[0].acceptance, "tokens_per_round": measured[0].tokens_per_round}
    return KnownSet(**known, measured=tuple(measured))


def measured_rows(found: Iterable[KnownSet]) -> list[dict[str, Any]]:
    """One row for each timed set, arm and data set: label, data, predicted, speedup and its interval."""
    return [
        {
            "label": one.label if len({row.arm for row in one.measured}) < 2 else f"{one.label} ({row.arm})",
            "data": row.data,
            "arm": row.arm,
            "run": row.run,
            "predicted": one.predicted,
            "acceptance": row.acceptance,
            "tokens_per_round": row.tokens_per_round,
            "speedup": row.speedup,
            "low": row.low,
            "high": row.high,
        }
        for one in found
        for row in one.measured
        if row.is_judged and not math.isnan(row.speedup)
    ]


def table(found: Iterable[KnownSet]) -> list[dict[str, Any]]:
    """One row of facts for each set."""
    return [
        {
            "set": one.label,
            "source": one.source,
            "model": one.model,
            "layers": one.skip.n_layers,
            "skipped": one.skip.fraction,
            "acceptance": one.acceptance,
            "draft cost": one.draft_cost,
            "tokens/round": one.tokens_per_round,
            "predicted speedup": one.predicted,
            "measured speedup": _speedups_text(one.measured),
            "skip": str(one.skip),
        }
        for one in found
    ]


def _speedups_text(rows: Sequence[ArmRow]) -> str:
    timed = [row for row in rows if row.is_judged and not math.isnan(row.speedup)]
    return "; ".join(f"{row.data} {row.speedup:.2f} [{row.low:.2f}, {row.high:.2f}]" for row in timed) or "–"
