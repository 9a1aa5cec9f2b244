"""selfspec search: find a skip set for a model on calibration prompts."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from experiments.config import build, build_search, build_space
from experiments.config.composing import read_config
from experiments.config.given_costs import check_given
from experiments.config.search_setup import COSTS, Setup, set_up
from experiments.evaluation.race_finals import finals
from experiments.results import figures
from experiments.results.folder import Folder, open_folder, reopen_folder
from experiments.terminal import live_panel
from experiments.terminal.progress import progress
from experiments.tracking import Tracker
from experiments.tracking.of_search import show_search, trial_listener
from search.finals import Raced
from search.importance import Importance, SpeedupBound, predict
from search.pareto import write_front
from search.point import Point, row_text
from search.replay.rule_tuner import variants
from search.starts import warm_starts
from search.study.loop import Budget, Found, row_of, run_search, top
from search.study.pruning import WilcoxonPruning
from search.study.study import SearchStudy
from selfspec.drafters.spec_files import save_spec
from selfspec.engine.decode import Ending
from selfspec.errors import DrafterError, InputError
from selfspec.measure.stopwatch import Stopwatch
from selfspec.records import provenance, run_files
from selfspec.skipping import skip_set_files
from selfspec.skipping.skip_set import SkipSet

log = logging.getLogger(__name__)

JOURNAL, SETS, FRONT = "study.journal", "sets.json", "pareto.yaml"
Starts = tuple[list[SkipSet], bool]  # and whether they are a whole importance map of speedups

MAY_CHANGE = ("resume", "force", "searcher.n_trials", "searcher.max_s", "searcher.patience")


def search(cfg: DictConfig, overrides: list[str], say: Callable[[str], None]) -> Path:
    """Run or resume a search; returns the run folder."""
    if cfg.resume:
        return _resume(Path(cfg.resume), cfg, overrides, say)
    outputs = Path(cfg.paths.outputs)
    run_files.make_writable(outputs)
    _check(cfg)
    setup = set_up(cfg)
    config = OmegaConf.to_yaml(cfg, resolve=True)
    with (
        open_folder(outputs, "search", cfg.name, config=config, overrides=overrides, facts=setup.facts) as folder,
        build.tracking(cfg, verb="search", folder=folder.path, say=say) as tracker,
    ):
        _run(cfg, setup, folder, tracker, say)
    return folder.path


def _resume(path: Path, cfg: DictConfig, overrides: list[str], say: Callable[[str], None]) -> Path:
    fixed = [o for o in overrides if o.partition("=")[0].lstrip("+") not in MAY_CHANGE]
    if fixed:
        raise InputError(
            f"resume goes on with the settings of {path}; {fixed[0]} cannot change (searcher.n_trials can)"
        )
    if not (path / run_files.CONFIG).is_file():
        raise InputError(f"resume={path}: no run of a search there (no {run_files.CONFIG}); give the folder of one")
    old = read_config(path / run_files.CONFIG)
    for key in MAY_CHANGE[1:]:
        if any(o.startswith(f"{key}=") for o in overrides):
            OmegaConf.update(old, key, OmegaConf.select(cfg, key))
    _check(old)
    run_files.make_writable(path)
    setup = set_up(old, resumed=path)
    (path / run_files.SUMMARY).unlink(missing_ok=True)
    with reopen_folder(path) as folder:
        log.info("resumed")
        with build.tracking(old, verb="search", folder=path, say=say) as tracker:
            _run(old, setup, folder, tracker, say)
    return path


def _check(cfg: DictConfig) -> None:
    """What can be refused before a model is loaded."""
    Ending(cfg.objective.max_new_tokens)
    build_space.check_space(cfg)
    build_search.check_lookup(cfg)
    build_search.check_drafter(cfg)
    check_given(cfg, is_used=cfg.objective.name in build_search.NEEDS_COSTS)
    Budget(cfg.searcher.n_trials, cfg.searcher.max_s, cfg.searcher.patience)
    if cfg.objective.get("tune_stop"):
        variants(build.stop(cfg))
    if cfg.prune:
        WilcoxonPruning(**cfg.prune)
    for key, least in (("finals.top", 0), ("finals.race", 1), ("finals.n_prompts", 1), ("worker", 0)):
        value = OmegaConf.select(cfg, key)
        if value < least:
            raise InputError(f"{key}={value}; give {least} or more")
    if cfg.objective.combine not in ("mean", "worst"):
        raise InputError(f"objective.combine={cfg.objective.combine!r}; it is mean or worst")
    if cfg.worker and not cfg.storage:
        raise InputError(f"worker={cfg.worker} shares a search with others, but storage names no place to meet")


def _run(cfg: DictConfig, setup: Setup, folder: Folder, tracker: Tracker, say: Callable[[str], None]) -> None:
    starts = _starts(cfg, setup)
    study = build_search.study(
        cfg,
        setup.space,
        folder.path / JOURNAL,
        sets=_computed_sets(cfg, setup, folder.path / SETS),
        table=provenance.digest(str(setup.costs.table)) if setup.costs else "",
        weights=setup.loaded.facts["weights"],
    )
    if setup.costs:
        setup.costs.keep(folder.path / COSTS)
    found, verdict = _search(cfg, setup, study, starts, folder, tracker)
    unit = setup.objective.unit
    say(_told(found, unit, cfg.searcher.name))
    if verdict:
        say(
            verdict.text()
            + (
                ""
                if verdict.pays() or cfg.force
                else "; the search ends here: force=true goes on, and draft=linear may pay"
            )
        )
    raced: list[Raced] = []
    if cfg.worker == 0 and cfg.finals.top and found.ended != "interrupted":
        rules = {study.point(t): t.user_attrs.get("stop") for t in study.trials}
        raced = finals(cfg, setup, top(study, cfg.finals.top), rules)
        (folder.path / run_files.FINALS).unlink(missing_ok=True)
        for r in raced:
            run_files.append_row(folder.path / run_files.FINALS, r.row)
        say(_told_race(raced, predicted=setup.objective.name == "expected_speedup"))
    _draw(cfg, setup, folder, found)
    _finish(cfg, setup, folder, found, verdict, raced)
    show_search(
        tracker,
        folder.path,
        name=cfg.name,
        model=cfg.model.name,
        data=",".join(setup.prompts),
        objective=setup.objective.name,
        raced=[r.row for r in raced],
    )
    say(f"run: {folder.path}")


def _computed_sets(cfg: DictConfig, setup: Setup, path: Path) -> list[SkipSet] | None:
    """What a searcher proposes that computes its sets beforehand, kept in the run folder; None for the others."""
    if not cfg.searcher.get("computed"):
        return None
    if path.exists():
        return [SkipSet.parse(text, setup.space.n_layers) for text in json.loads(path.read_text())["sets"]]
    ids = [p.ids for found in setup.prompts.values() for p in found]
    texts = [r for batch in build_search.references(cfg, setup.loaded, ids) for r in batch.references]
    table = setup.costs.table if setup.costs else None
    sets = build_search.computed_sets(cfg.searcher, setup.loaded.decoder, texts, table)
    run_files.write_json(path, {"sets": [str(skip) for skip in sets]})
    return sets


def _search(
    cfg: DictConfig, setup: Setup, study: SearchStudy, begin: Starts, folder: Folder, tracker: Tracker
) -> tuple[Found, SpeedupBound | None]:
    """The starts, the verdict that they allow, and the search."""
    starts, has_map = begin
    n_trials, unit = cfg.searcher.n_trials, setup.objective.unit
    # of earlier sittings, and of other workers
    earlier = [row_of(trial, number) for number, trial in enumerate(study.trials)]
    if not earlier:
        with suppress(RuntimeError, DrafterError):  # of which the first trial will tell
            setup.objective(setup.space.point(SkipSet(setup.space.n_layers)))  # warm-up: its seconds are nobody's
    panel = progress(
        "trial",
        n_trials,
        done=min(len(earlier), n_trials),
        show=live_panel.best_set(setup.space.n_layers, unit),
        rows=earlier,
    )
    show = trial_listener(tracker, setup.space.n_layers)
    for row in earlier:
        show(row)
    with panel as advance:

        def on_trial(row: dict[str, Any]) -> None:
            show(row)
            log.info("trial %d: %s -> %s %s", row["number"], row_text(row), row["value"], unit)
            advance(row)

        def go(n: int) -> Found:
            return run_search(
                setup.space,
                setup.objective,
                study,
                starts=starts,
                n_trials=n,
                seed=cfg.searcher.seed,
                rows_path=folder.path / run_files.TRIALS,
                stopwatch=Stopwatch(setup.loaded.decoder.device),
                max_s=cfg.searcher.max_s,
                patience=cfg.searcher.patience,
                pruning=WilcoxonPruning(**cfg.prune) if cfg.prune else None,
                listener=on_trial,
            )

        if not has_map or setup.costs is None or n_trials <= len(starts):
            return go(n_trials), None
        found = go(len(starts))
        if found.ended != "trials":
            return found, None
        rows = run_files.read_rows(folder.path / run_files.TRIALS)
        importance = Importance.from_rows(rows, setup.space.n_layers)
        verdict = predict(importance, setup.costs.table, context=setup.context, max_draft=build.stop(cfg).max_draft)
        log.info("%s", verdict.text())
        return (go(n_trials) if verdict.pays() or cfg.force else found), verdict


def _starts(cfg: DictConfig, setup: Setup) -> Starts:
    """What is scored first, and whether that tells if plain skipping may pay: a whole importance map of speedups."""
    kinds, n_layers = list(cfg.starts), setup.space.n_layers
    if "singles" in kinds and cfg.searcher.n_trials < 4 * n_layers:
        log.info("no importance map: its %d trials would be more than half of %d", 2 * n_layers, cfg.searcher.n_trials)
        kinds.remove("singles")
    paths = [cfg.start] if isinstance(cfg.start, str) else list(cfg.start or ())
    starts = warm_starts(setup.space, kinds, [Path(p).expanduser() for p in paths])
    alone = sum(len(skip) == 1 for skip in starts)
    by_speedup = cfg.objective.name == "expected_speedup" and build_search.is_plain(cfg) and not cfg.lookup
    by_speedup = by_speedup and not setup.space.dimensions and not (setup.drafts.drafter or setup.drafts.tree)
    has_map = by_speedup and "nothing" in kinds and alone == 2 * n_layers
    return starts, has_map


def _draw(cfg: DictConfig, setup: Setup, folder: Folder, found: Found) -> None:
    """The pictures of the search, and the front of its sets."""
    rows = run_files.read_rows(folder.path / run_files.TRIALS)
    name, n_layers = setup.objective.name, setup.space.n_layers
    pictures = {
        "search": figures.best_so_far(rows, objective=name),
        "skip_map": figures.skip_map({f"{cfg.model.name}: best found": found.skip}),
    }
    if any(r["draft_cost"] is not None for r in rows):
        pictures["pareto"] = figures.pareto(rows, objective=name)
        write_front(folder.path / FRONT, rows, model=cfg.model.name, n_layers=n_layers, run=folder.id)
    with suppress(InputError):  # without a trial that skips nothing there is no map
        importance = Importance.from_rows(rows, n_layers)
        if importance.alone:
            pictures["importance"] = figures.importance_map(importance, objective=name)
    for picture, figure in pictures.items():
        figures.save(figure, folder.path / picture)


def _finish(
    cfg: DictConfig, setup: Setup, folder: Folder, found: Found, verdict: SpeedupBound | None, raced: Sequence[Raced]
) -> None:
    winner = raced[0] if raced else None
    point = winner.finalist.point if winner else found.point
    spec = winner.finalist.spec if winner else setup.drafts(point)
    measured: dict[str, Any] = spec.settings()  # what `searched` asks for
    if point.settings:
        measured["settings"] = dict(point.settings)
    if winner:
        low, high = winner.interval
        if winner.finalist.score:  # on fresh prompts: what to expect of it
            measured["fresh_value"] = winner.finalist.score.value
        measured["speedup"] = round(winner.speedup, 4)
        if not math.isnan(low):  # of a single prompt
            measured["interval"] = [round(low, 4), round(high, 4)]
    skip_set_files.save_skip_set(
        folder.path / skip_set_files.NAME,
        point.skip,
        model=cfg.model.name,
        objective=setup.objective.name,
        value=winner.finalist.trial_value if winner else found.value,
        unit=setup.objective.unit,
        data=",".join(setup.prompts),
        run=folder.id,
        date=provenance.now(),
        **measured,
    )
    if not build_search.is_plain(cfg):
        save_spec(
            folder.path,
            spec,
            model=cfg.model.name,
            decoder=setup.loaded.decoder,
            facts=setup.loaded.facts,
            run=folder.id,
            date=provenance.now(),
            **measured,
        )
    folder.finish(
        {
            "verb": "search",
            "n_trials": found.n_trials,
            "best": {"number": found.number, **_row(found.point), "value": found.value},
            "nothing_value": found.nothing_value,
            "unit": setup.objective.unit,
            "elapsed_s": found.elapsed_s,
            "ended": found.ended,
            "verdict": None if verdict is None else {"bound": verdict.bound, "text": verdict.text()},
            "winner": winner.row if winner else None,
        }
    )


def _row(point: Point) -> dict[str, Any]:
    """A point as rows have it."""
    return {"skip": str(point.skip), **({"settings": dict(point.settings)} if point.settings else {})}


def _told(found: Found, unit: str, searcher: str) -> str:
    compared = "" if found.nothing_value is None else f"; drafting with nothing skipped: {found.nothing_value:.2f}"
    why = {
        "trials": "",
        "seconds": " (searcher.max_s is spent)",
        "stagnation": " (no new best for searcher.patience trials)",
        "exhausted": f" ({searcher} has nothing more to propose)",
        "interrupted": " (interrupted; resume=RUN goes on)",
    }[found.ended]
    return (
        f"best of {found.n_trials} trials in {found.elapsed_s:.0f} s{why}: skip={found.point} "
        f"({len(found.skip)} of {2 * found.skip.n_layers} sublayers), {found.value:.2f} {unit}{compared}"
    )


def _told_race(raced: Sequence[Raced], *, predicted: bool) -> str:
    best = raced[0]
    low, high = best.interval
    score = best.finalist.score
    told = "" if not predicted or score is None else f", predicted {score.value:.2f}x"
    doubt = "; the interval includes 1: no speedup is shown" if low <= 1 <= high else ""
    doubt = "; slower than plain decoding" if high < 1 else doubt
    n = len(best.finalist.times)
    return (
        f"raced on {n} prompts against plain decoding: skip={best.finalist.point}, {best.speedup:.2f}x "
        f"[{low:.2f}, {high:.2f}]{told}{doubt}"
    )
