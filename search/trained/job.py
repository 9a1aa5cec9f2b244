"""A whole search over trained drafts as one value: trials, full trainings of the best, and a race with their controls.

The race answers what training is worth and what skipping is worth: beside each finalist stand the same draft with
nothing skipped and, where sublayers are skipped, their linear maps without any training.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from search.dimensions import Dimension
from search.job_parts import Finals, Searcher
from search.point import Point, settings_text
from search.study.finals import Finalist, Raced, race, settled
from search.study.loop import Budget
from search.trained.objective import Candidate, CostsOf, Outcome, Settings, TrainingObjective
from search.trained.study import Row, Rungs, TrainedStudy, write_rows
from selfspec.drafters.spec import DraftSpec, Lookup
from selfspec.drafters.tree_shapes import BestFirst, TreeShape
from selfspec.engine.decode import Ending
from selfspec.errors import InputError
from selfspec.measure.stopwatch import Stopwatch
from selfspec.models.decoder import Decoder
from selfspec.records import run_files
from selfspec.skipping.plan import DraftPlan
from selfspec.stopping import Optimal, StopPolicy
from selfspec.training.heldout import RoundCosts
from selfspec.training.store import Store

log = logging.getLogger(__name__)

UNIT = "x plain decoding"
CONTROL = "control"  # the setting that names a control in rows
CHAIN = "chain"  # the name of a draft without branches
FINALISTS = "finalists"  # folder of the full trainings


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedJob:
    """Everything that a search over trained drafts needs.

    Attributes:
        decoder: the target.
        stores: its texts.
        dimensions: of the space.
        make: from the settings of a point to its draft.
        costs: measures what a round with a draft costs.
        searcher: who proposes.
        budget: when it ends.
        rungs: how long trials train.
        full: settings of the finalists' trainings that differ from those of their drafters.
        finals: how many are trained in full and raced.
        fresh: token ids of prompts for the race, none of them in the stores.
        stops: stop rules by name that each finalist is raced with; the costs of stop=optimal are set to each draft's
            own.
        trees: shapes by name that each finalist is raced with; None: a chain. Costs that a shape lacks are set
            likewise.
        lookup: prompt lookup of the finalists.
        max_new_tokens: of an answer in the race.
        identity: what must be equal for a folder to belong to this search.
    """

    decoder: Decoder
    stores: Sequence[Store]
    dimensions: Sequence[Dimension]
    make: Callable[[Settings], Candidate]
    costs: CostsOf
    searcher: Searcher
    budget: Budget
    rungs: Rungs
    full: Mapping[str, Any]
    finals: Finals
    fresh: Sequence[Sequence[int]]
    stops: Mapping[str, StopPolicy]
    trees: Mapping[str, TreeShape | None] = field(default_factory=lambda: {CHAIN: None})
    lookup: Lookup | None = None
    max_new_tokens: int = 64
    identity: Mapping[str, Any] = field(default_factory=dict)

    def run(self, folder: Path | None = None, *, listener: TrainedListener | None = None) -> TrainedResult:
        """Run the search to its end, or go on with the one in the folder.

        Raises:
            InputError: if no trial could be judged.
        """
        tell = listener or TrainedListener()
        study = TrainedStudy(
            self.dimensions,
            self.searcher.maker(),
            self.rungs,
            seed=self.searcher.seed,
            folder=folder,
            identity=self.identity,
        )
        objective = TrainingObjective(self.decoder, self.stores, self.make, self.costs)
        watch = Stopwatch(self.decoder.device)

        def told(row: Row) -> None:
            if folder:
                write_rows(folder / run_files.TRIALS, study.rows)
            tell.trial(row)

        tell.begin(study.rows, self.budget.n_trials)
        study.run(objective, n_trials=self.budget.n_trials, max_s=self.budget.max_s, stopwatch=watch, listener=told)
        if folder:
            write_rows(folder / run_files.TRIALS, study.rows)
        best = study.top(max(1, self.finals.top))
        if not best:
            raise InputError(
                f"none of {len(study.rows)} trials could be judged; the first says: {study.rows[0]['reason']}"
            )
        finalists: list[list[Finalist]] = []
        for number, (settings, value) in enumerate(best):
            tell.training(settings, number, len(best))
            place = folder / FINALISTS / str(number) if folder else None
            finalists.append(self._finalist(settings, value, objective(settings, folder=place, **self.full)))
        finalists.sort(key=lambda one: -(one[0].predicted or 0.0))
        drafts = finalists[: self.finals.race]
        entered = [*itertools.chain.from_iterable(drafts), *self._controls([forms[0] for forms in drafts])]
        raced = self._raced(entered, watch, tell) if self.finals.top and self.fresh else []
        if folder:
            (folder / run_files.FINALS).unlink(missing_ok=True)
            for r in raced:
                run_files.append_row(folder / run_files.FINALS, r.row)
        return TrainedResult(study.rows, entered, raced)

    def _finalist(self, settings: Settings, value: float, outcome: Outcome) -> list[Finalist]:
        """A trained draft in every form that it is raced in, the plainest first."""
        log.info("%s, trained in full: %.3f %s", settings_text(settings), outcome.value, UNIT)
        found = []
        for (tree, shape), (stop, rule) in itertools.product(self.trees.items(), self.stops.items()):
            own = {**({"tree": tree} if len(self.trees) > 1 else {}), **({"stop": stop} if len(self.stops) > 1 else {})}
            spec = self._spec(outcome.plan, outcome.costs, rule, shape)
            made = Finalist(Point(outcome.plan.skip, {**settings, **own}), spec, value)
            made.predicted = outcome.value if shape is None and self.lookup is None else None
            found.append(made)
        return found

    def _controls(self, finalists: Sequence[Finalist]) -> list[Finalist]:
        """The drafts that show what the parts of the finalists are worth, each once."""
        known = [f.spec.plan for f in finalists]
        found = []
        for f in finalists:
            for name, plan in self.make(f.point.settings).controls.items():
                if plan not in known:
                    known.append(plan)
                    point = Point(plan.skip, {CONTROL: name, **f.point.settings})
                    spec = self._spec(plan, self.costs(plan), next(iter(self.stops.values())), None)
                    found.append(Finalist(point, spec, math.nan))
        return found

    def _spec(self, plan: DraftPlan, costs: RoundCosts, stop: StopPolicy, tree: TreeShape | None) -> DraftSpec:
        """A draft with the costs of its own rounds."""
        if isinstance(stop, Optimal):
            stop = replace(stop, draft_cost=costs.draft, verify_cost=costs.one_more)
        if isinstance(tree, BestFirst) and not tree.is_priced:
            tree = tree.priced(costs.draft, costs.one_more)
        return DraftSpec(plan, stop, lookup=self.lookup, tree=tree)

    def _raced(self, finalists: Sequence[Finalist], watch: Stopwatch, tell: TrainedListener) -> list[Raced]:
        def measure() -> list[Raced]:
            tell.race(0, len(self.fresh))
            return race(
                self.decoder,
                self.fresh,
                finalists,
                ending=Ending(self.max_new_tokens),
                stopwatch=watch,
                listener=lambda n_done: tell.race(n_done, len(self.fresh)),
            )

        return settled(measure)


@dataclass(frozen=True, slots=True)
class TrainedResult:
    """What came of a search over trained drafts.

    Attributes:
        rows: of all trials.
        finalists: trained in full, best expected first, and then their controls.
        raced: the race, best first; empty without one.
    """

    rows: Sequence[Row]
    finalists: Sequence[Finalist]
    raced: Sequence[Raced]

    @property
    def best(self) -> Finalist:
        """Who won the race, or the best expected."""
        return self.raced[0].finalist if self.raced else self.finalists[0]


class TrainedListener:
    """Is told how a search goes on; a subclass writes what it wants to hear."""

    def begin(self, rows: Sequence[Row], n_trials: int) -> None:
        """The trials of earlier sittings, before the first trial."""

    def trial(self, row: Row) -> None:
        """A finished trial."""

    def training(self, settings: Settings, number: int, n: int) -> None:
        """A finalist whose full training begins."""

    def race(self, n_done: int, n_prompts: int) -> None:
        """Prompts that are raced on, from 0 on."""
