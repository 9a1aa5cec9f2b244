"""What all interactive figures share: colours for every eye on light and dark ground, axes with units, no boxes.

Knows nothing of runs. Ground and text colours are left to whoever shows the figure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go

from experiments.charts import PRIMARY

# Okabe and Ito's hues, which the colour-blind can tell apart; orange is darker than theirs, so that every one of them
# has a contrast of 3 on white and on Streamlit's dark ground. They are never the only difference.
BLUE, ORANGE, GREEN, PURPLE, RED = PRIMARY, "#C77700", "#009E73", "#CC79A7", "#D55E00"
GREY, FAINT = "#858585", "rgba(133,133,133,0.2)"
INK = ("#333333", "#D6D6D6")  # of letters, on a light and on a dark ground
SERIES = (BLUE, ORANGE, GREEN, PURPLE, RED, GREY)
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "x", "cross")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
SCALE = "Cividis"  # for the colour-blind and in grey, too
WORSE_BETTER = [[0.0, RED], [0.5, "rgba(133,133,133,0.12)"], [1.0, BLUE]]

Row = Mapping[str, Any]


def look(i: int) -> tuple[str, str, str]:
    """Colour, marker symbol and dash of the i-th series; 36 differ in at least one."""
    colour = SERIES[i % len(SERIES)]
    turn = (i + i // len(SERIES)) % len(SYMBOLS)
    return colour, SYMBOLS[turn], DASHES[turn]


def colour_bar(title: str) -> dict[str, Any]:
    """The scale beside a figure, thin and without a box; `title` says what it shows, with the unit."""
    return {"title": {"text": title, "side": "right"}, "thickness": 12, "outlinewidth": 0}


def styled(figure: go.Figure, *, x: str, y: str, height: int = 380) -> go.Figure:
    """The figure, with named axes, its legend above, and nothing that is no data.

    Args:
        figure: changed in place.
        x, y: what the axes show, with the unit.
        height: in pixels.
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
    """The figure with letters that can be read on a dark or a light ground; changed in place."""
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
    """A dashed line across the figure at y, named at its end."""
    figure.add_hline(
        y=y, line={"color": GREY, "dash": "dash", "width": 1.5}, annotation={"text": text, "xanchor": "right", "x": 1}
    )
