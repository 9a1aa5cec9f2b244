"""Cost tables for drafts of several heads, precisions or trained heads; each is measured at its first use."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from search.costs.table import CostTable
from selfspec.errors import InputError
from selfspec.records import run_files
from selfspec.skipping.plan import DraftPlan

log = logging.getLogger(__name__)

OWN = "head full, same"  # the name of the table of the model's own head and weights
Measure = Callable[[str, DraftPlan], CostTable]  # from a table's name, and a plan that it is for


class Costs(Protocol):
    """Cost tables of drafts."""

    def for_plan(self, plan: DraftPlan) -> CostTable:
        """The table for drafts with the head, precision and trained head of a plan."""
        ...


class DraftCosts:
    """The run's own table, and tables for other heads and precisions.

    Args:
        table: of the run's own head and precision, with the cost of a bridge.
        own: a plan of these; None: the model's own head and weights.
        measure: makes another table; None: no draft needs one.
    """

    def __init__(self, table: CostTable, *, own: DraftPlan | None = None, measure: Measure | None = None) -> None:
        self.table = table
        self._own, self._measure = _name(own) if own else OWN, measure
        self._others: dict[str, CostTable] = {}
        self._path: Path | None = None

    def for_plan(self, plan: DraftPlan) -> CostTable:
        """The table for a plan's head, precision and trained head; measured at its first use, on a quiet machine."""
        name = _name(plan)
        if name == self._own:
            return self.table
        if name not in self._others:
            if plan.head is None and plan.precision == "same" and plan.trained is None:
                found = replace(self.table, head_saved_s=0.0, attn_saved_s=0.0, mlp_saved_s=0.0)
            elif self._measure is None:
                raise InputError(f"nobody knows what drafts cost with {name}; give DraftCosts a way to measure them")
            else:
                log.info("measuring what drafts cost with %s", name)
                found = replace(self._measure(name, plan), map_s=self.table.map_s)
            self._others[name] = found
            self._write()
        return self._others[name]

    def keep(self, path: Path) -> None:
        """Write all tables to a JSON file, now and after each measurement; `CostTable.read` reads the run's own one."""
        self._path = path
        self._write()

    def recall(self, path: Path) -> None:
        """Read the other tables from the file of `keep`.

        Raises:
            InputError: if the file cannot be read.
        """
        try:
            others = json.loads(path.read_text(encoding="utf-8")).get("others", {})
            self._others |= {name: CostTable.from_dict(body) for name, body in others.items()}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise InputError(f"{path} holds no cost tables ({error}); `selfspec profile` makes one") from None

    def _write(self) -> None:
        if self._path:
            others = {name: table.to_dict() for name, table in self._others.items()}
            body = {"costs": self.table.to_dict(), **({"others": others} if others else {})}
            run_files.write_json(self._path, body)


def _name(plan: DraftPlan) -> str:
    """Key of a table: `head full, int4`."""
    found = f"head {'full' if plan.head is None else plan.head.numel()}, {plan.precision}"
    return found if plan.trained is None else f"{found}, trained {plan.trained.kind} {plan.trained.digest()}"
