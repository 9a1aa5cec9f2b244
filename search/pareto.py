"""The skip sets worth keeping: none other was both cheaper and more accepted.

The best of them depends on the machine: where verification or attention costs something else, another wins. So a search
leaves all of them behind, and not its best alone.
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
    """The complete rows that tell a draft cost and an acceptance; older ones may lack the cost."""
    return [
        row
        for row in rows
        if row["state"] == "complete" and row.get("draft_cost") is not None and row.get("acceptance") is not None
    ]


def front(rows: Sequence[Row]) -> list[Row]:
    """The rows that no other beats: cheapest draft first, acceptance strictly rising.

    A row is beaten by one that costs no more and is accepted no less, unless both are equal; of equal ones the larger
    value stays, and the earlier row if these are equal too. Rows that are not complete, or lack either number, are not
    looked at.
    """
    found: list[Row] = []
    for row in sorted(measured(rows), key=lambda r: (r["draft_cost"], -r["acceptance"], -r["value"], r["number"])):
        if not found or row["acceptance"] > found[-1]["acceptance"]:
            found.append(row)
    return found


def write_front(path: Path, rows: Sequence[Row], *, model: str, n_layers: int, **provenance: Any) -> None:
    """Write the front of the rows as YAML, with the model and any facts about where it comes from."""
    sets = [{name: row[name] for name in FIELDS if name in row} for row in front(rows)]
    body = {"model": model, "n_layers": n_layers, **provenance, "sets": sets}
    write_text(path, yaml.safe_dump(body, sort_keys=False, width=120, allow_unicode=True))
