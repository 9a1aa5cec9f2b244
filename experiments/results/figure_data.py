"""The numbers of each figure, computed in one place: `figures` (matplotlib) and `charts` (plotly) only draw them.

The functions turn rows of a run into plain values. This module must not know colours, axes, or where a figure goes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

import numpy as np

from experiments.results.rows import scored
from search.importance import Importance
from search.pareto import front, measured
from selfspec.measure.metrics import ratio
from selfspec.skipping.skip_set import SkipSet

Row = Mapping[str, Any]
Spent = Literal["evaluations", "seconds"]
Point = tuple[float, float]

STATES = ("pruned", "failed")  # states of trials without a comparable value
WINDOW = 20  # rounds that each point of the acceptance course pools; chosen, not tuned
UNITS = {"expected_speedup": "expected speedup (× plain decoding)", "acceptance": "acceptance (accepted / drafted)"}
DRAFT_COST = "draft cost (plain tokens per drafted token)"
SUBLAYERS = ("attention", "MLP")


def unit(objective: str) -> str:
    """The unit that an objective's name stands for: `tokens per second` for `tokens_per_s` and `tokens_per_second`."""
    name = objective + "econd" if objective.endswith("_per_s") else objective
    return UNITS.get(objective, name.replace("_", " "))


def nothing_value(trials: Sequence[Row]) -> float | None:
    """The value of the empty skip set; None if no trial has it."""
    return next((float(t["value"]) for t in scored(trials) if t["skip"] == "none"), None)


@dataclass(frozen=True, slots=True)
class Progress:
    """The best value of a search over the evaluations or seconds it spent.

    Attributes:
        ended: pairs (spent at the end of the trial, trial) in this order; trials without the amount are left out.
        nothing: value of the empty skip set; None if no trial has it.
    """

    ended: Sequence[tuple[float, Row]]
    nothing: float | None

    @property
    def scored(self) -> list[tuple[float, Row]]:
        """The pairs of trials with a value."""
        return [(spent, trial) for spent, trial in self.ended if scored([trial])]

    def without_value(self, state: str) -> list[float]:
        """The amounts spent at the ends of the trials with this state, one of `STATES`."""
        return [spent for spent, trial in self.ended if trial["state"] == state]

    @property
    def best(self) -> list[Point]:
        """The best value at the end of each trial, from the first value on; never falls."""
        values = (float(t["value"]) if scored([t]) else -np.inf for _, t in self.ended)
        points = zip((spent for spent, _ in self.ended), accumulate(values, max), strict=True)
        return [(spent, value) for spent, value in points if np.isfinite(value)]


def progress(trials: Sequence[Row], spent: Spent = "evaluations") -> Progress:
    """The progress of a search.

    Args:
        trials: rows of a search, in any order.
        spent: amount on the x axis; trials of several workers may end in another order than they began.
    """
    tried = sorted(trials, key=lambda t: int(t["number"]))
    costs = [n if spent == "evaluations" else t.get("elapsed_s") for n, t in enumerate(tried, start=1)]
    ended = sorted(((float(c), t) for c, t in zip(costs, tried, strict=True) if c is not None), key=lambda p: p[0])
    return Progress(ended, nothing_value(tried))


@dataclass(frozen=True, slots=True)
class TradeOff:
    """Acceptance against draft cost.

    Attributes:
        trials: trials with both numbers, the best value last, so that it is drawn on top.
        front: the Pareto front, the cheapest trial first.
        nothing: the trial with the empty skip set; None if there is none.
    """

    trials: Sequence[Row]
    front: Sequence[Row]
    nothing: Row | None

    @property
    def best(self) -> Row | None:
        """The trial with the largest value; None if there is no trial."""
        return self.trials[-1] if self.trials else None


def trade_off(trials: Sequence[Row]) -> TradeOff:
    """Acceptance against draft cost of every complete trial of a search."""
    shown = sorted(measured(trials), key=lambda t: float(t["value"]))
    return TradeOff(shown, front(shown), next((t for t in shown if t["skip"] == "none"), None))


@dataclass(frozen=True, slots=True)
class MappedSet:
    """One labelled skip set of a skip map.

    Attributes:
        label: its name.
        counts: text such as `3 attention, 2 MLP of 16`.
        is_skipped: for each kind of sublayer, in the order of `SUBLAYERS`, one boolean a layer.
    """

    label: str
    counts: str
    is_skipped: Mapping[str, Sequence[bool]]


def skip_map(sets: Mapping[str, SkipSet]) -> list[MappedSet]:
    """The sublayers that each labelled set skips; the sets may be for models of different depths."""

    def mapped(label: str, skip: SkipSet) -> MappedSet:
        layers = range(skip.n_layers)
        kinds = zip(SUBLAYERS, (skip.attn, skip.mlp), strict=True)
        counts = f"{len(skip.attn)} attention, {len(skip.mlp)} MLP of {skip.n_layers}"
        return MappedSet(label, counts, {kind: [layer in skipped for layer in layers] for kind, skipped in kinds})

    return [mapped(label, skip) for label, skip in sets.items()]


@dataclass(frozen=True, slots=True)
class ImportanceMap:
    """The change of the value from skipping each sublayer alone.

    Attributes:
        changes: shape [2, layers], attention above MLP; nan for unknown changes.
        nothing: value of the empty skip set; None if it has none.
        reach: end of the colour scale; one in ten sublayers lies beyond it, so that the few sublayers with large losses
            do not hide the others.
    """

    changes: np.ndarray
    nothing: float | None
    reach: float

    @property
    def known(self) -> np.ndarray:
        """The known changes."""
        found: np.ndarray = self.changes[~np.isnan(self.changes)]
        return found


def importance_map(importance: Importance) -> ImportanceMap:
    """The map of the changes of value from skipping one sublayer alone."""
    nothing = importance.nothing.value
    changes = np.full((2, importance.n_layers), np.nan)
    for skip, tried in importance.alone.items():
        if nothing is not None and tried.value is not None:
            for kind, layers in enumerate((skip.attn, skip.mlp)):
                for layer in layers:
                    changes[kind, layer] = tried.value - nothing
    known = changes[~np.isnan(changes)]
    return ImportanceMap(changes, nothing, float(np.quantile(np.abs(known), 0.9)) if known.any() else 1.0)


@dataclass(frozen=True, slots=True)
class Position:
    """One position of a draft, from 1 on.

    Attributes:
        number: number of the position.
        drafted: number of tokens drafted there.
        judged: number of these tokens that follow accepted tokens only; the target does not judge the others.
        accepted: number of judged tokens that were accepted.
    """

    number: int
    drafted: int
    judged: int
    accepted: int

    @property
    def acceptance(self) -> float:
        """Accepted over judged tokens, in [0, 1]; nan if none was judged."""
        return ratio(self.accepted, self.judged)


def positions(rows: Sequence[Row]) -> list[Position]:
    """The counts of every position of the drafts of one arm, pooled over its rows."""
    longest = max((drafted for row in rows for drafted in row["round_drafted"]), default=0)
    return [position(rows, k) for k in range(1, longest + 1)]


def position(rows: Sequence[Row], number: int) -> Position:
    """The counts of one position of the drafts."""
    rounds = [r for row in rows for r in zip(row["round_drafted"], row["round_accepted"], strict=True)]
    return Position(
        number,
        sum(drafted >= number for drafted, _ in rounds),
        sum(drafted >= number and accepted >= number - 1 for drafted, accepted in rounds),
        sum(accepted >= number for _, accepted in rounds),
    )


@dataclass(frozen=True, slots=True)
class Course:
    """The threshold of a stop rule and the acceptance that it follows, round by round, prompts one after another.

    Attributes:
        thresholds: threshold of each round; None if the rule has none.
        acceptance: accepted over drafted tokens of the last `WINDOW` rounds; nan without drafted tokens.
        prompt_ends: number of rounds at the end of each prompt except the last.
    """

    thresholds: Sequence[float | None]
    acceptance: Sequence[float]
    prompt_ends: Sequence[int]

    @property
    def has_thresholds(self) -> bool:
        """Whether the rule has a threshold."""
        return any(threshold is not None for threshold in self.thresholds)


def course(rows: Sequence[Row]) -> Course:
    """The course of one arm, in the order of decoding."""
    drafted = [n for row in rows for n in row["round_drafted"]]
    accepted = [n for row in rows for n in row["round_accepted"]]
    thresholds = [t for row in rows for t in row.get("round_threshold", ())]
    recent = [ratio(sum(a), sum(d)) for a, d in zip(_windows(accepted), _windows(drafted), strict=True)]
    return Course(thresholds, recent, list(accumulate(len(row["round_drafted"]) for row in rows))[:-1])


def _windows(counts: Sequence[int]) -> Iterator[Sequence[int]]:
    return (counts[max(0, end - WINDOW) : end] for end in range(1, len(counts) + 1))


@dataclass(frozen=True, slots=True)
class Prediction:
    """A predicted speedup beside the measured one.

    Attributes:
        label: label of the draft.
        data: data set of the measurement.
        predicted, measured: speedups over plain decoding.
        low, high: ends of the 95 % interval of `measured`; equal to `measured` without an interval.
    """

    label: str
    data: str
    predicted: float
    measured: float
    low: float
    high: float


def prediction(label: str, data: str, *, predicted: float, measured: float, low: float, high: float) -> Prediction:
    """A prediction; a missing end of the interval becomes the measured value."""
    ends = (measured if np.isnan(end) else end for end in (low, high))
    return Prediction(label, data, predicted, measured, *ends)


def predictions(rows: Sequence[Row]) -> list[Prediction]:
    """The predictions of rows with `label`, `data`, `predicted`, `speedup`, `low` and `high`; leaves out other rows."""
    known = [row for row in rows if row["predicted"] is not None and row["speedup"] is not None]
    return [
        prediction(
            str(row["label"]),
            str(row["data"]),
            predicted=float(row["predicted"]),
            measured=float(row["speedup"]),
            low=_or_nan(row.get("low")),
            high=_or_nan(row.get("high")),
        )
        for row in known
    ]


TIMES = ("prefill_s", "draft_s", "verify_s", "other_s", "total_s")


def seconds_by_part(rows: Sequence[Row]) -> dict[str, float | None]:
    """Seconds of all answers by `TIMES`; None where an answer does not record its own."""
    known = {part: [row[part] for row in rows if row.get(part) is not None] for part in TIMES}
    return {part: sum(seconds) if len(seconds) == len(rows) else None for part, seconds in known.items()}


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def answered_by_arm(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of an evaluation by arm, without the rows of failed prompts."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if row.get("error") is None:
            found.setdefault(str(row["arm"]), []).append(row)
    return found
