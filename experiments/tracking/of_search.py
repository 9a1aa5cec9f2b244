"""What a tracker shows of a search: each trial at its end; after the search its sets, pictures and files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from experiments.results.rows import Trial, read_rows
from experiments.tracking import charts
from experiments.tracking.skip_set_table import set_row
from experiments.tracking.tracker import Loggable, Picture, Table, Tracker
from search.point import settings_text
from selfspec.measure.metrics import tokens_per_round
from selfspec.records import run_files
from selfspec.skipping import skip_set_files
from selfspec.skipping.plan_files import NAME as PLAN
from selfspec.skipping.skip_set import SkipSet

Row = Mapping[str, Any]

FIRST = ("number", "origin", "state", "skip", "value", "acceptance", "draft_cost", "seconds", "elapsed_s", "reason")


def trial_listener(tracker: Tracker, n_layers: int) -> Callable[[Row], None]:
    """A function that takes each row of `trials.jsonl`, in order, and shows it; the model has `n_layers` layers."""
    bests: list[float] = []

    def show(row: Row) -> None:
        # a trial that was not scored to its end has no comparable value
        value = row["value"] if row["state"] == "complete" else None
        bests.extend([] if value is None else [max([value, *bests[-1:]])])
        shown: dict[str, Loggable] = {
            "number": row["number"],
            "value": value,
            "best": bests[-1] if bests else None,
            "elapsed_s": row["elapsed_s"],
            "fraction_skipped": SkipSet.parse(row["skip"], n_layers).fraction,
            **_numbers(row),
        }
        tracker.show({f"trial/{name}": number for name, number in shown.items()})

    return show


def show_search(
    tracker: Tracker, folder: Path, *, name: str, model: str, data: str, objective: str, raced: Sequence[Row]
) -> None:
    """Show the results of a search from its folder.

    Args:
        tracker: the tracker that shows them.
        folder: folder of the run.
        name: name from the run's configuration, under which the tracker keeps its files.
        model, data, objective: names of the search's model, data and objective.
        raced: rows of the race, the winner first; empty without a race.
    """
    trials = read_rows(folder / run_files.TRIALS, Trial).whole()
    chosen = yaml.safe_load((folder / skip_set_files.NAME).read_text(encoding="utf-8"))
    n_layers = chosen["n_layers"]
    about: dict[str, Any] = {"run": folder.name, "model": model, "data": data, "objective": objective}
    speedups = {row["skip"]: row["speedup"] for row in raced}
    rows: dict[str, Row] = {}
    for row in trials:
        text = row["skip"]
        if row["state"] == "complete" and text not in rows:
            found: dict[str, Any] = {"value": row["value"], **_numbers(row), "speedup": speedups.get(text)}
            rows[text] = set_row(SkipSet.parse(text, n_layers), **about, **found, is_chosen=text == chosen["skip"])
    mine = rows[chosen["skip"]]
    draft = ("skip", "value", "acceptance", "tokens_per_round", "draft_cost", "fraction_skipped", "speedup")
    tracker.show({f"draft/{key}": mine[key] for key in draft})
    tracker.show({"skip_sets": Table(sorted(rows.values(), key=lambda row: -row["value"]))})
    tracker.show({"trials": Table([_trial(row) for row in trials])})
    if raced:
        tracker.show({"finals": Table(raced)})
    tracker.show({png.stem: Picture(png) for png in sorted(folder.glob("*.png"))})
    tracker.show(charts.search_charts(trials, n_layers=n_layers, objective=objective))
    is_best = is_best_of_its_kind(folder)
    plan = [file for file in (folder / PLAN, (folder / PLAN).with_suffix(".safetensors")) if file.is_file()]
    kept = {"skip_set": [folder / skip_set_files.NAME], "plan": plan, "trials": [folder / run_files.TRIALS]}
    for kind, files in kept.items():
        if files:
            tracker.keep(f"{name}-{objective}-{kind}", files, kind=kind, is_best=is_best)


def _trial(row: Row) -> Row:
    """The row of a trial; it includes the other searched settings, if there are any."""
    found = {key: row.get(key) for key in FIRST}
    return found | ({"settings": settings_text(row["settings"])} if "settings" in row else {})


def is_best_of_its_kind(folder: Path) -> bool:
    """Whether no neighbouring search with the same model, objective and data found a set with a higher value."""
    mine, *others = (_value(path) for path in (folder, *folder.parent.iterdir()))
    return all(other is None or other[0] != mine[0] or other[1] <= mine[1] for other in others) if mine else False


def _value(folder: Path) -> tuple[tuple[str, ...], float] | None:
    """Model, objective and data of a search, and the value of its set; None if it found no set."""
    try:
        body = yaml.safe_load((folder / skip_set_files.NAME).read_text(encoding="utf-8"))
        return tuple(str(body[key]) for key in ("model", "objective", "data")), float(body["value"])
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
        return None


def _numbers(row: Row) -> dict[str, float | None]:
    """Acceptance, tokens per round and draft cost of a trial; each is None if the trial has none."""
    return {
        "acceptance": row["acceptance"],
        "tokens_per_round": tokens_per_round(row["accepted"], row["n_rounds"]) if row["drafted"] else None,
        "draft_cost": row["draft_cost"],
    }
