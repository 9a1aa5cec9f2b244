"""The comparison of stop rules as one table and one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiments.predictors.comparing import Compared
from experiments.results.figures import BLUE, DARK, GREEN, GREY, ORANGE, RED, plain_axes
from experiments.results.tables import markdown_table
from search.fitting.acceptance_fitting import Reliability
from search.replay.stop_study import Studied

HEADER = ("rule", "reads", "tokens/round", "drafted/token", "wasted/token", "predicted speedup", "below the oracle")
OF_PREDICTORS = ("source", "predictor", "judged tokens", "log loss", "Brier", "calibration error")
COLOURS = (GREY, BLUE, ORANGE, GREEN, RED, DARK, "#CC79A7")  # the last is Okabe and Ito's, too
MARKERS = "osD^vPX"
NAMED = ("specdec", "optimal")  # rules whose signals are written beside them


def rule_table(compared: Sequence[Compared], oracle: Studied) -> str:
    """One row for each rule, the fastest first; the oracle above all."""
    ordered = sorted(compared, key=lambda one: -one.found.speedup)
    rows = [_cells("oracle", "the verdicts", oracle, 0.0)]
    return markdown_table(HEADER, rows + [_cells(one.rule, one.signal, one.found, one.gap) for one in ordered])


def _cells(rule: str, signal: str, found: Studied, gap: float) -> list[str]:
    return [
        *(rule, signal, f"{found.tokens_per_round:.2f}", f"{found.drafted / found.tokens:.2f}", f"{found.wasted:.3f}"),
        *(f"{found.speedup:.3f}", f"{gap:.1%}"),
    ]


def predictor_table(found: Mapping[str, Mapping[str, Reliability]]) -> str:
    """One row for each source and predictor."""
    rows = [
        [source, name, str(one.n), f"{one.log_loss:.4f}", f"{one.brier:.4f}", f"{one.error:.4f}"]
        for source, of in found.items()
        for name, one in of.items()
    ]
    return markdown_table(OF_PREDICTORS, rows)


def picture(compared: Sequence[Compared], oracle: Studied, found: Mapping[str, Reliability], *, title: str) -> Figure:
    """Reliability curves on the left; on the right speedup over wasted tokens of each rule, and the oracle's speedup.

    Args:
        compared: rules.
        oracle: of the same texts.
        found: by predictor of the draft.
        title: text above the axes.
    """
    figure = Figure(figsize=(11.0, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    left.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":")
    for colour, (name, one) in zip(COLOURS * 2, found.items(), strict=False):
        left.plot([p for p, _, _ in one.bins], [a for _, a, _ in one.bins], marker="o", color=colour, label=name)
    left.set(xlim=(0, 1), ylim=(0, 1), ylabel="accepted")
    left.set_title(title, loc="left", fontsize=10.5)
    plain_axes(left, "predicted acceptance", counts=False)
    left.legend(frameon=False, fontsize=8.5)
    kinds = list(dict.fromkeys(rule.rule.split()[0] for rule in compared))
    for colour, marker, kind in zip(COLOURS * 2, MARKERS * 2, kinds, strict=False):
        of = [rule for rule in compared if rule.rule.split()[0] == kind]
        x, y = [rule.found.wasted for rule in of], [rule.found.speedup for rule in of]
        right.scatter(x, y, color=colour, marker=marker, label=kind, zorder=2)
        for rule in (one for one in of if kind in NAMED and one.signal in found):
            right.annotate(rule.signal, (rule.found.wasted, rule.found.speedup), (4, 2), **_SMALL)
    right.axhline(oracle.speedup, color=DARK, linestyle="--", linewidth=1, label="oracle")
    right.set_ylabel("predicted speedup over plain decoding")
    plain_axes(right, "drafted tokens that were not accepted, for each committed one", counts=False)
    right.legend(frameon=False, fontsize=8.5)
    return figure


_SMALL: dict[str, Any] = {"textcoords": "offset points", "fontsize": 7, "color": GREY}
