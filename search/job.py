"""A whole search as one value: made in Python or from a configuration, it runs the same way.

It knows no configuration, no run folder's pictures and no terminal: who runs it is told how it goes on.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from search.costs.draft_tables import DraftCosts
from search.costs.table import CostTable
from search.draft_of_point import Drafts
from search.goal import Goal, Prompts
from search.importance import Importance, SpeedupBound, predict
from search.job_parts import Finals, Row, Searcher, SearchListener, SearchResult
from search.ladder import LOOKUP, Ladder, Rung
from search.objective import Objective
from search.point import Point, Value
from search.replay.objectives import as_raced
from search.replay.references import decode_references
from search.replay.rule_tuner import pausing
from search.space import Space
from search.starts import warm_starts
from search.study.expected import expect
from search.study.finals import Finalist, Raced, race, rescore, settled
from search.study.loop import Budget, restore, row_of, run_search, top, values_of
from search.study.pruning import WilcoxonPruning
from search.study.study import STUDY_NAME, SearchStudy
from search.study.workers import Sharing
from selfspec.engine.decode import Ending
from selfspec.errors import DrafterError
from selfspec.measure.stopwatch import Stopwatch
from selfspec.models.decoder import Decoder
from selfspec.records import provenance, run_files
from selfspec.records.content_cache import ContentCache
from selfspec.skipping.skip_set import SkipSet
from selfspec.stopping import StopRule

__all__ = ["COSTS", "Finals", "SearchJob", "SearchListener", "SearchResult", "Searcher"]

log = logging.getLogger(__name__)

COSTS, JOURNAL, SETS = "costs.json", "study.journal", "sets.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchJob:
    """Everything a search needs. `run` runs it, or goes on with it.

    From plain Python, with any decoder-only `model` of transformers and `ids`, the token ids of some prompts:

        from search.costs.draft_tables import DraftCosts
        from search.costs.measure import measure
        from search.draft_of_point import Drafts
        from search.job import Searcher, SearchJob
        from search.samplers.quadratic import Quadratic
        from search.space import Space
        from search.study.loop import Budget
        from selfspec.measure.stopwatch import Stopwatch
        from selfspec.models.decoder import Decoder
        from selfspec.stopping import Threshold

        decoder = Decoder(model)
        watch = Stopwatch(decoder.device)
        table = measure(decoder, contexts=[64], max_tokens=9, repeats=15, stopwatch=watch)
        job = SearchJob(
            decoder=decoder,
            prompts={"mine": ids[:8]},
            fresh={"mine": ids[8:]},
            drafts=Drafts(Threshold(max_draft=8, threshold=0.6)),
            costs=DraftCosts(table),
            space=Space(decoder.n_layers),
            searcher=Searcher("quadratic", Quadratic),
            budget=Budget(n_trials=100),
        )
        print(job.run().spec)

    Attributes:
        decoder: the model.
        prompts: token ids that trials are scored on, by data set.
        fresh: token ids for the finals; where a data set has none, the finals use `prompts`.
        drafts: what a point of the space is drafted with.
        costs: of drafts; None where the objective takes the time itself.
        space: what is searched.
        searcher: who proposes.
        budget: when it ends.
        goal: what is maximised.
        starts: kinds of skip sets that are scored first, see `search.starts`; `singles` is left out where it would take
            more than half of the trials.
        ladder: parts that are tried one after another with nothing skipped, see `search.ladder`; what stays is what
            skip sets are searched with.
        start_from: skip set files, or folders of earlier searches, whose sets are scored first, too.
        pruning: when hopeless trials are stopped; None: never.
        finals: how it ends.
        force: search on although the verdict is that plain skipping will not pay.
        identity: what must be equal for a run folder or storage to belong to this search.
        storage: where several workers meet, see `search.study.workers`; None: there is one worker.
        worker: which of them this is; worker 0 also runs the finals.
        name: of the search in its storage.
        cache: of this model: references that were decoded before are found again there; None: nothing is kept.
    """

    decoder: Decoder
    prompts: Prompts
    drafts: Drafts
    costs: DraftCosts | None
    space: Space
    searcher: Searcher
    budget: Budget
    fresh: Prompts = field(default_factory=dict)
    goal: Goal = field(default_factory=Goal)
    starts: Sequence[str] = ("nothing", "singles")
    ladder: Sequence[Mapping[str, Value]] = ()
    start_from: Sequence[Path] = ()
    pruning: WilcoxonPruning | None = None
    finals: Finals = field(default_factory=Finals)
    force: bool = False
    identity: Mapping[str, Any] = field(default_factory=dict)
    storage: str | None = None
    worker: int = 0
    name: str = STUDY_NAME
    cache: ContentCache | None = None

    @property
    def context(self) -> int:
        """The median prompt's length in tokens."""
        lengths = sorted(len(ids) for prompts in self.prompts.values() for ids in prompts)
        return lengths[len(lengths) // 2]

    def run(self, folder: Path | None = None, *, listener: SearchListener | None = None) -> SearchResult:
        """Run the search to its end.

        Args:
            folder: where the study, the costs, and the rows of trials and finals are kept; a search that was
                interrupted there goes on. None: they are kept in memory.
            listener: is told how the search goes on.

        Raises:
            InputError: if the job cannot be done: before anything is written, or since no trial could be scored.
        """
        tell = listener or SearchListener()
        objective = self._objective(self.prompts, tell)
        starts, has_map = self._starts()
        ladder = Ladder(self.space, self.ladder) if self.ladder else None
        study = self.study(folder, sets=self._computed_sets(folder, tell))
        if self.costs and folder:
            self.costs.keep(folder / COSTS)
        if folder:
            restore(study, folder / run_files.TRIALS)
        earlier = _rows(study)
        if not earlier:
            # the first trial will tell of errors
            with tell.phase("warm-up", 0), suppress(RuntimeError, DrafterError):
                objective(self.space.point(SkipSet(self.space.n_layers)))  # warm-up: its seconds are nobody's
        tell.begin(earlier, objective.unit)
        go = partial(
            run_search,
            *(self.space, objective, study),
            starts=starts,
            ladder=ladder,
            seed=self.searcher.seed,
            rows_path=folder / run_files.TRIALS if folder else None,
            stopwatch=Stopwatch(self.decoder.device),
            max_s=self.budget.max_s,
            patience=self.budget.patience,
            pruning=self.pruning,
            listener=tell.trial,
        )
        n_trials, verdict = self.budget.n_trials, None
        if has_map and self.costs and n_trials > len(starts):
            found = go(n_trials=len(starts))
            if found.ended == "trials":
                verdict = self._verdict(_rows(study), self.costs.table)
                found = go(n_trials=n_trials) if verdict.pays() or self.force else found
        else:
            found = go(n_trials=n_trials)
        rungs = self._rungs(study)
        tell.searched(found, verdict, rungs)
        raced: list[Raced] = []
        if self.worker == 0 and self.finals.top and found.ended != "interrupted":
            study.claim_finals()
            raced = self._finals(study, objective, tell)
            study.release("the finals are over")
            if folder:
                (folder / run_files.FINALS).unlink(missing_ok=True)
                for r in raced:
                    run_files.append_row(folder / run_files.FINALS, r.row)
        if ladder and raced:
            rungs = ladder.raced(rungs, {r.finalist.point: r.speedup for r in raced}, raced[0].finalist.point)
        spec = raced[0].finalist.spec if raced else self.drafts(found.point)
        return SearchResult(found, verdict, raced, _rows(study), objective.unit, spec, rungs)

    def study(self, folder: Path | None = None, *, sets: Sequence[SkipSet] | None = None) -> SearchStudy:
        """The study of the search, new or read back from the folder or the storage.

        Args:
            folder: where trials are kept if several workers share no storage; None: nowhere.
            sets: what a searcher proposes that computes its sets beforehand.

        Raises:
            InputError: if the study there belongs to another search.
        """
        s = self.searcher
        where: dict[str, Any] = {"journal": folder / JOURNAL if folder else None}
        if self.storage:
            where = {"storage": self.storage, "sharing": Sharing(self.worker), "name": self.name}
        identity = {**self.identity}
        # Values that were made with other costs are not comparable.
        identity["costs"] = provenance.digest(self.costs.table.text) if self.costs else ""
        return SearchStudy(
            self.space,
            s.maker(sets),
            seed=s.seed,
            identity=identity,
            encoding=s.encoding,
            **where,
        )

    def _objective(self, prompts: Prompts, tell: SearchListener) -> Objective:
        how: dict[str, Any] = {"cache": self.cache, "phase": tell.phase}
        return self.goal.on(prompts, decoder=self.decoder, draft=self.drafts, costs=self.costs, **how)

    def _computed_sets(self, folder: Path | None, tell: SearchListener) -> list[SkipSet] | None:
        """What a searcher proposes that computes its sets beforehand, kept in the folder; None for the others."""
        if self.searcher.computed is None:
            return None
        path = folder / SETS if folder else None
        if path and path.exists():
            return [SkipSet.parse(text, self.space.n_layers) for text in json.loads(path.read_text())["sets"]]
        ids = [ids for prompts in self.prompts.values() for ids in prompts]
        ending = Ending(self.goal.max_new_tokens)
        batches = decode_references(self.decoder, ids, ending=ending, cache=self.cache, phase=tell.phase)
        texts = [r for batch in batches for r in batch.references]
        with tell.phase("sets", 0):
            sets = self.searcher.compute(self.decoder, texts, self.costs.table if self.costs else None)
        assert sets is not None
        if path:
            run_files.write_json(path, {"sets": [str(skip) for skip in sets]})
        return sets

    def _starts(self) -> tuple[list[SkipSet], bool]:
        """What is scored first, and whether that is a whole map of speedups, which allows a verdict."""
        kinds, n_layers, n_trials = list(self.starts), self.space.n_layers, self.budget.n_trials
        if "singles" in kinds and n_trials < 4 * n_layers:
            log.info("no importance map: its %d trials would be more than half of %d", 2 * n_layers, n_trials)
            kinds.remove("singles")
        starts = warm_starts(self.space, kinds, self.start_from)
        d = self.drafts
        is_plain = d.is_plain() and not (d.lookup or d.drafter or d.tree or self.space.dimensions)
        alone = sum(len(skip) == 1 for skip in starts)
        is_whole = "nothing" in kinds and alone == 2 * n_layers
        return starts, is_whole and is_plain and self.goal.name == "expected_speedup"

    def _verdict(self, rows: Sequence[Row], table: CostTable) -> SpeedupBound:
        importance = Importance.from_rows(rows, self.space.n_layers)
        verdict = predict(importance, table, context=self.context, max_draft=self.drafts.stop.max_draft)
        log.info("%s", verdict.text())
        return verdict

    def _finals(self, study: SearchStudy, objective: Objective, tell: SearchListener) -> list[Raced]:
        """The finalists, raced; the winner first. The race is run again once if a result is in doubt."""
        prompts = {name: found[: self.finals.n_raced] for name, found in self._fresh().items()}
        finalists = self.finalists(study, objective, tell)
        for f in finalists:
            value = f.score.value if f.score else float("nan")
            # The worst of several data sets is no prediction of a race on all of them.
            is_mean = len(prompts) == 1 or self.goal.combine == "mean"
            f.predicted = value if self.goal.name == "expected_speedup" and is_mean else None
            log.info("fresh prompts: %s -> %.3f %s", f.spec.plan, value, objective.unit)
        ids = [ids for found in prompts.values() for ids in found]

        def measure() -> list[Raced]:
            tell.race(0, len(ids))
            return race(
                self.decoder,
                ids,
                finalists,
                ending=Ending(self.goal.max_new_tokens),
                stopwatch=Stopwatch(self.decoder.device),
                listener=lambda n_done: tell.race(n_done, len(ids)),
            )

        return settled(measure)

    def finalists(self, study: SearchStudy, objective: Objective, tell: SearchListener | None = None) -> list[Finalist]:
        """The best trials, scored on prompts that the search has not seen, best first, and then their controls.

        Args:
            study: of the search.
            objective: of the search, on its prompts.
            tell: is told how it goes on.
        """
        tell = tell or SearchListener()
        best = top(study, self.finals.top)
        rules = {study.point(t): t.user_attrs.get("stop") for t in study.trials}  # where one was chosen for the point
        for point, value in best:
            log.info("finals: %s, %.3f in the search", point, value)
        fresh = self._objective(self._fresh(), tell)
        entries = [e for point, value in best for e in self._entries(point, value, rules.get(point), fresh)]
        known = values_of(study)
        with tell.phase("finals", len(entries) + 2) as step:
            scored = rescore(entries, n_kept=len(entries), step=step)
            finalists = scored[: self.finals.race]
            for point in self._controls(finalists, self._rungs(study)):
                value_known = known.get(point)
                value = math.nan if value_known is None else value_known
                control = self._entries(point, value, rules.get(point), fresh)
                finalists += rescore(control[:1], n_kept=1, step=step)
        if self._fresh() is self.prompts:
            log.warning("no calibration prompts are left for the finals: they run on those of the search")
        else:
            expect(finalists, scored, objective)
        return finalists

    def _fresh(self) -> Prompts:
        """The prompts of the finals: those of the search where a data set has no others."""
        return self.fresh if all(self.fresh.get(name) for name in self.prompts) else self.prompts

    def _rungs(self, study: SearchStudy) -> list[Rung]:
        return Ladder(self.space, self.ladder).climb(values_of(study))[0] if self.ladder else []

    def _controls(self, finalists: Sequence[Finalist], rungs: Sequence[Rung]) -> list[Point]:
        """What the best finalist must beat.

        These are itself with nothing skipped; the parts that stay on the ladder, and the same without each of them; and
        lookup alone where that can be chosen.
        """
        settings, nothing = finalists[0].point.settings, SkipSet(self.space.n_layers)
        found = [self.space.point(nothing, settings)]
        if rungs:
            ladder = Ladder(self.space, self.ladder)
            found += [ladder.top(rungs), *ladder.without_each(rungs).values()]
        is_raced = any(p.settings.get(LOOKUP) == "only" for p in found)
        if not is_raced and any(d.name == LOOKUP and d.domain.holds("only") for d in self.space.dimensions):
            found.append(self.space.point(nothing, {**settings, LOOKUP: "only"}))
        racing = {f.point for f in finalists}
        # A control may win, so it must be allowed to.
        return [p for p in dict.fromkeys(found) if p not in racing and self.space.allowed(p) == p]

    def _entries(
        self, point: Point, value: float, tuned: Mapping[str, Any] | None, objective: Objective
    ) -> list[tuple[Finalist, Objective]]:
        """A point with each head that the finals try, and the objective that scores it as it races."""
        entries = []
        for drafts in self.drafts.variants(point):
            spec = drafts(point)
            rule = StopRule.from_dict(tuned) if tuned else spec.stop
            if self.finals.pause and self.costs is not None:
                rule = pausing(rule, spec.plan, self.costs.for_plan(spec.plan), context=self.context)
            spec = replace(spec, stop=rule)
            # Scored with the rule that it races with: one chosen anew would be chosen on what it is judged by.
            entries.append((Finalist(point, spec, value), as_raced(objective, spec)))
        return entries


def _rows(study: SearchStudy) -> list[Row]:
    return [row_of(trial, number) for number, trial in enumerate(study.trials)]
