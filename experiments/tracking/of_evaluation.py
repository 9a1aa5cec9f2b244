"""What a tracker shows of an evaluation: arms, acceptance by position, parts of the seconds, and its skip sets.

W&B compares runs by single numbers. These are the numbers of the first drafting arm (`skip=`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from experiments.results import figure_data
from experiments.results.tables import ArmRow
from experiments.tracking import charts
from experiments.tracking.skip_set_table import set_row
from experiments.tracking.tracker import Table, Tracker
from selfspec.skipping.skip_set import SkipSet

Row = Mapping[str, Any]

DRAFT = ("skip", "stop", "acceptance", "tokens_per_round", "tokens_per_s", "speedup", "low", "high", "n_identical", "n")


def show_evaluation(tracker: Tracker, arms: Sequence[ArmRow], rows: Sequence[Row]) -> None:
    """Show a finished evaluation.

    Args:
        tracker: the tracker that shows it.
        arms: one row for each arm.
        rows: rows of `records.jsonl`, each answer once; the function leaves out failed ones.
    """
    answered: dict[str, list[Row]] = {arm.arm: [] for arm in arms}
    for row in rows:
        if row["error"] is None:
            answered[row["arm"]].append(row)
    places = {arm: positions(ours) for arm, ours in answered.items()}
    seconds = {arm: figure_data.seconds_by_part(ours) for arm, ours in answered.items() if ours}
    tracker.show({"arms": Table([asdict(arm) for arm in arms])})
    tracker.show({"positions": Table([{"arm": arm, **place} for arm, found in places.items() for place in found])})
    tracker.show({"time_split": Table([{"arm": arm, **split} for arm, split in seconds.items()])})
    tracker.show(charts.evaluation_charts([row for ours in answered.values() for row in ours]))
    drafting = [arm for arm in arms if arm.drafted]
    if sets := [_set_row(arm) for arm in drafting if arm.skip and arm.n_layers]:
        tracker.show({"skip_sets": Table(sets)})
    for arm in drafting[:1]:
        for place in places[arm.arm]:
            tracker.show({f"position/{key}": value for key, value in place.items()})
        tracker.show({f"draft/{key}": getattr(arm, key) for key in DRAFT})
        tracker.show({f"time/{key}": value for key, value in seconds[arm.arm].items()})


def positions(rows: Sequence[Row]) -> list[dict[str, float]]:
    """Accepted over judged tokens at each position of a draft, from 1 on; in [0, 1]."""
    return [
        {"number": p.number, "judged": p.judged, "accepted": p.accepted, "acceptance": p.acceptance}
        for p in figure_data.positions(rows)
    ]


def _set_row(arm: ArmRow) -> Row:
    assert arm.skip and arm.n_layers
    return set_row(
        SkipSet.parse(arm.skip, arm.n_layers),
        run=arm.run,
        model=arm.model,
        data=arm.data,
        objective="measured_speedup",
        value=arm.speedup,
        acceptance=arm.acceptance,
        tokens_per_round=arm.tokens_per_round,
        draft_cost=None,
        speedup=arm.speedup,
        is_chosen=True,
    )
