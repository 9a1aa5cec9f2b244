"""Draws the pictures of the documentation: python scripts/docs_pictures.py

`gain.svg` is drawn from docs/results/gain.json. Curves come from the package's own formulas and from measured tables;
a picture with made-up numbers says so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

from experiments.config.composing import option
from selfspec.control import StepCosts
from selfspec.control.allotment import allot
from selfspec.measure.closed_form import best_length, expected_speedup
from selfspec.measure.metrics import Timed, speedup, speedup_interval

DOCS = Path(__file__).parents[1] / "docs"
GREEN, RED, BLUE, GREY, DARK = "#2e8b57", "#c0392b", "#2c6fbb", "#9aa5b1", "#333333"
COLOURS = [GREEN, BLUE, "#b8860b", GREY, "#7d5ba6"]
CPU_16 = {1: 1.0, 5: 1.11, 9: 1.20, 17: 1.43}  # v(n) in bfloat16 and float32, Zen 4: LOG.md, 2026-11-28, trees
CPU_32 = {1: 1.0, 5: 1.38, 9: 1.60, 17: 2.01}
# v(rows, tokens) through the measured 1 x 8, 8 x 1 and 8 x 8 of LOG.md, 2026-11-28, batches
BATCH = StepCosts((0.958, 0.0008, 0.0008, 0.0406, 0.0), (0.05, 0.002))
HEAD = (0.53, 0.54, 0.58, 0.61)  # acceptance by depth of the one-layer head of that entry


def main() -> None:
    """Write every picture."""
    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "selfspec", "font.size": 10, "axes.spines.top": False})
    plt.rcParams.update({"axes.spines.right": False, "figure.constrained_layout.use": True, "text.color": DARK})
    pictures: dict[str, tuple[Callable[[Axes], None], tuple[float, float]]] = {
        "gain": (gain, (8, 3)),
        "concepts/round": (one_round, (7, 2.6)),
        "concepts/replay": (replay, (7, 2.6)),
        "concepts/verification": (verification, (6, 3)),
        "concepts/lengths": (lengths, (6, 3)),
        "concepts/intervals": (intervals, (6, 2.4)),
        "concepts/tree": (tree, (7, 2.8)),
        "concepts/controllers": (controllers, (6, 3)),
    }
    for name, (draw, size) in pictures.items():
        figure, axes = plt.subplots(figsize=size)
        draw(axes)
        figure.savefig(DOCS / f"{name}.svg", metadata={"Date": None}, facecolor="white")
        plt.close(figure)


def gain(axes: Axes) -> None:
    """Speedups of arms on two data sets, with intervals."""
    data = json.loads((DOCS / "results" / "gain.json").read_text(encoding="utf-8"))
    arms, n_groups = data["arms"], len(data["groups"])
    for i, arm in enumerate(arms):
        places = [g * (len(arms) + 1) + i for g in range(n_groups)]
        values = [value for value, _, _ in arm["values"]]
        errors = np.transpose([(v - low, high - v) for v, low, high in arm["values"]])
        axes.barh(places, values, xerr=errors, color=COLOURS[i], label=arm["name"], height=0.8, ecolor=DARK, capsize=2)
        for place, value, (_, _, high) in zip(places, values, arm["values"], strict=True):
            axes.text(high + 0.04, place, f"{value:.2f}", va="center")
    axes.axvline(1, color=DARK, lw=1)
    axes.text(0.97, (len(arms) - 1) * 1.25, data["baseline"], ha="right", va="center", fontsize=8)
    middles = [g * (len(arms) + 1) + (len(arms) - 1) / 2 for g in range(n_groups)]
    axes.set_yticks(middles, data["groups"])
    axes.invert_yaxis()
    axes.set_xlim(0, 3.4)
    axes.set_title(data["title"], fontsize=9, loc="left")
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))


def _boxes(axes: Axes, words: Sequence[str], x: float, y: float, colours: Sequence[str], width: float = 1.0) -> None:
    for i, (word, colour) in enumerate(zip(words, colours, strict=True)):
        box = FancyBboxPatch(
            (x + i * (width + 0.15), y), width, 0.55, boxstyle="round,pad=0.02", fc=colour, ec="none", alpha=0.9
        )
        axes.add_patch(box)
        axes.text(x + i * (width + 0.15) + width / 2, y + 0.27, word, ha="center", va="center", color="white")


def _blank(axes: Axes, width: float, height: float) -> None:
    axes.set_xlim(0, width)
    axes.set_ylim(0, height)
    axes.axis("off")


def one_round(axes: Axes) -> None:
    """A draft, the model's own choices, and what is committed."""
    _blank(axes, 8.6, 2.9)
    rows = [
        ("draft", ["the", "cat", "sat", "down"], [BLUE] * 4),
        ("the model's choices", ["the", "cat", "lay", "…", "…"], [GREY] * 5),
        ("committed", ["the", "cat", "lay"], [GREEN, GREEN, RED]),
    ]
    for y, (name, words, colours) in zip((2.1, 1.2, 0.3), rows, strict=True):
        axes.text(0, y + 0.27, name, va="center")
        _boxes(axes, words, 2.4, y, colours)
    axes.text(6.0, 0.57, "two accepted, one correction", va="center", fontsize=9)


def replay(axes: Axes) -> None:
    """Drafts from every place of a known answer."""
    _blank(axes, 9.4, 2.9)
    answer = ["the", "cat", "lay", "on", "the", "mat"]
    axes.text(0, 2.37, "known answer", va="center")
    _boxes(axes, answer, 2.3, 2.1, [GREY] * 6)
    for k, (y, words, colours) in enumerate(
        ((1.2, ["the", "cat", "sat"], [GREEN, GREEN, RED]), (0.3, ["on", "the", "mat"], [GREEN] * 3))
    ):
        axes.text(0, y + 0.27, f"round {k + 1} of a draft", va="center")
        _boxes(axes, words, 2.3 + k * 3 * 1.15, y, colours)


def verification(axes: Axes) -> None:
    """v(n) on three devices."""
    table = option("costs", "h100/smollm2-135m").table
    h100 = np.array(table.verify_s)
    axes.plot(range(1, 18), h100[:17] / h100[0], color=GREEN, label="H100 by graphs, bfloat16")
    axes.plot(list(CPU_16), list(CPU_16.values()), "o-", color=BLUE, label="2 threads of Zen 4, bfloat16")
    axes.plot(list(CPU_32), list(CPU_32.values()), "o-", color=RED, label="the same, float32")
    axes.set_xlabel("tokens verified in one forward")
    axes.set_ylabel("cost, in plain tokens")
    axes.set_ylim(0.9)
    axes.legend(frameon=False)


def lengths(axes: Axes) -> None:
    """Expected speedup over draft length, at c = 0.25 and 6 % for a verified token."""
    ks = np.arange(1, 13)
    for chance, colour in zip((0.5, 0.7, 0.8, 0.9), (GREY, BLUE, "#b8860b", GREEN), strict=True):
        values = [expected_speedup(chance, n_drafted=k, draft_cost=0.25, verify_cost=1 + 0.06 * k) for k in ks]
        axes.plot(ks, values, "o-", ms=3, color=colour, label=f"{chance} accepted")
    axes.axhline(1, color=DARK, lw=1)
    axes.set_xlabel("tokens drafted a round (a drafted token: 0.25 plain ones, a verified one: 0.06)")
    axes.set_ylabel("expected speedup")
    axes.legend(frameon=False, fontsize=8)
    assert best_length(0.5, draft_cost=0.25) < best_length(0.9, draft_cost=0.25)


def intervals(axes: Axes) -> None:
    """Twelve made-up prompts: their speedups, and the pooled one with its interval."""
    rng = np.random.default_rng(0)
    n_tokens, factors = rng.integers(20, 120, 12), rng.lognormal(0.3, 0.25, 12)
    plain = [Timed(seconds=n * 0.03, tokens=int(n)) for n in n_tokens]
    fast = [Timed(seconds=n * 0.03 / factor, tokens=int(n)) for n, factor in zip(n_tokens, factors, strict=True)]
    low, high = speedup_interval(plain, fast)
    axes.scatter(factors, [1] * 12, s=n_tokens, color=BLUE, alpha=0.5)
    axes.errorbar([speedup(plain, fast)], [0], xerr=[[speedup(plain, fast) - low], [high - speedup(plain, fast)]])
    axes.plot([speedup(plain, fast)], [0], "o", color=GREEN)
    axes.axvline(1, color=DARK, lw=1)
    axes.set_yticks([0, 1], ["pooled, 95 %", "prompts (area: tokens)"])
    axes.set_ylim(-0.6, 1.6)
    axes.set_xlabel("speedup over plain decoding (made-up prompts)")


def tree(axes: Axes) -> None:
    """A tree of six nodes and the mask under which it is verified."""
    _blank(axes, 10, 4)
    words = ["the", "a", "cat", "dog", "sat", "man"]
    parents = [-1, -1, 0, 0, 2, 1]
    places = [(1.6, 3), (1.6, 1), (3.2, 3.4), (3.2, 2.2), (4.8, 3.4), (3.2, 0.8)]
    for (x, y), parent in zip(places, parents, strict=True):
        x0, y0 = (0.2, 2) if parent < 0 else places[parent]
        axes.plot([x0 + 0.4, x - 0.4], [y0, y], color=GREY, zorder=0)
    axes.text(0.2, 2, "text", ha="center", va="center")
    for word, (x, y), colour in zip(words, places, (GREEN, BLUE, GREEN, BLUE, GREEN, BLUE), strict=True):
        axes.text(x, y, word, ha="center", va="center", color="white", bbox={"fc": colour, "ec": "none", "pad": 4})
    for i, word in enumerate(words):
        seen, node = set(), i
        while node >= 0:
            seen.add(node)
            node = parents[node]
        axes.text(6.6, 3.3 - i * 0.5, word, ha="right", va="center", fontsize=9)
        for j in range(len(words)):
            cell = plt.Rectangle((6.8 + j * 0.5, 3.1 - i * 0.5), 0.45, 0.45, fc=DARK if j in seen else "#e8ebee")
            axes.add_patch(cell)
    axes.text(8.3, 0.2, "each node sees its own branch", ha="center", fontsize=9)


def controllers(axes: Axes) -> None:
    """The best draft length of a batch of equal requests, by two acceptances, at measured costs."""
    rows = np.arange(1, 17)
    for rates, colour, name in (
        (HEAD, BLUE, "one trained layer (.53 .54 .58 .61 accepted)"),
        ((0.8,) * 4, GREEN, "0.8 accepted"),
    ):
        alive = np.cumprod([rates[min(i, len(rates) - 1)] for i in range(12)]).tolist()
        best = [np.mean(allot([alive] * n, BATCH.of_batch(int(n), 0, 12))[0]) for n in rows]
        axes.step(rows, best, where="mid", color=colour, label=name)
    axes.set_xlabel("requests in the batch (costs of SmolLM2-135M on one CPU thread)")
    axes.set_ylabel("tokens drafted a request")
    axes.set_ylim(0)
    axes.legend(frameon=False)


if __name__ == "__main__":
    main()
