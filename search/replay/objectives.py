"""Objectives without noise: replay drafts against references, and weigh the counts with measured costs.

A value involves neither a verification nor a clock, so two runs give the same value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from search.costs.draft_tables import Costs
from search.costs.table import CostTable
from search.multi_dataset import MultiDataset
from search.objective import Objective, Score, ShouldContinue, SpecOfPoint, TokensPerSecond
from search.point import Point
from search.replay.chain_replay import NOTHING, draft_everything, find_lookup_proposals, replay, replay_in_turn
from search.replay.chains import Chains, Start
from search.replay.parallel_agreement import ParallelAgreement
from search.replay.references import Reference, ReferenceBatch
from search.replay.rule_tuner import Never, Widest, fitted, variants
from search.replay.simulator import simulate
from selfspec.drafters.build import build_drafter, lookup_of
from selfspec.drafters.spec import DraftSpec
from selfspec.engine.trace import Round
from selfspec.errors import InputError
from selfspec.measure.metrics import acceptance, ratio
from selfspec.measure.stopwatch import Stopwatch
from selfspec.models.decoder import Decoder
from selfspec.skipping.plan import DraftPlan
from selfspec.skipping.skip_set import SkipSet
from selfspec.stopping import Optimal, StopPolicy, StopState


@dataclass(frozen=True, slots=True)
class Replayed:
    """The rounds of one prompt, and the seconds of drafting, of verifying, and of plain decoding instead."""

    rounds: list[Round]
    draft_s: float
    verify_s: float
    plain_s: float
    plain_drafted_s: float  # seconds plain decoding needs for as many tokens as the draft's forwards


def cost_of(rounds: list[Round], reference: Reference, plan: DraftPlan, costs: CostTable) -> Replayed:
    """The rounds of one prompt with their seconds, each at its own context length.

    A forward of the draft over several nodes of a tree counts as much as one over a single node.

    Args:
        rounds: rounds of the prompt.
        reference: the prompt and its answer.
        plan: plan of the draft.
        costs: cost table of its forwards.
    """
    context = len(reference.prompt)
    draft_s = verify_s = plain_s = plain_drafted_s = 0.0
    for r in rounds:
        one = costs.plain_s(context)
        draft_s += r.n_forwards * costs.draft_s(plan, context)
        verify_s += costs.verification_s(r.drafted + 1, context) + (costs.overhead_s if r.n_forwards else 0.0)
        plain_s += r.committed * one
        plain_drafted_s += r.n_forwards * one
        context += r.committed
    return Replayed(rounds, draft_s, verify_s, plain_s, plain_drafted_s)


def expected_speedup(prompts: Sequence[Replayed]) -> float:
    """Seconds of plain decoding over seconds of the method, pooled."""
    return ratio(sum(p.plain_s for p in prompts), sum(p.draft_s + p.verify_s for p in prompts))


def accepted_fraction(prompts: Sequence[Replayed]) -> float:
    """Accepted over drafted tokens, pooled; 1 if nothing was drafted, since nothing was rejected."""
    value = acceptance(
        sum(r.accepted for p in prompts for r in p.rounds), sum(r.drafted for p in prompts for r in p.rounds)
    )
    return 1.0 if math.isnan(value) else value


class LookupProposals:
    """Proposals of prompt lookup in the references; they depend only on the references and the lookup, and are cached.

    Args:
        batches: batches of references.
    """

    def __init__(self, batches: Sequence[ReferenceBatch]) -> None:
        self._batches = batches
        self._found: dict[Any, tuple[Any, list[Mapping[Start, list[int]]]]] = {}

    def __call__(self, spec: DraftSpec) -> Sequence[Mapping[Start, list[int]]]:
        """For each batch, the proposals of the lookup of `spec` by start."""
        lookup, memory = lookup_of(spec), spec.plan.memory
        if lookup is None:
            return [NOTHING for _ in self._batches]
        key = (tuple(sorted(spec.lookup_settings.items())), id(memory))
        if key not in self._found:  # the memory is stored as well, so that no other one gets its id
            self._found[key] = memory, [find_lookup_proposals(b.references, lookup) for b in self._batches]
        return self._found[key][1]


@dataclass(frozen=True, slots=True)
class ReplayObjective:
    """Replays every calibration prompt with a point's drafts, and computes a value from the replayed prompts.

    Attributes:
        name, unit: name and unit of the value.
        value: function from the replayed prompts to the value.
        decoder: the model.
        batches: references of the calibration prompts.
        costs: costs measured on this machine.
        stopwatch: measures the seconds of scoring.
        draft: gives the draft spec of a point. Its stop rule begins anew for every prompt, unless `is_carried`.
        tune_stop: choose the stop rule's settings with the best value for each point; the score holds them.
        is_carried: the stop rule keeps its state from prompt to prompt, as in decoding them one after another.
        lookup_proposals: proposals of prompt lookup; None: computed from `batches`.

    Source: the closed form of Leviathan et al. 2023 (arXiv:2211.17192), theorem 3.8, with counted instead of assumed
    acceptance and a measured cost of verification.
    """

    name: str
    unit: str
    value: Callable[[Sequence[Replayed]], float]
    decoder: Decoder
    batches: Sequence[ReferenceBatch]
    costs: Costs
    stopwatch: Stopwatch
    draft: SpecOfPoint
    tune_stop: bool = False
    is_carried: bool = False
    lookup_proposals: LookupProposals | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not self.batches:
            raise InputError("every calibration prompt ended at its first token, so there is nothing to draft")
        if self.lookup_proposals is None:
            object.__setattr__(self, "lookup_proposals", LookupProposals(self.batches))

    def __call__(self, point: Point | SkipSet, *, should_continue: ShouldContinue | None = None) -> Score:
        """The score of a replay; with `tune_stop` that of the stop rule with the best value."""
        began = self.stopwatch.now()
        by_rule: dict[StopPolicy, list[Replayed]] = {}
        pruned = False
        for n_done, drafted in enumerate(self._batches(self.draft(Point.from_draft(point))), start=1):
            for rule, prompts in drafted.items():
                by_rule.setdefault(rule, []).extend(prompts)
            best = max(by_rule, key=lambda rule: self.value(by_rule[rule]))
            values = tuple(self.value([p]) for p in by_rule[best])
            if should_continue and n_done < len(self.batches) and not should_continue(values):
                pruned = True
                break
        prompts = by_rule[best]
        rounds = [r for p in prompts for r in p.rounds]
        return Score(
            value=self.value(prompts),
            n_tokens=sum(r.committed for r in rounds),
            n_rounds=len(rounds),
            drafted=sum(r.drafted for r in rounds),
            accepted=sum(r.accepted for r in rounds),
            seconds=self.stopwatch.now() - began,
            draft_cost=_or_none(ratio(sum(p.draft_s for p in prompts), sum(p.plain_drafted_s for p in prompts))),
            values=values,
            pruned=pruned,
            stop=best.to_dict() if self.tune_stop and not isinstance(best, Never) else None,
        )

    def _batches(self, spec: DraftSpec) -> Iterator[dict[StopPolicy, list[Replayed]]]:
        """The replayed prompts of one batch after the other, by stop rule."""
        if not spec.is_plan:
            if self.tune_stop and spec.plan.trained is None:  # a trained head has the rule that it was saved with
                raise InputError(f"{spec} has no stop rule that a replay could tune; leave objective.tune_stop out")
            yield from self._simulated(spec)
            return
        assert self.lookup_proposals is not None
        plan, costs = spec.plan, self.costs.for_plan(spec.plan)
        forward = self.decoder.bind(plan)
        tunes = self.tune_stop and spec.lookup != "only"
        # Where lookup stands alone nobody asks the rule.
        rules = variants(spec.stop) if tunes else [Never() if spec.lookup == "only" else spec.stop]
        learnt: dict[StopPolicy, StopState] = {}
        for n_done, (batch, lookup_proposals) in enumerate(zip(self.batches, self.lookup_proposals(spec), strict=True)):
            widest = Widest(rules)
            chains = Chains(
                forward,
                batch,
                max_draft=widest.max_draft,
                with_confidence=widest.needs_confidence,
                evidence=widest.evidence,
            )
            if tunes:
                draft_everything(chains, widest, lookup_proposals=lookup_proposals)
                if isinstance(spec.stop, Optimal) and not n_done:
                    context = len(batch.references[0].prompt)
                    draft_cost = costs.draft_cost(plan, context)
                    rules.append(fitted(spec.stop, [chains], draft_cost=draft_cost, costs=costs))
            replayed = {}
            for rule in rules:
                if self.is_carried:
                    found, learnt[rule] = replay_in_turn(
                        chains, rule, after=learnt.get(rule), lookup_proposals=lookup_proposals
                    )
                else:
                    found = replay(chains, rule, lookup_proposals=lookup_proposals)
                prompts = zip(found, batch.references, strict=True)
                replayed[rule] = [cost_of(rounds, reference, plan, costs) for rounds, reference in prompts]
            yield replayed

    def _simulated(self, spec: DraftSpec) -> Iterator[dict[StopPolicy, list[Replayed]]]:
        """The same for a drafter that must run as in a decode: a tree, or a user's own drafter.

        With `is_carried` the rule's state carries over from batch to batch; the prompts of a batch begin with the same
        state.
        """
        drafter = build_drafter(spec, self.decoder)
        costs, state = self.costs.for_plan(spec.plan), None
        for batch in self.batches:
            found, states = simulate(self.decoder, drafter, batch, spec.stop, after=state)
            state = states[-1] if self.is_carried else None
            prompts = zip(found, batch.references, strict=True)
            yield {spec.stop: [cost_of(rounds, reference, spec.plan, costs) for rounds, reference in prompts]}


def as_raced(objective: Objective, spec: DraftSpec) -> Objective:
    """`objective` for `spec` at any point, with the stop rule's state carried from prompt to prompt as in a race.

    An objective without a replay changes only its spec.
    """
    if isinstance(objective, MultiDataset):
        return replace(objective, objectives={k: as_raced(o, spec) for k, o in objective.objectives.items()})
    if isinstance(objective, ReplayObjective):
        return replace(objective, draft=lambda _: spec, tune_stop=False, is_carried=True)
    assert isinstance(objective, TokensPerSecond | ParallelAgreement)
    return replace(objective, draft=lambda _: spec)


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
