"""Table 1 of the paper: quality, acceptance and speedup of every model, data set and temperature."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.paper.evidence import FIRST, Evidence, Measured
from experiments.paper.section import Cell, Section, Table, Value
from experiments.results.tables import SPEEDUP, cautions


def section(evidence: Evidence) -> Section:
    """One row for each arm, also plain decoding, for its quality; then the published values without a measured one."""
    stem, title = "results", "Quality, acceptance and speedup (Table 1)"
    if not evidence.drafts:
        return Section(stem, title, to_do="selfspec evaluate skip=SET data=NAME")
    metrics = list(dict.fromkeys(q.metric for arm in evidence.arms for q in arm.quality))
    body = [_cells(evidence, arm, metrics) for arm in evidence.arms]
    columns = [*FIRST, "prompts", "failed", *metrics, "acceptance", "tokens/round", "speedup", "run"]
    notes = [SPEEDUP] if metrics else [SPEEDUP, "Quality was not measured in these runs."]
    notes += cautions([arm.row for arm in evidence.arms])
    elsewhere = evidence.published_elsewhere(
        lambda row: not any(row.get(k) for k in ("stop", "part", "table", "figure", "over"))
    )
    return Section(stem, title, Table(columns, body), notes=[*notes, *elsewhere])


def _cells(evidence: Evidence, arm: Measured, metrics: Sequence[str]) -> list[Value]:
    row, side = arm.row, "plain" if arm.row.is_baseline else "draft"
    acceptance, speedup = arm.acceptance, arm.speedup
    if row.drafted:
        acceptance = acceptance.beside(evidence.value("acceptance", **arm.where))
        speedup = speedup.beside(evidence.value("speedup", **arm.where))
    found = {q.metric: Cell(q.value, q.low, q.high, digits=3) for q in arm.quality}
    quality = [found.get(m, Cell()).beside(evidence.value(m, **arm.where, arm=side)) for m in metrics]
    return [
        *arm.first_cells,
        row.n,
        row.n_failed,
        *quality,
        acceptance,
        Cell(row.tokens_per_round),
        speedup,
        arm.run_cell,
    ]
