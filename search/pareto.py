"""The Pareto front of draft cost and acceptance.

The best set depends on the machine: with other costs of verification or attention another set wins. A search therefore
writes the whole front, not only its best set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from selfspec.records.run_files import write_text

Row = Mapping[str, Any]

FIELDS = ("skip", "settings", "draft_cost", "acceptance", "value")


def measured(rows: Sequence[Row]) -> list[Row]:
    """The complete rows with a draft cost and an acceptance; rows of early versions may lack the cost."""
    return [
        row
        for row in rows
        if row["state"] == "complete" and row.get("draft_cost") is not None and row.get("acceptance") is not None
    ]


def front(rows: Sequence[Row]) -> list[Row]:
    """The rows that no other row dominates: cheapest draft first, acceptance strictly rising.

    A row dominates another if it costs no more and has no lower acceptance, and one of both differs. Of rows that are
    equal in both, the one with the larger value stays, and of those the earliest. Incomplete rows and rows without
    either number are ignored.
    """
    found: list[Row] = []
    for row in sorted(measured(rows), key=lambda r: (r["draft_cost"], -r["acceptance"], -r["value"], r["number"])):
        if not found or row["acceptance"] > found[-1]["acceptance"]:
            found.append(row)
    return found


def write_front(path: Path, rows: Sequence[Row], *, model: str, n_layers: int, **provenance: Any) -> None:
    """Write the front of the rows as YAML, with the model and any facts about its origin."""
    sets = [{name: row[name] for name in FIELDS if name in row} for row in front(rows)]
    body = {"model": model, "n_layers": n_layers, **provenance, "sets": sets}
    write_text(path, yaml.safe_dump(body, sort_keys=False, width=120, allow_unicode=True))
