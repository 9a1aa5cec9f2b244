"""Pictures of results for paper and reports, drawn by matplotlib from `figure_data`, without global state.

This module knows skip sets and trials. It must not know runs or where a picture goes. Colours are Okabe and Ito's,
which colour-blind readers can tell apart; two things never differ in colour alone.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PatchCollection
from matplotlib.colors import CenteredNorm, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from experiments.results import figure_data
from experiments.results.figure_data import Spent, unit
from experiments.results.rows import scored
from search.importance import Importance
from selfspec.records import run_files
from selfspec.skipping.skip_set import SkipSet

BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"  # Okabe and Ito
KEPT, GREY, DARK = "#EEEEEE", "#767676", "#222222"
WORSE_BETTER = LinearSegmentedColormap.from_list("worse_better", [RED, "white", BLUE])

Row = Mapping[str, Any]
AXES: tuple[Spent, Spent] = ("evaluations", "seconds")

_SET_HEIGHT = 1.0  # height of one set's two strips and the gap below, in axis units; a layer is 1 wide
_STRIP = 0.34


def skip_map(sets: Mapping[str, SkipSet]) -> Figure:
    """The sublayers that each labelled set skips: layers from left to right, attention above MLP.

    Raises:
        ValueError: if there is no set.
    """
    if not sets:
        raise ValueError("no skip set to draw; leave the map out")
    figure, axes = canvas(9.0, 1.1 + 0.62 * len(sets))
    for i, mapped in enumerate(figure_data.skip_map(sets)):
        top = i * _SET_HEIGHT + 0.1
        for strip, colour, kind in zip((0, _STRIP), (BLUE, ORANGE), figure_data.SUBLAYERS, strict=True):
            for wanted, fill in ((False, KEPT), (True, colour)):
                cells = [
                    Rectangle((layer - 0.5, top + strip), 1, _STRIP)
                    for layer, is_skipped in enumerate(mapped.is_skipped[kind])
                    if is_skipped is wanted
                ]
                axes.add_collection(PatchCollection(cells, facecolor=fill, edgecolor="white", linewidth=1.2))
        middle = top + _STRIP
        axes.annotate(mapped.label, (0, middle), (-8, 1), va="bottom", **_beside("right"), color=DARK, fontsize=9.5)
        axes.annotate(mapped.counts, (0, middle), (-8, -1), va="top", **_beside("right"), color=GREY, fontsize=8)
    axes.set_xlim(-0.5, max(skip.n_layers for skip in sets.values()) - 0.5)
    axes.set_ylim(len(sets) * _SET_HEIGHT, 0)
    axes.set_yticks([])
    axes.spines[["left", "right", "top", "bottom"]].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12, min_n_ticks=1))
    axes.tick_params(axis="x", length=3)
    axes.set_xlabel("layer")
    meaning = {"attention skipped": BLUE, "MLP skipped": ORANGE, "kept": KEPT}
    figure.legend(
        [Rectangle((0, 0), 1, 1, facecolor=colour) for colour in meaning.values()],
        list(meaning),
        loc="outside upper right",
        ncols=3,
        frameon=False,
        fontsize=9,
        handlelength=1.2,
    )
    return figure


def _beside(side: str) -> dict[str, Any]:
    return {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "ha": side}


def importance_map(importance: Importance, *, objective: str, title: str = "") -> Figure:
    """Change of the value from skipping each sublayer alone: layers from left to right, attention above MLP.

    One in ten sublayers lies beyond the end of the scale, so that the few sublayers with large losses do not hide the
    others.

    Args:
        importance: values of the sublayers; a cross marks a sublayer without a value.
        objective: name of the objective, shown as the unit of the value.
        title: text above the axes, if any.
    """
    found = figure_data.importance_map(importance)
    changes, known, reach, n_layers = found.changes, found.known, found.reach, importance.n_layers
    figure, axes = canvas(9.0, 2.6)
    axes.set_facecolor(KEPT)
    image = axes.imshow(changes, cmap=WORSE_BETTER, norm=CenteredNorm(0, reach), aspect="auto")
    for marker, colour, cells, label in (
        ("x", GREY, np.isnan(changes), "no value"),
        ("+", DARK, changes > 0, "better than skipping nothing"),
    ):
        marked = np.argwhere(cells)
        axes.plot(marked[:, 1], marked[:, 0], marker, color=colour, markersize=5, label=label)
    axes.set_yticks([0, 1], figure_data.SUBLAYERS)
    axes.set_xticks(np.arange(0.5, n_layers - 1), minor=True)
    axes.set_yticks([0.5], minor=True)
    axes.grid(which="minor", color="white", linewidth=1.2)
    axes.tick_params(which="both", length=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12, min_n_ticks=1))
    axes.spines[["left", "right", "top", "bottom"]].set_visible(False)
    axes.set_xlabel("layer of the only sublayer skipped")
    axes.set_title(title, loc="left", fontsize=10.5)
    if known.size:
        sides = {(True, True): "both", (True, False): "min", (False, True): "max", (False, False): "neither"}
        extend = sides[bool(known.min() < -reach), bool(known.max() > reach)]
        bar = figure.colorbar(image, ax=axes, extend=extend, aspect=12, pad=0.015)
        bar.set_label(f"change of value\n({unit(objective)};\nskip nothing: {found.nothing:.3g})", fontsize=8.5)
        bar.ax.tick_params(labelsize=8.5)
    figure.legend(loc="outside lower right", ncols=2, frameon=False, fontsize=9, handletextpad=0.2)
    return figure


def best_so_far(trials: Sequence[Row], *, objective: str, title: str = "") -> Figure:
    """The best value so far of a search, over evaluations and over seconds; larger is better.

    Args:
        trials: rows of a search run; rows without an end time are in the first panel alone.
        objective: name of the objective, shown as the unit of the value.
        title: text above the axes, if any.
    """
    figure = Figure(figsize=(9.0, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, axis in zip(panels, AXES, strict=True):
        progress = figure_data.progress(trials, axis)
        for origin, marker, colour in (("start", "D", ORANGE), ("searcher", "o", BLUE)):
            dots = [(x, t["value"]) for x, t in progress.scored if t.get("origin", "searcher") == origin]
            if dots:
                axes.plot(*zip(*dots, strict=True), marker, color=colour, label=origin, ms=4, alpha=0.6, mew=0)
        if progress.best:
            axes.step(*zip(*progress.best, strict=True), GREEN, where="post", label="best so far", zorder=1.5)
        for state, marker, colour, height in (("pruned", "v", ORANGE, 0.05), ("failed", "x", RED, 0.02)):
            # a pruned trial's value covers fewer prompts and a failed trial has none, so both stand at the bottom
            ended = progress.without_value(state)
            if ended:
                bottom, label = axes.get_xaxis_transform(), f"{state} (no value)"
                axes.plot(ended, [height] * len(ended), marker, color=colour, label=label, ms=4, transform=bottom)
        if progress.nothing is not None:
            axes.axhline(progress.nothing, color=DARK, linestyle="--", linewidth=1, zorder=0.8, label="skip nothing")
        axes.margins(y=0.12)
        plain_axes(axes, axis)
    if not scored(trials):
        panels[0].set_yticks([])  # no trial has a value, so a scale would mean nothing
    panels[0].set_ylabel(unit(objective))
    panels[0].set_title(title, loc="left", fontsize=10.5)
    legend_below(figure, panels[0])
    return figure


def pareto(trials: Sequence[Row], *, objective: str, title: str = "") -> Figure:
    """Acceptance over draft cost of every complete trial, coloured by value; the front, the best, and skipping nothing.

    Args:
        trials: rows of a search run; rows without a draft cost or an acceptance are left out.
        objective: name of the objective, shown as the unit of the value.
        title: text above the axes, if any.
    """
    figure, axes = canvas(7.0, 4.8)
    data = figure_data.trade_off(trials)
    if data.best:
        costs, accepted, values = ([t[name] for t in data.trials] for name in ("draft_cost", "acceptance", "value"))
        dots = axes.scatter(costs, accepted, c=values, cmap="cividis", s=28, edgecolors="white", linewidths=0.5)
        steps = [t["draft_cost"] for t in data.front], [t["acceptance"] for t in data.front]
        axes.step(*steps, color=DARK, linewidth=1, where="post", zorder=0.9, label="best acceptance at that cost")
        for marker, size, label, trial in (("D", 8, "skip nothing", data.nothing), ("*", 17, "best value", data.best)):
            if trial:
                at = [trial["draft_cost"]], [trial["acceptance"]]
                axes.plot(*at, marker, markersize=size, label=label, color="none", markeredgecolor=RED)
        figure.colorbar(dots, ax=axes, label=unit(objective), pad=0.02).outline.set_visible(False)
    axes.set_ylabel("acceptance (accepted / drafted tokens)")
    axes.set_title(title, loc="left", fontsize=10.5)
    plain_axes(axes, figure_data.DRAFT_COST, counts=False)
    axes.grid(axis="x", color=KEPT)
    legend_below(figure, axes)
    return figure


def cost_check(pairs: Sequence[tuple[float, float]], *, title: str = "") -> Figure:
    """Predicted against measured cost of a drafted token, one point for each skip set; a band marks 5 %."""
    figure, axes = canvas(4.5, 4)
    predicted, measured = (np.array(v) for v in zip(*pairs, strict=True))
    ends = np.array([0, 1.05 * max(predicted.max(), measured.max())])
    axes.fill_between(ends, 0.95 * ends, 1.05 * ends, color="0.9", label="within 5 %")
    axes.plot(ends, ends, color="0.5", linewidth=0.8)
    axes.scatter(measured, predicted, s=18, color="#0072B2", zorder=3)
    axes.set(xlim=ends, ylim=ends, ylabel="predicted cost of a drafted token (plain = 1)", title=title)
    plain_axes(axes, "measured cost (plain = 1)", counts=False)
    axes.legend(frameon=False, loc="upper left")
    return figure


def training_curve(rows: Sequence[Row], *, title: str = "") -> Figure:
    """Loss of each step, and acceptance by depth at each look at held-out texts.

    Args:
        rows: rows of `curve.jsonl`.
        title: text above the axes, if any.
    """
    figure, axes = canvas(6.5, 4)
    axes.plot([row["step"] for row in rows], [row["loss"] for row in rows], color="0.75", linewidth=0.8)
    axes.set(ylabel="loss", title=title)
    plain_axes(axes, "step")
    looks = [row for row in rows if "conditional" in row]
    beside = axes.twinx()
    colours = (BLUE, ORANGE, GREEN, RED, DARK)
    for depth in range(max((len(row["conditional"]) for row in looks), default=0)):
        seen = [row for row in looks if depth < len(row["conditional"])]
        beside.plot(
            [row["step"] for row in seen],
            [row["conditional"][depth] for row in seen],
            color=colours[depth % len(colours)],
            dashes=(1, 0) if depth < len(colours) else (2, 1),
            label=f"depth {depth + 1}",
        )
    beside.set(ylim=(0, 1), ylabel="accepted, if all before were")
    beside.legend(frameon=False, loc="lower right")
    return figure


def race_curves(races: Mapping[str, Sequence[Sequence[Row]]], *, x: Spent, objective: str, title: str = "") -> Figure:
    """The best value so far of several searchers: the mean over seeds, and a band from the least to the greatest.

    A searcher's curve begins at the first x at which all its seeds have a value; it ends with its shortest run.

    Args:
        races: searcher to the rows of each of its runs.
        x: amount on the x axis.
        objective: name of the objective, shown as the unit of the value.
        title: text above the axes, if any.
    """
    figure, axes = canvas(8.0, 4.4)
    colours, dashes = (BLUE, ORANGE, GREEN, RED, DARK), ("-", "--", "-.", ":")  # 20 pairs of colour and dash
    for i, (name, runs) in enumerate(races.items()):
        colour, dash = colours[i % len(colours)], dashes[i % len(dashes)]
        found = [figure_data.progress(run, x).best for run in runs]
        curves = [(np.array([p[0] for p in best]), np.array([p[1] for p in best])) for best in found if best]
        if not curves:
            continue
        end = min(spent[-1] for spent, _ in curves)
        grid = np.unique(np.concatenate([spent for spent, _ in curves]))
        grid = grid[(grid >= max(spent[0] for spent, _ in curves)) & (grid <= end)]
        bests = np.array([best[np.searchsorted(spent, grid, side="right") - 1] for spent, best in curves])
        label = f"{name} ({len(curves)} seed{'s' if len(curves) > 1 else ''})"
        ends: dict[str, Any] = {"marker": "o", "markersize": 4, "markevery": [-1]}  # makes a curve of one point visible
        axes.step(grid, bests.mean(axis=0), color=colour, linestyle=dash, where="post", label=label, **ends)
        axes.fill_between(
            grid, bests.min(axis=0), bests.max(axis=0), step="post", color=colour, alpha=0.15, linewidth=0
        )
    axes.set_ylabel(f"best so far ({unit(objective)})")
    axes.set_title(title, loc="left", fontsize=10.5)
    plain_axes(axes, x)
    legend_below(figure, axes, n_columns=4)
    return figure


def plain_axes(axes: Axes, xlabel: str, *, counts: bool = True) -> None:
    """Remove the box of the axes and label the x axis; `counts`: its ticks are whole numbers from 0 on."""
    axes.set_xlabel(xlabel)
    if counts:
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=KEPT)
    axes.set_axisbelow(True)


def legend_below(figure: Figure, axes: Axes, *, n_columns: int = 5) -> None:
    """Draw the legend of the axes at the bottom of the figure; draw none if no artist has a label."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=n_columns, frameon=False, fontsize=9)


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure with one panel; width and height in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def save(figure: Figure, path_without_suffix: Path) -> list[Path]:
    """Write PNG (150 dpi) and SVG, each completely or not at all; return their paths."""
    drawn = {}
    for suffix in ("png", "svg"):
        buffer = io.BytesIO()
        # no date, so that equal figures give equal files
        figure.savefig(buffer, format=suffix, dpi=150, metadata={"Date": None} if suffix == "svg" else None)
        drawn[path_without_suffix.with_name(f"{path_without_suffix.name}.{suffix}")] = buffer.getvalue()
    for path, data in drawn.items():
        run_files.write_bytes(path, data)
    return list(drawn)
