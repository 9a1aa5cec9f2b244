"""Does a search say what its draft is worth on prompts that nobody has seen? By replay, so that no clock matters.

    python scripts/bench_expected.py [--folder FOLDER] [--seeds 0,1,2] [--fresh 96] [--costs RUN]
        [KEY=VALUE ...]

KEY=VALUE are settings of `selfspec search` (model, data, draft, ...). For each seed, which also selects the prompts, a
search runs without a race; the value that it says of its best finalist is compared with that of a replay on prompts of
the evaluation part. With the costs of an earlier search (`--costs`) nothing is measured. Each seed is a row of
FOLDER/rows.jsonl; what is there is not run again, and the table is of all.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import optuna

from experiments.builders import build
from experiments.builders.build_search import ready
from experiments.config.composing import composing, configuration
from search.job import COSTS
from search.replay.objectives import as_raced
from selfspec.measure.stopwatch import Stopwatch
from selfspec.records import run_files

ESTIMATES = ("trial", "fresh", "expected")


def main() -> None:
    """Run what is missing, then report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default="outputs/bench_expected")
    parser.add_argument("--seeds", default=",".join(map(str, range(10))))
    parser.add_argument("--fresh", type=int, default=96, help="prompts of the evaluation part")
    parser.add_argument("--costs", type=Path, help="folder of a search whose measured costs are used")
    args, settings = parser.parse_known_args()
    wrong = [word for word in settings if "=" not in word]
    if wrong:
        parser.error(f"cannot read {wrong[0]!r}; settings of the search are KEY=VALUE")
    logging.basicConfig(level=logging.WARNING)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder = Path(args.folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "rows.jsonl"
    rows = run_files.read_rows(path) if path.exists() else []
    known = {(row["data"], row["seed"]) for row in rows}
    for seed in map(int, args.seeds.split(",")):
        with composing():
            cfg = configuration("search", [*settings, f"searcher.seed={seed}"])
            if (cfg.data.name, seed) in known:
                continue
            row = _run(cfg, folder / f"{cfg.data.name}-{seed}", args.fresh, args.costs)
        run_files.append_row(path, row)
        rows.append(row)
        print(_line(row), flush=True)
    print(_table(rows))


def _run(cfg: Any, folder: Path, n_fresh: int, costs: Path | None) -> dict[str, Any]:
    """One search and the replay of its best finalist."""
    folder.mkdir(exist_ok=True)
    begun = ready(cfg)
    job, loaded = begun.job(kept=costs / COSTS if costs else None), begun.loaded
    replace(job, finals=replace(job.finals, top=0)).run(folder)
    watch, goal = Stopwatch(), job.goal
    seen = goal.on(job.prompts, decoder=job.decoder, draft=job.drafts, costs=job.costs)
    began = watch.now()
    best = max(job.finalists(job.study(folder), seen), key=lambda f: f.score.value if f.score else 0.0)
    seconds = watch.now() - began
    found = build.prompts(
        cfg, loaded, "evaluation", n=n_fresh, seed=cfg.searcher.seed, max_new_tokens=goal.max_new_tokens
    )
    others = goal.on({cfg.data.name: [p.ids for p in found]}, decoder=job.decoder, draft=job.drafts, costs=job.costs)
    assert best.score
    replayed = as_raced(others, best.spec)(best.point)
    return {
        "data": cfg.data.name,
        "seed": cfg.searcher.seed,
        "point": str(best.point),
        "trial": best.trial_value,
        "fresh": best.score.value,
        "expected": best.expected,
        "replayed": replayed.value,
        "replayed_values": replayed.values,
        "finals_s": seconds,
    }


def _line(row: dict[str, Any]) -> str:
    values = ", ".join(f"{name} {row[name]:.3f}" for name in (*ESTIMATES, "replayed"))
    return f"{row['data']} seed {row['seed']}: {values}; {row['point']}"


def _table(rows: Sequence[dict[str, Any]]) -> str:
    """The mean and the mean absolute error of each estimate, in Markdown."""
    lines = ["| estimate | searches | mean error | mean absolute error |", "|---|---|---|---|"]
    for name in ESTIMATES:
        errors = [row[name] / row["replayed"] - 1 for row in rows]
        cells = f"{100 * fmean(errors):+.1f} % | {100 * fmean(map(abs, errors)):.1f} %"
        lines.append(f"| {name} | {len(errors)} | {cells} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
