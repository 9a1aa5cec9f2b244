"""selfspec search: find a skip set for a model on calibration prompts."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from experiments import build, figures
from experiments.folder import Folder, open_folder, reopen_folder
from experiments.progress import progress
from search.cost import CostTable
from search.expected import ExpectedSpeedup
from search.loop import Found, default_starts, run_search
from search.space import Space
from selfspec import provenance, records, skipfile
from selfspec.errors import InputError
from selfspec.timing import Stopwatch

log = logging.getLogger(__name__)

JOURNAL, COSTS = "study.journal", "costs.json"
MAY_CHANGE = ("resume", "searcher.n_trials")


def search(cfg: DictConfig, overrides: list[str], say: Callable[[str], None]) -> Path:
    """Run or resume a search; returns the run folder."""
    if cfg.resume:
        return _resume(Path(cfg.resume), cfg, overrides, say)
    outputs = Path(cfg.paths.outputs)
    records.make_writable(outputs)
    _check(cfg)
    setup = _Setup(cfg)
    config = OmegaConf.to_yaml(cfg, resolve=True)
    with open_folder(outputs, "search", cfg.name, config=config, overrides=overrides, facts=setup.facts) as folder:
        _run(cfg, setup, folder, say)
    return folder.path


def _resume(path: Path, cfg: DictConfig, overrides: list[str], say: Callable[[str], None]) -> Path:
    fixed = [o for o in overrides if o.partition("=")[0].lstrip("+") not in MAY_CHANGE]
    if fixed:
        raise InputError(
            f"resume goes on with the settings of {path}; {fixed[0]} cannot change (searcher.n_trials can)"
        )
    if not (path / records.CONFIG).is_file():
        raise InputError(f"resume={path}: no run of a search there (no {records.CONFIG}); give the folder of one")
    old = OmegaConf.load(path / records.CONFIG)
    assert isinstance(old, DictConfig)
    if any(o.startswith("searcher.n_trials=") for o in overrides):
        old.searcher.n_trials = cfg.searcher.n_trials
    _check(old)
    records.make_writable(path)
    setup = _Setup(old, resumed=path)
    (path / records.SUMMARY).unlink(missing_ok=True)
    with reopen_folder(path) as folder:
        log.info("resumed")
        _run(old, setup, folder, say)
    return path


def _check(cfg: DictConfig) -> None:
    """What can be refused before a model is loaded."""
    if cfg.searcher.n_trials < 1:
        raise InputError(f"searcher.n_trials={cfg.searcher.n_trials}; a search needs at least 1 trial")


class _Setup:
    """The model, the calibration prompts and what is known of them."""

    def __init__(self, cfg: DictConfig, *, resumed: Path | None = None) -> None:
        self.loaded = build.model(cfg)
        self.prompts = build.prompts(
            cfg,
            self.loaded,
            "calibration",
            n=cfg.objective.n_prompts,
            seed=cfg.searcher.seed,
            max_new_tokens=cfg.objective.max_new_tokens,
        )
        known = resumed / COSTS if resumed else None
        costs = CostTable.read(known) if known and known.exists() else None
        self.objective = build.objective(cfg, self.loaded, self.prompts, costs=costs)
        self.space = Space(self.loaded.decoder.n_layers)
        self.facts = build.facts(
            cfg,
            self.loaded,
            searcher=cfg.searcher.name,
            objective=self.objective.name,
            stop=build.stop_name(build.stop(cfg)),
            n_prompts=len(self.prompts),
            prompt_ids=[p.example.id for p in self.prompts],
            seed=cfg.searcher.seed,
        )


def _run(cfg: DictConfig, setup: _Setup, folder: Folder, say: Callable[[str], None]) -> None:
    if isinstance(setup.objective, ExpectedSpeedup):
        records.write_json(folder.path / COSTS, setup.objective.costs.as_dict())
    study = build.study(cfg, setup.space, folder.path / JOURNAL)
    tracker = build.tracker(cfg, verb="search", run_id=folder.id, folder=folder.path)
    unit, n_trials = setup.objective.unit, cfg.searcher.n_trials
    best = max((float(t.user_attrs.get("value", "-inf")) for t in study.trials), default=float("-inf"))
    if not len(study.trials):
        with suppress(RuntimeError):  # of which the first trial will tell
            setup.objective(default_starts(setup.space.n_layers)[0])  # warm-up: its seconds are nobody's
    with progress("search", n_trials, done=min(len(study.trials), n_trials)) as advance:

        def on_trial(row: dict[str, Any]) -> None:
            nonlocal best
            value = row["value"]
            best = max(best, float("-inf") if value is None else value)
            log.info("trial %d: %s -> %s %s", row["number"], row["skip"], value, unit)
            tracker.log(row["number"], {"value": value, "best": best, "acceptance": row["acceptance"]})
            advance(f"best {best:.2f} {unit}")

        found = run_search(
            setup.space,
            setup.objective,
            study,
            starts=default_starts(setup.space.n_layers),
            n_trials=n_trials,
            seed=cfg.searcher.seed,
            rows_path=folder.path / records.TRIALS,
            stopwatch=Stopwatch(setup.loaded.decoder.device),
            listener=on_trial,
        )
    rows = records.read_rows(folder.path / records.TRIALS)
    for name, figure in (
        ("search", figures.search_history(rows, objective=setup.objective.name)),
        ("skip_map", figures.skip_map({f"{cfg.model.name}: best found": found.skip})),
    ):
        png, *_ = figures.save(figure, folder.path / name)
        tracker.image(name, png)
    tracker.table("trials", [{k: r[k] for k in ("number", "skip", "value", "acceptance", "seconds")} for r in rows])
    _finish(cfg, setup, folder, found)
    last = tracker.finish()
    say(_told(found, unit))
    say(f"run: {folder.path}")
    if last:
        say(last)


def _finish(cfg: DictConfig, setup: _Setup, folder: Folder, found: Found) -> None:
    skipfile.save_skip_set(
        folder.path / skipfile.NAME,
        found.skip,
        model=cfg.model.name,
        objective=setup.objective.name,
        value=found.value,
        unit=setup.objective.unit,
        data=cfg.data.name,
        run=folder.id,
        date=provenance.now(),
    )
    folder.finish(
        {
            "verb": "search",
            "n_trials": found.n_trials,
            "best": {"number": found.number, "skip": str(found.skip), "value": found.value},
            "nothing_value": found.nothing_value,
            "unit": setup.objective.unit,
            "elapsed_s": found.elapsed_s,
        }
    )


def _told(found: Found, unit: str) -> str:
    compared = "" if found.nothing_value is None else f"; drafting with nothing skipped: {found.nothing_value:.2f}"
    return (
        f"best of {found.n_trials} trials in {found.elapsed_s:.0f} s: skip={found.skip} "
        f"({len(found.skip)} of {2 * found.skip.n_layers} sublayers), {found.value:.2f} {unit}{compared}"
    )
