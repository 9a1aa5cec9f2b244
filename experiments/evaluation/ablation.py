"""The worth of each part of a draft: arms that add one part after another, and the table and picture of their results.

This module knows plans, arms and their rows. It must not know models or how an arm is built.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiments.results.figures import BLUE, DARK, GREY, KEPT, ORANGE, save
from experiments.results.run_folder import Run
from experiments.results.tables import SPEEDUP, ArmRow, Pair, markdown_table, number, paired_arms
from selfspec.errors import InputError
from selfspec.measure import metrics
from selfspec.records import run_files
from selfspec.skipping.plan import DraftPlan

NAME = "ablation"
HEAD = 8192  # tokens of the trimmed head if the plan has a whole head, as in conf/head/trimmed.yaml
STOP = "optimal"
RIVALS = ("lookup only", "transformers' lookup", "lookup and memory only")

COST = (
    "c: measured seconds of drafting a token over those of a plain one, decoded in turn with it. With lookup, copied "
    "tokens are among the drafted. A – stands where transformers does not tell."
)


def steps(
    folder: str, plan: DraftPlan, *, has_int8: bool = True, trained: str | None = None
) -> dict[str, dict[str, Any]]:
    """Arm name to settings: each arm adds one part to the arm before it; the rivals come last.

    Args:
        folder: folder of the plan, or the name of any other skip set, whose bridges are then fitted anew.
        plan: the plan that `folder` names.
        has_int8: whether a kernel for int8 exists; without it that step is left out. The int4 step follows int8.
        trained: folder of a trained draft, which is tried with its own stop rule; None: there is none.

    Raises:
        InputError: if the plan drafts with a trained head, which has none of these parts.
    """
    if plan.trained is not None:
        raise InputError(
            f"ablation={folder} drafts with a trained head, which has no parts to take away; name a search with "
            "draft=linear, beside which trained=RUN is tried"
        )
    kind = plan.kind if plan.kind in ("linear", "lowrank") else "linear"
    own = {} if plan.kind == kind else {"draft": kind}
    bare: dict[str, Any] = {"skip": folder, "head": "full", "precision": "same", "lookup": None}
    found: dict[str, dict[str, Any]] = {
        "identity": {**bare, "draft": "skip"},
        "mean": {**bare, "draft": "mean"},
        kind: {**bare, **own},
    }
    last = {**bare, **own}
    if plan.head is not None:
        last = {name: value for name, value in last.items() if name != "head"}
    elif plan.precision != "int4":  # with four bits the whole head is cheap
        last = {**last, "head": HEAD}
    if last.get("head") != "full":
        found["+ head"] = last
    if has_int8:
        found["+ int8"] = last = {**last, "precision": "int8"}
    if plan.precision == "int4":
        found["+ int4"] = last = {**last, "precision": "int4"}
    forgets = {} if plan.memory is None else {"memory": None}
    found["+ lookup"] = {**last, "lookup": "front", **forgets}
    if forgets:
        found["+ memory"] = {**last, "lookup": "front"}
    found[f"+ {STOP} stop"] = {**last, "lookup": "front", "stop": STOP, "tune_stop": True}
    if trained:
        found["trained head"] = own_rule = {"skip": trained, "lookup": None, "stop": "searched"}
        found["trained head + lookup"] = {**own_rule, "lookup": "front"}
    found[RIVALS[0]] = {"lookup": "only"}
    found[RIVALS[1]] = {"generate": {"prompt_lookup_num_tokens": 10}}
    if forgets:
        found[RIVALS[2]] = {"skip": folder, "lookup": "only"}
    return found


@dataclass(frozen=True, slots=True)
class Step:
    """The results of one arm; a ratio of nothing is nan.

    Attributes:
        arm: name of the arm.
        acceptance: accepted over drafted tokens.
        draft_cost: c, seconds of a drafted token over seconds of a plain token.
        tokens_per_round: accepted tokens of a round plus one.
        speedup, low, high: speedup over plain decoding with its 95 % interval.
        n: number of prompts.
        n_mismatches: number of outputs that differ from plain decoding.
    """

    arm: str
    acceptance: float
    draft_cost: float
    tokens_per_round: float
    speedup: float
    low: float
    high: float
    n: int
    n_mismatches: int


def step(row: ArmRow, pairs: Sequence[Pair]) -> Step:
    """The results of an arm, from its pooled row and from the pairs of plain rows and own rows, prompt by prompt."""
    timed = [(b, m) for b, m in pairs if b["n_tokens"] > 1 and m["n_tokens"] > 1]
    plain_s = metrics.ratio(
        sum(b["total_s"] - b["prefill_s"] for b, _ in timed), sum(b["n_tokens"] - 1 for b, _ in timed)
    )
    draft_s = metrics.ratio(sum(m["draft_s"] for _, m in timed), sum(m["drafted"] for _, m in timed))
    return Step(
        row.arm,
        row.acceptance,
        metrics.ratio(draft_s, plain_s),
        row.tokens_per_round,
        row.speedup,
        row.low,
        row.high,
        row.n,
        row.n_mismatches,
    )


def write(run: Run) -> list[Path]:
    """Write `ablation.md`, `ablation.csv` and the picture into the folder of an evaluate run; return their paths."""
    found = [step(row, pairs) for row, pairs in paired_arms(run) if not row.is_baseline]
    title = f"{run.facts.get('model')} on {run.facts.get('data')}"
    text = f"# What each part of the draft is worth: {title}\n\n{table(found)}\n\n{SPEEDUP}\n\n{COST}\n"
    markdown, comma = run.path / f"{NAME}.md", run.path / f"{NAME}.csv"
    run_files.write_text(markdown, text)
    run_files.write_text(comma, _csv(found))
    return [markdown, comma, *save(picture(found, title=title), run.path / NAME)]


def table(found: Sequence[Step]) -> str:
    """The steps as a Markdown table."""
    header = ["draft", "acceptance", "c", "tokens/round", "speedup [95 %]", "n", "mismatches"]
    return markdown_table(header, [_cells(s) for s in found])


def _cells(s: Step) -> list[str]:
    speed = f"{number(s.speedup, 2)} [{number(s.low, 2)}, {number(s.high, 2)}]"
    ratios = [number(s.acceptance, 3), number(s.draft_cost, 2), number(s.tokens_per_round, 2)]
    return [s.arm, *ratios, speed, str(s.n), str(s.n_mismatches)]


def _csv(found: Sequence[Step]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(Step.__dataclass_fields__), lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(s) for s in found)
    return out.getvalue()


def picture(found: Sequence[Step], *, title: str = "") -> Figure:
    """Four panels with a number of every step each; diamonds mark rivals, the dashed line marks plain decoding."""
    figure = Figure(figsize=(10.0, 1.4 + 0.36 * len(found)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 4, sharey=True, width_ratios=[1, 1, 1, 1.6])
    columns = {
        "acceptance": "acceptance",
        "draft_cost": "c",
        "tokens_per_round": "tokens per round",
        "speedup": "speedup",
    }
    for axes, (name, label) in zip(panels, columns.items(), strict=True):
        for y, s in enumerate(found):
            value = getattr(s, name)
            colour, marker = (ORANGE, "D") if s.arm in RIVALS else (BLUE, "o")
            if name == "speedup":
                axes.plot([s.low, s.high], [y, y], color=colour, linewidth=1.5, solid_capstyle="butt")
            axes.plot(value, y, marker, color=colour, markersize=6, clip_on=False)
            axes.annotate(number(value, 2), (value, y), (0, 6), textcoords="offset points", **_SMALL)
        axes.set_xlabel(label)
        known = [v for s in found for v in (getattr(s, name), s.high if name == "speedup" else 0) if not math.isnan(v)]
        axes.set_xlim(0, 1.1 * max([*known, 0]) or 1)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", color=KEPT)
        axes.set_axisbelow(True)
    panels[-1].axvline(1, color=DARK, linestyle="--", linewidth=1, zorder=0.8)
    panels[0].set_yticks(range(len(found)), [s.arm for s in found])
    panels[0].set_ylim(len(found) - 0.5, -0.7)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10.5, color=GREY)
    return figure


_SMALL: dict[str, Any] = {"ha": "center", "va": "bottom", "fontsize": 7.5, "color": DARK}
