"""The contents of the live panel of a running search or evaluation: its best set, or its arms."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from experiments.results.tables import number
from experiments.terminal.progress import Row, Show
from experiments.terminal.skip_map_text import skip_map
from search.point import settings_text
from selfspec.measure import metrics
from selfspec.measure.metrics import Timed
from selfspec.skipping.skip_set import SkipSet


def best_set(n_layers: int, unit: str) -> Show:
    """A function that shows the best trial (value, acceptance, skip set and map) and the number of failed trials.

    Args:
        n_layers: number of layers of the model.
        unit: unit of the values.
    """

    def show(rows: Sequence[Row]) -> RenderableType:
        valued = [row for row in rows if row["state"] == "complete"]
        n_failed = sum(row["state"] == "failed" for row in rows)
        failed = f", {n_failed} failed" if n_failed else ""
        if not valued:
            return Text(f"no value yet{failed}")
        best = max(valued, key=lambda row: float(row["value"]))
        skip = SkipSet.parse(best["skip"], n_layers)
        text = f"best {format_value(best['value'], unit, 3)}, acceptance {_of_draft(best)}"
        text += f", {settings_text(best['settings'])}" if best.get("settings") else ""
        return Group(Text(f"{text}, {len(skip)} of {2 * n_layers} sublayers skipped{failed}"), skip_map(("", skip)))

    return show


def format_value(value: float | None, unit: str, digits: int) -> str:
    """A value with its unit: `21.90 tokens/s`, `1.17x plain decoding`."""
    return ("–" if value is None else number(float(value), digits)) + ("" if unit.startswith("x ") else " ") + unit


def _of_draft(row: Row) -> str:
    acceptance = row.get("acceptance")
    return "–" if acceptance is None else number(acceptance, 3)


def arms(rows: Sequence[Row]) -> RenderableType:
    """One line for each arm: answers, acceptance and speed so far, over all its answers and without pairing."""
    table = Table("arm", box=None, pad_edge=False, header_style="dim")
    for name in ("answers", "failed", "acceptance", "tokens/round", "tokens/s"):
        table.add_column(name, justify="right")
    for arm in dict.fromkeys(row["arm"] for row in rows):
        ours = [row for row in rows if row["arm"] == arm]
        whole = [row for row in ours if row["error"] is None]
        drafted, accepted, n_rounds = (sum(row[name] for row in whole) for name in ("drafted", "accepted", "n_rounds"))
        speed = metrics.tokens_per_s([Timed(seconds=row["total_s"], tokens=row["n_tokens"]) for row in whole])
        table.add_row(
            Text(arm),
            str(len(whole)),
            str(len(ours) - len(whole)),
            number(metrics.acceptance(accepted, drafted), 3),
            number(metrics.tokens_per_round(accepted, n_rounds) if drafted else float("nan"), 2),
            number(speed, 1),
        )
    return table
