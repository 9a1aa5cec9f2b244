"""Pictures of results, drawn without global state: plain values in, a figure out, and written whole.

Knows skip sets and trials; knows nothing of runs, nor where a picture goes. Colours are Okabe and Ito's, which the
colour-blind can tell apart, and are never the only difference.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from selfspec import records
from selfspec.skip import SkipSet

BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"  # Okabe and Ito
KEPT, GREY, DARK = "#EEEEEE", "#767676", "#222222"

_SET_HEIGHT = 1.0  # of one set's two strips and the gap below, in axis units; layers are 1 wide
_STRIP = 0.34


def skip_map(sets: Mapping[str, SkipSet]) -> Figure:
    """Which sublayers each labelled set skips: layers from left to right, attention above MLP.

    Raises:
        ValueError: if there is no set to show.
    """
    if not sets:
        raise ValueError("no skip set to draw; leave the map out")
    n_layers = max(skip.n_layers for skip in sets.values())
    figure, axes = _canvas(9.0, 1.1 + 0.62 * len(sets))
    for i, (label, skip) in enumerate(sets.items()):
        top = i * _SET_HEIGHT
        for offset, skipped, colour in ((0.1, skip.attn, BLUE), (0.1 + _STRIP, skip.mlp, ORANGE)):
            for layers, fill in ((set(range(skip.n_layers)) - skipped, KEPT), (skipped, colour)):
                cells = [Rectangle((layer - 0.5, top + offset), 1, _STRIP) for layer in sorted(layers)]
                axes.add_collection(PatchCollection(cells, facecolor=fill, edgecolor="white", linewidth=1.2))
        counts = f"{len(skip.attn)} attention, {len(skip.mlp)} MLP of {skip.n_layers}"
        middle = top + 0.1 + _STRIP
        axes.annotate(label, (0, middle), (-8, 1), va="bottom", **_beside("right"), color=DARK, fontsize=9.5)
        axes.annotate(counts, (0, middle), (-8, -1), va="top", **_beside("right"), color=GREY, fontsize=8)
    axes.set_xlim(-0.5, n_layers - 0.5)
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


def search_history(trials: Sequence[Mapping[str, Any]], *, objective: str, title: str = "") -> Figure:
    """What a search tried and how its best grew; larger is better.

    Args:
        trials: rows of a search run.
        objective: its name, read out as the unit of the value: `tokens_per_second`.
        title: above the axes, if any.
    """
    figure, axes = _canvas(8.0, 4.2)
    tried = sorted(trials, key=lambda trial: trial["number"])
    valued = [t for t in tried if t["state"] == "complete" and t["value"] is not None]
    failed = [t["number"] for t in tried if t["state"] == "failed"]
    for origin, label, marker, colour in (("start", "start point", "D", ORANGE), ("searcher", "searcher", "o", BLUE)):
        ours = [t for t in valued if t["origin"] == origin]
        if ours:
            x, y = [t["number"] for t in ours], [t["value"] for t in ours]
            axes.plot(x, y, marker, color=colour, label=label, markersize=6, alpha=0.85, markeredgecolor="white")
    if valued:
        numbers, best = [t["number"] for t in valued], list(accumulate((t["value"] for t in valued), max))
        numbers, best = [*numbers, tried[-1]["number"]], [*best, best[-1]]
        axes.step(numbers, best, GREEN, where="post", label="best so far", zorder=1)
    if failed:
        bottom = axes.get_xaxis_transform()  # x in trials, y in [0, 1] of the axis: a failed trial has no value
        axes.plot(failed, [0.02] * len(failed), "x", color=RED, label="failed", transform=bottom, clip_on=False)
    nothing = next((t["value"] for t in valued if t["skip"] == "none"), None)
    if nothing is not None:
        axes.axhline(nothing, color=DARK, linestyle="--", linewidth=1, zorder=0.8)
        _say_beside(axes, f"skip nothing\n{nothing:.3g}", nothing)
    axes.set_xlabel("trial")
    axes.set_ylabel(unit(objective))
    axes.set_title(title, loc="left", fontsize=10.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.margins(y=0.12)
    if tried:
        first, last = tried[0]["number"], tried[-1]["number"]
        room = max(0.5, 0.03 * (last - first))
        axes.set_xlim(first - room, last + room)
    if not valued:
        axes.set_yticks([])  # nothing has a value, so a scale would be made up
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=KEPT)
    axes.set_axisbelow(True)
    if tried:
        figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure


def _say_beside(axes: Axes, words: str, y: float) -> None:
    axes.annotate(words, (1, y), (5, 0), va="center", **_beside("left"), color=DARK, fontsize=8.5)


def unit(objective: str) -> str:
    """An objective's name read out: `tokens_per_second` and `tokens_per_s` are tokens per second."""
    return (objective + "econd" if objective.endswith("_per_s") else objective).replace("_", " ")


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def save(figure: Figure, path_without_suffix: Path) -> list[Path]:
    """Write PNG (150 dpi) and SVG beside each other, each whole or not at all; the paths written."""
    drawn = {}
    for suffix in ("png", "svg"):
        buffer = io.BytesIO()
        # no date: the same figure gives the same picture
        figure.savefig(buffer, format=suffix, dpi=150, metadata={"Date": None} if suffix == "svg" else None)
        drawn[path_without_suffix.with_name(f"{path_without_suffix.name}.{suffix}")] = buffer.getvalue()
    for path, data in drawn.items():
        records.write_bytes(path, data)
    return list(drawn)
