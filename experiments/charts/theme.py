"""The style of all interactive figures: colour-blind safe colours on light and dark ground, axes with units, no boxes.

This module does not know runs. The caller sets the colours of ground and text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go

from experiments.charts import PRIMARY

# Okabe and Ito's hues, which colour-blind readers can tell apart. Orange is darker than theirs, so that each hue has a
# contrast of 3 on white and on Streamlit's dark ground. Two series never differ in colour alone.
BLUE, ORANGE, GREEN, PURPLE, RED = PRIMARY, "#C77700", "#009E73", "#CC79A7", "#D55E00"
GREY, FAINT = "#858585", "rgba(133,133,133,0.2)"
INK = ("#333333", "#D6D6D6")  # colour of letters on a light and on a dark ground
SERIES = (BLUE, ORANGE, GREEN, PURPLE, RED, GREY)
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "x", "cross")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
SCALE = "Cividis"  # also readable by colour-blind readers and in grey
WORSE_BETTER = [[0.0, RED], [0.5, "rgba(133,133,133,0.12)"], [1.0, BLUE]]

Row = Mapping[str, Any]


def look(i: int) -> tuple[str, str, str]:
    """Colour, marker symbol and dash of the i-th series; the first 36 series differ in at least one of them."""
    colour = SERIES[i % len(SERIES)]
    turn = (i + i // len(SERIES)) % len(SYMBOLS)
    return colour, SYMBOLS[turn], DASHES[turn]


def colour_bar(title: str) -> dict[str, Any]:
    """A thin colour scale without a box; `title` names its quantity and unit."""
    return {"title": {"text": title, "side": "right"}, "thickness": 12, "outlinewidth": 0}


def styled(figure: go.Figure, *, x: str, y: str, height: int = 380) -> go.Figure:
    """The figure with named axes, a legend on top and no decoration.

    Args:
        figure: the figure, changed in place.
        x, y: titles of the axes, with units.
        height: height in pixels.
    """
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 64, "r": 16, "t": 44, "b": 52},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"size": 13},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        hoverlabel={"align": "left"},
    )
    figure.update_xaxes(title_text=x, gridcolor=FAINT, zeroline=False, automargin=True)
    figure.update_yaxes(title_text=y, gridcolor=FAINT, zeroline=False, automargin=True)
    return figure


def inked(figure: go.Figure, *, is_dark: bool) -> go.Figure:
    """The figure, changed in place, with letters that are readable on a dark or a light ground."""
    ink = INK[is_dark]
    figure.update_layout(font_color=ink, legend_font_color=ink, title_font_color=ink)
    figure.update_annotations(font_color=ink)
    for update in (figure.update_xaxes, figure.update_yaxes):
        update(title_font_color=ink, tickfont_color=ink)
    colorbar = {"tickfont": {"color": ink}, "title": {"font": {"color": ink}}}
    figure.update_traces(colorbar=colorbar, selector={"type": "heatmap"})
    for trace in figure.select_traces({"type": "scatter"}):
        if trace.marker.showscale:
            trace.marker.colorbar.update(colorbar)
    return figure


def level(figure: go.Figure, y: float, text: str) -> None:
    """Draw a dashed line across the figure at y, with `text` at its end."""
    figure.add_hline(
        y=y, line={"color": GREY, "dash": "dash", "width": 1.5}, annotation={"text": text, "xanchor": "right", "x": 1}
    )
