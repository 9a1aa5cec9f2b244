"""Transfer: sets from a search on one data set, evaluated on another."""

from __future__ import annotations

from experiments.paper.evidence import Evidence, Measured, Search
from experiments.paper.section import Cell, Section, Table, Value

NOTE = (
    "A row is a draft with the set of one search, a column the data of an evaluation; the cells are speedups over "
    "plain decoding. Where a set was evaluated several times on the same data, the newest run counts."
)

Key = tuple[str, str, str, str, str]


def section(evidence: Evidence) -> Section:
    """One row for each searched set and arm name, one column for each data set."""
    stem, title = "transfer", "Transfer of searched sets between data sets"
    found: dict[Key, dict[str, Measured]] = {}
    for arm in sorted(evidence.drafts, key=lambda arm: arm.run.id):
        for search in evidence.searched(arm):
            found.setdefault(_key(search, arm), {})[_column(arm)] = arm
    if not found:
        return Section(stem, title, to_do="selfspec search data=A, then selfspec evaluate -m skip=RUN data=A,B")
    data = list(dict.fromkeys(name for arms in found.values() for name in arms))
    body: list[list[Value]] = [
        [*key, *(arms[name].speedup if name in arms else Cell() for name in data), _runs(arms)]
        for key, arms in found.items()
    ]
    columns = ["model", "searched on", "search", "arm", "rule", *(f"on {name}" for name in data), "runs"]
    return Section(stem, title, Table(columns, body), notes=[NOTE])


def _key(search: Search, arm: Measured) -> Key:
    return arm.row.model, search.fact("data"), search.run.id, arm.row.arm, arm.rule


def _column(arm: Measured) -> str:
    return arm.row.data if not arm.temperature else f"{arm.row.data}, T={arm.temperature:g}"


def _runs(arms: dict[str, Measured]) -> str:
    return ", ".join(dict.fromkeys(arm.run_cell for arm in arms.values()))
