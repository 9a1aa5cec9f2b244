"""Stop rules against the oracle: the speedup of a rule that stops right before the first rejected token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from experiments.paper.evidence import FIRST, Evidence, Measured, Row, label, pooled
from experiments.paper.section import Cell, Section, Table, Value
from experiments.results.figures import BLUE, GREEN, GREY, canvas, legend_below, plain_axes
from experiments.results.tables import Pair, decoding, times
from selfspec.measure import metrics
from selfspec.measure.metrics import Timed

ORACLE = (
    "Oracle: the same rounds and tokens, where a round pays for its accepted tokens alone: a prompt's draft seconds "
    "times accepted over drafted. What it would gain by drafting on after full acceptance, and by verifying fewer "
    "tokens, is not counted: it is at least that fast."
)


def section(evidence: Evidence) -> Section:
    """One row for each draft, the fastest first within its model and data."""
    stem, title = "stop_rules", "Stop rules and the oracle"
    arms = sorted(evidence.drafts, key=_order)
    if not arms:
        return Section(stem, title, to_do="selfspec evaluate -m skip=SET stop=fixed,threshold,adaptive,optimal")
    columns = [*FIRST, "rule", "drafted/round", "rejected", "speedup", "oracle", "run"]
    return Section(stem, title, Table(columns, [_cells(arm) for arm in arms]), {stem: compare(arms)}, [ORACLE])


def _order(arm: Measured) -> tuple[object, ...]:
    return (*arm.where.values(), math.inf if math.isnan(arm.row.speedup) else -arm.row.speedup)


def oracle(pairs: Sequence[Pair]) -> Cell:
    """A lower bound of the speedup of a rule that stops right before the first rejected token, from measured seconds.

    Args:
        pairs: rows of plain decoding and of the arm, prompt by prompt.
    """
    timed = [pair for pair in pairs if all(row["n_tokens"] > 1 for row in pair)]
    plain, method = times(timed, _without_waste)
    return Cell(metrics.speedup(plain, method), *metrics.speedup_interval(plain, method))


def _without_waste(row: Row) -> Timed:
    wasted = 1 - row["accepted"] / row["drafted"] if row["drafted"] else 0.0
    spent = decoding(row)
    return Timed(spent.seconds - wasted * row["draft_s"], spent.tokens)


def _cells(arm: Measured) -> list[Value]:
    drafted = pooled(arm.rows, lambda row: row["drafted"], lambda row: row["n_rounds"])
    rejected = pooled(
        arm.rows, lambda row: row["drafted"] - row["accepted"], lambda row: row["drafted"], most=1, digits=3
    )
    return [*arm.first_cells, arm.rule, drafted, rejected, arm.speedup, oracle(arm.pairs), arm.run_cell]


def compare(arms: Sequence[Measured]) -> Figure:
    """Each arm's speedup with its interval; the oracle's speedup stands to the right of it."""
    figure, axes = canvas(8.0, 1.5 + 0.34 * len(arms))
    for y, arm in enumerate(arms):
        here, best = arm.speedup, oracle(arm.pairs)
        axes.plot([here.here, best.here], [y, y], color=GREY, linewidth=1, zorder=1)
        whiskers = [[here.here - here.low], [here.high - here.here]]
        legend: dict[str, Any] = {"label": "measured [95 %]"} if not y else {}
        axes.errorbar([here.here], [y], xerr=whiskers, color=BLUE, marker="o", capsize=3, linestyle="none", **legend)
        axes.plot([best.here], [y], "D", color=GREEN, label=None if y else "with the oracle's stop, at least")
    axes.axvline(1, color=GREY, linestyle=":", linewidth=1, label="plain decoding")
    axes.set_yticks(range(len(arms)), [f"{label(arm, arms)}\n{arm.rule}" for arm in arms], fontsize=8.5)
    axes.set_ylim(len(arms) - 0.5, -0.5)
    plain_axes(axes, "speedup over plain decoding", counts=False)
    axes.grid(axis="x", color="#EEEEEE")
    legend_below(figure, axes)
    return figure
