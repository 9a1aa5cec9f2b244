"""The evidence for all tables and figures, read once: arms with their prompts, searches, and published values.

This module reads run folders. It must not know tables or models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from experiments.paper.section import Cell, Value
from experiments.quality.judge import FILE, Quality, summary
from experiments.results import figure_data
from experiments.results.rows import QualityRow, Raced, Trial, read_rows, scored, trial_value
from experiments.results.run_folder import Run, flagged
from experiments.results.tables import ArmRow, Pair, paired_arms, text
from selfspec.measure import metrics
from selfspec.skipping.skip_set import SkipSet

Row = Mapping[str, Any]

QUALIFIERS = ("arm", "stop", "setting", "part", "over", "bound", "table", "figure")  # fields of a published value
WHERE = ("model", "data", "temperature")
FIRST = (*WHERE, "arm")


@dataclass(frozen=True, slots=True)
class Measured:
    """One arm of an evaluation.

    Attributes:
        run: run that measured the arm.
        row: its pooled numbers.
        pairs: rows of plain decoding and of the arm, prompt by prompt.
        temperature: temperature of sampling; 0 for greedy decoding.
        quality: quality of its answers.
    """

    run: Run
    row: ArmRow
    pairs: Sequence[Pair]
    temperature: float
    quality: Sequence[Quality]

    @property
    def where(self) -> dict[str, Any]:
        """The fields that select a published value."""
        return {"model": self.row.model, "data": self.row.data, "temperature": self.temperature}

    @property
    def first_cells(self) -> list[Value]:
        """The cells of the columns `FIRST`."""
        return [self.row.model, self.row.data, f"{self.temperature:g}", self.row.arm]

    @property
    def run_cell(self) -> str:
        """The run, as every row of a table names it."""
        return flagged(self.run.id, is_finished=self.run.is_finished, is_busy=self.run.is_busy)

    @property
    def rows(self) -> list[Row]:
        """The arm's own rows."""
        return [row for _, row in self.pairs]

    @property
    def skip(self) -> SkipSet | None:
        """The skip set of the arm; None if it has no draft or skips nothing."""
        return self.row.skip_set

    @property
    def draft(self) -> tuple[str, ...]:
        """The parts of the draft without the stop rule: equal for arms that differ in that rule alone."""
        return text(self.row.skip), *(text(self.about.get(key)) for key in ("draft", "lookup", "memory"))

    @property
    def about(self) -> Row:
        """The settings of the arm that the run recorded; empty if it recorded none."""
        return self.run.about(self.row.arm)

    @property
    def has_rule(self) -> bool:
        """Whether a stop rule ended its drafts; prompt lookup alone has no rule and copies as far as it can."""
        return bool(self.row.stop) and self.about.get("lookup") != "only"

    @property
    def max_draft(self) -> int:
        """Greatest number of tokens drafted in a round."""
        return max((n for row in self.rows for n in row.get("round_drafted", ())), default=0)

    @property
    def thresholds(self) -> list[float]:
        """The threshold of every round, in the order of decoding; empty if the stop rule has no threshold."""
        return [t for row in self.rows for t in row.get("round_threshold", ()) if t is not None]

    @property
    def rule(self) -> str:
        """The stop rule with its setting: `fixed 4`, `threshold 0.6`."""
        if not self.has_rule:
            return "–"
        if self.row.stop == "fixed":
            return f"fixed {self.max_draft}"
        if self.row.stop == "threshold" and self.thresholds:
            return f"threshold {self.thresholds[0]:g}"
        return text(self.row.stop)

    @property
    def acceptance(self) -> Cell:
        """Accepted over drafted tokens."""
        return pooled(self.rows, lambda row: row["accepted"], lambda row: row["drafted"], most=1, digits=3)

    @property
    def speedup(self) -> Cell:
        """Speedup over plain decoding, without prefill; nan if an output has no verdict, or for an unverified draft."""
        return Cell(self.row.speedup, self.row.low, self.row.high) if self.row.is_judged else Cell()

    @property
    def plain_s(self) -> float:
        """Seconds of plain decoding for one token, on the same prompts."""
        return metrics.ratio(
            sum(plain["total_s"] - plain["prefill_s"] for plain, _ in self.pairs),
            sum(plain["n_tokens"] - 1 for plain, _ in self.pairs),
        )

    @property
    def draft_cost(self) -> float:
        """c: seconds of a drafted token, in plain tokens."""
        return metrics.ratio(self.total("draft_s"), self.row.drafted * self.plain_s)

    @property
    def verify_cost(self) -> float:
        """v: seconds of a round besides drafting, in plain tokens."""
        return metrics.ratio(self.total("verify_s") + self.total("other_s"), self.row.n_rounds * self.plain_s)

    def total(self, field: str) -> float:
        """Sum of a field over the arm's rows."""
        return float(sum(row[field] for row in self.rows))


@dataclass(frozen=True, slots=True)
class Search:
    """A search run and its trials."""

    run: Run
    trials: list[Trial]

    @property
    def complete(self) -> list[Trial]:
        """The trials that have a value."""
        return scored(self.trials)

    @property
    def best(self) -> Trial | None:
        """The trial with the largest value, the first among equals; None if no trial has a value."""
        return max(self.complete, key=trial_value, default=None)

    @property
    def nothing_value(self) -> float | None:
        """The value of the empty skip set; None if the search did not try it."""
        return figure_data.nothing_value(self.trials)

    @property
    def winner(self) -> str | None:
        """The skip set that the search returns: the winner of its finals, or else the set of its best trial."""
        handed = self.run.summary.get("winner") or self.best
        return handed["skip"] if handed else None

    @property
    def finals(self) -> list[Raced]:
        """The sets of the race on fresh prompts, the winner first; empty without a race."""
        return self.run.finals().whole()

    @property
    def run_cell(self) -> str:
        """The run, as every row of a table names it."""
        return flagged(self.run.id, is_finished=self.run.is_finished, is_busy=self.run.is_busy)

    def fact(self, name: str) -> str:
        """A fact of the run, as a cell."""
        return text(self.run.facts.get(name))


@dataclass(frozen=True, slots=True)
class Evidence:
    """Arms, searches, skip sets by label, and published values."""

    arms: Sequence[Measured]
    searches: Sequence[Search]
    sets: Mapping[str, SkipSet] = field(default_factory=dict)
    published: Sequence[Row] = ()

    @property
    def drafts(self) -> list[Measured]:
        """The arms that drafted at least one token."""
        return [arm for arm in self.arms if arm.row.drafted]

    def value(self, metric: str, **key: Any) -> float:
        """The published value of a metric for exactly this model, data, temperature, arm, stop rule, ...; or nan."""
        wanted = {"metric": metric, **key}
        same = (row for row in self.published if all(row.get(k) == wanted.get(k) for k in (*QUALIFIERS, *wanted)))
        return float(next((row["value"] for row in same), math.nan))

    def published_elsewhere(self, is_wanted: Callable[[Row], bool]) -> list[str]:
        """One line with the published values of other models, data or temperatures; empty if there are none."""
        measured = [arm.where for arm in self.arms]
        others = [row for row in self.published if is_wanted(row) and {k: row.get(k) for k in WHERE} not in measured]
        return [f"Published for others: {'; '.join(map(_read_out, others))}."] if others else []

    def searched(self, arm: Measured) -> list[Search]:
        """The searches for the same model that returned the arm's skip set."""
        return [
            search
            for search in self.searches
            if search.winner == arm.row.skip
            and (search.fact("model"), search.run.facts.get("n_layers")) == (arm.row.model, arm.row.n_layers)
        ]


def label(arm: Measured, among: Sequence[Measured]) -> str:
    """The arm's name in a picture, with the properties that distinguish it from the other arms there."""
    parts: list[tuple[str, set[Any]]] = [
        (arm.row.model, {other.row.model for other in among}),
        (arm.row.data, {other.row.data for other in among}),
        (f"T={arm.temperature:g}", {other.temperature for other in among}),
    ]
    name = ", ".join([arm.row.arm, *(text for text, values in parts if len(values) > 1)])
    same = [other for other in among if (other.where, other.row.arm) == (arm.where, arm.row.arm)]
    return name if len(same) == 1 else f"{name}, {arm.rule}" if arm.row.stop else f"{name}, {arm.run.id[-8:]}"


def _read_out(row: Row) -> str:
    words = [
        str(row[key]) for key in (*WHERE[:2], "arm", "stop", "setting", "part", "bound") if row.get(key) is not None
    ]
    temperature = [] if row.get("temperature") is None else [f"T={row['temperature']:g}"]
    return f"{' '.join(words + temperature)} {row['metric']} {row['value']:g} ({row['source']})"


def read(runs: Sequence[Run], *, published: Sequence[Row] = (), sets: Mapping[str, SkipSet] | None = None) -> Evidence:
    """The evidence of evaluate and search runs.

    Args:
        runs: runs to read.
        published: published values, shown beside the measured ones.
        sets: further skip sets, by label.

    Raises:
        InputError: if a run cannot be read.
    """
    arms = [arm for run in runs if run.verb == "evaluate" for arm in _measured(run)]
    searches = [Search(run, run.trials().whole()) for run in runs if run.verb == "search"]
    return Evidence(arms, searches, {**skip_sets([arm.row for arm in arms], searches), **(sets or {})}, published)


def skip_sets(rows: Sequence[ArmRow], searches: Sequence[Search]) -> dict[str, SkipSet]:
    """Label to skip set, for each arm that skips something and for the set that each search returns."""
    found = [(row.model, row.arm, row.run, row.skip, row.n_layers) for row in rows if row.skips]
    for search in searches:
        if search.winner is not None:
            label, n_layers = f"best of {search.fact('searcher')}", search.run.facts.get("n_layers")
            found.append((search.fact("model"), label, search.run.id, search.winner, n_layers))
    is_one_model = len({model for model, *_ in found}) == 1
    sets: dict[str, SkipSet] = {}
    for model, label, run, skip, n_layers in found:
        if skip is None or n_layers is None:
            continue
        label = label if is_one_model else f"{model}: {label}"
        value = SkipSet.parse(skip, n_layers)
        sets[label if sets.get(label, value) == value else f"{label}, {run}"] = value
    return sets


def _measured(run: Run) -> Iterator[Measured]:
    sampling = run.config().get("sampling") or {}
    known = sampling.get("temperature")
    temperature = (1.0 if known is None else known) if sampling.get("do_sample") else 0.0
    judged = summary(read_rows(run.path / FILE, QualityRow).whole())
    for row, pairs in paired_arms(run):
        yield Measured(run, row, pairs, temperature, [q for q in judged if q.arm == row.arm])


def pooled(
    rows: Sequence[Row],
    numerator: Callable[[Row], float],
    denominator: Callable[[Row], float],
    *,
    most: float = math.inf,
    digits: int = 2,
) -> Cell:
    """The ratio of two sums over rows with its 95 % interval over prompts; values above `most` are cut to it."""
    sums: dict[str, tuple[float, float]] = {}
    for row in rows:
        top, bottom = sums.get(row["prompt_id"], (0.0, 0.0))
        sums[row["prompt_id"]] = top + numerator(row), bottom + denominator(row)
    some = [both for both in sums.values() if both[1]]
    value, (low, high) = metrics.pooled_ratio([top for top, _ in some], [bottom for _, bottom in some], most=most)
    return Cell(value, low, high, digits=digits)
