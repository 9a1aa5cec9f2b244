"""selfspec search: find a skip set for a model on calibration prompts."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from experiments.builders import build
from experiments.builders.build_search import fitted_facts, ready
from experiments.results import figures
from experiments.results.run_writer import KEPT, Folder, open_folder, reopen_folder
from experiments.terminal import live_panel
from experiments.terminal.progress import Progress
from experiments.tracking import Tracker
from experiments.tracking.of_search import show_search, trial_listener
from experiments.verbs.resuming import config_to_resume, make_ready, resuming
from experiments.verbs.search_trained import search_trained
from search.importance import Importance, SpeedupBound
from search.job import COSTS, SearchJob, SearchListener, SearchResult
from search.ladder import Rung
from search.pareto import write_front
from search.point import Point, row_text, settings_text
from search.study.finals import Raced
from search.study.loop import Found
from selfspec.drafters.spec_files import save_spec
from selfspec.errors import InputError
from selfspec.measure.phases import Step
from selfspec.models.load import Loaded
from selfspec.records import provenance, run_files
from selfspec.skipping import skip_set_files

log = logging.getLogger(__name__)

FRONT = "pareto.yaml"

MAY_CHANGE = ("resume", "force", "searcher.n_trials", "searcher.max_s", "searcher.patience", "paths.cache")


def search(cfg: DictConfig, overrides: list[str], say: Callable[[str], None]) -> Path:
    """Run or resume a search; return the run folder.

    Raises:
        InputError: if the settings are impossible.
        KeyboardInterrupt: if Ctrl-C ended the search; the folder then holds the best so far, and the search can resume.
    """
    resumed = Path(cfg.resume).expanduser() if cfg.resume else None
    cfg = _resumed(resumed, cfg, overrides) if resumed else cfg
    if cfg.get("training"):
        return search_trained(cfg, overrides, say, resumed=resumed)
    make_ready(resumed, cfg)
    progress = Progress()
    with resuming(resumed):
        begun = ready(cfg, phase=progress)
    cfg = begun.cfg
    with ExitStack() as stack:
        if resumed:
            folder = stack.enter_context(reopen_folder(resumed))
            log.info("resumed")
        else:
            config = OmegaConf.to_yaml(cfg, resolve=True)
            outputs = Path(cfg.paths.outputs)
            folder = stack.enter_context(
                open_folder(outputs, "search", cfg.name, config=config, overrides=overrides, facts=begun.facts())
            )
        stack.enter_context(_naming(folder, say))
        job = begun.job(kept=resumed / COSTS if resumed else None, phase=progress)
        folder.add_facts(fitted_facts(job))
        tracker = stack.enter_context(build.tracking(cfg, verb="search", folder=folder.path, say=say))
        shown = stack.enter_context(_Shown(job, folder.path, tracker, progress, say))
        result = job.run(folder.path, listener=shown)
        _write(cfg, job, begun.loaded, folder, result, tracker, say)
    if result.found.ended == run_files.INTERRUPTED:  # what comes after the command must not take half a search for one
        end = KeyboardInterrupt()
        end.add_note(KEPT.format(folder.path))
        raise end
    return folder.path


@contextmanager
def _naming(folder: Folder, say: Callable[[str], None]) -> Iterator[None]:
    """Say how to go on after Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt:
        say(f"interrupted; selfspec search resume={folder.path} goes on")
        raise


def _resumed(path: Path, cfg: DictConfig, overrides: list[str]) -> DictConfig:
    """The configuration of the run to resume, with the settings that may change."""
    hint = " (searcher.n_trials can)"
    old = config_to_resume(path, "search", overrides, may_change=MAY_CHANGE, hint=hint)
    for key in MAY_CHANGE[1:]:
        if any(o.startswith(f"{key}=") for o in overrides):
            OmegaConf.update(old, key, OmegaConf.select(cfg, key))
    return old


class _Shown(SearchListener):
    """Shows a running search on the terminal, in the log and in the tracker."""

    def __init__(
        self, job: SearchJob, folder: Path, tracker: Tracker, progress: Progress, say: Callable[[str], None]
    ) -> None:
        self._job, self._progress, self._say, self._unit = job, progress, say, ""
        self._summary = folder / run_files.SUMMARY
        self._track = trial_listener(tracker, job.space.n_layers)
        self._panel = ExitStack()

    def __enter__(self) -> _Shown:
        return self

    def __exit__(self, *error: object) -> None:
        self._panel.close()

    def begin(self, rows: Sequence[dict[str, Any]], unit: str) -> None:
        """Open the panel of trials, with those of an earlier session."""
        n_trials = self._job.budget.n_trials
        self._unit = unit
        panel = self._progress.steps(
            "trial",
            n_trials,
            done=min(len(rows), n_trials),
            show=live_panel.best_set(self._job.space.n_layers, unit),
            rows=rows,
        )
        for row in rows:
            self._track(row)
        self._advance = self._panel.enter_context(panel)

    def trial(self, row: dict[str, Any]) -> None:
        """Show a trial that has ended; a run with a further trial is no longer finished."""
        self._summary.unlink(missing_ok=True)
        self._track(row)
        value = "failed" if row["value"] is None else f"{row['value']:.3f} {self._unit}"
        log.info("trial %d: %s -> %s", row["number"], row_text(row), value)
        self._advance(row)

    def searched(self, found: Found, verdict: SpeedupBound | None, rungs: Sequence[Rung]) -> None:
        """Print what the search found, before its finals."""
        self._panel.close()
        if rungs:
            self._say(f"parts, in {self._unit}: {'; '.join(map(str, rungs))}")
        self._say(_told(found, self._unit, self._job.searcher.name))
        if verdict:
            is_end = not (verdict.pays() or self._job.force)
            more = "; the search ends here: force=true goes on, and draft=auto may pay" if is_end else ""
            self._say(verdict.text() + more)

    def phase(self, name: str, total: int) -> AbstractContextManager[Step]:
        """See `SearchListener`."""
        return self._progress(name, total)

    def race(self, n_done: int, n_prompts: int) -> None:
        """Show the progress of the race; 0 prompts are done when it begins."""
        if not n_done:
            self._advance = self._panel.enter_context(self._progress.steps("race", n_prompts))
            return
        self._advance()
        if n_done == n_prompts:
            self._panel.close()


def _write(
    cfg: DictConfig,
    job: SearchJob,
    loaded: Loaded,
    folder: Folder,
    result: SearchResult,
    tracker: Tracker,
    say: Callable[[str], None],
) -> None:
    """Write the files of the run folder, except rows, study and costs, which the job writes itself."""
    if result.raced:
        say(_told_race(result.raced))
    if any(rung.raced for rung in result.rungs):
        say(f"parts in the race, beside the same without each: {'; '.join(_told_parts(result.rungs))}")
    _draw(cfg, job, folder, result)
    _save(cfg, job, loaded, folder, result)
    show_search(
        tracker,
        folder.path,
        name=cfg.name,
        model=cfg.model.name,
        data=",".join(job.prompts),
        objective=job.goal.name,
        raced=[r.row for r in result.raced],
    )
    say(f"run: {folder.path}")


def _draw(cfg: DictConfig, job: SearchJob, folder: Folder, result: SearchResult) -> None:
    """Draw the pictures of the search, and write the front of its sets."""
    rows = run_files.read_rows(folder.path / run_files.TRIALS)
    name, n_layers = job.goal.name, job.space.n_layers
    pictures = {
        "search": figures.best_so_far(rows, objective=name),
        "skip_map": figures.skip_map({f"{cfg.model.name}: best found": result.found.skip}),
    }
    if any(r["draft_cost"] is not None for r in rows):
        pictures["pareto"] = figures.pareto(rows, objective=name)
        write_front(folder.path / FRONT, rows, model=cfg.model.name, n_layers=n_layers, run=folder.id)
    with suppress(InputError):  # there is no map without a trial of the empty skip set
        importance = Importance.from_rows(rows, n_layers)
        if importance.alone:
            pictures["importance"] = figures.importance_map(importance, objective=name)
    for picture, figure in pictures.items():
        figures.save(figure, folder.path / picture)


def _save(cfg: DictConfig, job: SearchJob, loaded: Loaded, folder: Folder, result: SearchResult) -> None:
    """Write the winner's skip set and plan, and the summary."""
    winner, found, verdict, point = result.winner, result.found, result.verdict, result.point
    measured: dict[str, Any] = result.spec.settings()  # the settings that `searched` reads
    if point.settings:
        measured["settings"] = dict(point.settings)
    if winner:
        low, high = winner.interval
        if winner.finalist.score:
            measured["fresh_value"] = winner.finalist.score.value
        if winner.finalist.expected is not None:  # predicts later runs
            measured["expected"] = round(winner.finalist.expected, 4)
        measured["speedup"] = round(winner.speedup, 4)
        if not math.isnan(low):  # a single prompt has no interval
            measured["interval"] = [round(low, 4), round(high, 4)]
        if winner.doubts:
            measured["in_doubt"] = list(winner.doubts)
    valued = {"value": winner.finalist.trial_value if winner else found.value, "unit": result.unit}
    skip_set_files.save_skip_set(
        folder.path / skip_set_files.NAME,
        point.skip,
        model=cfg.model.name,
        objective=job.goal.name,
        **valued,
        data=",".join(job.prompts),
        run=folder.id,
        date=provenance.now(),
        **measured,
    )
    if not job.drafts.is_plain(job.space.dimensions):
        save_spec(
            folder.path,
            result.spec,
            model=cfg.model.name,
            decoder=job.decoder,
            facts=loaded.facts,
            run=folder.id,
            date=provenance.now(),
            **valued,
            **measured,
        )
    folder.finish(
        {
            "verb": "search",
            "n_trials": found.n_trials,
            "best": {"number": found.number, **_row(found.point), "value": found.value},
            "nothing_value": found.nothing_value,
            "unit": result.unit,
            "elapsed_s": found.elapsed_s,
            "ended": found.ended,
            "verdict": None if verdict is None else {"bound": verdict.bound, "text": verdict.text()},
            "winner": winner.row if winner else None,
            **({"ladder": [_rung(r) for r in result.rungs]} if result.rungs else {}),
        }
    )


def _rung(rung: Rung) -> dict[str, Any]:
    return {
        "added": dict(rung.added),
        **_row(rung.point),
        "value": rung.value,
        "stays": rung.stays,
        "raced": rung.raced,
    }


def _row(point: Point) -> dict[str, Any]:
    """A point in the form of rows."""
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
        f"({len(found.skip)} of {2 * found.skip.n_layers} sublayers), {found.value:.2f} {unit} on the prompts of the "
        f"search{compared}"
    )


def _told_parts(rungs: Sequence[Rung]) -> Iterator[str]:
    for rung in rungs:
        if rung.raced:
            yield f"{settings_text(rung.added)}: {rung.raced:.2f}x" + ("" if rung.stays else ", taken back")


def _told_race(raced: Sequence[Raced]) -> str:
    best = raced[0]
    low, high = best.interval
    f = best.finalist
    told = "" if f.predicted is None else f", predicted {f.predicted:.2f}x"
    if f.predicted is not None and f.expected is not None:
        told += f"; expected on other prompts: {f.expected:.2f}x"
    doubt = "; the interval includes 1: no speedup is shown" if low <= 1 <= high else ""
    doubt = "; slower than plain decoding" if high < 1 else doubt
    if best.doubts:
        doubt += f"; in doubt, also after a second race: {'; '.join(best.doubts)}"
    return (
        f"raced on {len(f.times)} prompts against plain decoding: skip={f.point}, {best.speedup:.2f}x "
        f"[{low:.2f}, {high:.2f}]{told}{doubt}"
    )
