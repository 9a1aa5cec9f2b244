"""Acceptance by position: how often the first, second, ... token of a draft is accepted after the tokens before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from experiments.paper.evidence import FIRST, Evidence, Measured, label, pooled
from experiments.paper.section import Cell, Section, Table, Value
from experiments.results import figure_data
from experiments.results.figures import BLUE, DARK, GREEN, ORANGE, RED, canvas, legend_below, plain_axes

SHOWN = 12  # positions of the table; the paper's longest draft
LEAST = 10  # least number of judged tokens for a point of the picture; chosen, not tuned
NOTE = (
    "Of the tokens at that position that were judged: those before it in the draft were all accepted. The picture "
    f"leaves out positions with fewer than {LEAST} judged tokens."
)


def section(evidence: Evidence) -> Section:
    """One row for each draft, one column for each position."""
    stem, title = "positions", "Acceptance by position in the draft"
    arms = evidence.drafts
    if not arms:
        return Section(stem, title, to_do="selfspec evaluate skip=SET")
    n = min(SHOWN, max(arm.max_draft for arm in arms))
    body: list[list[Value]] = [
        [*arm.first_cells, arm.rule, *(at(arm, i) for i in range(1, n + 1)), arm.run_cell] for arm in arms
    ]
    columns = [*FIRST, "rule", *map(str, range(1, n + 1)), "run"]
    return Section(stem, title, Table(columns, body), {stem: profile(arms)}, [NOTE])


def at(arm: Measured, position: int) -> Cell:
    """Accepted over judged tokens at a position, counted from 1."""
    return pooled(
        arm.rows,
        lambda row: figure_data.position([row], position).accepted,
        lambda row: figure_data.position([row], position).judged,
        most=1,
    )


def profile(arms: Sequence[Measured]) -> Figure:
    """Acceptance over position, one line for each arm."""
    figure, axes = canvas(7.5, 4.2)
    colours, dashes = (BLUE, ORANGE, GREEN, RED, DARK), ("-", "--", "-.", ":")
    for i, arm in enumerate(arms):
        shown = [(p.number, p.acceptance) for p in figure_data.positions(arm.rows) if p.judged >= LEAST]
        if shown:
            style: dict[str, Any] = {
                "color": colours[i % len(colours)],
                "linestyle": dashes[i // len(colours) % len(dashes)],
            }
            axes.plot(*zip(*shown, strict=True), marker="o", ms=4, label=label(arm, arms), **style)
    axes.set_ylim(0, 1.03)
    axes.set_ylabel("accepted, of the tokens judged there")
    plain_axes(axes, "position in the draft")
    legend_below(figure, axes, n_columns=2)
    return figure
