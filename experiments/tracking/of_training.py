"""What a tracker shows of a training: each step; at its end its result, its curve and its draft."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from experiments.results.rows import CurveStep, read_rows
from experiments.results.run_facts import read_provenance, read_summary
from experiments.tracking import charts
from experiments.tracking.tracker import Picture, Table, Tracker
from selfspec.records import run_files
from selfspec.skipping.plan_files import NAME as PLAN

Row = Mapping[str, Any]


def step_listener(tracker: Tracker) -> Callable[[Row], None]:
    """A function that takes each row of `curve.jsonl`, in order, and shows its numbers."""

    def show(row: Row) -> None:
        shown = {name: value for name, value in row.items() if isinstance(value, int | float) and name != "schema"}
        shown = {**shown, **_by_depth(row), "number": row["step"]}
        tracker.show({f"train/{name}": value for name, value in shown.items()})

    return show


def show_training(tracker: Tracker, folder: Path, *, name: str) -> None:
    """Show the result of a finished training, and keep its draft.

    Args:
        tracker: the tracker that shows it.
        folder: folder of the run.
        name: name from the run's configuration, under which the tracker keeps the draft.
    """
    rows, end = read_rows(folder / run_files.CURVE, CurveStep).whole(), read_summary(folder)
    numbers = ("expected_speedup", "draft_length", "steps", "best_step", "seconds", "draft_cost", "round_cost")
    result: dict[str, Any] = {key: end.get(key) for key in numbers} | _by_depth(end)
    tracker.show({f"draft/{key}": value for key, value in result.items()})
    seen = [row for row in rows if row.get("conditional")]
    columns = ("step", "seconds", "loss", "expected_speedup", "draft_length")
    tracker.show({"looks": Table([{key: row.get(key) for key in columns} | _by_depth(row) for row in seen])})
    tracker.show({png.stem: Picture(png) for png in sorted(folder.glob("*.png"))})
    tracker.show(charts.training_charts(rows))
    plan = [file for file in (folder / PLAN, (folder / PLAN).with_suffix(".safetensors")) if file.is_file()]
    tracker.keep(f"{name}-trained-plan", plan, kind="plan", is_best=is_best_of_its_kind(folder))


def is_best_of_its_kind(folder: Path) -> bool:
    """Whether no neighbouring training of the same model expects a larger speedup."""
    mine, *others = (_value(path) for path in (folder, *folder.parent.iterdir()))
    return all(other is None or other[0] != mine[0] or other[1] <= mine[1] for other in others) if mine else False


def _value(folder: Path) -> tuple[str, float] | None:
    """Model and expected speedup of a training; None if it has not come to its end."""
    try:
        value = read_summary(folder).get("expected_speedup")
        return None if value is None else (str(read_provenance(folder)["run"].get("model")), value)
    except (OSError, ValueError):
        return None


def _by_depth(row: Row) -> dict[str, float]:
    return {f"accepted_{depth}": float(a) for depth, a in enumerate(row.get("conditional") or (), start=1)}
