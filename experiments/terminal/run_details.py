"""One run in detail: its conditions, its results with the maps of its sets, and its files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from experiments.results.find_runs import list_runs
from experiments.results.rows import Raced
from experiments.results.run_folder import Run
from experiments.results.tables import arm_cells, arms_or_problem, number, package, text
from experiments.results.trainings import looks, trained
from experiments.results.verdicts import verdict_sentences
from experiments.terminal import other_runs, run_list, skip_map_text, store_list
from experiments.terminal.live_panel import format_value
from experiments.terminal.run_list import plain, plain_table
from selfspec.errors import InputError
from selfspec.skipping.skip_set import SkipSet

IN_CONDITIONS = ("model", "data", "dtype", "device", "threads")  # the lines of arms leave these out


def show_run(word: str, outputs: Path) -> tuple[Any, list[RenderableType]]:
    """The run or store that a word of `find_runs.list_runs` names: as facts, and as parts to print.

    Raises:
        InputError: if the word names no run or several runs.
    """
    run = _one(word, outputs)
    if not isinstance(run, Run):
        facts = {**run, "files": _files(Path(run["path"]))}
        show = _shown_store(facts) if run["verb"] == store_list.FOLDER else other_runs.shown(facts, run_list.STYLES)
        return facts, [*show, *_listed(facts["files"])]
    facts = run_list.facts_of(run)
    facts |= {"conditions": _conditions(run), "command": run.command, "files": _files(run.path)}
    if facts["state"] not in ("failed", "unreadable"):
        facts["problems"] = run.rows().problems
    return facts, list(_shown(run, facts))


def _one(word: str, outputs: Path) -> Run | dict[str, Any]:
    found: Sequence[Run | dict[str, Any]] = list_runs(word, outputs) or store_list.list_stores(word, outputs)
    found = found or other_runs.list_others(word, outputs)
    if not found:
        raise InputError(f"no run {word!r} in {outputs}; `selfspec runs list` shows those that there are")
    if len(found) > 1:
        names = ", ".join(one.name if isinstance(one, Run) else str(one["name"]) for one in found[:3])
        raise InputError(f"{word!r} names {len(found)} runs ({names}{', …' if len(found) > 3 else ''}); give one id")
    return found[0]


def _conditions(run: Run) -> dict[str, Any]:
    """The recorded facts of the run and its machine, without nested ones."""
    facts = {name: plain(value) for name, value in run.facts.items() if not isinstance(value, Mapping | list)}
    machine = {name: plain(run.provenance.get(name)) for name in ("cpu", "cuda", "cores", "load_before")}
    versions = {name: package(run, name) for name in ("torch", "transformers")}
    return {**facts, **versions, **machine, "busy": run.is_readable and run.is_busy}


def _files(path: Path) -> dict[str, int]:
    """The files of a run and their sizes in bytes."""
    found = sorted(file for file in path.rglob("*") if file.is_file())
    return {file.relative_to(path).as_posix(): file.stat().st_size for file in found}


def _shown(run: Run, facts: Mapping[str, Any]) -> Iterator[RenderableType]:
    title = Text(run.name, style="bold")
    state = Text(facts["state"], style=run_list.STYLES[facts["state"]])
    yield Text.assemble(title, f"  {run.verb}, ", state, f", started {text(facts['started'])}")
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
        yield from _search(run, facts["best"])
    if facts["arms"]:
        yield from _evaluation(run)
    if facts["training"]:
        yield from _training(run)
    for problem in facts.get("problems", ()):
        yield Text(f"left out: {problem}", style="red")
    yield from _listed(facts["files"])


def _shown_store(facts: Mapping[str, Any]) -> Iterator[RenderableType]:
    state = Text(facts["state"], style=run_list.STYLES[facts["state"]])
    yield Text.assemble(Text(facts["name"], style="bold"), "  store, ", state, f", begun {text(facts['started'])}")
    yield Text(f"model {text(facts['model'])}, data {text(facts['data'])}")
    yield Text(store_list.in_brief(facts))


def _listed(files: Mapping[str, int]) -> Iterator[RenderableType]:
    yield Text("\nFiles", style="bold")
    grid = Table.grid(padding=(0, 2))
    for name, size in files.items():
        grid.add_row(Text(str(size), justify="right"), Text(name))
    yield grid


def _training(run: Run) -> Iterator[RenderableType]:
    """The result, and a line for each look at held-out texts."""
    rows = run.steps().rows
    found = trained(run, rows)
    size = "" if found.n_weights is None else f", {found.n_weights / 1e6:.2f} M weights"
    yield Text("\nTraining", style="bold")
    yield Text(
        f"{found.drafter}{size}: {_cell(found.expected_speedup)} x plain decoding expected with "
        f"{text(found.draft_length)} drafted tokens a round; accepted by depth {found.by_depth} (best at step "
        f"{text(found.best_step)})"
    )
    table = plain_table("step", "seconds", "loss", "accepted by depth", "expected")
    for row in looks(rows):
        by_depth = " ".join(f"{a:.2f}" for a in row.get("conditional", ()))
        cells = [_cell(row["seconds"]), _cell(row["loss"]), by_depth, _cell(row.get("expected_speedup"))]
        table.add_row(str(row["step"]), *cells)
    yield table


def _search(run: Run, best: Mapping[str, Any]) -> Iterator[RenderableType]:
    yield Text("\nBest set", style="bold")
    known = [("acceptance", best["acceptance"]), ("draft cost", best["draft_cost"])]
    more = "".join(f", {name} {number(float(fact), 3)}" for name, fact in known if fact is not None)
    yield Text(f"skip={best['skip']}: {format_value(best['value'], str(best['unit']), 3)}{more}")
    verdict = (run.summary.get("verdict") or {}).get("text")
    if verdict:
        yield Text(str(verdict))
    if best["n_skipped"] is not None:
        yield skip_map_text.skip_map(("", SkipSet.parse(str(best["skip"]), run.facts["n_layers"])))
    finals = run.finals()
    if finals.rows:
        yield _finals(finals.rows)
    yield from (Text(f"left out: {problem}", style="red") for problem in finals.problems)


def _finals(rows: Sequence[Raced]) -> RenderableType:
    table = plain_table(
        "finals: skip", "in the search", "fresh prompts", "expected", "raced [95 %]", "acceptance", "prompts"
    )
    for row in rows:
        raced = run_list.interval(row["speedup"], row["low"], row["high"])
        raced += ", in doubt" if row["in_doubt"] else ""
        cells = [_cell(value) for value in (row["trial_value"], row["fresh_value"], row["expected"])]
        table.add_row(Text(row["skip"]), *cells, raced, _cell(row["acceptance"]), text(row["n_prompts"]))
    return table


def _cell(value: float | None) -> str:
    return "–" if value is None else number(float(value), 3)


def _evaluation(run: Run) -> Iterator[RenderableType]:
    rows = arms_or_problem(run)
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
