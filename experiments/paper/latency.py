"""Table 5 of the paper: the milliseconds of a token for drafting, verifying, and the rest."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from experiments.paper.evidence import FIRST, Evidence, Measured, label, pooled
from experiments.paper.section import Cell, Section, Table, Value
from experiments.results.figures import BLUE, GREY, ORANGE, canvas, legend_below, plain_axes
from experiments.results.tables import decoding
from selfspec.measure.metrics import ratio

PARTS = {"draft": BLUE, "verify": ORANGE, "other": GREY}
NOTE = (
    "Milliseconds a new token, pooled over prompts, without the prefill and the token it gives. Plain decoding drafts "
    "nothing: its forwards stand under verify. Draft cost (of a drafted token) and round cost (of verification and the "
    "rest) are in plain tokens: c and v of the expected speedup."
)


def section(evidence: Evidence) -> Section:
    """One row for each arm with known parts."""
    stem, title = "latency", "Where the time goes (Table 5)"
    if not evidence.drafts:
        return Section(stem, title, to_do="selfspec evaluate skip=SET")
    arms = [arm for arm in evidence.arms if arm.row.drafted or arm.row.is_baseline]
    elsewhere = evidence.published_elsewhere(
        lambda row: row["metric"] == "token_s" and row.get("part") in (*PARTS, "all")
    )
    columns = [*FIRST, *(f"{part} (ms)" for part in (*PARTS, "all")), "draft share", "draft cost", "round cost", "run"]
    return Section(
        stem, title, Table(columns, [_cells(evidence, arm) for arm in arms]), {stem: stacked(arms)}, [NOTE, *elsewhere]
    )


def per_token(arm: Measured, part: str) -> Cell:
    """Milliseconds for each new token of a part: `draft`, `verify`, `other` or `all`."""
    rows = [row for row in arm.rows if row["n_tokens"] > 1]
    return pooled(
        rows,
        lambda row: 1000 * (decoding(row).seconds if part == "all" else row[f"{part}_s"]),
        lambda row: row["n_tokens"] - 1,
    )


def _cells(evidence: Evidence, arm: Measured) -> list[Value]:
    side = "plain" if arm.row.is_baseline else "draft"
    parts = {part: per_token(arm, part) for part in (*PARTS, "all")}
    shown = [
        cell.beside(1000 * evidence.value("token_s", **arm.where, arm=side, part=part)) for part, cell in parts.items()
    ]
    share = Cell(ratio(parts["draft"].here, parts["all"].here))
    return [*arm.first_cells, *shown, share, Cell(arm.draft_cost), Cell(arm.verify_cost), arm.run_cell]


def stacked(arms: Sequence[Measured]) -> Figure:
    """One bar for each arm, stacked from its parts."""
    figure, axes = canvas(8.0, 1.4 + 0.34 * len(arms))
    left = [0.0] * len(arms)
    for part, colour in PARTS.items():
        widths = [per_token(arm, part).here for arm in arms]
        axes.barh(range(len(arms)), widths, left=left, height=0.7, color=colour, edgecolor="white", label=part)
        left = [at + width for at, width in zip(left, widths, strict=True)]
    for y, (arm, end) in enumerate(zip(arms, left, strict=True)):
        text = f"{end:.1f} ms" if arm.row.is_baseline else f"{end:.1f} ms, {arm.speedup.here:.2f}x"
        axes.annotate(text, (end, y), (4, 0), textcoords="offset points", va="center", fontsize=8.5)
    axes.set_yticks(range(len(arms)), [label(arm, arms) for arm in arms], fontsize=8.5)
    axes.invert_yaxis()
    axes.margins(x=0.14)
    plain_axes(axes, "milliseconds a new token, without prefill", counts=False)
    axes.grid(visible=False)
    legend_below(figure, axes)
    return figure
