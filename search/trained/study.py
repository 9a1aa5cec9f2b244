"""The study of a search over trained drafts: one Optuna study, whose pruner ends trainings that fall behind.

A point is the values of typed dimensions. Trials lie in a journal; one that was stopped goes on with its own training,
and a point that was judged before is not trained again.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.pruners import BasePruner, HyperbandPruner, SuccessiveHalvingPruner
from optuna.trial import FrozenTrial, Trial, TrialState

from search.dimensions import Choice, Dimension, active
from search.point import Value, settings_text
from search.study.study import LOCK_S, STUDY_NAME, MakeSampler
from search.study.workers import open_storage, open_study, shown
from search.trained.objective import Settings, TrainingObjective
from selfspec.errors import DrafterError, InputError
from selfspec.measure.stopwatch import Stopwatch
from selfspec.records.run_files import SCHEMA, write_text

log = logging.getLogger(__name__)

JOURNAL, TRIALS = "study.journal", "trainings"
STATES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Rungs:
    """How long trials train, and when one that falls behind ends.

    Attributes:
        steps: of a trial that is not ended early.
        check_every: steps between two looks, at each of which a trial may end.
        reduction: of so many trials one goes on from each rung to the next.
        pruner: `halving` (asynchronous successive halving), `hyperband`, or `none`.

    Raises:
        InputError: for numbers that allow no training, or an unknown pruner.

    Source: Li et al. 2020 (arXiv:1810.05934), asynchronous successive halving; Li et al. 2018 (arXiv:1603.06560).
    """

    steps: int = 240
    check_every: int = 30
    reduction: int = 3
    pruner: Literal["halving", "hyperband", "none"] = "halving"

    def __post_init__(self) -> None:
        if not 1 <= self.check_every <= self.steps or self.reduction < 2:
            raise InputError(
                f"steps={self.steps}, check_every={self.check_every}, reduction={self.reduction}: a trial has as many "
                "steps as between two looks at least, and reduction is at least 2"
            )
        if self.pruner not in ("halving", "hyperband", "none"):
            raise InputError(f"pruner={self.pruner}; it is halving, hyperband or none")

    def make(self) -> BasePruner:
        """Optuna's pruner."""
        if self.pruner == "halving":
            return SuccessiveHalvingPruner(min_resource=self.check_every, reduction_factor=self.reduction)
        if self.pruner == "hyperband":
            return HyperbandPruner(self.check_every, self.steps, reduction_factor=self.reduction)
        return optuna.pruners.NopPruner()


class TrainedStudy:
    """Proposes points, trains their drafts and remembers the outcomes.

    Args:
        dimensions: of the space, each after those that it depends on.
        make_sampler: from a seed to an Optuna sampler; each trial has its own, so that a search that goes on proposes
            what an uninterrupted one would.
        rungs: how long trials train.
        seed: of the search.
        folder: where the journal and the trainings lie; None: nowhere.
        identity: what must be equal for the folder to belong to this search.

    Raises:
        InputError: if there is nothing to choose, or the study in the folder belongs to another search.
    """

    def __init__(
        self,
        dimensions: Sequence[Dimension],
        make_sampler: MakeSampler,
        rungs: Rungs,
        *,
        seed: int,
        folder: Path | None = None,
        identity: Mapping[str, Any] | None = None,
    ) -> None:
        if not dimensions:
            raise InputError("a search over trained drafts needs dimensions to choose from; set space")
        self.dimensions, self.rungs, self.folder = tuple(dimensions), rungs, folder
        self._make_sampler, self._seed = make_sampler, seed
        if folder is None:
            self._study = optuna.create_study(direction="maximize")
        else:
            storage = open_storage(folder / JOURNAL, lock_s=LOCK_S)
            mine = {**(identity or {}), "space": str(self.dimensions), "rungs": str(rungs)}
            self._study = open_study(storage, STUDY_NAME, mine, shown(folder / JOURNAL))
        self._study.pruner = rungs.make()

    @property
    def trials(self) -> list[FrozenTrial]:
        """The finished trials, in their order."""
        return [t for t in self._study.get_trials(deepcopy=False) if t.state.is_finished()]

    @property
    def rows(self) -> list[Row]:
        """A row for each finished trial."""
        return [_row(trial, number) for number, trial in enumerate(self.trials)]

    def run(
        self,
        objective: TrainingObjective,
        *,
        n_trials: int,
        max_s: float | None,
        stopwatch: Stopwatch,
        listener: Callable[[Row], None],
    ) -> None:
        """Run trials until the study has `n_trials`, or its trials have taken `max_s` seconds.

        Raises:
            KeyboardInterrupt: if Ctrl-C ended it; the trial that was running goes on in the next run.
        """
        spent = max((float(t.user_attrs.get("elapsed_s", 0)) for t in self.trials), default=0.0)
        began = stopwatch.now()
        while len(self.trials) < n_trials and (max_s is None or spent + stopwatch.now() - began < max_s):
            trial = self._begun()
            settings = active(self.dimensions, {d.name: _suggested(trial, d) for d in self.dimensions})
            state, value, facts = self._judged(trial, settings, objective)
            facts |= {"settings": settings, "elapsed_s": spent + stopwatch.now() - began, "seed": self._seed}
            for name, fact in facts.items():
                trial.set_user_attr(name, fact)
            self._study.tell(trial, value if state == TrialState.COMPLETE else None, state=state)
            self._forget(trial)
            listener(self.rows[-1])

    def top(self, n: int) -> list[tuple[Settings, float]]:
        """The best `n` points that were trained to the end of a trial, with their values, best first."""
        done = [t for t in self.trials if t.state == TrialState.COMPLETE]
        found: dict[str, tuple[Settings, float]] = {}
        for trial in sorted(done, key=lambda t: -float(t.user_attrs["value"])):
            settings = trial.user_attrs["settings"]
            found.setdefault(settings_text(settings), (settings, float(trial.user_attrs["value"])))
        return list(found.values())[:n]

    def _begun(self) -> Trial:
        """The trial that an interruption left behind, or the next one."""
        left = self._study.get_trials(deepcopy=False, states=[TrialState.RUNNING])
        self._study.sampler = self._make_sampler(self._seed + (left[0].number if left else len(self.trials)))
        return Trial(self._study, left[0]._trial_id) if left else self._study.ask()

    def _judged(
        self, trial: Trial, settings: Settings, objective: TrainingObjective
    ) -> tuple[TrialState, float | None, dict[str, Any]]:
        """State, value and facts of a trial."""
        earlier = next(
            (t for t in self.trials if t.user_attrs.get("settings") == settings and "value" in t.user_attrs), None
        )
        if earlier is not None:
            facts = {k: v for k, v in earlier.user_attrs.items() if k not in ("settings", "elapsed_s", "seed")}
            return earlier.state, facts["value"], facts | {"reason": f"known from trial {earlier.number}"}

        def should_continue(step: int, value: float) -> bool:
            trial.report(value, step)
            return not trial.should_prune()

        try:
            outcome = objective(
                settings,
                folder=self._place(trial),
                should_continue=should_continue,
                max_steps=self.rungs.steps,
                check_every=self.rungs.check_every,
                patience=None,
            )
        except (InputError, RuntimeError, DrafterError) as error:  # any other error ends the search
            return TrialState.FAIL, None, {"reason": str(error).splitlines()[0]}
        facts = outcome.to_dict()
        if outcome.pruned:
            return TrialState.PRUNED, facts["value"], facts | {"reason": f"behind others after {outcome.steps} steps"}
        return TrialState.COMPLETE, facts["value"], facts

    def _place(self, trial: Trial) -> Path | None:
        return None if self.folder is None else self.folder / TRIALS / f"{trial.number:04d}"

    def _forget(self, trial: Trial) -> None:
        """Delete the checkpoint of a finished trial: finalists are trained anew, and in full."""
        place = self._place(trial)
        if place is not None:
            shutil.rmtree(place, ignore_errors=True)


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write the rows of all trials anew: the study is the truth, the file a view of it."""
    lines = (json.dumps({"schema": SCHEMA, **row}, ensure_ascii=False, allow_nan=False) for row in rows)
    write_text(path, "".join(line + "\n" for line in lines))


def _suggested(trial: Trial, d: Dimension) -> Value:
    if isinstance(d.domain, Choice):
        found: Value = trial.suggest_categorical(d.name, d.domain.values)
        return found
    if d.domain.is_whole:
        return trial.suggest_int(d.name, int(d.domain.low), int(d.domain.high), log=d.domain.log)
    return trial.suggest_float(d.name, d.domain.low, d.domain.high, log=d.domain.log)


def _row(trial: FrozenTrial, number: int) -> Row:
    attrs = dict(trial.user_attrs)
    scored = ("settings", "acceptance", "value", "n_tokens", "n_rounds", "drafted", "accepted")
    more = ("seconds", "draft_cost", "draft_length", "conditional", "untrained", "steps", "elapsed_s", "seed", "reason")
    return {
        "number": number,
        "origin": "searcher",
        **{name: attrs.get(name) for name in (*scored, *more)},
        **{name: attrs.get(name, empty) for name, empty in (("skip", "none"), ("attn", []), ("mlp", []))},
        "values": [],
        "state": STATES[trial.state],
    }
