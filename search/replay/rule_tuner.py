"""Which settings should a stop rule have for this draft? Replaying a rule costs no model call, so many can be tried."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import isotonic_regression  # type: ignore[import-untyped]

from search.costs.table import CostTable
from search.replay.chains import Chain, Chains
from search.replay.references import Reference
from selfspec.drafters.spec import DraftSpec
from selfspec.drafters.tree_shapes import BestFirst
from selfspec.errors import InputError
from selfspec.skipping.plan import DraftPlan
from selfspec.stopping import Optimal, PauseWhenUnprofitable, RuleState, StopPolicy, StopRule, StopState

MAX_KNOTS = 12  # of a calibration; chosen, not tuned


@dataclass(frozen=True, slots=True)
class Widest(StopRule):
    """Drafts as far as any of `rules` would: what all of them need can then be replayed."""

    rules: Sequence[StopPolicy]

    @property
    def max_draft(self) -> int:
        """See `StopPolicy`."""
        return max(rule.max_draft for rule in self.rules)

    @property
    def needs_confidence(self) -> bool:  # type: ignore[override]
        """See `StopPolicy`."""
        return any(rule.needs_confidence for rule in self.rules)

    def begin(self, after: StopState | None = None) -> StopState:
        """See `StopPolicy`."""
        return _WidestState([rule.begin() for rule in self.rules])


@dataclass(slots=True)
class _WidestState(RuleState):
    states: list[StopState]

    def more(self, n_drafted: int, confidence: float) -> bool:
        self.states = [state for state in self.states if state.more(n_drafted, confidence)]
        return bool(self.states)


def variants(stop: StopPolicy) -> list[StopPolicy]:
    """`stop` itself, and what it proposes to try instead of its own settings.

    What an `Optimal` rule has to choose (costs, calibration) depends on the draft: see `fitted`.

    Raises:
        InputError: if there is nothing to choose from.
    """
    found = [stop, *stop.variants()]
    if len(found) == 1 and not isinstance(stop, Optimal):
        raise InputError(
            f"objective.tune_stop=true, but the stop rule {type(stop).__name__} proposes no other settings; give it "
            "`variants`, or leave tune_stop out"
        )
    return found


def fitted(rule: Optimal, drafted: Sequence[Chains], *, draft_cost: float, costs: CostTable) -> Optimal:
    """`rule` with the costs of a draft, in plain tokens, and its calibration from confidence to acceptance.

    Args:
        rule: the rule.
        drafted: the draft's chains; those from places that were not drafted from say nothing.
        draft_cost: of one drafted token.
        costs: of verifying.
    """
    pairs = [
        pair
        for chains in drafted
        for row, n in chains.starts
        for pair in judged(chains.batch.references[row], n, chains[row, n])
    ]
    more = verify_cost(costs, rule.max_draft, context=len(drafted[0].batch.references[0].prompt))
    return replace(rule, draft_cost=draft_cost, verify_cost=more, calibration=calibration(pairs))


def pausing(rule: StopPolicy, plan: DraftPlan, costs: CostTable, *, context: int) -> PauseWhenUnprofitable:
    """`rule`, with pauses while the plan's drafts cost more than they give.

    Args:
        rule: how far to draft.
        plan: of the draft.
        costs: of its forwards.
        context: tokens, at which the costs are taken.
    """
    # A table measured on a busy machine may add up to less than nothing.
    draft_cost = max(0.0, costs.draft_cost(plan, context))
    return PauseWhenUnprofitable(
        rule, draft_cost=draft_cost, verify_cost=verify_cost(costs, rule.max_draft, context=context)
    )


def verify_cost(costs: CostTable, n_tokens: int, *, context: int) -> float:
    """What verifying one token more costs, in plain tokens, on average over the first `n_tokens`."""
    more_s = costs.verification_s(n_tokens + 1, context) - costs.verification_s(1, context)
    return max(0.0, more_s / n_tokens / costs.plain_s(context))


def is_priced(spec: DraftSpec) -> bool:
    """Whether a spec's tree, if it has one, knows what its nodes cost."""
    return bool(getattr(spec.tree, "is_priced", True))


def priced(spec: DraftSpec, *, draft_cost: float, costs: CostTable, context: int) -> DraftSpec:
    """A spec whose tree, if it wants to know, is told what its nodes cost.

    Args:
        spec: of the draft.
        draft_cost: of one forward of it, in plain tokens.
        costs: of verifications.
        context: tokens, at which these are taken.
    """
    tree = spec.tree
    if tree is None or is_priced(spec):
        return spec
    assert isinstance(tree, BestFirst)
    step = verify_cost(costs, tree.max_nodes, context=context)
    return replace(spec, tree=tree.priced(max(0.0, draft_cost), step))


def judged(reference: Reference, n_committed: int, chain: Chain) -> list[tuple[float, bool]]:
    """(confidence, whether the target agreed) of a chain's tokens up to the first that it did not agree with."""
    pairs = []
    for token, target, sure in zip(chain.tokens, reference.tokens[n_committed:], chain.confidences, strict=False):
        pairs.append((sure, token == target))
        if token != target:
            break
    return pairs


def calibration(pairs: Sequence[tuple[float, bool]]) -> tuple[tuple[float, float], ...]:
    """Rising (confidence, acceptance) knots: isotonic regression, thinned; the identity where there is too little.

    Source: Zadrozny & Elkan 2002, Transforming classifier scores into accurate multiclass probability estimates.
    """
    if len(pairs) < 2 * MAX_KNOTS:
        return (0.0, 0.0), (1.0, 1.0)
    data = sorted(pairs)
    groups = np.array_split(np.array(data, dtype=float), MAX_KNOTS)
    x = [float(g[:, 0].mean()) for g in groups]
    y = isotonic_regression([g[:, 1].mean() for g in groups], weights=[len(g) for g in groups]).x
    knots = {0.0: 0.0} | {min(max(a, 1e-6), 1 - 1e-6): min(max(float(b), 0.0), 1.0) for a, b in zip(x, y, strict=True)}
    knots[1.0] = max(knots.values())
    return tuple(sorted(knots.items()))
