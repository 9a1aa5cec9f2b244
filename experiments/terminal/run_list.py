"""A list of runs, one line each: verb, conditions, state and result. Stores of text come last.

The list also shows unreadable folders, with the reason.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from experiments.results.find_runs import list_runs
from experiments.results.rows import scored, trial_value
from experiments.results.run_folder import Run
from experiments.results.tables import ArmRow, arms_or_problem, number
from experiments.results.trainings import trained
from experiments.terminal import store_list
from experiments.terminal.live_panel import format_value
from selfspec.errors import InputError
from selfspec.records.names import one_line
from selfspec.skipping.skip_set import SkipSet

STYLES = {
    "finished": "green",
    "running": "cyan",
    "interrupted": "yellow",
    "stopped": "yellow",
    "failed": "red",
    "unreadable": "red",
}
FACTS = ("model", "data", "searcher", "objective", "n_layers", "dtype", "device", "threads")
OF_ARM = (
    "arm",
    "data",
    "skip",
    "stop",
    "n",
    "acceptance",
    "tokens_per_round",
    "tokens_per_s",
    "speedup",
    "low",
    "high",
)


def show_runs(pattern: str | None, outputs: Path) -> tuple[Any, list[RenderableType]]:
    """The runs and stores that a word of `find_runs.list_runs` names, or all: as facts, and as parts to print.

    Raises:
        InputError: if the word names no run.
    """
    facts = [facts_of(run) for run in list_runs(pattern, outputs)] + store_list.list_stores(pattern, outputs)
    if pattern and not facts:
        raise InputError(f"no run {pattern!r} in {outputs}; `selfspec runs list` shows those that there are")
    if not facts:
        return facts, [Text(f"no run in {outputs} yet; `selfspec search` and `selfspec evaluate` make some")]
    table = plain_table("run", "name", "verb", "state", "model", "data", "result")
    for column in (table.columns[0], *table.columns[2:-1]):
        column.no_wrap = True
    for one in facts:
        path, state = Path(one["path"]), Text(one["state"], style=STYLES[one["state"]])
        cells = (Text(one[key] or "–") for key in ("model", "data"))
        brief = Text(
            store_list.in_brief(one) if one["verb"] == store_list.FOLDER else _in_brief(one),
            no_wrap=True,
            overflow="ellipsis",
        )  # one line for each run, also on a narrow terminal
        table.add_row(Text(path.name), Text(path.parent.name), one["verb"], state, *cells, brief)
    return facts, [table]


class _OneLineCells(Table):
    def add_row(self, *cells: RenderableType | None, **how: Any) -> None:
        """Add a row in which no cell breaks its line or writes on the terminal."""
        for cell in cells:
            if isinstance(cell, Text):
                cell.plain = one_line(cell.plain)
        super().add_row(*(one_line(cell) if isinstance(cell, str) else cell for cell in cells), **how)


def plain_table(*header: str) -> Table:
    """A table without lines; it folds text that does not fit on the terminal."""
    table = _OneLineCells(box=None, pad_edge=False, header_style="bold")
    for name in header:
        table.add_column(Text(name), overflow="fold")
    return table


def facts_of(run: Run) -> dict[str, Any]:
    """The facts of a run as plain values; None for unknown facts."""
    facts: dict[str, Any] = {
        "name": run.name,
        "path": str(run.path),
        "verb": run.verb,
        "state": run.state,
        "problem": run.problem or None,
        "started": f"{run.started:%Y-%m-%dT%H:%M:%SZ}" if run.started else None,
        "n_rows": run.n_rows,
        **{name: plain(run.facts.get(name)) for name in FACTS},
        "best": None,
        "arms": [],
        "training": None,
    }
    if not run.is_readable:
        return facts
    if run.verb == "train":
        return facts | {"training": asdict(trained(run, run.steps().rows))}
    if run.verb == "search":
        return facts | {"best": best(run)}
    rows = arms_or_problem(run)
    return facts | ({"problem": rows} if isinstance(rows, str) else {"arms": [facts_of_arm(row) for row in rows]})


def best(run: Run) -> dict[str, Any] | None:
    """The set that a search returned, or its best so far: skip, value, unit, acceptance, and the result of its race."""
    winner: Mapping[str, Any] = run.summary.get("winner") or {}
    handed_on = winner or run.summary.get("best") or {}
    # for a finished search, only the rows of its best set are read
    trials = scored(run.trials(holding=json.dumps(handed_on["skip"]) if handed_on.get("skip") else "").rows)
    same = [row for row in trials if row["skip"] == handed_on.get("skip")]
    found = max(same or trials, key=trial_value, default=None)
    if found is None and not handed_on:
        return None
    trial: Mapping[str, Any] = {} if found is None else found
    n_layers = run.facts.get("n_layers")
    try:
        n_skipped = len(SkipSet.parse(str(handed_on.get("skip", trial.get("skip"))), n_layers)) if n_layers else None
    except (InputError, TypeError):
        n_skipped = None
    return {
        "skip": handed_on.get("skip", trial.get("skip")),
        "n_skipped": n_skipped,
        "value": winner.get("expected") or winner.get("fresh_value") or trial.get("value", handed_on.get("value")),
        "unit": run.summary.get("unit") or run.facts.get("objective"),
        "acceptance": plain(trial.get("acceptance")),
        "draft_cost": plain(trial.get("draft_cost")),
        **{f"raced_{name}": plain(winner.get(name)) for name in ("speedup", "low", "high")},
        "in_doubt": list(winner.get("in_doubt") or []),
    }


def facts_of_arm(row: ArmRow) -> dict[str, Any]:
    """The numbers of an arm; no speed if an output was not compared."""
    facts = asdict(row)
    hidden = () if row.is_judged else ("tokens_per_s", "speedup", "low", "high")
    verdicts = ("n_identical", "n_near_ties", "n_mismatches", "n_not_compared", "n_failed")
    return {name: None if name in hidden else plain(facts[name]) for name in (*OF_ARM, *verdicts)}


def plain(value: object) -> Any:
    """The value in a form that JSON can hold: None for nan and infinities, and text for nested values."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def interval(speedup: float | None, low: float | None, high: float | None) -> str:
    """The speedup with its interval: `1.03 [0.98, 1.07]`; a dash for an unknown number."""
    point, *ends = (number(math.nan if value is None else float(value), 2) for value in (speedup, low, high))
    return point if ends == ["–", "–"] else f"{point} [{', '.join(ends)}]"


def _in_brief(facts: Mapping[str, Any]) -> str:
    if facts["problem"]:
        return str(facts["problem"])
    training = facts["training"]
    if training:
        speed = training["expected_speedup"]
        expected = "nothing judged yet" if speed is None else f"{speed:.2f}x expected"
        depths = " ".join(f"{a:.2f}" for a in training["conditional"]) or "–"
        return f"{training['drafter']}: {expected}, accepted by depth {depths}, {training['steps']} steps"
    best = facts["best"]
    if best:
        size = "" if best["n_skipped"] is None else f" ({best['n_skipped']} of {2 * facts['n_layers']} sublayers)"
        raced = interval(*(best[f"raced_{name}"] for name in ("speedup", "low", "high")))
        value = format_value(best["value"], str(best["unit"]), 2) + ("" if raced == "–" else f", raced {raced}")
        value += ", in doubt" if best["in_doubt"] else ""
        return f"{value}, skip={best['skip']}{size}"
    drafts: Sequence[Mapping[str, Any]] = [a for a in facts["arms"] if a["skip"] not in (None, "none")]
    timed = [a for a in drafts if a["speedup"] is not None]
    if not timed:
        return f"{facts['n_rows']} rows, no speed yet"
    first = max(timed, key=lambda a: float(a["speedup"]))
    speed, of = interval(*(first[name] for name in ("speedup", "low", "high"))), f" (fastest of {len(timed)} drafts)"
    acceptance = number(math.nan if first["acceptance"] is None else first["acceptance"], 2)
    wrong = sum(a["n_mismatches"] for a in drafts)
    lossy = f", {wrong} outputs NOT plain decoding's" if wrong else ""
    return f"{first['arm']}: speedup {speed}, acceptance {acceptance}{of if len(timed) > 1 else ''}{lossy}"
