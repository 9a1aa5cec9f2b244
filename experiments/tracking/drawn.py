"""The dashboard's charts as a tracker shows them; none where plotly is not installed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from experiments.tracking.tracker import Chart

Row = Mapping[str, Any]


def of_search(trials: Sequence[Row], *, n_layers: int, objective: str) -> dict[str, Chart]:
    """Best so far, draft cost against acceptance, and the importance of every sublayer.

    Args:
        trials: rows of `trials.jsonl`.
        n_layers: of the model.
        objective: its name, read out as the unit of the value.
    """
    if find_spec("plotly") is None:
        return {}
    from experiments.charts import searching

    figures = {
        "best_so_far": searching.best_so_far(trials, objective=objective),
        "trade_off": searching.trade_off(trials, objective=objective),
        "importance": searching.importance(trials, n_layers=n_layers, objective=objective),
    }
    return {f"chart/{name}": Chart(figure) for name, figure in figures.items()}


def of_evaluation(rows: Sequence[Row]) -> dict[str, Chart]:
    """Acceptance by position and where the time went, each arm a line or a bar; of answered rows."""
    if find_spec("plotly") is None:
        return {}
    from experiments.charts import evaluating

    figures = {"positions": evaluating.position_acceptance(rows), "time_split": evaluating.time_split(rows)}
    return {f"chart/{name}": Chart(figure) for name, figure in figures.items()}
