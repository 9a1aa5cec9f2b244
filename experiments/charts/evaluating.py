"""Figures of one evaluation: acceptance by position, the threshold of the stop rule, and the parts of the seconds.

Each row comes from `records.jsonl` and holds one prompt and one arm. The figures divide sums over prompts.
"""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from experiments.charts.theme import BLUE, GREY, ORANGE, PURPLE, Row, look, styled
from experiments.results import figure_data
from experiments.results.figure_data import answered_by_arm, seconds_by_part
from selfspec.measure.metrics import ratio

PARTS = (("prefill", "prefill_s", PURPLE), ("draft", "draft_s", BLUE), ("verify", "verify_s", ORANGE))


def position_acceptance(rows: Sequence[Row]) -> go.Figure:
    """Accepted over judged tokens at each position of a draft, in [0, 1]."""
    figure = go.Figure()
    found = {
        arm: positions for arm, ours in answered_by_arm(rows).items() if (positions := figure_data.positions(ours))
    }
    for i, (arm, positions) in enumerate(found.items()):
        colour, symbol, dash = look(i)
        figure.add_scatter(
            x=[p.number for p in positions],
            y=[p.acceptance for p in positions],
            customdata=[[p.judged, p.drafted] for p in positions],
            mode="lines+markers",
            name=arm,
            line={"color": colour, "dash": dash},
            marker={"symbol": symbol, "size": 8},
            hovertemplate="position %{x}: %{y:.3f} of %{customdata[0]} judged, %{customdata[1]} drafted<extra></extra>",
        )
    styled(figure, x="position in the draft", y="accepted, of the tokens judged there")
    figure.update_yaxes(range=[0, 1.03])
    figure.update_xaxes(dtick=1 if all(len(positions) < 16 for positions in found.values()) else None)
    return figure


def thresholds(rows: Sequence[Row], *, prompt: str | None = None) -> go.Figure:
    """The stop rule's confidence threshold, round by round.

    Args:
        rows: rows of an evaluation.
        prompt: id of the only prompt to show; None shows all prompts, one after another.
    """
    figure = go.Figure()
    shown = [row for row in rows if prompt is None or row.get("prompt_id") == prompt]
    for i, (arm, ours) in enumerate(answered_by_arm(shown).items()):
        course = figure_data.course(ours)
        if course.has_thresholds:
            colour, _, dash = look(i)
            rounds = list(range(1, len(course.thresholds) + 1))
            line = {"color": colour, "dash": dash}
            figure.add_scatter(x=rounds, y=course.thresholds, mode="lines", name=arm, line=line)
    return styled(
        figure, x="round (prompts one after another)" if prompt is None else "round", y="threshold (confidence)"
    )


def time_split(rows: Sequence[Row]) -> go.Figure:
    """Seconds per 100 new tokens, split into drafting, verification and the rest."""
    figure = go.Figure()
    grouped = {
        arm: [row for row in ours if row.get("prefill_s") is not None] for arm, ours in answered_by_arm(rows).items()
    }
    grouped = {arm: ours for arm, ours in grouped.items() if ours}
    n_tokens = {arm: sum(row["n_tokens"] for row in ours) for arm, ours in grouped.items()}
    seconds = {arm: {part: s or 0.0 for part, s in seconds_by_part(ours).items()} for arm, ours in grouped.items()}
    for s in seconds.values():
        # `other` holds the time between the parts, and all seconds of an arm without parts
        s["other_s"] = max(0.0, s["total_s"] - sum(s[part] for _, part, _ in PARTS))
    for name, part, colour in (*PARTS, ("other", "other_s", GREY)):
        spent = [100 * ratio(s[part], n_tokens[arm]) for arm, s in seconds.items()]
        hover = f"{name}: %{{x:.3f}} s per 100 tokens<extra></extra>"
        figure.add_bar(
            y=list(grouped), x=spent, name=name, orientation="h", marker={"color": colour}, hovertemplate=hover
        )
    styled(figure, x="seconds per 100 new tokens (s)", y="", height=150 + 40 * len(grouped))
    figure.update_layout(barmode="stack", bargap=0.35)
    figure.update_yaxes(autorange="reversed", type="category", showgrid=False)
    return figure
