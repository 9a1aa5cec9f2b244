"""Figures of the expected speedup over acceptance, draft cost and draft length.

`selfspec.measure.closed_form` holds the formula. Figure 2 of Zhang et al. 2024 (arXiv:2309.08168) shows it for drafts
of half the cost of a plain token.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from experiments.charts.theme import DASHES, GREEN, GREY, RED, SCALE, SERIES, Row, colour_bar, level, styled
from selfspec.measure.closed_form import expected_speedup


def surface(points: Sequence[Row], *, n_drafted: int, verify: float) -> go.Figure:
    """Expected speedup over the chance of acceptance and the draft cost, with runs as points.

    Args:
        points: rows with `label`, `chance`, `cost` and `speedup`; a speedup may be None.
        n_drafted: number of tokens of a draft.
        verify: cost of one verification, in plain tokens.
    """
    chances, costs = np.linspace(0, 1, 51), np.linspace(0.05, 1, 39)
    z = [[expected_speedup(a, n_drafted=n_drafted, draft_cost=c, verify_cost=verify) for a in chances] for c in costs]
    figure = go.Figure()
    figure.add_heatmap(
        x=chances,
        y=costs,
        z=z,
        colorscale=SCALE,
        zsmooth="best",
        colorbar=colour_bar("speedup (× plain decoding)"),
        hovertemplate="chance %{x:.2f}, cost %{y:.2f}: %{z:.2f}×<extra></extra>",
    )
    figure.add_contour(
        x=chances,
        y=costs,
        z=z,
        contours={"type": "constraint", "operation": "=", "value": 1.0},
        line={"color": "white", "width": 3, "dash": "dash"},
        name="as fast as plain",
        showlegend=True,
        hoverinfo="skip",
    )
    if points:
        figure.add_scatter(
            x=[p["chance"] for p in points],
            y=[p["cost"] for p in points],
            mode="markers",
            name="best of a search",
            marker={"symbol": "star", "size": 14, "color": RED, "line": {"color": "white", "width": 1.5}},
            customdata=[[p["label"], "–" if p["speedup"] is None else f"{p['speedup']:.2f}×"] for p in points],
            hovertemplate="%{customdata[0]}<br>chance %{x:.3f}, cost %{y:.3f}, found %{customdata[1]}<extra></extra>",
        )
    x = "chance that a drafted token is accepted"
    styled(figure, x=x, y="draft cost (plain tokens per drafted token)", height=440)
    figure.update_xaxes(range=[0, 1], showgrid=False)
    figure.update_yaxes(range=[0.05, 1], showgrid=False)
    return figure


def lengths(chance: float, *, cost: float, verify: float, n_drafted: int, longest: int = 24) -> go.Figure:
    """Expected speedup over the draft length, for the chosen chance of acceptance and some around it."""
    figure = go.Figure()
    drafts = list(range(1, longest + 1))
    for i, other in enumerate(sorted({0.5, 0.6, 0.7, 0.8, 0.9} - {round(chance, 1)})):
        y = [expected_speedup(other, n_drafted=k, draft_cost=cost, verify_cost=verify) for k in drafts]
        line = {"color": SERIES[-1], "dash": DASHES[1 + i % 5], "width": 1.2}
        figure.add_scatter(x=drafts, y=y, mode="lines", name=f"{other:.1f}", line=line)
    y = [expected_speedup(chance, n_drafted=k, draft_cost=cost, verify_cost=verify) for k in drafts]
    figure.add_scatter(x=drafts, y=y, mode="lines", name=f"{chance:.2f} (chosen)", line={"color": GREEN, "width": 3})
    here = {"symbol": "circle", "size": 12, "color": GREEN, "line": {"color": GREY, "width": 1}}
    figure.add_scatter(x=[n_drafted], y=[y[n_drafted - 1]], mode="markers", name="chosen length", marker=here)
    level(figure, 1.0, "plain decoding")
    return styled(figure, x="tokens drafted a round", y="expected speedup (× plain decoding)", height=440)
