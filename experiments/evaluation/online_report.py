"""Speed over a stream: the table and the picture of an evaluation with drafts that change while they decode.

The seconds of a searcher are a part of the seconds of its arm. This module knows rows and must not know models or arms.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiments.results.figures import BLUE, DARK, GREEN, GREY, KEPT, ORANGE, RED, save
from experiments.results.online_files import ONLINE, STEPS, read_steps
from experiments.results.published import published_figures
from experiments.results.run_folder import Run
from experiments.results.tables import Pair, markdown_table, number, paired_arms
from selfspec.measure.metrics import ratio
from selfspec.records import run_files

EVERY = 500  # tokens of a point
EARLY = 2000  # tokens after which the searcher's share counts apart
SYSTEMS = ("swift", "clasp", "knapspec", "del", "conflayers")
COLOURS = (BLUE, ORANGE, GREEN, RED, DARK, GREY)

NOTE = (
    "speedup: seconds of plain decoding over the arm's, the searcher's seconds included, pooled over the prompts, "
    f"without prefill. worst: the lowest of a part of the stream of at least {EVERY} tokens. search: the searcher's "
    f"share of the arm's seconds, of the whole stream and after its first {EARLY} tokens."
)


@dataclass(frozen=True, slots=True)
class Part:
    """Consecutive prompts of one task.

    Attributes:
        category: the task.
        end: tokens of the stream up to their end.
        n_tokens: their tokens.
        plain_s, arm_s: seconds of plain decoding and of the arm.
    """

    category: str
    end: int
    n_tokens: int
    plain_s: float
    arm_s: float

    @property
    def speedup(self) -> float:
        """Plain seconds over the arm's; nan without seconds."""
        return ratio(self.plain_s, self.arm_s)


def parts(pairs: Sequence[Pair], *, every: int = EVERY) -> list[Part]:
    """The stream in parts of at least `every` tokens, if the task has so many left, and never across tasks."""
    found: list[Part] = []
    for plain, arm in pairs:
        if plain["n_tokens"] < 2 or arm["n_tokens"] < 2:
            continue
        category, n = str(arm.get("category") or ""), arm["n_tokens"] - 1
        seconds = plain["total_s"] - plain["prefill_s"], arm["total_s"] - arm["prefill_s"]
        last = found[-1] if found else None
        if last is not None and last.category == category and last.n_tokens < every:
            before = last.plain_s, last.arm_s
            found[-1] = Part(category, last.end + n, last.n_tokens + n, before[0] + seconds[0], before[1] + seconds[1])
        else:
            found.append(Part(category, (last.end if last else 0) + n, n, *seconds))
    return found


def write(run: Run) -> list[Path]:
    """Write `online.md`, `online.csv` and the picture into the folder of an evaluate run, if it has online arms."""
    if not (run.path / ONLINE).is_file():
        return []
    steps = read_steps(run.path / STEPS)
    found = {row.arm: parts(pairs) for row, pairs in paired_arms(run) if not row.is_baseline}
    found = {arm: of_arm for arm, of_arm in found.items() if of_arm}
    title = f"{run.facts.get('model')} on {run.facts.get('data')}"
    text = f"# Speed over the stream: {title}\n\n{table(found, steps)}\n\n{NOTE}\n\n{published()}\n"
    markdown, comma = run.path / "online.md", run.path / "online.csv"
    run_files.write_text(markdown, text)
    run_files.write_text(comma, _csv(found))
    return [markdown, comma, *save(picture(found, title=title), run.path / "online")]


def table(found: Mapping[str, Sequence[Part]], steps: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """A row for each arm: its speedup on each task and over the stream, its worst part, and its searcher's share."""
    tasks = list(dict.fromkeys(part.category for of_arm in found.values() for part in of_arm))
    header = ["draft", *(task or "all" for task in tasks), "stream", "worst", "search", f"search after {EARLY}"]
    body = []
    for arm, of_arm in found.items():
        by_task = [pooled([p for p in of_arm if p.category == task]) for task in tasks]
        whole = [p for p in of_arm if p.n_tokens >= EVERY] or of_arm
        shares = [searching_share(of_arm, steps.get(arm, ()), after=after) for after in (0, EARLY)]
        cells = [*by_task, pooled(of_arm), min(p.speedup for p in whole)]
        body.append([arm, *(number(c, 2) for c in cells), *("–" if s is None else number(s, 3) for s in shares)])
    return markdown_table(header, body)


def pooled(of_arm: Sequence[Part]) -> float:
    """Speedup over several parts; nan without any."""
    return ratio(sum(p.plain_s for p in of_arm), sum(p.arm_s for p in of_arm))


def searching_share(of_arm: Sequence[Part], steps: Sequence[Mapping[str, Any]], *, after: int) -> float | None:
    """The searcher's seconds over the arm's, from a number of tokens on; None if unknown."""
    behind = [step for step in steps if step["n_tokens"] >= after]
    arm_s = sum(p.arm_s for p in of_arm if p.end > after)
    if not behind or len(behind) == 1 or not arm_s:
        return None
    return float((behind[-1]["spent_s"] - behind[0]["spent_s"]) / arm_s)


def published() -> str:
    """What the authors of such searches report, on their machines."""
    rows = [r for r in published_figures() if r.get("system") in SYSTEMS and r.get("metric") == "speedup"]
    body = [
        [
            str(r["system"]),
            str(r.get("model") or r.get("over") or "–"),
            str(r.get("data") or "–"),
            "–" if r.get("temperature") is None else str(r["temperature"]),
            {"low": "from ", "high": "up to "}.get(str(r.get("bound")), "") + f"{r['value']:.2f}",
            str(r["source"]),
        ]
        for r in sorted(rows, key=lambda r: SYSTEMS.index(r["system"]))
    ]
    header = ["published", "model", "data", "temperature", "speedup", "source"]
    return markdown_table(header, body)


def _csv(found: Mapping[str, Sequence[Part]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["arm", "task", "tokens_seen", "n_tokens", "plain_s", "arm_s", "speedup"])
    for arm, of_arm in found.items():
        writer.writerows([arm, p.category, p.end, p.n_tokens, p.plain_s, p.arm_s, p.speedup] for p in of_arm)
    return out.getvalue()


_SMALL: dict[str, Any] = {"fontsize": 8, "color": DARK}


def picture(found: Mapping[str, Sequence[Part]], *, title: str) -> Figure:
    """Speedup of each arm over the tokens it has seen; lines mark where a task ends."""
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.axhline(1, color=GREY, linestyle="--", linewidth=1)
    for (arm, of_arm), colour in zip(found.items(), [c for _ in found for c in COLOURS], strict=False):
        middles = [p.end - p.n_tokens / 2 for p in of_arm]
        axes.plot(middles, [p.speedup for p in of_arm], "o-", color=colour, label=arm, markersize=3.5, linewidth=1.4)
    first = next(iter(found.values()), [])
    ends = [
        p.end for p, after in zip(first, [*first[1:], None], strict=True) if not after or after.category != p.category
    ]
    names = list(dict.fromkeys(p.category for p in first))
    for begin, end, name in zip([0, *ends], ends, names, strict=False):
        axes.axvline(end, color=KEPT, linewidth=1)
        axes.text((begin + end) / 2, 1.01, name, transform=axes.get_xaxis_transform(), ha="center", **_SMALL)
    axes.set_xlabel("tokens seen")
    axes.set_ylabel("speedup over plain decoding")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10.5, color=GREY)
    return figure
