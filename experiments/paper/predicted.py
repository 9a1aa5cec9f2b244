"""Predicted against measured speedup: the prediction of each search, and the speedup of its drafts on other prompts."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from experiments.paper.evidence import Evidence, label
from experiments.paper.section import Cell, Section, Table, Value
from experiments.results.figure_data import prediction
from experiments.results.figures import BLUE, GREY, KEPT, ORANGE, canvas, legend_below, plain_axes
from experiments.results.named_drafts import UNIT

COLUMNS = ["model", "searched on", "measured on", "what", "predicted", "speedup", "error", "run"]
FINALIST = "finalist"
NOTE = (
    "Predicted: the value that a search gave the draft, or its replay on the finals' fresh prompts. Error: predicted "
    "over measured, less 1. A search's best value is flattered by its having been picked."
)

Point = tuple[list[Value], float, Cell, str]  # first cells, predicted, measured, run


def section(evidence: Evidence) -> Section:
    """One row for each draft with a prediction: evaluated arms, and the finals of searches."""
    stem, title = "predicted", "Predicted against measured speedup"
    points = _evaluated(evidence) + _finals(evidence)
    if not points:
        return Section(stem, title, to_do="selfspec search objective=expected_speedup, then selfspec evaluate skip=RUN")
    body = [[*first, Cell(promise), cell, Cell(promise / cell.here - 1), run] for first, promise, cell, run in points]
    return Section(stem, title, Table(COLUMNS, body), {stem: agreement(points)}, [NOTE])


def _evaluated(evidence: Evidence) -> list[Point]:
    points: list[Point] = []
    for arm in evidence.drafts:
        promise = (arm.run.summary.get("predicted") or {}).get(arm.row.arm)
        if promise is not None and arm.speedup.here > 0:
            searched = ", ".join(dict.fromkeys(s.fact("data") for s in evidence.searched(arm))) or "–"
            first: list[Value] = [arm.row.model, searched, arm.row.data, label(arm, [arm])]
            points.append((first, float(promise), arm.speedup, arm.run_cell))
    return points


def _finals(evidence: Evidence) -> list[Point]:
    points: list[Point] = []
    for search in evidence.searches:
        for raced in search.finals if search.run.summary.get("unit") == UNIT else ():
            if raced["fresh_value"] is not None and raced["speedup"]:
                data = search.fact("data")
                first: list[Value] = [
                    search.fact("model"),
                    data,
                    f"{data}, fresh prompts",
                    f"{FINALIST} `{raced['skip']}`",
                ]
                points.append((first, float(raced["fresh_value"]), Cell.raced(raced), search.run_cell))
    return points


def agreement(points: Sequence[Point]) -> Figure:
    """Measured over predicted speedup; on the line both are equal."""
    figure, axes = canvas(5.4, 5.0)
    for name, colour, marker, some in (
        ("evaluated arm [95 %]", BLUE, "o", [p for p in points if not _is_final(p)]),
        ("finalist of a search [95 %]", ORANGE, "s", [p for p in points if _is_final(p)]),
    ):
        if some:
            pairs = [
                prediction("", "", predicted=promise, measured=cell.here, low=cell.low, high=cell.high)
                for _, promise, cell, _ in some
            ]
            x, y = [p.predicted for p in pairs], [p.measured for p in pairs]
            whiskers = [[p.measured - p.low for p in pairs], [p.high - p.measured for p in pairs]]
            axes.errorbar(x, y, yerr=whiskers, color=colour, marker=marker, capsize=3, linestyle="none", label=name)
    ends = [*axes.get_xlim(), *axes.get_ylim()]
    line = min(ends), max(ends)
    axes.plot(line, line, color=GREY, linewidth=1, zorder=0.9, label="as predicted")
    axes.set(xlim=line, ylim=line, aspect="equal", ylabel="measured speedup over plain decoding")
    plain_axes(axes, "predicted speedup", counts=False)
    axes.grid(axis="x", color=KEPT)
    legend_below(figure, axes, n_columns=2)
    return figure


def _is_final(point: Point) -> bool:
    return str(point[0][-1]).startswith(FINALIST)
