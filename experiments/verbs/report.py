"""selfspec report: a table of finished and unfinished runs, its conclusions, pictures, and the conditions of each run.

This module reads run folders only. It must not know models, and it divides no numbers itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from omegaconf import DictConfig, OmegaConf

from experiments.paper.conditions import bullets, conditions
from experiments.paper.evidence import Evidence, Search, read
from experiments.paper.section import Table
from experiments.paper.write import write_paper
from experiments.results import figures
from experiments.results.find_runs import Failure, find_failures, find_runs
from experiments.results.named_drafts import named_sets
from experiments.results.published import published_figures
from experiments.results.rows import trial_value
from experiments.results.run_folder import Run
from experiments.results.run_writer import open_folder
from experiments.results.tables import (
    SPEEDUP,
    ArmRow,
    arm_cells,
    arm_csv,
    arm_table,
    cautions,
    markdown_table,
    number,
    text,
)
from experiments.results.trainings import training_cells
from experiments.results.verdicts import verdict_sentences
from experiments.serving.batch_table import batch_table
from experiments.systems.write import write_systems
from selfspec.errors import InputError
from selfspec.records import run_files
from selfspec.skipping.skip_set import SkipSet

SUFFIXES = {"csv": ".csv", "latex": ".tex"}
SEARCHES = (
    "A search's value was measured on its own calibration prompts, and the best of many trials is flattered by noise: "
    "only an evaluation on other prompts tells whether a set pays."
)


@dataclass(frozen=True, slots=True)
class Report:
    """A written report: the text of table.md, its sentences on whether skipping pays, and the paths of its files."""

    markdown: str
    sentences: list[str]
    paths: list[Path]


def make_report(
    runs: Sequence[Run],
    folder: Path,
    *,
    preset: str = "default",
    failures: Sequence[Failure] = (),
    sets: Mapping[str, SkipSet] | None = None,
    figures_of: Sequence[Mapping[str, Any]] = (),
    overrides: Sequence[str] = (),
) -> Report:
    """Report on the runs: table.md in `folder`, and tables and pictures beside it.

    Args:
        runs: runs of evaluate, search and train, in the order of the rows.
        folder: folder of the report; it is created if missing, and files with the same names are replaced.
        preset: `default`: the arms, skip sets and searches; `paper`: the paper's tables and figures, and more;
            `systems`: one table of all systems.
        failures: failed jobs, which the report lists.
        sets: label to further skip sets, which the report shows and compares.
        figures_of: published values, for `paper` and `systems`.
        overrides: further settings of the command that made this report, such as `paths.outputs=...`; table.md shows
            them, so that a user can repeat the report.

    Raises:
        InputError: if there is no run, a run is unreadable, or the folder is not writable.
    """
    if not runs:
        raise InputError("no runs to report on; name some with runs=ID, runs=FOLDER or runs=GLOB")
    run_files.make_writable(folder)
    evidence = read(runs, published=figures_of, sets=sets)
    rows = [arm.row for arm in evidence.arms]
    if preset == "systems":
        parts, paths = write_systems(evidence, runs, folder)
    elif preset == "paper":
        parts, paths = write_paper(evidence, folder)
    else:
        parts, paths = _short(rows, evidence, runs, folder)
    sentences = verdict_sentences(rows)
    findings = [bullets(sentences)] if sentences else []
    markdown = "\n\n".join(["# Report", *findings, *parts, *conditions(runs, failures, overrides)])
    run_files.write_text(folder / "table.md", markdown + "\n")
    return Report(markdown, sentences, [*paths, folder / "table.md"])


def _short(
    rows: Sequence[ArmRow], evidence: Evidence, runs: Sequence[Run], folder: Path
) -> tuple[list[str], list[Path]]:
    """The Markdown of the default report, and its other files."""
    trainings = [run for run in runs if run.verb == "train"]
    paths = figures.save(figures.skip_map(evidence.sets), folder / "skip_map") if evidence.sets else []
    for name, search in _histories(evidence.searches).items():
        paths += figures.save(_history(search), folder / name)
    if rows:
        for path, content in (("table.csv", arm_csv(rows)), ("table.tex", Table(*arm_cells(rows)).latex())):
            run_files.write_text(folder / path, content)
            paths.append(folder / path)
    for name, run in _curves(trainings).items():
        title = f"{text(run.facts.get('drafter'))}, {text(run.facts.get('model'))}"
        paths += figures.save(figures.training_curve(run.steps().rows, title=title), folder / name)
    parts = [*_arms_part(rows), *batch_table(runs), *_skip_part(evidence.sets), *_searches_part(evidence.searches)]
    return [*parts, *_trainings_part(trainings)], paths


def _arms_part(rows: Sequence[ArmRow]) -> list[str]:
    if not rows:
        return []
    notes = [SPEEDUP]
    if any(row.is_approximate for row in rows):
        notes.append(
            "Approximate: drafted tokens stood that the model does not choose; the text is not plain decoding's."
        )
    if any(row.n_not_compared and not row.is_approximate for row in rows):
        notes.append("Not compared: sampled outputs equal plain decoding's in distribution, not token by token.")
    if any(row.n_failed for row in rows):
        notes.append("Failed: prompts on which the arm or plain decoding failed; they are in no other number.")
    return ["## Arms", arm_table(rows), bullets([*notes, *cautions(rows)])]


def _skip_part(sets: Mapping[str, SkipSet]) -> list[str]:
    if not sets:
        return []
    body = [[label, f"`{skip}`", f"{len(skip)} of {2 * skip.n_layers}"] for label, skip in sets.items()]
    return ["## Skip sets", "![skip map](skip_map.png)", markdown_table(["set", "skip", "sublayers"], body)]


def _histories(searches: Sequence[Search]) -> dict[str, Search]:
    """File name to search, for searches with trials."""
    name = "search" if len(searches) == 1 else "search-{}"
    return {name.format(search.run.id): search for search in searches if search.trials}


def _history(search: Search) -> Figure:
    title = f"{search.fact('searcher')} on {search.fact('model')} with {search.fact('data')}"
    return figures.best_so_far(search.trials, objective=search.fact("objective"), title=title)


def _searches_part(searches: Sequence[Search]) -> list[str]:
    if not searches:
        return []
    header = ["run", "model", "data", "searcher", "objective", "trials", "failed"]
    header += ["best trial", "best value", "skip nothing", "best skip"]
    pictures = [f"![search progress]({name}.png)" for name in _histories(searches)]
    return ["## Searches", markdown_table(header, [_search_cells(s) for s in searches]), SEARCHES, *pictures]


def _search_cells(search: Search) -> list[str]:
    best, nothing = search.best, search.nothing_value
    n_failed = sum(trial["state"] == "failed" for trial in search.trials)
    return [
        search.run_cell,
        *(search.fact(name) for name in ("model", "data", "searcher", "objective")),
        *(str(len(search.trials)), str(n_failed)),
        *(("–", "–") if best is None else (str(best["number"]), number(trial_value(best), 2))),
        "–" if nothing is None else number(nothing, 2),
        "–" if best is None else f"`{best['skip']}`",
    ]


def _curves(trainings: Sequence[Run]) -> dict[str, Run]:
    """File name to training, for trainings with steps."""
    return {f"training-{run.id}": run for run in trainings if run.steps().rows}


def _trainings_part(trainings: Sequence[Run]) -> list[str]:
    if not trainings:
        return []
    pictures = [f"![training curve]({name}.png)" for name in _curves(trainings)]
    return ["## Trainings", markdown_table(*training_cells(trainings)), *pictures]


def report(cfg: DictConfig, overrides: list[str], say: Callable[[str], None]) -> Path:
    """Run the verb: write tables and pictures of the named runs into a new folder, and return it."""
    outputs = Path(cfg.paths.outputs)
    run_files.make_writable(outputs)
    runs, failures = find_runs(cfg.runs or "", outputs), find_failures(cfg.runs or "", outputs)
    sets = {one.found.label: one.found.skip for one in named_sets([str(name) for name in cfg.sets], outputs)}
    is_all = cfg.preset == "systems"  # each system has figures of its own
    known_figures = published_figures(None if is_all else cfg.published) if cfg.published else []
    config = OmegaConf.to_yaml(cfg, resolve=True)
    facts = {"name": cfg.name, "runs": [run.name for run in runs]}
    with open_folder(outputs, "report", cfg.name, config=config, overrides=overrides, facts=facts) as folder:
        made = make_report(
            runs,
            folder.path,
            preset=cfg.preset,
            failures=failures,
            sets=sets,
            figures_of=known_figures,
            overrides=overrides,
        )
        paths = made.paths
        if cfg.format == "html":
            from experiments.charts.html_report import write_html  # the dashboard's extra installs plotly

            paths = [*paths, folder.path / "report.html"]
            write_html(runs, paths[-1])
        folder.finish({"verb": "report", "files": [path.name for path in paths]})
    if cfg.format in SUFFIXES:
        for path in paths:
            if path.suffix == SUFFIXES[cfg.format]:
                say(f"{path.name}\n\n{path.read_text(encoding='utf-8')}")
    else:
        say(made.markdown)
    for path in paths:
        say(f"wrote {path}")
    return folder.path
