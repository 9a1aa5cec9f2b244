"""Tables 3 and 4 of the paper: fixed draft lengths and static thresholds, compared with the adaptive rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from experiments.paper.evidence import FIRST, Evidence, Measured
from experiments.paper.section import Cell, Section, Table, Value
from experiments.results.figures import BLUE, GREY, ORANGE, canvas, legend_below, plain_axes

NOTE = "Compared are arms that differ in the stop rule alone, by the seconds of one machine."


def fixed_lengths(evidence: Evidence) -> Section:
    """Table 3: fixed draft lengths."""
    title = "Fixed draft lengths against adaptive (Table 3)"
    return _section(evidence, "fixed", stem="fixed_lengths", title=title, dial="stop.max_draft=2,4,6,8")


def static_thresholds(evidence: Evidence) -> Section:
    """Table 4: static thresholds."""
    title = "Static thresholds against adaptive (Table 4)"
    return _section(evidence, "threshold", stem="thresholds", title=title, dial="stop.threshold=0.2,0.4,0.6,0.8")


def _section(evidence: Evidence, rule: str, *, stem: str, title: str, dial: str) -> Section:
    groups: dict[tuple[Any, ...], list[Measured]] = {}
    for arm in filter(lambda arm: arm.has_rule, evidence.drafts):
        if arm.row.stop == "adaptive" or (arm.row.stop == rule and setting(arm) is not None):
            groups.setdefault((*arm.where.values(), arm.draft, arm.row.conditions), []).append(arm)
    compared = [arms for arms in groups.values() if len({arm.rule for arm in arms}) > 1]
    compared = [sorted(arms, key=_order) for arms in compared if any(arm.row.stop == rule for arm in arms)]
    if not compared:
        return Section(stem, title, to_do=f"selfspec evaluate -m skip=SET stop={rule} {dial}")
    body = [_cells(evidence, arm) for arms in compared for arm in arms]
    columns = [*FIRST, "rule", "acceptance", "tokens/round", "speedup", "run"]
    figures = {stem if not i else f"{stem}-{i + 1}": sweep(arms, rule) for i, arms in enumerate(compared)}
    elsewhere = evidence.published_elsewhere(lambda row: row.get("stop") in (rule, "adaptive"))
    return Section(stem, title, Table(columns, body), figures, [NOTE, *elsewhere])


def setting(arm: Measured) -> float | None:
    """The setting of a static rule; None for an adaptive rule and for an unknown setting."""
    if arm.row.stop == "fixed":
        return float(arm.max_draft)
    return arm.thresholds[0] if arm.row.stop == "threshold" and arm.thresholds else None


def _order(arm: Measured) -> tuple[bool, float]:
    at = setting(arm)
    return at is None, at or 0.0


def _cells(evidence: Evidence, arm: Measured) -> list[Value]:
    key = arm.where | {"stop": arm.row.stop, "setting": setting(arm)}
    acceptance = arm.acceptance.beside(evidence.value("acceptance", **key))
    speedup = arm.speedup.beside(evidence.value("speedup", **key))
    return [*arm.first_cells, arm.rule, acceptance, Cell(arm.row.tokens_per_round), speedup, arm.run_cell]


def sweep(arms: Sequence[Measured], rule: str) -> Figure:
    """Speedup over the setting of the static rule, with its interval; a level with a band shows the adaptive rule."""
    figure, axes = canvas(6.4, 4.0)
    static = [(at, arm.speedup) for arm in arms if (at := setting(arm)) is not None]
    x, y = [at for at, _ in static], [cell.here for _, cell in static]
    whiskers = [[cell.here - cell.low for _, cell in static], [cell.high - cell.here for _, cell in static]]
    axes.errorbar(x, y, yerr=whiskers, color=BLUE, marker="o", capsize=3, label="static rule [95 %]")
    for arm in arms:
        if arm.row.stop == "adaptive":
            level = arm.speedup
            axes.axhspan(level.low, level.high, color=ORANGE, alpha=0.18, linewidth=0)
            axes.axhline(level.here, color=ORANGE, linestyle="--", label="adaptive rule [95 %]")
    axes.axhline(1, color=GREY, linewidth=1, linestyle=":", label="plain decoding")
    axes.set_ylabel("speedup over plain decoding")
    axes.set_title(f"{arms[0].row.model} with {arms[0].row.data}, T={arms[0].temperature:g}", loc="left", fontsize=10.5)
    plain_axes(axes, "draft length (tokens)" if rule == "fixed" else "threshold of confidence", counts=False)
    axes.set_xticks(sorted(set(x)))
    legend_below(figure, axes)
    return figure
