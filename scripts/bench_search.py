"""Which searcher finds the best skip set for the same number of evaluations? All of them on one real objective.

    python scripts/bench_search.py [--folder FOLDER] [--searchers tpe,quadratic] [--seeds 0,1,2] [KEY=VALUE ...]

KEY=VALUE are settings of `selfspec search` (model, data, objective, ...), of plain skipping unless they say `draft=`.
Every searcher begins with skipping nothing; those that are made for the importance map (quadratic, greedy) also get the
single-skip sets, which count. Each run is a file of rows in the folder: what is there is not run again, an unfinished
run goes on. The table and the curves are made from the files: `--report` makes them alone. Needs the extra `paper` for
that searcher.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import optuna
from hydra import compose, initialize_config_module

from experiments.builders.build_search import ready, searcher
from experiments.results import figures
from search.job import SearchJob
from search.objective import Objective, Score, ShouldContinue
from search.point import Point
from search.replay.references import decode_references
from search.starts import warm_starts
from search.study.loop import run_search
from search.study.study import SearchStudy
from selfspec.engine.decode import Ending
from selfspec.measure.stopwatch import Stopwatch
from selfspec.records.run_files import read_rows
from selfspec.skipping.skip_set import SkipSet

SEARCHERS = (
    *("quadratic", "greedy", "tpe", "gp", "cmaes", "nsga2", "random", "anneal", "paper"),
    *("knapsack", "clasp", "uniform", "early_exit"),
)
MAPPED = ("quadratic", "greedy")
SAME_FOR_EVERY_SEED = ("greedy", "knapsack", "clasp", "uniform", "early_exit")
MARKS = (50, 100, 150, 300)


class Remembered:
    """The objective; a set that any searcher had scored is not scored again, and counts all the same."""

    def __init__(self, objective: Objective) -> None:
        self._objective = objective
        self.name, self.unit = objective.name, objective.unit
        self._known: dict[Point, Score] = {}

    def __call__(self, draft: Point | SkipSet, *, should_continue: ShouldContinue | None = None) -> Score:
        """See `Objective`."""
        point = Point.from_draft(draft)
        if point not in self._known:
            self._known[point] = self._objective(point)
        return self._known[point]


def main() -> None:
    """Run what is missing, then report."""
    args, settings = _arguments()
    folder = Path(args.folder)
    if not args.report:
        _run_all(args, settings, folder)
    _report(folder)


def _arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default="outputs/bench_search")
    parser.add_argument("--searchers", default=",".join(SEARCHERS))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--evaluations", type=int, default=300)
    parser.add_argument("--report", action="store_true")
    args, rest = parser.parse_known_args()
    wrong = [word for word in rest if "=" not in word]
    if wrong:
        parser.error(f"cannot read {wrong[0]!r}; settings of the search are KEY=VALUE")
    return args, rest


def _run_all(args: argparse.Namespace, settings: list[str], folder: Path) -> None:
    logging.basicConfig(level=logging.WARNING)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder.mkdir(parents=True, exist_ok=True)
    with initialize_config_module("conf", version_base="1.3"):
        job = ready(compose("search", overrides=["draft=skip", *settings])).job()
        goal = job.goal.on(job.prompts, decoder=job.decoder, draft=job.drafts, costs=job.costs)
        objective = Remembered(goal)
        objective(SkipSet(job.space.n_layers))
        objective._known.clear()  # the first call was the warm-up
        for seed in map(int, args.seeds.split(",")):
            for name in args.searchers.split(","):
                if seed and name in SAME_FOR_EVERY_SEED:
                    continue
                own = [f"searcher={name}", f"searcher.seed={seed}", f"searcher.n_trials={args.evaluations}"]
                cfg = compose("search", overrides=["draft=skip", *settings, *own])
                _run(replace(job, searcher=searcher(cfg.searcher)), objective, folder, args)


def _run(job: SearchJob, objective: Remembered, folder: Path, args: argparse.Namespace) -> None:
    name, seed = job.searcher.name, job.searcher.seed
    ids = [ids for prompts in job.prompts.values() for ids in prompts]
    batches = (
        decode_references(job.decoder, ids, ending=Ending(job.goal.max_new_tokens)) if job.searcher.computed else []
    )
    texts = [r for batch in batches for r in batch.references]
    sets = job.searcher.compute(job.decoder, texts, job.costs.table if job.costs else None)
    study = SearchStudy(
        job.space,
        job.searcher.maker(sets),
        seed=seed,
        journal=folder / f"{name}-{seed}.journal",
        encoding=job.searcher.encoding,
        identity={**job.identity, "searcher": name, "seed": seed},
    )
    found = run_search(
        job.space,
        objective,
        study,
        starts=warm_starts(job.space, ("nothing", "singles") if name in MAPPED else ("nothing",)),
        n_trials=args.evaluations,
        seed=seed,
        rows_path=folder / f"{name}-{seed}.jsonl",
        stopwatch=Stopwatch(),
    )
    print(f"{name:10s} seed {seed}: {found.value:.4f} after {found.n_trials} in {found.elapsed_s:.0f} s", flush=True)


def _report(folder: Path) -> None:
    """The table (Markdown) and the curves, from the files of rows."""
    races: dict[str, list[list[dict[str, Any]]]] = {}
    for name in SEARCHERS:
        found = [read_rows(path) for path in sorted(folder.glob(f"{name}-*.jsonl"))]
        if found:
            races[name] = found
    if not races:
        sys.exit(f"no runs in {folder}")
    lines = [
        "| searcher | seeds | " + " | ".join(f"best of {n}" for n in MARKS) + " | own ms an evaluation |",
        "|---|---|" + "---|" * (len(MARKS) + 1),
    ]
    for name, runs in races.items():
        cells = [_cell(runs, n) for n in MARKS]
        lines.append(f"| {name} | {len(runs)} | " + " | ".join(cells) + f" | {_own_ms(runs):.0f} |")
    text = "\n".join(lines)
    (folder / "table.md").write_text(text + "\n", encoding="utf-8")
    print(text)
    for x in ("evaluations", "seconds"):
        figures.save(figures.race_curves(races, x=x, objective="expected_speedup"), folder / f"curves_{x}")


def _cell(runs: Sequence[Sequence[dict[str, Any]]], n: int) -> str:
    """The mean over seeds of the best of the first `n`, and its range; a dash where no run had a value yet."""
    best = [max((r["value"] for r in rows[:n] if r["value"] is not None), default=None) for rows in runs]
    values = [b for b in best if b is not None]
    if not values:
        return "–"
    spread = f" ({min(values):.3f}–{max(values):.3f})" if len(values) > 1 else ""
    shortest = min(len(rows) for rows in runs)
    return f"{statistics.mean(values):.3f}{spread}" + (f", ended at {shortest}" if shortest < n else "")


def _own_ms(runs: Sequence[Sequence[dict[str, Any]]]) -> float:
    """The searcher's own milliseconds an evaluation: what is left of the shortest steps between two rows."""
    steps = [b["elapsed_s"] - a["elapsed_s"] for rows in runs for a, b in pairwise(rows)]
    scoring = [b["seconds"] or 0.0 for rows in runs for b in rows[1:]]
    own = [max(0.0, step - s) for step, s in zip(steps, scoring, strict=True)]
    return 1e3 * statistics.median(own) if own else 0.0


if __name__ == "__main__":
    main()
