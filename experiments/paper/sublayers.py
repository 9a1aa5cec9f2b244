"""Figure 4 of the paper: speed over the number of skipped sublayers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from experiments.paper.evidence import Evidence, Measured, Search, label
from experiments.paper.section import Section
from experiments.results.figure_data import unit
from experiments.results.figures import BLUE, DARK, GREEN, GREY, ORANGE, RED, canvas, legend_below, plain_axes
from experiments.results.rows import trial_value
from selfspec.skipping.skip_set import SkipSet

NOTE = (
    "A dot is a trial, by the value its search gave it on calibration prompts; the line joins the best of each number. "
    "Evaluated arms are measured on other prompts."
)


def section(evidence: Evidence) -> Section:
    """One picture for each search, and one for each model's evaluated arms."""
    stem, title = "skipped", "Speed and the number of skipped sublayers (Fig. 4)"
    arms = [arm for arm in evidence.drafts if arm.skip]
    searches = [search for search in evidence.searches if search.complete]
    figures = {f"{stem}-search-{i}": tried(search) for i, search in enumerate(searches, start=1)}
    for model in dict.fromkeys(arm.row.model for arm in arms):
        figures[f"{stem}-{model}"] = evaluated([arm for arm in arms if arm.row.model == model])
    if not figures:
        return Section(stem, title, to_do="selfspec search, or selfspec evaluate with arms that skip more and less")
    return Section(stem, title, figures=figures, notes=[NOTE])


def tried(search: Search) -> Figure:
    """The value of every trial over its number of skipped sublayers."""
    figure, axes = canvas(6.8, 4.0)
    n_layers = search.run.facts["n_layers"]
    points = [(len(SkipSet.parse(t["skip"], n_layers)), trial_value(t)) for t in search.complete]
    axes.plot(*zip(*points, strict=True), "o", color=BLUE, ms=5, alpha=0.5, markeredgewidth=0, label="trial")
    best = sorted({n: max(value for m, value in points if m == n) for n, _ in points}.items())
    axes.plot(*zip(*best, strict=True), color=GREEN, label="best of that number")
    for n, value in points:
        if n == 0:
            axes.axhline(value, color=DARK, linestyle="--", linewidth=1, label="skip nothing")
            break
    axes.set_ylabel(unit(search.fact("objective")))
    axes.set_title(f"{search.fact('model')} with {search.fact('data')}", loc="left", fontsize=10.5)
    plain_axes(axes, f"skipped sublayers, of {2 * n_layers}")
    legend_below(figure, axes)
    return figure


def evaluated(arms: Sequence[Measured]) -> Figure:
    """The measured speedup of every arm over its number of skipped sublayers."""
    figure, axes = canvas(6.8, 4.0)
    colours, markers = (BLUE, ORANGE, GREEN, RED, DARK), "os^Dv*"
    for i, arm in enumerate(arms):
        n, speed = len(arm.skip or ()), arm.speedup
        whiskers = [[speed.here - speed.low], [speed.high - speed.here]]
        style: dict[str, Any] = {
            "color": colours[i % len(colours)],
            "marker": markers[i % len(markers)],
            "linestyle": "none",
        }
        axes.errorbar([n], [speed.here], yerr=whiskers, capsize=3, label=label(arm, arms), **style)
    axes.axhline(1, color=GREY, linestyle=":", linewidth=1, label="plain decoding")
    axes.margins(x=0.12)
    axes.set_ylabel("speedup over plain decoding [95 %]")
    axes.set_title(arms[0].row.model, loc="left", fontsize=10.5)
    plain_axes(axes, f"skipped sublayers, of {2 * (arms[0].row.n_layers or 0)}")
    legend_below(figure, axes, n_columns=3)
    return figure
