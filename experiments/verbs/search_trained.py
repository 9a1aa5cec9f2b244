"""selfspec search recipe=trained: find what to train, by short trainings, full ones and a race."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from experiments.builders import build, build_trained_search
from experiments.results import figures
from experiments.results.run_writer import Folder, open_folder, reopen_folder
from experiments.terminal.progress import Progress
from experiments.tracking.tracker import Tracker
from experiments.verbs.resuming import make_ready
from search.pareto import write_front
from search.point import Point, settings_text
from search.study.finals import Raced
from search.trained.job import CONTROL, UNIT, TrainedJob, TrainedListener, TrainedResult
from selfspec.data.same_prompts import digests_of
from selfspec.drafters.spec_files import save_spec
from selfspec.models.load import Loaded
from selfspec.records import provenance, run_files
from selfspec.training.store import seen_by

log = logging.getLogger(__name__)

FRONT = "pareto.yaml"


def search_trained(cfg: DictConfig, overrides: list[str], say: Callable[[str], None], *, resumed: Path | None) -> Path:
    """Run the search of `cfg`, or go on with it; return the run folder.

    Raises:
        InputError: if the settings are impossible, or have no effect.
    """
    build_trained_search.check_words(overrides)
    build_trained_search.space(cfg)
    make_ready(resumed, cfg)
    progress = Progress()
    loaded = build.model(cfg, phase=progress)
    with ExitStack() as stack:
        job, fresh = build_trained_search.job(cfg, loaded, phase=progress)
        if resumed:
            folder = stack.enter_context(reopen_folder(resumed))
        else:
            seen = seen_by(job.stores) | set(digests_of(p.example for p in fresh))
            facts = build.facts(
                cfg,
                loaded,
                searcher=cfg.searcher.name,
                objective="expected_speedup",
                draft="trained",
                stores=[str(store.path) for store in job.stores],
                seen=sorted(seen),
                seed=cfg.searcher.seed,
                space=[d.name for d in job.dimensions],
            )
            folder = stack.enter_context(
                open_folder(
                    Path(cfg.paths.outputs),
                    "search",
                    cfg.name,
                    config=OmegaConf.to_yaml(cfg, resolve=True),
                    overrides=overrides,
                    facts=facts,
                )
            )
        tracker = stack.enter_context(build.tracking(cfg, verb="search", folder=folder.path, say=say))
        shown = stack.enter_context(_Shown(progress, tracker, say))
        (folder.path / run_files.SUMMARY).unlink(missing_ok=True)  # a run that goes on is not finished
        try:
            result = job.run(folder.path, listener=shown)
        except KeyboardInterrupt:
            say(f"interrupted; selfspec search resume={folder.path} goes on")
            raise
        _write(cfg, job, loaded, folder, result, say)
    return folder.path


class _Shown(TrainedListener, ExitStack):
    """Shows a running search on the terminal and in the tracker."""

    def __init__(self, progress: Progress, tracker: Tracker, say: Callable[[str], None]) -> None:
        super().__init__()
        self._progress, self._tracker, self._say = progress, tracker, say

    def begin(self, rows: Sequence[Mapping[str, Any]], n_trials: int) -> None:
        """Open the bar of trials."""
        self._advance = self.enter_context(self._progress.steps("trial", n_trials, done=min(len(rows), n_trials)))

    def trial(self, row: Mapping[str, Any]) -> None:
        """Say how a trial ended."""
        value = "failed" if row["value"] is None else f"{row['value']:.3f} {UNIT}"
        before = "" if row["untrained"] is None else f", {row['untrained']:.3f} before training"
        why = f" ({row['reason']})" if row["reason"] else ""
        self._say(f"trial {row['number']}: {settings_text(row['settings'])} -> {value}{before}{why}")
        self._tracker.show({f"trial/{k}": v for k, v in row.items() if isinstance(v, int | float)})
        self._advance()

    def training(self, settings: Mapping[str, Any], number: int, n: int) -> None:
        """Close the bar, and say what is trained in full."""
        self.close()
        self._say(f"trained in full, {number + 1} of {n}: {settings_text(settings)}")

    def race(self, n_done: int, n_prompts: int) -> None:
        """Show the progress of the race; 0 prompts are done when it begins."""
        if not n_done:
            self._advance = self.enter_context(self._progress.steps("race", n_prompts))
            return
        self._advance()
        if n_done == n_prompts:
            self.close()


def _write(
    cfg: DictConfig,
    job: TrainedJob,
    loaded: Loaded,
    folder: Folder,
    result: TrainedResult,
    say: Callable[[str], None],
) -> None:
    """Write the draft, the pictures, the front and the summary, and say what was found."""
    rows, best = result.rows, result.best
    value = best.trial_value if best.predicted is None else best.predicted
    figures.save(figures.best_so_far(rows, objective="expected_speedup"), folder.path / "search")
    figures.save(figures.pareto(rows, objective="expected_speedup"), folder.path / "pareto")
    write_front(folder.path / FRONT, rows, model=cfg.model.name, n_layers=loaded.decoder.n_layers, run=folder.id)
    save_spec(
        folder.path,
        best.spec,
        model=cfg.model.name,
        decoder=loaded.decoder,
        facts=loaded.facts,
        run=folder.id,
        date=provenance.now(),
        unit=UNIT,
        value=None if math.isnan(value) else round(value, 4),
        **({"settings": dict(best.point.settings)} if best.point.settings else {}),
    )
    winner = result.raced[0].row if result.raced else None
    done = [row for row in rows if row["state"] == "complete"]
    first = max(done, key=lambda row: row["value"])
    folder.finish(
        {
            "verb": "search",
            "n_trials": len(rows),
            "best": {name: first[name] for name in ("number", "skip", "settings", "value", "untrained")},
            "unit": UNIT,
            "elapsed_s": max(row["elapsed_s"] for row in rows),
            "ended": "trials" if len(rows) >= job.budget.n_trials else "seconds",
            "winner": winner,
        }
    )
    for line in map(_raced_text, result.raced):
        say(line)
    if not result.raced:
        say(f"best by expectation: {_name(best.point)}, {best.predicted or first['value']:.2f} {UNIT}")
    say(f"run: {folder.path}")


def _raced_text(raced: Raced) -> str:
    f, (low, high) = raced.finalist, raced.interval
    expected = "" if f.predicted is None else f", expected {f.predicted:.2f}x"
    doubt = f"; in doubt: {'; '.join(raced.doubts)}" if raced.doubts else ""
    speed = f"{raced.speedup:.2f}x [{low:.2f}, {high:.2f}]"
    return f"raced on {len(f.times)} prompts: {_name(f.point)}: {speed}{expected}{doubt}"


def _name(point: Point) -> str:
    settings = dict(point.settings)
    control = settings.pop(CONTROL, None)
    return settings_text(settings) if control is None else f"control, {control} ({settings_text(settings)})"
