"""Figures of one search: how its best grew, what it tried, what each sublayer is worth, and what good sets share.

Rows of trials in, whole or still growing; a row that is not complete has no value that could be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Literal

import numpy as np
import plotly.graph_objects as go

from experiments.charts.theme import (
    BLUE,
    FAINT,
    GREEN,
    GREY,
    ORANGE,
    RED,
    SCALE,
    WORSE_BETTER,
    Row,
    colour_bar,
    level,
    styled,
    unit,
)
from search.pareto import front, measured

Spent = Literal["evaluations", "seconds"]


def complete(trials: Sequence[Row]) -> list[Row]:
    """The trials that have a value, in order."""
    return [t for t in trials if t.get("state") == "complete" and t.get("value") is not None]


def nothing(trials: Sequence[Row]) -> float | None:
    """The value of skipping nothing, if it was tried."""
    return next((float(t["value"]) for t in complete(trials) if t.get("skip") == "none"), None)


def best_so_far(trials: Sequence[Row], *, objective: str, spent: Spent = "evaluations") -> go.Figure:
    """How the best grew over what was spent; larger is better.

    Args:
        trials: rows of a search run; over seconds, those that do not tell when they ended are left out.
        objective: its name, read out as the unit of the value.
        spent: what the search spends.
    """
    told = [t for t in trials if spent == "evaluations" or t.get("elapsed_s") is not None]
    place = {id(t): i if spent == "evaluations" else t["elapsed_s"] for i, t in enumerate(told, start=1)}
    figure = go.Figure()
    valued = complete(told)
    if valued:
        x, y = [place[id(t)] for t in valued], [t["value"] for t in valued]
        hover = "trial %{customdata[0]}: %{y:.4g}<br>skip %{customdata[1]}<extra></extra>"
        data = [[t["number"], t["skip"]] for t in valued]
        dots = {"color": BLUE, "size": 6, "opacity": 0.55}
        figure.add_scatter(x=x, y=y, mode="markers", name="trial", marker=dots, customdata=data, hovertemplate=hover)
        best = {"color": GREEN, "shape": "hv", "width": 2.5}
        ends = [*x, place[id(told[-1])]], [*accumulate(y, max), max(y)]
        figure.add_scatter(x=ends[0], y=ends[1], mode="lines", name="best so far", line=best)
    for state, symbol, colour, height in (("pruned", "triangle-down", ORANGE, 0.05), ("failed", "x", RED, 0.02)):
        # they have no value that could be compared, so they stand at the bottom, on an axis of their own
        x = [place[id(t)] for t in told if t.get("state") == state]
        if x:
            mark = {"color": colour, "symbol": symbol, "size": 7}
            figure.add_scatter(x=x, y=[height] * len(x), yaxis="y2", mode="markers", name=state, marker=mark)
    baseline = nothing(told)
    if baseline is not None:
        level(figure, baseline, f"skip nothing: {baseline:.3g}")
    styled(figure, x="trials" if spent == "evaluations" else "seconds of search (s)", y=unit(objective))
    figure.update_layout(yaxis2={"overlaying": "y", "range": [0, 1], "visible": False})
    return figure


def trade_off(trials: Sequence[Row], *, objective: str) -> go.Figure:
    """Acceptance over draft cost of every complete trial, coloured by value, with the front and the best.

    Args:
        trials: rows of a search run; those without a draft cost or an acceptance are left out.
        objective: its name, read out as the unit of the value.
    """
    shown = measured(trials)
    figure = go.Figure()
    if shown:
        figure.add_scatter(
            x=[t["draft_cost"] for t in shown],
            y=[t["acceptance"] for t in shown],
            mode="markers",
            name="trial",
            marker={
                "color": [t["value"] for t in shown],
                "colorscale": SCALE,
                "showscale": True,
                "size": 9,
                "line": {"width": 0.5, "color": GREY},
                "colorbar": colour_bar(unit(objective)),
            },
            customdata=[[t["number"], t["value"], t["skip"]] for t in shown],
            hovertemplate="trial %{customdata[0]}: %{customdata[1]:.4g}<br>acceptance %{y:.3f}, cost %{x:.3f}"
            "<br>skip %{customdata[2]}<extra></extra>",
        )
        rising = front(shown)
        x, y = [t["draft_cost"] for t in rising], [t["acceptance"] for t in rising]
        edge = {"color": GREY, "shape": "hv", "width": 1.5}
        figure.add_scatter(x=x, y=y, mode="lines", name="Pareto front", line=edge, hoverinfo="skip")
        best = max(shown, key=lambda t: float(t["value"]))
        star = {"symbol": "star-open", "size": 18, "color": RED, "line": {"width": 2}}
        at = {"x": [best["draft_cost"]], "y": [best["acceptance"]]}
        figure.add_scatter(**at, mode="markers", name="best value", marker=star, hoverinfo="skip")
    return styled(figure, x="draft cost (plain tokens per drafted token)", y="acceptance (accepted / drafted)")


def importance(trials: Sequence[Row], *, n_layers: int, objective: str) -> go.Figure:
    """What skipping each sublayer alone does to the value: layers from left to right, attention above MLP.

    The scale ends where one in ten sublayers lies beyond it, so that the few that must never be skipped do not hide
    what the others do. Empty where the search tried no single sublayer, or not skipping nothing.

    Args:
        trials: rows of a search run.
        n_layers: of the model.
        objective: its name, read out as the unit of the value.
    """
    changes, baseline = np.full((2, n_layers), np.nan), nothing(trials)
    for trial in complete(trials) if baseline is not None else ():
        attn, mlp = trial.get("attn", ()), trial.get("mlp", ())
        if len(attn) + len(mlp) == 1:
            changes[(0, attn[0]) if attn else (1, mlp[0])] = trial["value"] - (baseline or 0.0)
    known = changes[~np.isnan(changes)]
    reach = float(np.quantile(np.abs(known), 0.9)) if known.any() else 1.0
    figure = go.Figure()
    if known.size:
        figure.add_heatmap(
            z=[[None if np.isnan(c) else float(c) for c in row] for row in changes],
            y=["attention", "MLP"],
            zmin=-reach,
            zmax=reach,
            colorscale=WORSE_BETTER,
            xgap=2,
            ygap=2,
            colorbar=colour_bar("change of value"),
            hovertemplate="%{y} of layer %{x}: %{z:+.4g}<extra></extra>",
        )
    styled(figure, x="layer of the only sublayer skipped", y="", height=240)
    figure.update_yaxes(autorange="reversed", showgrid=False)
    figure.update_xaxes(showgrid=False, tick0=0, dtick=max(1, n_layers // 6))
    if known.size:
        title = f"change of {unit(objective)}; skip nothing: {baseline:.3g}"
        figure.update_layout(title={"text": title, "font": {"size": 13}, "x": 0, "xref": "paper"})
    return figure


def bits(trials: Sequence[Row], *, n_layers: int, top: int = 40) -> go.Figure:
    """The skip sets of the best trials side by side, a line each, best above: what good sets share is a column.

    Args:
        trials: rows of a search run.
        n_layers: of the model.
        top: how many distinct sets.
    """
    ranked: dict[str, Row] = {}
    for trial in sorted(complete(trials), key=lambda t: -float(t["value"])):
        ranked.setdefault(trial["skip"], trial)
    shown = list(ranked.values())[:top]
    cells = [[0.0] * (2 * n_layers + 1) for _ in shown]
    for line, trial in zip(cells, shown, strict=True):
        line[n_layers] = np.nan  # a gap between the two kinds
        for layer in trial.get("attn", ()):
            line[layer] = 1.0
        for layer in trial.get("mlp", ()):
            line[n_layers + 1 + layer] = 2.0
    names = [*(f"attention {i}" for i in range(n_layers)), "", *(f"MLP {i}" for i in range(n_layers))]
    figure = go.Figure()
    if shown:
        figure.add_heatmap(
            z=[[None if np.isnan(c) else c for c in line] for line in cells],
            y=list(range(1, len(shown) + 1)),
            zmin=0,
            zmax=2,
            colorscale=[[0, FAINT], [0.33, FAINT], [0.34, BLUE], [0.66, BLUE], [0.67, ORANGE], [1, ORANGE]],
            showscale=False,
            xgap=1,
            ygap=1,
            customdata=[[[name, f"{t['value']:.4g}"] for name in names] for t in shown],
            hovertemplate="rank %{y}, value %{customdata[1]}: %{customdata[0]}<extra></extra>",
        )
    styled(figure, x="layer (attention, then MLP)", y="rank of the set", height=200 + 6 * len(shown))
    step = max(1, n_layers // 6)
    layers = list(range(0, n_layers, step))
    ticks = [*layers, *(n_layers + 1 + i for i in layers)]
    figure.update_xaxes(tickvals=ticks, ticktext=[str(i) for i in (*layers, *layers)], showgrid=False)
    figure.update_yaxes(autorange="reversed", showgrid=False)
    for name, colour in (("attention skipped", BLUE), ("MLP skipped", ORANGE)):
        square = {"symbol": "square", "size": 11, "color": colour}
        figure.add_scatter(x=[None], y=[None], mode="markers", name=name, marker=square)
    return figure
