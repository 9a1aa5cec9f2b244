"""Runs in a list, a line each: what ran, how far it came, and what it found or measured.

Folders that cannot be read are listed with the reason.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from experiments.results import scan
from experiments.results.find_runs import find_failures
from experiments.results.scan import Entry
from experiments.results.tables import ArmRow, arm_rows, number
from experiments.terminal.live_panel import worth
from selfspec.errors import InputError
from selfspec.records import run_files
from selfspec.skipping.skip_set import SkipSet

STYLES = {"finished": "green", "running": "cyan", "stopped": "yellow", "failed": "red", "unreadable": "red"}
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


def list_runs(pattern: str | None, outputs: Path) -> tuple[Any, list[RenderableType]]:
    """The runs that the pattern of `entries` names, or all: as facts, and to be shown.

    Raises:
        InputError: if it names none.
    """
    found = entries(pattern, outputs)
    if pattern and not found:
        raise InputError(f"no run {pattern!r} in {outputs}; `selfspec runs list` shows those that there are")
    facts = [facts_of(entry) for entry in found]
    if not facts:
        return facts, [Text(f"no run in {outputs} yet; `selfspec search` and `selfspec evaluate` make some")]
    table = plain_table("run", "name", "verb", "state", "model", "data", "result")
    for column in (table.columns[0], *table.columns[2:-1]):
        column.no_wrap = True
    for one in facts:
        path, state = Path(one["path"]), Text(one["state"], style=STYLES[one["state"]])
        cells = (Text(one[key] or "–") for key in ("model", "data"))
        brief = Text(
            _in_brief(one), no_wrap=True, overflow="ellipsis"
        )  # on a narrow terminal, a line a run all the same
        table.add_row(Text(path.name), Text(path.parent.name), one["verb"], state, *cells, brief)
    return facts, [table]


def plain_table(*header: str) -> Table:
    """A table without lines; what does not fit on a terminal is folded."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in header:
        table.add_column(Text(name), overflow="fold")
    return table


def entries(word: str | None, outputs: Path) -> list[Entry]:
    """The runs that a word names, the newest first.

    Args:
        word: a folder, seen from the working folder or from `outputs`; an id; or a part of a name, model, data set or
            searcher, where `*` and `?` stand for anything. None: all runs.
        outputs: the folder of the runs.
    """
    folders = (Path(word).expanduser(), outputs / word) if word else ()
    below = next((paths for folder in folders if (paths := scan.find(folder))), None)
    now = datetime.now(UTC)
    found = [scan.read(path, outputs, now=now) for path in below or scan.find(outputs)]
    if word and not below:
        found = [e for e in found if e.id == word] or [e for e in found if fnmatchcase(_said(e), f"*{word}*")]
    return sorted(found, key=lambda e: (e.started or datetime.min.replace(tzinfo=UTC), e.name), reverse=True)


def _said(entry: Entry) -> str:
    return " ".join([entry.name, *(str(entry.facts[name]) for name in FACTS[:3] if name in entry.facts)])


def facts_of(entry: Entry) -> dict[str, Any]:
    """What there is to say of a run, in plain values; None where something is not known."""
    facts: dict[str, Any] = {
        "name": entry.name,
        "path": str(entry.path),
        "verb": entry.verb,
        "state": entry.state,
        "problem": entry.problem or None,
        "started": f"{entry.started:%Y-%m-%dT%H:%M:%SZ}" if entry.started else None,
        "n_rows": entry.n_rows,
        **{name: plain(entry.facts.get(name)) for name in FACTS},
        "best": None,
        "arms": [],
    }
    if (entry.path / run_files.FAILURE).is_file():
        return facts | {"state": "failed", "problem": _failure(entry.path)}
    if entry.state == "unreadable":
        return facts
    if entry.verb == "search":
        return facts | {"best": best(entry)}
    rows = arms(entry)
    return facts | ({"problem": rows} if isinstance(rows, str) else {"arms": [facts_of_arm(row) for row in rows]})


def _failure(path: Path) -> str:
    try:
        (failure,) = find_failures(str(path), path)
    except (InputError, ValueError) as error:
        return str(error)
    return failure.error


def best(entry: Entry) -> dict[str, Any] | None:
    """The set a search handed on, or its best so far: skip, value, unit, acceptance, and how its race ended."""
    winner: Mapping[str, Any] = entry.summary.get("winner") or {}
    told = winner or entry.summary.get("best") or {}
    # of a finished search only the rows of its best set are read
    rows = scan.read_rows(entry, holding=json.dumps(told["skip"]) if told.get("skip") else "").rows
    scored = [row for row in rows if row["state"] == "complete" and row.get("value") is not None]
    same = [row for row in scored if row["skip"] == told.get("skip")]
    trial = max(same or scored, key=lambda row: float(row["value"]), default=None)
    if trial is None and not told:
        return None
    trial, n_layers = trial or {}, entry.facts.get("n_layers")
    try:
        n_skipped = len(SkipSet.parse(str(told.get("skip", trial.get("skip"))), n_layers)) if n_layers else None
    except (InputError, TypeError):
        n_skipped = None
    return {
        "skip": told.get("skip", trial.get("skip")),
        "n_skipped": n_skipped,
        "value": winner.get("fresh_value") or trial.get("value", told.get("value")),
        "unit": entry.summary.get("unit") or entry.facts.get("objective"),
        "acceptance": plain(trial.get("acceptance")),
        "draft_cost": plain(trial.get("draft_cost")),
        **{f"raced_{name}": plain(winner.get(name)) for name in ("speedup", "low", "high")},
        "in_doubt": list(winner.get("in_doubt") or []),
    }


def arms(entry: Entry) -> list[ArmRow] | str:
    """The arms of an evaluation, or why they cannot be read."""
    try:
        return arm_rows(entry.run)
    except (InputError, TypeError, ValueError) as error:
        return str(error)


def facts_of_arm(row: ArmRow) -> dict[str, Any]:
    """The numbers of an arm; no speed where an output was not compared."""
    facts = asdict(row)
    hidden = () if row.is_judged else ("tokens_per_s", "speedup", "low", "high")
    verdicts = ("n_identical", "n_near_ties", "n_mismatches", "n_not_compared", "n_failed")
    return {name: None if name in hidden else plain(facts[name]) for name in (*OF_ARM, *verdicts)}


def plain(value: object) -> Any:
    """The value where JSON has one for it; None for nan and the infinities, and what is nested as text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def interval(speedup: float | None, low: float | None, high: float | None) -> str:
    """`1.03 [0.98, 1.07]`, with a dash for what is not known."""
    point, *ends = (number(math.nan if value is None else float(value), 2) for value in (speedup, low, high))
    return point if ends == ["–", "–"] else f"{point} [{', '.join(ends)}]"


def _in_brief(facts: Mapping[str, Any]) -> str:
    if facts["problem"]:
        return str(facts["problem"])
    told = facts["best"]
    if told:
        size = "" if told["n_skipped"] is None else f" ({told['n_skipped']} of {2 * facts['n_layers']} sublayers)"
        raced = interval(*(told[f"raced_{name}"] for name in ("speedup", "low", "high")))
        value = worth(told["value"], str(told["unit"]), 2) + ("" if raced == "–" else f", raced {raced}")
        value += ", in doubt" if told["in_doubt"] else ""
        return f"{value}, skip={told['skip']}{size}"
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
