"""Figures that compare skip sets: maps, overlap, speedups, and speedups on other data sets."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from experiments.charts.theme import BLUE, FAINT, GREY, ORANGE, SCALE, Row, colour_bar, level, look, styled
from experiments.results import figure_data
from experiments.results.overlap import jaccard
from selfspec.skipping.skip_set import SkipSet


def skip_map(sets: Mapping[str, SkipSet]) -> go.Figure:
    """The sublayers that each labelled set skips: layers from left to right, attention above MLP."""
    figure = go.Figure()
    n_layers = max((skip.n_layers for skip in sets.values()), default=1)
    lines: list[list[float | None]] = []
    hovers: list[list[str]] = []
    places: list[float] = []
    mapped = figure_data.skip_map(sets)
    for i, one in enumerate(mapped):
        for j, (kind, is_skipped) in enumerate(one.is_skipped.items()):
            beyond = n_layers - len(is_skipped)
            lines.append([*((j + 1) * skipped for skipped in is_skipped), *[None] * beyond])
            states = ["skipped" if skipped else "kept" for skipped in is_skipped]
            texts = [f"{one.label}<br>{kind} of layer {layer}: {state}" for layer, state in enumerate(states)]
            hovers.append([*texts, *[""] * beyond])
            places.append(3 * i + j)
        if i + 1 < len(mapped):  # an empty line keeps the sets apart
            lines.append([None] * n_layers)
            hovers.append([""] * n_layers)
            places.append(3 * i + 2)
    figure.add_heatmap(
        z=lines,
        y=places,
        zmin=0,
        zmax=2,
        colorscale=[[0, FAINT], [0.33, FAINT], [0.34, BLUE], [0.66, BLUE], [0.67, ORANGE], [1, ORANGE]],
        showscale=False,
        xgap=2,
        ygap=2,
        customdata=hovers,
        hovertemplate="%{customdata}<extra></extra>",
    )
    for name, colour in (("attention skipped", BLUE), ("MLP skipped", ORANGE), ("kept", FAINT)):
        square = {"symbol": "square", "size": 11, "color": colour}
        figure.add_scatter(x=[None], y=[None], mode="markers", name=name, marker=square)
    styled(figure, x="layer", y="", height=130 + 66 * len(sets))
    labels = [f"{one.label}<br>{one.counts}" for one in mapped]
    ticks = [3 * i + 0.5 for i in range(len(sets))]
    figure.update_yaxes(autorange="reversed", tickvals=ticks, ticktext=labels, showgrid=False, tickfont={"size": 11})
    figure.update_xaxes(showgrid=False, tick0=0, dtick=max(1, n_layers // 6))
    return figure


def overlap(sets: Mapping[str, SkipSet]) -> go.Figure:
    """Jaccard index of every two sets, in [0, 1]; the cell of two empty sets stays empty."""
    chosen = list(sets.values())
    numbers = [str(i) for i in range(1, len(chosen) + 1)]
    lines = [f"{label}  ({i})" for i, label in zip(numbers, sets, strict=True)]  # long labels fit beside, not below
    shares = [[jaccard(a, b) for b in chosen] for a in chosen]
    cells = [[None if math.isnan(share) else share for share in row] for row in shares]
    return _matrix(cells, numbers, lines, x="set, by its number", y="", scale="Jaccard index", form=".2f")


def transfer(rows: Sequence[Row], *, value: str = "speedup", name: str = "speedup (× plain decoding)") -> go.Figure:
    """A value of each set on each data set.

    Args:
        rows: rows with the set's `label`, `data`, and the value.
        value: field of the rows that holds the value.
        name: name of the value, with its unit.
    """
    labels, data = (list(dict.fromkeys(str(row[key]) for row in rows)) for key in ("label", "data"))
    known = {(str(row["label"]), str(row["data"])): row[value] for row in rows}
    cells = [[known.get((label, d)) for d in data] for label in labels]
    return _matrix(cells, data, labels, x="evaluated on", y="", scale=name, form=".2f")


def _matrix(
    cells: Sequence[Sequence[float | None]],
    columns: Sequence[str],
    lines: Sequence[str],
    *,
    x: str,
    y: str,
    scale: str,
    form: str,
) -> go.Figure:
    figure = go.Figure()
    figure.add_heatmap(
        z=cells,
        x=columns,
        y=lines,
        colorscale=SCALE,
        texttemplate=f"%{{z:{form}}}",
        textfont={"size": 13},
        xgap=2,
        ygap=2,
        colorbar=colour_bar(scale),
        hovertemplate=f"%{{y}}<br>%{{x}}: %{{z:{form}}}<extra></extra>",
    )
    styled(figure, x=x, y=y, height=150 + 46 * len(lines))
    figure.update_xaxes(showgrid=False, type="category")
    figure.update_yaxes(showgrid=False, type="category", autorange="reversed")
    return figure


def speedups(rows: Sequence[Row]) -> go.Figure:
    """Speedup of every label on every data set, with its 95 % interval; 1 is plain decoding.

    Args:
        rows: rows with `label`, `data`, `speedup`, `low` and `high`; an unknown end of an interval is nan or None.
    """
    figure = go.Figure()
    for i, label in enumerate(dict.fromkeys(str(row["label"]) for row in rows)):
        colour, symbol, _ = look(i)
        ours = [row for row in rows if str(row["label"]) == label]
        up, down = ([abs(r["speedup"] - _known(r[end], r["speedup"])) for r in ours] for end in ("high", "low"))
        figure.add_scatter(
            x=[row["data"] for row in ours],
            y=[row["speedup"] for row in ours],
            error_y={"type": "data", "array": up, "arrayminus": down, "thickness": 1.8, "width": 5},
            mode="markers",
            name=label,
            offsetgroup=str(i),
            marker={"color": colour, "symbol": symbol, "size": 11},
            hovertemplate=f"{label}<br>%{{x}}: %{{y:.3f}}<extra></extra>",
        )
    if rows:
        level(figure, 1.0, "plain decoding")
    styled(figure, x="data", y="speedup (× plain decoding)")
    figure.update_layout(scattermode="group", scattergap=0.5)
    figure.update_xaxes(type="category")
    return figure


def _known(value: float | None, otherwise: float) -> float:
    return otherwise if value is None or value != value else value


def predicted(rows: Sequence[Row]) -> go.Figure:
    """Measured over predicted speedup: one point for each set and data set; points on the line are predicted exactly.

    Args:
        rows: rows with `label`, `data`, `predicted` and `speedup`.
    """
    figure = go.Figure()
    both = figure_data.predictions(rows)
    if both:
        ends = [f(value for p in both for value in (p.predicted, p.measured)) for f in (min, max)]
        line = {"color": GREY, "dash": "dash", "width": 1.5}
        figure.add_scatter(x=ends, y=ends, mode="lines", name="as predicted", line=line, hoverinfo="skip")
    for i, label in enumerate(dict.fromkeys(p.label for p in both)):
        ours = [p for p in both if p.label == label]
        colour, symbol, _ = look(i)
        figure.add_scatter(
            x=[p.predicted for p in ours],
            y=[p.measured for p in ours],
            text=[p.data for p in ours],
            mode="markers",
            name=label,
            marker={"color": colour, "symbol": symbol, "size": 11},
            hovertemplate="%{text}: predicted %{x:.3f}, measured %{y:.3f}<extra></extra>",
        )
    return styled(figure, x="predicted speedup (× plain decoding)", y="measured speedup (× plain decoding)")
