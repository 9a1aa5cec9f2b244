"""Search progress: the trials of each search, the growth of its best value, and the set it returns."""

from __future__ import annotations

from matplotlib.figure import Figure

from experiments.paper.evidence import Evidence, Search
from experiments.paper.section import Cell, Section, Table, Value
from experiments.results import figures
from experiments.results.rows import trial_value

NOTE = (
    "Values are of a search's own calibration prompts, and the best of many is flattered by noise: only an evaluation "
    "on other prompts tells whether a set pays. Speedup: of the winner, raced on fresh prompts, if there were finals."
)
COLUMNS = [
    "model",
    "data",
    "searcher",
    "objective",
    "trials",
    "failed",
    "skip nothing",
    "best",
    "handed on",
    "speedup",
    "run",
]


def section(evidence: Evidence) -> Section:
    """One row and one picture for each search."""
    stem, title = "searches", "Search progress"
    searches = [search for search in evidence.searches if search.trials]
    if not searches:
        return Section(stem, title, to_do="selfspec search")
    drawn = {f"search-{i}" if len(searches) > 1 else "search": progress(s) for i, s in enumerate(searches, start=1)}
    return Section(stem, title, Table(COLUMNS, [_cells(s) for s in searches]), drawn, [NOTE])


def progress(search: Search) -> Figure:
    """The best value so far, over evaluations and over seconds."""
    title = f"{search.fact('searcher')} on {search.fact('model')} with {search.fact('data')}"
    return figures.best_so_far(search.trials, objective=search.fact("objective"), title=title)


def _cells(search: Search) -> list[Value]:
    facts = [search.fact(name) for name in ("model", "data", "searcher", "objective")]
    n_failed = sum(trial["state"] == "failed" for trial in search.trials)
    nothing = Cell() if search.nothing_value is None else Cell(search.nothing_value)
    best = Cell(trial_value(search.best)) if search.best else Cell()
    raced = next((Cell.raced(r) for r in search.finals[:1]), Cell())
    handed = f"`{search.winner}`" if search.winner is not None else "–"
    return [*facts, len(search.trials), n_failed, nothing, best, handed, raced, search.run_cell]
