"""Speeds of arms by kind of text and size of batch, of the evaluations that were decoded in batches."""

from __future__ import annotations

import math
from collections.abc import Sequence

from experiments.results.run_folder import Run
from experiments.results.tables import ArmRow, arm_rows, markdown_table, number

FIXED = "fixed "  # begin of the names of arms with one length for all
NOTE = (
    "Tokens a second over plain decoding of the same batches, in brackets the 95 % interval over prompts; every batch "
    "drains, so its last requests are fewer. The last column is the arm `goodput` over the better of plain decoding "
    "and the best fixed length."
)


def batch_cells(runs: Sequence[Run]) -> tuple[list[str], list[list[str]]] | None:
    """Header and cells of the table; None unless evaluations with the same arms differ in the size of their batches."""
    found: dict[tuple[str, str, int], list[ArmRow]] = {}
    for run in runs:
        if run.verb == "evaluate" and run.is_readable and run.facts.get("batch"):
            for row in arm_rows(run):
                found.setdefault((row.model, row.data, int(run.facts["batch"])), []).append(row)
    if len({batch for *_, batch in found}) < 2:
        return None
    arms = list(dict.fromkeys(row.arm for rows in found.values() for row in rows if not row.is_baseline))
    header = ["model", "data", "batch", "plain tokens/s", *arms, "goodput over the best"]
    return header, [_cells(key, found[key], arms) for key in sorted(found)]


def _cells(key: tuple[str, str, int], rows: Sequence[ArmRow], arms: Sequence[str]) -> list[str]:
    model, data, batch = key
    by_arm = {row.arm: row for row in rows}
    plain = next((row.tokens_per_s for row in rows if row.is_baseline), math.nan)
    speeds = [_speed(by_arm.get(arm)) for arm in arms]
    best = max([1.0, *(row.speedup for row in rows if row.arm.startswith(FIXED) and row.is_judged)])
    ours = by_arm.get("goodput")
    over = "" if ours is None or not ours.is_judged else number(ours.speedup / best, 3)
    return [model, data, str(batch), number(plain, 1), *speeds, over]


def _speed(row: ArmRow | None) -> str:
    if row is None or not row.is_judged:
        return ""
    return f"{number(row.speedup, 2)} [{number(row.low, 2)}, {number(row.high, 2)}]"


def batch_table(runs: Sequence[Run]) -> list[str]:
    """The section of a report; empty without batches of several sizes."""
    cells = batch_cells(runs)
    return [] if cells is None else ["## Batches", markdown_table(*cells), NOTE]
