"""The rows of a simulation as a table and a picture: latency against the rate of requests, as in SmartSpec's paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from experiments.results.figures import BLUE, DARK, GREEN, GREY, ORANGE, RED, canvas
from experiments.results.tables import markdown_table, number

Row = Mapping[str, Any]
COLUMNS = (
    ("engine", None, "engine"),
    ("load", None, "load"),
    ("arm", None, "arm"),
    ("latency s", 2, "latency_s"),
    ("p50", 2, "latency_p50_s"),
    ("p99", 2, "latency_p99_s"),
    ("first token s", 2, "first_token_s"),
    ("tokens/s", 1, "tokens_per_s"),
    ("read tokens/s", 1, "verified_per_s"),
    ("rows", 1, "mean_rows"),
    ("draft", 1, "mean_draft"),
    ("switches", 0, "n_switches"),
)
_STYLES = (  # two arms never differ in colour alone
    (DARK, "-", "o"),
    (BLUE, ":", "s"),
    (BLUE, "--", "^"),
    (BLUE, "-.", "v"),
    (ORANGE, "-", "D"),
    (GREEN, "-", "X"),
    (RED, "--", "*"),
    (GREY, "-", "P"),
)


def load_table(rows: Sequence[Row]) -> str:
    """A Markdown table, a line for each simulation, with the latency over that of the first arm at the same load."""
    first = next((row["arm"] for row in rows), "")
    base = {(row["engine"], row["load"]): row["latency_s"] for row in rows if row["arm"] == first}
    header = [name for name, *_ in COLUMNS]
    header.insert(4, f"over {first}")
    body = []
    for row in rows:
        cells = [str(row[key]) if digits is None else _number(row[key], digits) for _, digits, key in COLUMNS]
        plain = base.get((row["engine"], row["load"]))
        cells.insert(4, "" if not plain else number(row["latency_s"] / plain, 2))
        body.append(cells)
    return markdown_table(header, body)


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else number(value, digits)


def in_order(rows: Sequence[Row], loads: Sequence[str], arms: Sequence[str]) -> list[Row]:
    """The rows by engine, load and arm."""
    return sorted(rows, key=lambda row: (row["engine"], loads.index(row["load"]), arms.index(row["arm"])))


def latency_figure(rows: Sequence[Row], *, engine: str, title: str) -> Figure:
    """Mean latency against the rate of requests, a line for each arm, of one engine.

    Args:
        rows: of simulations; those without a rate are left out.
        engine: `model` or `replay`.
        title: model, data and device.
    """
    figure, axes = canvas(7.0, 4.2)
    shown = [row for row in rows if row["engine"] == engine and row["rate"] is not None]
    arms = list(dict.fromkeys(row["arm"] for row in shown))
    for i, arm in enumerate(arms):
        colour, line, mark = _STYLES[i % len(_STYLES)]
        points = sorted((row["rate"], row["latency_s"]) for row in shown if row["arm"] == arm)
        axes.plot(*zip(*points, strict=True), color=colour, linestyle=line, marker=mark, markersize=4, label=arm)
    axes.set(xlabel="requests a second", ylabel="mean latency, seconds", title=title)
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)
    return figure


def switching_figure(rows: Sequence[Row], *, engine: str, load: str) -> Figure:
    """How far the steps of each arm drafted, and how many requests were in them, over time at one load."""
    shown = [row for row in rows if row["engine"] == engine and row["load"] == load and row["switching"]]
    figure, axes = canvas(7.0, 4.2)
    for i, row in enumerate(shown):
        colour, line, _ = _STYLES[i % len(_STYLES)]
        at_s = [part["at_s"] for part in row["switching"]]
        drafts = [part["mean_draft"] for part in row["switching"]]
        axes.step(at_s, drafts, where="post", color=colour, linestyle=line, label=row["arm"])
    axes.set(xlabel="seconds", ylabel="tokens of a step's longest draft", title=f"load {load}, {engine}")
    axes.legend(fontsize=8)
    return figure
