"""The dashboard's charts for trackers; none if plotly is not installed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from experiments.tracking.tracker import Chart

Row = Mapping[str, Any]


def search_charts(trials: Sequence[Row], *, n_layers: int, objective: str) -> dict[str, Chart]:
    """Best so far, draft cost against acceptance, and the importance of every sublayer.

    Args:
        trials: rows of `trials.jsonl`.
        n_layers: number of layers of the model.
        objective: name of the objective, shown as the unit of the value.
    """
    return _charts(
        best_so_far=lambda: _module("searching").best_so_far(trials, objective=objective),
        trade_off=lambda: _module("searching").trade_off(trials, objective=objective),
        importance=lambda: _module("searching").importance(trials, n_layers=n_layers, objective=objective),
    )


def evaluation_charts(rows: Sequence[Row]) -> dict[str, Chart]:
    """Acceptance by position and the parts of the time, one line or bar for each arm; from answered rows."""
    return _charts(
        positions=lambda: _module("evaluating").position_acceptance(rows),
        time_split=lambda: _module("evaluating").time_split(rows),
    )


def training_charts(steps: Sequence[Row]) -> dict[str, Chart]:
    """Loss and acceptance by depth over the steps of a training."""
    return _charts(training=lambda: _module("training").curve(steps))


def _charts(**draw: Callable[[], Any]) -> dict[str, Chart]:
    return {f"chart/{name}": Chart(call) for name, call in draw.items()} if find_spec("plotly") else {}


def _module(name: str) -> Any:
    """A module of charts; it is imported at the first drawing, because plotly is slow to import."""
    return import_module(f"experiments.charts.{name}")
