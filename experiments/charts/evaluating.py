"""Figures of one evaluation: acceptance by position, the stop threshold's course, and where the seconds go.

Rows are those of `records.jsonl`: one prompt, one arm. Sums are pooled over prompts before anything is divided.
"""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from experiments.charts.theme import BLUE, GREY, ORANGE, PURPLE, Row, look, styled
from selfspec.measure.metrics import ratio

PARTS = (("prefill", "prefill_s", PURPLE), ("draft", "draft_s", BLUE), ("verify", "verify_s", ORANGE))


def arms(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows without those of failed prompts, by arm."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if row.get("error") is None:
            found.setdefault(str(row["arm"]), []).append(row)
    return found


def by_position(rows: Sequence[Row]) -> dict[str, list[tuple[int, int, int]]]:
    """By arm that drafts: (position in the draft from 1 on, times drafted there, times accepted there)."""
    found = {}
    for arm, ours in arms(rows).items():
        rounds = [
            pair for row in ours for pair in zip(row["round_drafted"], row["round_accepted"], strict=True) if pair[0]
        ]
        longest = max((drafted for drafted, _ in rounds), default=0)
        counts = [(k, sum(d >= k for d, _ in rounds), sum(a >= k for _, a in rounds)) for k in range(1, longest + 1)]
        if counts:
            found[arm] = counts
    return found


def position_acceptance(rows: Sequence[Row]) -> go.Figure:
    """Of the tokens drafted at each position of a draft, the part that was accepted."""
    figure = go.Figure()
    for i, (arm, counts) in enumerate(by_position(rows).items()):
        colour, symbol, dash = look(i)
        figure.add_scatter(
            x=[k for k, _, _ in counts],
            y=[ratio(accepted, drafted) for _, drafted, accepted in counts],
            customdata=[[drafted] for _, drafted, _ in counts],
            mode="lines+markers",
            name=arm,
            line={"color": colour, "dash": dash},
            marker={"symbol": symbol, "size": 8},
            hovertemplate="position %{x}: %{y:.3f} of %{customdata[0]} drafted<extra></extra>",
        )
    styled(figure, x="position in the draft (tokens)", y="accepted / drafted there")
    figure.update_yaxes(range=[0, 1.03])
    figure.update_xaxes(dtick=1 if all(len(c) < 16 for c in by_position(rows).values()) else None)
    return figure


def thresholds(rows: Sequence[Row], *, prompt: str | None = None) -> go.Figure:
    """The stop rule's confidence threshold, round by round.

    Args:
        rows: of an evaluation.
        prompt: the id of the only prompt to show; None for all, one after another.
    """
    figure = go.Figure()
    shown = [row for row in rows if prompt is None or row.get("prompt_id") == prompt]
    for i, (arm, ours) in enumerate(arms(shown).items()):
        course = [t for row in ours for t in row["round_threshold"]]
        if course and any(t is not None for t in course):
            colour, _, dash = look(i)
            line = {"color": colour, "dash": dash}
            figure.add_scatter(x=list(range(1, len(course) + 1)), y=course, mode="lines", name=arm, line=line)
    return styled(
        figure, x="round (prompts one after another)" if prompt is None else "round", y="threshold (confidence)"
    )


def time_split(rows: Sequence[Row]) -> go.Figure:
    """Seconds per 100 new tokens, by what they were spent on."""
    figure = go.Figure()
    grouped = {arm: [row for row in ours if row.get("prefill_s") is not None] for arm, ours in arms(rows).items()}
    grouped = {arm: ours for arm, ours in grouped.items() if ours}
    n_tokens = {arm: sum(row["n_tokens"] for row in ours) for arm, ours in grouped.items()}
    for name, key, colour in (*PARTS, ("other", "", GREY)):
        spent = []
        for arm, ours in grouped.items():
            # what is in no part is other: the time between, and all of an arm that is not taken apart
            parts = sum(row[k] for row in ours for _, k, _ in PARTS)
            seconds = sum(row[key] for row in ours) if key else max(0.0, sum(row["total_s"] for row in ours) - parts)
            spent.append(100 * ratio(seconds, n_tokens[arm]))
        hover = f"{name}: %{{x:.3f}} s per 100 tokens<extra></extra>"
        figure.add_bar(
            y=list(grouped), x=spent, name=name, orientation="h", marker={"color": colour}, hovertemplate=hover
        )
    styled(figure, x="seconds per 100 new tokens (s)", y="", height=150 + 40 * len(grouped))
    figure.update_layout(barmode="stack", bargap=0.35)
    figure.update_yaxes(autorange="reversed", type="category", showgrid=False)
    return figure
