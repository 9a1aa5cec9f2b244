"""Figure 2 of the paper: the expected speedup over draft length and acceptance, with the measured arms as points."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiments.paper.evidence import FIRST, Evidence, Measured, label
from experiments.paper.section import Cell, Section, Table, Value
from experiments.results.figures import BLUE, DARK, GREEN, ORANGE, RED, plain_axes
from selfspec.measure.closed_form import expected_speedup

ACCEPTANCES = {0.6: (RED, ":"), 0.7: (ORANGE, "-."), 0.8: (GREEN, "--"), 0.9: (BLUE, "-"), 0.95: (DARK, "-")}
LONGEST = 12  # tokens; the paper's longest draft
NOTE = (
    "Expected: (1 - a^(K+1)) / ((1 - a)(cK + v)), with a the acceptance of each drafted token, K the tokens drafted a "
    "round, c and v the cost of a drafted token and of a round besides, in plain tokens: measured, and in the paper's "
    "figure c = 0.5, v = 1. It takes acceptance for constant and independent; a stop rule that drops doubtful tokens "
    "does better. Source: Leviathan et al. 2023 (arXiv:2211.17192), theorem 3.8."
)


def section(evidence: Evidence) -> Section:
    """One row for each draft: its costs, the speedup they predict, and the measured speedup."""
    stem, title = "expected_speedup", "Expected speedup (Fig. 2)"
    arms = evidence.drafts
    if not arms:
        return Section(stem, title, to_do="selfspec evaluate skip=SET")
    columns = [*FIRST, "acceptance", "drafted/round", "draft cost", "round cost", "expected", "speedup", "run"]
    return Section(stem, title, Table(columns, [_cells(arm) for arm in arms]), {stem: curves(arms)}, [NOTE])


def token_acceptance(arm: Measured) -> float:
    """Accepted over judged tokens, in [0, 1]; the target does not judge tokens after a rejection."""
    n_rejected = sum(
        a < d for row in arm.rows for a, d in zip(row["round_accepted"], row["round_drafted"], strict=True)
    )
    return arm.row.accepted / (arm.row.accepted + n_rejected) if arm.row.accepted else 0.0


def _expected(arm: Measured) -> float:
    n_drafted = arm.row.drafted / arm.row.n_rounds
    return expected_speedup(
        token_acceptance(arm), n_drafted=n_drafted, draft_cost=arm.draft_cost, verify_cost=arm.verify_cost
    )


def _cells(arm: Measured) -> list[Value]:
    costs = [Cell(arm.row.drafted / arm.row.n_rounds), Cell(arm.draft_cost), Cell(arm.verify_cost)]
    acceptance = Cell(token_acceptance(arm), digits=3)
    return [*arm.first_cells, acceptance, *costs, Cell(_expected(arm)), arm.speedup, arm.run_cell]


def curves(arms: Sequence[Measured]) -> Figure:
    """Curves for the paper's assumed costs and for the fastest of the arms, with a mark at its measured speedup."""
    best = max(arms, key=lambda arm: np.nan_to_num(arm.row.speedup))
    figure = Figure(figsize=(9.0, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    _draw(left, 0.5, 1.0, "assumed by the paper: c = 0.50, v = 1.00")
    _draw(
        right,
        best.draft_cost,
        best.verify_cost,
        f"{label(best, arms)}: c = {best.draft_cost:.2f}, v = {best.verify_cost:.2f}",
    )
    at, speed = best.row.drafted / best.row.n_rounds, best.speedup
    legend = f"measured [95 %], a = {token_acceptance(best):.2f}"
    whiskers = [[speed.here - speed.low], [speed.high - speed.here]]
    right.errorbar([at], [speed.here], yerr=whiskers, color=DARK, marker="*", ms=11, capsize=3, ls="none", label=legend)
    left.set_ylabel("speedup over plain decoding")
    handles, labels = right.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=7, frameon=False, fontsize=8.5)
    return figure


def _draw(axes: Axes, draft_cost: float, verify_cost: float, title: str) -> None:
    lengths = range(1, LONGEST + 1)
    for acceptance, (colour, dash) in ACCEPTANCES.items():
        y = [expected_speedup(acceptance, n_drafted=n, draft_cost=draft_cost, verify_cost=verify_cost) for n in lengths]
        axes.plot(lengths, y, color=colour, linestyle=dash, label=f"a = {acceptance:g}")
    axes.axhline(1, color="#767676", linestyle=":", linewidth=1)
    axes.set_title(title, loc="left", fontsize=10)
    plain_axes(axes, "tokens drafted a round")
