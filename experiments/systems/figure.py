"""Speedup against preparation: one point for each system."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from experiments.results.figures import BLUE, GREEN, GREY, ORANGE, canvas, legend_below, plain_axes
from experiments.systems.systems import System

LINEAR_UNTIL_S = 10.0  # seconds up to which the axis is linear, so that a system without preparation has a place
KINDS = {"nothing before": (GREEN, "^"), "a search": (BLUE, "o"), "a training": (ORANGE, "s")}


def scatter(systems: Sequence[System]) -> Figure | None:
    """The picture of the systems of one or more models; None if fewer than two have a speedup."""
    shown = [
        (system, seconds, cell)
        for system in systems
        if not (system.is_baseline or system.is_another_output)
        and (seconds := system.prepared.seconds) is not None
        and not math.isnan((cell := system.speedup()).here)
    ]
    if len(shown) < 2:
        return None
    figure, axes = canvas(9.0, 6.0)
    for name, (colour, marker) in KINDS.items():
        some = [(seconds, cell) for system, seconds, cell in shown if kind(system) == name]
        if some:
            x, y = [seconds for seconds, _ in some], [cell.here for _, cell in some]
            below = [0.0 if math.isnan(cell.low) else cell.here - cell.low for _, cell in some]
            above = [0.0 if math.isnan(cell.high) else cell.high - cell.here for _, cell in some]
            style: dict[str, Any] = {
                "color": colour,
                "marker": marker,
                "linestyle": "none",
                "capsize": 2,
                "elinewidth": 0.7,
            }
            axes.errorbar(x, y, yerr=[below, above], label=f"{name} [95 %]", **style)
    is_one_model = len({system.model for system, *_ in shown}) == 1
    for system, seconds, cell in shown:
        text = system.name if is_one_model else f"{system.name}, {system.model}"
        axes.annotate(text, (seconds, cell.here), (5, 3), textcoords="offset points", fontsize=7)
    axes.axhline(1, color=GREY, linewidth=1, linestyle=":", label="plain decoding")
    axes.set_xscale("symlog", linthresh=LINEAR_UNTIL_S)
    axes.set_ylabel("speedup over plain decoding, all texts")
    plain_axes(axes, "seconds of training and search before the first prompt", counts=False)
    axes.set_xlim(left=-1)
    legend_below(figure, axes, n_columns=4)
    return figure


def kind(system: System) -> str:
    """What a system needed before its first prompt: a key of `KINDS`."""
    if system.prepared.training_s:
        return "a training"
    return "a search" if system.prepared.search_s else "nothing before"
