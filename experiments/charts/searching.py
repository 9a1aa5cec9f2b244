"""Figures of one search: the growth of its best value, its trials, the worth of each sublayer, what good sets share.

The functions read rows of trials, of a finished or a running search. Only complete trials have comparable values.
"""

from __future__ import annotations

from collections.abc import Sequence

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
)
from experiments.results import figure_data
from experiments.results.figure_data import Spent, unit
from experiments.results.rows import scored
from search.importance import Importance
from selfspec.errors import InputError

LAYER = "layer of the only sublayer skipped"


def best_so_far(trials: Sequence[Row], *, objective: str, spent: Spent = "evaluations") -> go.Figure:
    """The best value so far over evaluations or seconds; larger is better.

    Args:
        trials: rows of a search run; a figure over seconds leaves out rows without an end time.
        objective: name of the objective, shown as the unit of the value.
        spent: quantity on the x axis.
    """
    progress = figure_data.progress(trials, spent)
    figure = go.Figure()
    if progress.scored:
        hover = "trial %{customdata[0]}: %{y:.4g}<br>skip %{customdata[1]}<extra></extra>"
        figure.add_scatter(
            x=[x for x, _ in progress.scored],
            y=[t["value"] for _, t in progress.scored],
            mode="markers",
            name="trial",
            marker={"color": BLUE, "size": 6, "opacity": 0.55},
            customdata=[[t["number"], t["skip"]] for _, t in progress.scored],
            hovertemplate=hover,
        )
        x, y = zip(*progress.best, strict=True)
        line = {"color": GREEN, "shape": "hv", "width": 2.5}
        figure.add_scatter(x=x, y=y, mode="lines", name="best so far", line=line)
    for state, symbol, colour, height in (("pruned", "triangle-down", ORANGE, 0.05), ("failed", "x", RED, 0.02)):
        # these trials have no comparable value, so they stand at the bottom, on an axis of their own
        ended = progress.without_value(state)
        if ended:
            mark = {"color": colour, "symbol": symbol, "size": 7}
            figure.add_scatter(x=ended, y=[height] * len(ended), yaxis="y2", mode="markers", name=state, marker=mark)
    if progress.nothing is not None:
        level(figure, progress.nothing, f"skip nothing: {progress.nothing:.3g}")
    styled(figure, x="trials" if spent == "evaluations" else "seconds of search (s)", y=unit(objective))
    figure.update_layout(yaxis2={"overlaying": "y", "range": [0, 1], "visible": False})
    return figure


def trade_off(trials: Sequence[Row], *, objective: str) -> go.Figure:
    """Acceptance over draft cost of every complete trial, coloured by value, with the front and the best.

    Args:
        trials: rows of a search run; rows without a draft cost or an acceptance are left out.
        objective: name of the objective, shown as the unit of the value.
    """
    data = figure_data.trade_off(trials)
    figure = go.Figure()
    if data.best:
        figure.add_scatter(
            x=[t["draft_cost"] for t in data.trials],
            y=[t["acceptance"] for t in data.trials],
            mode="markers",
            name="trial",
            marker={
                "color": [t["value"] for t in data.trials],
                "colorscale": SCALE,
                "showscale": True,
                "size": 9,
                "line": {"width": 0.5, "color": GREY},
                "colorbar": colour_bar(unit(objective)),
            },
            customdata=[[t["number"], t["value"], t["skip"]] for t in data.trials],
            hovertemplate="trial %{customdata[0]}: %{customdata[1]:.4g}<br>acceptance %{y:.3f}, cost %{x:.3f}"
            "<br>skip %{customdata[2]}<extra></extra>",
        )
        x, y = [t["draft_cost"] for t in data.front], [t["acceptance"] for t in data.front]
        edge = {"color": GREY, "shape": "hv", "width": 1.5}
        figure.add_scatter(x=x, y=y, mode="lines", name="Pareto front", line=edge, hoverinfo="skip")
        star = {"symbol": "star-open", "size": 18, "color": RED, "line": {"width": 2}}
        at = {"x": [data.best["draft_cost"]], "y": [data.best["acceptance"]]}
        figure.add_scatter(**at, mode="markers", name="best value", marker=star, hoverinfo="skip")
    return styled(figure, x=figure_data.DRAFT_COST, y=unit("acceptance"))


def importance(trials: Sequence[Row], *, n_layers: int, objective: str) -> go.Figure:
    """Change of the value from skipping each sublayer alone: layers from left to right, attention above MLP.

    The figure is empty unless the search tried single sublayers and the empty skip set.

    Args:
        trials: rows of a search run.
        n_layers: number of layers of the model.
        objective: name of the objective, shown as the unit of the value.
    """
    figure = go.Figure()
    try:
        data = figure_data.importance_map(Importance.from_rows(trials, n_layers))
    except InputError:  # no trial to compare with
        return styled(figure, x=LAYER, y="", height=240)
    if data.known.size:
        figure.add_heatmap(
            z=[[None if np.isnan(c) else float(c) for c in row] for row in data.changes],
            y=figure_data.SUBLAYERS,
            zmin=-data.reach,
            zmax=data.reach,
            colorscale=WORSE_BETTER,
            xgap=2,
            ygap=2,
            colorbar=colour_bar("change of value"),
            hovertemplate="%{y} of layer %{x}: %{z:+.4g}<extra></extra>",
        )
        title = f"change of {unit(objective)}; skip nothing: {data.nothing:.3g}"
        figure.update_layout(title={"text": title, "font": {"size": 13}, "x": 0, "xref": "paper"})
    styled(figure, x=LAYER, y="", height=240)
    figure.update_yaxes(autorange="reversed", showgrid=False)
    figure.update_xaxes(showgrid=False, tick0=0, dtick=max(1, n_layers // 6))
    return figure


def bits(trials: Sequence[Row], *, n_layers: int, top: int = 40) -> go.Figure:
    """The skip sets of the best trials, one line each, the best on top; a full column marks what good sets share.

    Args:
        trials: rows of a search run.
        n_layers: number of layers of the model.
        top: number of distinct sets.
    """
    ranked: dict[str, Row] = {}
    for trial in sorted(scored(trials), key=lambda t: -float(t["value"])):
        ranked.setdefault(trial["skip"], trial)
    shown = list(ranked.values())[:top]
    cells = [[0.0] * (2 * n_layers + 1) for _ in shown]
    for line, trial in zip(cells, shown, strict=True):
        line[n_layers] = np.nan  # a gap between attention and MLP
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
