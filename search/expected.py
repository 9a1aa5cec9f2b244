"""The objectives without noise: drafts replayed against what the full model is known to say, and measured costs.

Nothing is verified and no clock is read into a value, so that two runs give the same number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from search.chains import Chains, Start
from search.cost import CostTable
from search.objective import GoOn, Objective, Score
from search.reference import Reference, ReferenceBatch
from search.replay import NOTHING, draft_everything, looked_up, replay, replay_in_turn
from search.robust import Robust
from search.tune import Widest, fitted, variants
from selfspec.errors import InputError
from selfspec.lookup import LookupDraft
from selfspec.metrics import acceptance, ratio
from selfspec.model import Decoder
from selfspec.plan import DraftPlan
from selfspec.skip import SkipSet
from selfspec.stop import Optimal, StopPolicy, StopState
from selfspec.timing import Stopwatch
from selfspec.trace import Round


@dataclass(frozen=True, slots=True)
class Replayed:
    """The rounds of one prompt, and what they cost in seconds: drafting, verifying, or plain decoding instead."""

    rounds: list[Round]
    draft_s: float
    verify_s: float
    plain_s: float
    plain_drafted_s: float  # had the tokens that the model drafted been plain ones


def cost_of(
    rounds: list[Round], reference: Reference, plan: DraftPlan, costs: CostTable, *, copied: Container[int] = ()
) -> Replayed:
    """One prompt's rounds with their seconds, each at the context where it happens.

    Args:
        rounds: of the prompt.
        reference: the prompt and its answer.
        plan: of the draft.
        costs: of its forwards.
        copied: the numbers of committed tokens after which prompt lookup proposed, which costs nothing.
    """
    n_prompt = len(reference.prompt)
    context = n_prompt
    draft_s = verify_s = plain_s = plain_drafted_s = 0.0
    for r in rounds:
        one = costs.plain_s(context)
        n_forwards = 0 if context - n_prompt + 1 in copied else r.drafted
        draft_s += n_forwards * costs.draft_s(plan, context)
        verify_s += costs.verification_s(r.drafted + 1, context) + (costs.round_s if n_forwards else 0.0)
        plain_s += r.committed * one
        plain_drafted_s += n_forwards * one
        context += r.committed
    return Replayed(rounds, draft_s, verify_s, plain_s, plain_drafted_s)


def expected_speedup(prompts: Sequence[Replayed]) -> float:
    """Plain seconds over the method's, pooled."""
    return ratio(sum(p.plain_s for p in prompts), sum(p.draft_s + p.verify_s for p in prompts))


def accepted_fraction(prompts: Sequence[Replayed]) -> float:
    """Accepted over drafted tokens, pooled; 1 where nothing was drafted, since nothing was rejected."""
    value = acceptance(
        sum(r.accepted for p in prompts for r in p.rounds), sum(r.drafted for p in prompts for r in p.rounds)
    )
    return 1.0 if math.isnan(value) else value


@dataclass(frozen=True, slots=True)
class ReplayObjective:
    """Replays every calibration prompt with a skip set's drafts, and values what comes out.

    Attributes:
        name, unit: of the value.
        value: from the replayed prompts.
        decoder: the model.
        batches: what the full model says on the calibration prompts.
        stop: the stop rule; every prompt begins afresh, but where it is carried.
        costs: measured on this machine.
        stopwatch: for the seconds that scoring takes.
        draft: the plan of a skip set.
        tune_stop: choose the rule's settings for each skip set, those of the best value; the score says which.
        lookup: prompt lookup in front of the draft; None: none.
        is_carried: the rule goes on from prompt to prompt, as when one after the other is decoded.

    Source: the closed form of Leviathan et al. 2023 (arXiv:2211.17192), theorem 3.8, with counted instead of assumed
    acceptance and a measured cost of verification.
    """

    name: str
    unit: str
    value: Callable[[Sequence[Replayed]], float]
    decoder: Decoder
    batches: Sequence[ReferenceBatch]
    stop: StopPolicy
    costs: CostTable
    stopwatch: Stopwatch
    draft: Callable[[SkipSet], DraftPlan] = DraftPlan.of
    tune_stop: bool = False
    lookup: LookupDraft | None = None
    is_carried: bool = False
    rules: Sequence[StopPolicy] = field(init=False)
    copied: Sequence[Mapping[Start, list[int]]] = field(init=False)

    def __post_init__(self) -> None:
        if not self.batches:
            raise InputError("every calibration prompt ended at its first token, so there is nothing to draft")
        object.__setattr__(self, "rules", variants(self.stop) if self.tune_stop else [self.stop])
        lookup = self.lookup
        copied = [looked_up(b.references, lookup) if lookup else NOTHING for b in self.batches]
        object.__setattr__(self, "copied", copied)

    def __call__(self, skip: SkipSet, *, go_on: GoOn | None = None) -> Score:
        """See `Objective`."""
        began = self.stopwatch.now()
        by_rule: dict[StopPolicy, list[Replayed]] = {}
        pruned = False
        for n_done, drafted in enumerate(self._batches(skip), start=1):
            for rule, prompts in drafted.items():
                by_rule.setdefault(rule, []).extend(prompts)
            best = max(by_rule, key=lambda rule: self.value(by_rule[rule]))
            values = tuple(self.value([p]) for p in by_rule[best])
            if go_on and n_done < len(self.batches) and not go_on(values):
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
            stop=best.to_dict() if self.tune_stop else None,
        )

    def _batches(self, skip: SkipSet) -> Iterator[dict[StopPolicy, list[Replayed]]]:
        """The replayed prompts of one batch after the other, by stop rule."""
        plan = self.draft(skip)
        forward = self.decoder.bind(plan)
        rules = list(self.rules)
        learnt: dict[StopPolicy, StopState] = {}
        for n_done, (batch, copied) in enumerate(zip(self.batches, self.copied, strict=True)):
            widest = Widest(rules)
            chains = Chains(forward, batch, max_draft=widest.max_draft, with_confidence=widest.needs_confidence)
            if self.tune_stop:
                draft_everything(chains, widest, copied=copied)
                if isinstance(self.stop, Optimal) and not n_done:
                    rules.append(self._fitted(self.stop, chains, plan))
            replayed = {}
            for rule in rules:
                if self.is_carried:
                    found, learnt[rule] = replay_in_turn(chains, rule, after=learnt.get(rule), copied=copied)
                else:
                    found = replay(chains, rule, copied=copied)
                prompts = zip(found, batch.references, strict=True)
                replayed[rule] = [
                    cost_of(rounds, reference, plan, self.costs, copied={n for r, n in copied if r == row})
                    for row, (rounds, reference) in enumerate(prompts)
                ]
            yield replayed

    def _fitted(self, stop: Optimal, chains: Chains, plan: DraftPlan) -> Optimal:
        """The rule with the costs and the calibration of this draft."""
        context = len(chains.batch.references[0].prompt)
        return fitted(stop, [chains], draft_cost=self.costs.draft_cost(plan, context), costs=self.costs)


def with_rule(objective: Objective, rule: StopPolicy) -> Objective:
    """`objective` with `rule` for its stop rule, as it is and as the race has it, carried from prompt to prompt.

    An objective that replays nothing has no rule to change.
    """
    if isinstance(objective, Robust):
        return replace(objective, objectives={k: with_rule(o, rule) for k, o in objective.objectives.items()})
    if not isinstance(objective, ReplayObjective):
        return objective
    return replace(objective, stop=rule, tune_stop=False, is_carried=True)


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
