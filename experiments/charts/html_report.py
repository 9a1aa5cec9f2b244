"""One HTML file about some runs, to mail or to publish with a paper: a browser shows it without a network.

It shows the figures of the dashboard. `report.html.jinja` holds the layout of the page; this module holds its content.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from experiments.charts import comparing, evaluating, searching, theme, training
from experiments.results import skip_sets
from experiments.results.overlap import only_in
from experiments.results.run_folder import Run
from experiments.results.tables import ArmRow, arm_rows, number, same_text, speedup_text, text
from experiments.results.trainings import training_cells
from experiments.results.verdicts import verdict_sentences
from selfspec.records import run_files

TITLE = "Self-speculative decoding: report"
TEMPLATE = "report.html.jinja"
_MOST_SETS = 8  # more sets in one figure cannot be told apart
_OF_ARMS = ("model", "data", "arm", "prompts", "acceptance", "tokens/round", "tokens/s", "speedup [95 %]", "identical")

Section = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Table:
    """A header and rows of text cells."""

    header: Sequence[str]
    body: Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True)
class Drawn:
    """A figure as HTML, with its caption."""

    caption: str
    div: Markup


def write_html(runs: Sequence[Run], path: Path) -> None:
    """Write the report of the runs: tables, figures, and a comparison of their skip sets.

    Args:
        runs: runs of evaluate, search and train, finished or not.
        path: the HTML file; an existing file is replaced as a whole.

    Raises:
        InputError: if the rows of a run cannot be read.
    """
    arms = [row for run in runs if run.verb == "evaluate" for row in arm_rows(run)]
    evaluated = (_evaluation(run) for run in runs if run.verb == "evaluate")
    searched = (_search(run) for run in runs if run.verb == "search")
    # Users choose the names and texts of runs, so they are escaped. Plotly's script and figures are HTML already.
    pages = Environment(
        loader=PackageLoader("experiments.charts", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = pages.get_template(TEMPLATE).render(
        title=TITLE,
        when=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        plotly=Markup(get_plotlyjs()),
        ink={"dark": theme.INK[True], "light": theme.INK[False]},
        sentences=verdict_sentences(arms),
        arms=_arms(arms),
        evaluations=[section for section in evaluated if section],
        sets=_sets(runs, arms),
        searches=[section for section in searched if section],
        trainings=_trainings([run for run in runs if run.verb == "train"]),
        conditions=_conditions(runs),
    )
    run_files.write_text(path, page + "\n")


def _figure(figure: go.Figure, caption: str) -> Drawn | None:
    """The figure as HTML; None for a figure without data."""
    if not figure.data:
        return None
    name = caption.partition(".")[0].lower().replace(" ", "-")
    image = {"format": "svg", "filename": name}
    config = {"displaylogo": False, "responsive": True, "toImageButtonOptions": image}
    return Drawn(caption, Markup(figure.to_html(full_html=False, include_plotlyjs=False, config=config)))


def _arms(arms: Sequence[ArmRow]) -> Section | None:
    if not arms:
        return None
    body = [
        [
            *(row.model, row.data, row.arm, str(row.n), number(row.acceptance, 3), number(row.tokens_per_round, 2)),
            *([number(row.tokens_per_s, 1), speedup_text(row)] if row.is_judged else ["–", "–"]),
            same_text(row),
        ]
        for row in arms
    ]
    timed = [
        asdict(row) | {"label": row.arm, "data": f"{row.model}, {row.data}"}
        for row in arms
        if not row.is_baseline and row.is_judged and row.speedup == row.speedup
    ]
    speedups = _figure(comparing.speedups(timed), "Speedup over plain decoding, with its 95 % interval over prompts.")
    return {"table": Table(_OF_ARMS, body), "speedups": speedups}


def _evaluation(run: Run) -> Section | None:
    rows = [row for row in run.records().whole() if row["error"] is None]
    if not rows:
        return None
    figures = [
        _figure(evaluating.position_acceptance(rows), "Acceptance by position in the draft."),
        _figure(evaluating.time_split(rows), "Where the seconds go."),
    ]
    return {"name": run.name, "figures": figures}


def _sets(runs: Sequence[Run], arms: Sequence[ArmRow]) -> Section | None:
    """A comparison of the sets of these runs; it shows a published set only if one of the runs evaluated it."""
    searched = [found for run in runs if run.verb == "search" and (found := _searched(run)) is not None]
    every = skip_sets.collect(searched, arms)
    chosen = {label: one for label, one in every.items() if one.source != "published" or one.measured}
    chosen = dict(list(chosen.items())[:_MOST_SETS])
    if not chosen:
        return None
    skips = {label: one.skip for label, one in chosen.items()}
    lines = skip_sets.table(chosen.values())
    section: dict[str, Any] = {
        "table": Table(list(lines[0]), [[_cell(v) for v in line.values()] for line in lines]),
        "map": _figure(comparing.skip_map(skips), "Sublayers that each set skips."),
        "overlap": None,
        "only": None,
        "transfer": None,
    }
    if len(skips) > 1 and len({skip.n_layers for skip in skips.values()}) == 1:
        caption = "Overlap. Jaccard index: sublayers in both over those in either."
        section["overlap"] = _figure(comparing.overlap(skips), caption)
        only = [[label, str(skip)] for label, skip in only_in(skips).items()]
        section["only"] = Table(["set", "skipped by no other"], only)
    measured = skip_sets.measured_rows(chosen.values())
    if len({row["data"] for row in measured}) > 1:
        section["transfer"] = _figure(comparing.transfer(measured), "Transfer. Speedup of each set on each data set.")
    return section


def _searched(run: Run) -> skip_sets.KnownSet | None:
    return skip_sets.searched_set(run, run.trials().whole())


def _cell(value: Any) -> str:
    return "–" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def _search(run: Run) -> Section | None:
    trials = sorted(run.trials().whole(), key=lambda row: row["number"])
    if not trials:
        return None
    objective, n_layers = str(run.facts.get("objective")), run.facts.get("n_layers")
    front = "Acceptance over draft cost, with the Pareto front."
    section: dict[str, Any] = {
        "name": run.name,
        "figures": [
            _figure(searching.best_so_far(trials, objective=objective), "Best so far over trials."),
            _figure(searching.trade_off(trials, objective=objective), front),
        ],
        "importance": None,
        "bits": None,
    }
    if isinstance(n_layers, int):
        alone = searching.importance(trials, n_layers=n_layers, objective=objective)
        section["importance"] = _figure(alone, "Importance. Change of value from skipping one sublayer alone.")
        bits = searching.bits(trials, n_layers=n_layers)
        section["bits"] = _figure(bits, "What good sets share. A line each, the best above.")
    return section


def _trainings(runs: Sequence[Run]) -> Section | None:
    if not runs:
        return None
    caption = "Acceptance of held-out texts by depth, and the loss."
    curves = [{"name": run.name, "curve": _figure(training.curve(run.steps().whole()), caption)} for run in runs]
    return {"table": Table(*training_cells(runs)), "curves": curves}


def _conditions(runs: Sequence[Run]) -> Table:
    header = ["run", "state", "started", "model", "data", "dtype", "device", "threads"]
    names = ("model", "data", "dtype", "device", "threads")
    body = [
        [
            *(run.name, "finished" if run.is_finished else "unfinished", text(run.provenance.get("started"))),
            *(text(run.facts.get(name)) for name in names),
        ]
        for run in runs
    ]
    return Table(header, body)
