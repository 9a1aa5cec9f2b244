"""Figure 5 of the paper: the threshold, round by round, and the acceptance that it follows."""

from __future__ import annotations

import math

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiments.paper.evidence import Evidence, Measured, label
from experiments.paper.section import Section
from experiments.results import figure_data
from experiments.results.figures import BLUE, GREY, ORANGE, plain_axes

NOTE = f"Grey lines: a new prompt begins. Acceptance is that of the last {figure_data.WINDOW} rounds, pooled."


def section(evidence: Evidence) -> Section:
    """One picture for each arm with a moving threshold."""
    stem, title = "threshold", "The threshold, round by round (Fig. 5)"
    arms = [arm for arm in evidence.drafts if len(set(arm.thresholds)) > 1]
    if not arms:
        return Section(stem, title, to_do="selfspec evaluate skip=SET stop=paper")
    figures = {f"{stem}-{i}": trajectory(arm, label(arm, arms)) for i, arm in enumerate(arms, start=1)}
    return Section(stem, title, figures=figures, notes=[NOTE])


def trajectory(arm: Measured, name: str) -> Figure:
    """The threshold in the upper panel, the recent acceptance in the lower panel."""
    figure = Figure(figsize=(8.0, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True)
    course = figure_data.course(arm.rows)
    thresholds = [math.nan if threshold is None else threshold for threshold in course.thresholds]
    for axes, values, colour in ((above, thresholds, ORANGE), (below, course.acceptance, BLUE)):
        axes.plot(range(1, len(values) + 1), values, color=colour, linewidth=1.3)
    for end in course.prompt_ends:
        for axes in (above, below):
            axes.axvline(end + 0.5, color=GREY, linewidth=0.4, alpha=0.5)
    above.set_ylabel("threshold")
    below.set_ylabel("acceptance")
    below.set_ylim(0, 1.02)
    above.set_title(f"{name} ({arm.row.model} with {arm.row.data})", loc="left", fontsize=10.5)
    plain_axes(above, "")
    plain_axes(below, "round")
    return figure
