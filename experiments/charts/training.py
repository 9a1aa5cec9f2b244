"""The figure of one training: its loss, and what it accepts of held-out texts, depth by depth."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from experiments.charts.theme import BLUE, GREEN, GREY, ORANGE, RED, Row, styled

COLOURS = (BLUE, ORANGE, GREEN, RED)


def curve(rows: Sequence[Row]) -> go.Figure:
    """Acceptance by depth at each look at held-out texts, and the loss of each step on an axis of its own.

    Args:
        rows: steps of a finished or a running training.
    """
    figure = go.Figure()
    timed = [row for row in rows if row.get("loss") is not None]
    if timed:
        figure.add_scatter(
            x=[row["step"] for row in timed],
            y=[row["loss"] for row in timed],
            yaxis="y2",
            mode="lines",
            name="loss",
            line={"color": GREY, "width": 1},
            opacity=0.5,
        )
    seen = [row for row in rows if row.get("conditional")]
    for depth in range(max((len(row["conditional"]) for row in seen), default=0)):
        deep = [row for row in seen if depth < len(row["conditional"])]
        figure.add_scatter(
            x=[row["step"] for row in deep],
            y=[row["conditional"][depth] for row in deep],
            mode="lines+markers",
            name=f"depth {depth + 1}",
            line={"color": COLOURS[depth % len(COLOURS)], "dash": "solid" if depth < len(COLOURS) else "dot"},
            marker={"size": 5},
        )
    styled(figure, x="step", y="accepted, if all before were")
    figure.update_layout(
        yaxis={"range": [0, 1]},
        yaxis2={"overlaying": "y", "side": "right", "title": {"text": "loss"}, "showgrid": False},
    )
    return figure
