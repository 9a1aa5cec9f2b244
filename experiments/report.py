"""A report on finished and unfinished runs: a table, the sentences it allows, pictures, and the conditions of each run.

Reads run folders alone; knows nothing of models, and divides nothing itself.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from omegaconf import DictConfig, OmegaConf

from experiments import figures
from experiments.folder import open_folder
from experiments.runs import RunFolder, find_runs
from experiments.tables import (
    SPEEDUP,
    ArmRow,
    arm_csv,
    arm_rows,
    arm_table,
    markdown_table,
    number,
    text,
    verdict_sentences,
)
from selfspec import records
from selfspec.errors import InputError
from selfspec.skip import SkipSet

SEARCHES = (
    "A search's value was measured on its own calibration prompts, and the best of many trials is flattered by noise: "
    "only an evaluation on other prompts tells whether a set pays."
)


@dataclass(frozen=True, slots=True)
class Report:
    """What was reported: the text of table.md, its sentences on whether skipping pays, and the files written."""

    markdown: str
    sentences: list[str]
    paths: list[Path]


@dataclass(frozen=True, slots=True)
class Search:
    """A search run and its trials."""

    run: RunFolder
    trials: list[dict[str, Any]]

    @property
    def complete(self) -> list[dict[str, Any]]:
        """The trials that have a value."""
        return [t for t in self.trials if t["state"] == "complete" and t["value"] is not None]

    @property
    def best(self) -> dict[str, Any] | None:
        """The trial of the largest value, the first of equals; None if none has a value."""
        return max(self.complete, key=lambda trial: float(trial["value"]), default=None)

    def fact(self, name: str) -> str:
        """A fact of the run, as a cell."""
        return text(self.run.facts.get(name))


def make_report(runs: Sequence[RunFolder], folder: Path, *, overrides: Sequence[str] = ()) -> Report:
    """Report on the runs: table.md, table.csv, skip_map.{png,svg} and search.{png,svg} in `folder`.

    Args:
        runs: evaluate and search runs; the order of the rows.
        folder: created if need be; files of the same names are replaced.
        overrides: further settings of the command that made this report, such as `paths.outputs=...`; told in table.md
            so that it can be made again.

    Raises:
        InputError: if there is no run, a run cannot be read, or the folder cannot be written.
    """
    if not runs:
        raise InputError("no runs to report on; name some with runs=ID, runs=FOLDER or runs=GLOB")
    rows = [row for run in runs if run.verb == "evaluate" for row in arm_rows(run)]
    searches = [Search(run, run.rows()) for run in runs if run.verb == "search"]
    records.make_writable(folder)
    sets = _skip_sets(rows, searches)
    paths = figures.save(figures.skip_map(sets), folder / "skip_map") if sets else []
    for name, search in _histories(searches).items():
        paths += figures.save(_history(search), folder / name)
    sentences = verdict_sentences(rows)
    markdown = "\n\n".join(
        [
            "# Report",
            *([_bullets(sentences)] if sentences else []),
            *_arms_part(runs, rows),
            *_skip_part(sets),
            *_searches_part(searches),
            *_conditions_part(runs, overrides),
        ]
    )
    if rows:
        records.write_text(folder / "table.csv", arm_csv(rows))
        paths.append(folder / "table.csv")
    records.write_text(folder / "table.md", markdown + "\n")
    return Report(markdown, sentences, [*paths, folder / "table.md"])


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _arms_part(runs: Sequence[RunFolder], rows: Sequence[ArmRow]) -> list[str]:
    if not rows:
        return []
    notes = [SPEEDUP]
    if any(row.n_not_compared for row in rows):
        notes.append("Not compared: sampled outputs equal plain decoding's in distribution, not token by token.")
    if any(row.n_failed for row in rows):
        notes.append("Failed: prompts on which the arm or plain decoding failed; they are in no other number.")
    evaluations = [run.facts for run in runs if run.verb == "evaluate"]
    differing = [key for key in ("dtype", "device", "threads") if len({text(f.get(key)) for f in evaluations}) > 1]
    if differing:
        notes.append(f"The runs differ in {', '.join(differing)}: compare speeds only between rows where these agree.")
    return ["## Arms", arm_table(rows), _bullets(notes)]


def _skip_sets(rows: Sequence[ArmRow], searches: Sequence[Search]) -> dict[str, SkipSet]:
    """Label to set, for each arm that skips something and the best of each search."""
    found = [(row.model, row.arm, row.run, row.skip, row.n_layers) for row in rows if row.skip not in (None, "none")]
    for search in searches:
        if search.best is not None:
            label, n_layers = f"best of {search.fact('searcher')}", search.run.facts.get("n_layers")
            found.append((search.fact("model"), label, search.run.id, search.best["skip"], n_layers))
    is_one_model = len({model for model, *_ in found}) == 1
    sets: dict[str, SkipSet] = {}
    for model, label, run, skip, n_layers in found:
        if skip is None or n_layers is None:
            continue
        label = label if is_one_model else f"{model}: {label}"
        value = SkipSet.parse(skip, n_layers)
        sets[label if sets.get(label, value) == value else f"{label}, {run}"] = value
    return sets


def _skip_part(sets: Mapping[str, SkipSet]) -> list[str]:
    if not sets:
        return []
    body = [[label, f"`{skip}`", f"{len(skip)} of {2 * skip.n_layers}"] for label, skip in sets.items()]
    return ["## Skip sets", "![skip map](skip_map.png)", markdown_table(["set", "skip", "sublayers"], body)]


def _histories(searches: Sequence[Search]) -> dict[str, Search]:
    """File name to search, for those that have trials."""
    name = "search" if len(searches) == 1 else "search-{}"
    return {name.format(search.run.id): search for search in searches if search.trials}


def _history(search: Search) -> Figure:
    title = f"{search.fact('searcher')} on {search.fact('model')} with {search.fact('data')}"
    return figures.search_history(search.trials, objective=search.fact("objective"), title=title)


def _searches_part(searches: Sequence[Search]) -> list[str]:
    if not searches:
        return []
    header = ["run", "model", "data", "searcher", "objective", "trials", "failed"]
    header += ["best trial", "best value", "skip nothing", "best skip"]
    pictures = [f"![search history]({name}.png)" for name in _histories(searches)]
    return ["## Searches", markdown_table(header, [_search_cells(s) for s in searches]), SEARCHES, *pictures]


def _search_cells(search: Search) -> list[str]:
    best = search.best
    nothing = next((float(t["value"]) for t in search.complete if t["skip"] == "none"), None)
    n_failed = sum(trial["state"] == "failed" for trial in search.trials)
    return [
        _flagged(search.run, search.run.id),
        *(search.fact(name) for name in ("model", "data", "searcher", "objective")),
        *(str(len(search.trials)), str(n_failed)),
        *(("–", "–") if best is None else (str(best["number"]), number(best["value"], 2))),
        "–" if nothing is None else number(nothing, 2),
        "–" if best is None else f"`{best['skip']}`",
    ]


def _conditions_part(runs: Sequence[RunFolder], overrides: Sequence[str]) -> list[str]:
    header = ["run", "started", "dtype", "device", "attention", "threads", "load before", "torch", "transformers"]
    names = ",".join(run.name for run in runs)
    words = [f"runs={names}", *(word for word in overrides if not word.startswith("runs="))]
    unfinished = [f"Unfinished: {run.name}. Its rows are true, but not all." for run in runs if not run.is_finished]
    return [
        "## Conditions",
        markdown_table(header, [_condition_cells(run) for run in runs]),
        *([_bullets(unfinished)] if unfinished else []),
        f"Made by `selfspec report {' '.join(map(shlex.quote, words))}`",
    ]


def _condition_cells(run: RunFolder) -> list[str]:
    packages = run.provenance.get("packages")
    versions = packages if isinstance(packages, dict) else {}
    return [
        _flagged(run, run.name),
        text(run.provenance.get("started")),
        *(text(run.facts.get(name)) for name in ("dtype", "device", "attention", "threads")),
        text(run.provenance.get("load_before")),
        *(text(versions.get(name)) for name in ("torch", "transformers")),
    ]


def _flagged(run: RunFolder, cell: str) -> str:
    return cell if run.is_finished else f"{cell} (unfinished)"


def report(cfg: DictConfig, overrides: list[str], say: Callable[[str], None]) -> Path:
    """The verb: tables and pictures of the runs that were named, in a folder of their own."""
    outputs = Path(cfg.paths.outputs)
    records.make_writable(outputs)
    runs = find_runs(cfg.runs or "", outputs)
    config = OmegaConf.to_yaml(cfg, resolve=True)
    facts = {"name": cfg.name, "runs": [run.name for run in runs]}
    with open_folder(outputs, "report", cfg.name, config=config, overrides=overrides, facts=facts) as folder:
        made = make_report(runs, folder.path, overrides=overrides)
        folder.finish({"verb": "report", "files": [path.name for path in made.paths]})
    say(made.markdown)
    for path in made.paths:
        say(f"wrote {path}")
    return folder.path
