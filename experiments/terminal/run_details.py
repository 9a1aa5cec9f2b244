"""One run: what it ran on, what it found or measured with the maps of its sets, and the files it left."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from experiments.results import scan
from experiments.results.scan import Entry
from experiments.results.tables import arm_cells, number, package, text, verdict_sentences
from experiments.terminal import run_list, skip_map_text
from experiments.terminal.live_panel import worth
from experiments.terminal.run_list import plain, plain_table
from selfspec.errors import InputError
from selfspec.records import run_files
from selfspec.skipping.skip_set import SkipSet

IN_CONDITIONS = ("model", "data", "dtype", "device", "threads")  # not again in each line of the arms


def show_run(word: str, outputs: Path) -> tuple[Any, list[RenderableType]]:
    """The run that the word of `run_list.entries` names: as facts, and to be shown.

    Raises:
        InputError: if it names none, or several.
    """
    entry = _one(word, outputs)
    facts = run_list.facts_of(entry)
    facts |= {"conditions": _conditions(entry), "command": entry.run.command, "files": _files(entry.path)}
    if facts["state"] not in ("failed", "unreadable"):
        facts["problems"] = scan.read_rows(entry).problems
    return facts, list(_shown(entry, facts))


def _one(word: str, outputs: Path) -> Entry:
    found = run_list.entries(word, outputs)
    if not found:
        raise InputError(f"no run {word!r} in {outputs}; `selfspec runs list` shows those that there are")
    if len(found) > 1:
        names = ", ".join(entry.name for entry in found[:3])
        raise InputError(f"{word!r} names {len(found)} runs ({names}{', …' if len(found) > 3 else ''}); give one id")
    return found[0]


def _conditions(entry: Entry) -> dict[str, Any]:
    """What the run recorded of itself and its machine, without what is nested."""
    facts = {name: plain(value) for name, value in entry.facts.items() if not isinstance(value, Mapping | list)}
    machine = {name: plain(entry.provenance.get(name)) for name in ("cpu", "cuda", "cores", "load_before")}
    versions = {name: package(entry.run, name) for name in ("torch", "transformers")}
    return {**facts, **versions, **machine, "busy": entry.state != "unreadable" and entry.run.is_busy}


def _files(path: Path) -> dict[str, int]:
    """The files of a run and their sizes in bytes."""
    found = sorted(file for file in path.rglob("*") if file.is_file())
    return {file.relative_to(path).as_posix(): file.stat().st_size for file in found}


def _shown(entry: Entry, facts: Mapping[str, Any]) -> Iterator[RenderableType]:
    title = Text(entry.name, style="bold")
    state = Text(facts["state"], style=run_list.STYLES[facts["state"]])
    yield Text.assemble(title, f"  {entry.verb}, ", state, f", started {text(facts['started'])}")
    if facts["problem"]:
        yield Text(facts["problem"], style="red")
    yield Text("\nConditions", style="bold")
    grid = Table.grid(padding=(0, 2))
    for name, value in facts["conditions"].items():
        if value is not None:
            grid.add_row(name, Text(str(value)))
    yield grid
    yield Text(facts["command"])
    if facts["best"]:
        yield from _search(entry, facts["best"])
    if facts["arms"]:
        yield from _evaluation(entry)
    for problem in facts.get("problems", ()):
        yield Text(f"left out: {problem}", style="red")
    yield Text("\nFiles", style="bold")
    grid = Table.grid(padding=(0, 2))
    for name, size in facts["files"].items():
        grid.add_row(Text(str(size), justify="right"), Text(name))
    yield grid


def _search(entry: Entry, best: Mapping[str, Any]) -> Iterator[RenderableType]:
    yield Text("\nBest set", style="bold")
    known = [("acceptance", best["acceptance"]), ("draft cost", best["draft_cost"])]
    told = "".join(f", {name} {number(float(fact), 3)}" for name, fact in known if fact is not None)
    yield Text(f"skip={best['skip']}: {worth(best['value'], str(best['unit']), 3)}{told}")
    verdict = (entry.summary.get("verdict") or {}).get("text")
    if verdict:
        yield Text(str(verdict))
    if best["n_skipped"] is not None:
        yield skip_map_text.skip_map(("", SkipSet.parse(str(best["skip"]), entry.facts["n_layers"])))
    if (entry.path / run_files.FINALS).is_file():
        yield _finals(entry.path / run_files.FINALS)


def _finals(file: Path) -> RenderableType:
    try:
        rows = run_files.read_rows(file)
    except InputError as error:
        return Text(f"left out: {error}", style="red")
    table = plain_table("finals: skip", "in the search", "fresh prompts", "raced [95 %]", "acceptance", "prompts")
    for row in rows:
        raced = run_list.interval(row.get("speedup"), row.get("low"), row.get("high"))
        raced += ", in doubt" if row.get("in_doubt") else ""
        cells = [_cell(row.get(name)) for name in ("trial_value", "fresh_value")]
        table.add_row(
            Text(str(row.get("skip"))), *cells, raced, _cell(row.get("acceptance")), text(row.get("n_prompts"))
        )
    return table


def _cell(value: float | None) -> str:
    return "–" if value is None else number(float(value), 3)


def _evaluation(entry: Entry) -> Iterator[RenderableType]:
    rows = run_list.arms(entry)
    if isinstance(rows, str):
        return
    yield Text("\nArms", style="bold")
    header, body = arm_cells(rows)
    kept = [i for i, name in enumerate(header) if name not in (*IN_CONDITIONS, "run")]
    table = plain_table(*(header[i] for i in kept))
    for cells in body:
        table.add_row(*(Text(cells[i]) for i in kept))
    yield table
    yield from (Text(sentence) for sentence in verdict_sentences(rows))
    sets: dict[SkipSet, str] = {}
    for row in rows:
        if (skip := row.skip_set) is not None:
            sets[skip] = f"{sets[skip]}, {row.arm}" if skip in sets else row.arm
    if sets:
        yield skip_map_text.skip_map(*((label, skip) for skip, label in sets.items()))
