"""Tune the settings of a stop rule for a draft. A replay of a rule needs no forward, so many settings can be tried."""

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
from selfspec.stopping import Evidence, Optimal, PauseWhenUnprofitable, RuleState, StopPolicy, StopRule, StopState

MAX_KNOTS = 12  # largest number of knots of a calibration; chosen, not tuned


@dataclass(frozen=True, slots=True)
class Never(StopRule):
    """Drafts nothing: what is left is prompt lookup alone."""

    max_draft: int = 1

    def begin(self, after: StopState | None = None) -> StopState:
        """The state of a new prompt, which never drafts."""
        return _NeverState()


class _NeverState(RuleState):
    def begins(self) -> bool:
        return False

    def more(self, n_drafted: int, confidence: float) -> bool:
        return False


@dataclass(frozen=True, slots=True)
class Widest(StopRule):
    """Drafts as long as any of `rules` would, so that the chains serve a replay of all of them."""

    rules: Sequence[StopPolicy]

    @property
    def max_draft(self) -> int:
        """The largest limit of the rules."""
        return max(rule.max_draft for rule in self.rules)

    @property
    def needs_confidence(self) -> bool:  # type: ignore[override]
        """Whether any rule reads the confidence."""
        return any(rule.needs_confidence for rule in self.rules)

    @property
    def evidence(self) -> Evidence:  # type: ignore[override]
        """What the rules read, which are variants of one."""
        return self.rules[0].evidence

    def begin(self, after: StopState | None = None) -> StopState:
        """A state with new states of all rules."""
        return _WidestState([rule.begin() for rule in self.rules])


@dataclass(slots=True)
class _WidestState(RuleState):
    states: list[StopState]

    def more(self, n_drafted: int, confidence: float) -> bool:
        self.states = [state for state in self.states if state.more(n_drafted, confidence)]
        return bool(self.states)


def variants(stop: StopPolicy) -> list[StopPolicy]:
    """`stop` itself, and the rule with other settings.

    The settings of an `Optimal` rule (costs, calibration) depend on the draft: see `fitted`.

    Raises:
        InputError: if the rule has no other settings.
    """
    found = [stop, *stop.variants()]
    if len(found) == 1 and not isinstance(stop, Optimal):
        raise InputError(
            f"objective.tune_stop=true, but the stop rule {type(stop).__name__} proposes no other settings; give it "
            "`variants`, or leave tune_stop out"
        )
    return found


def fitted(rule: Optimal, drafted: Sequence[Chains], *, draft_cost: float, costs: CostTable) -> Optimal:
    """`rule` with a draft's costs, in plain tokens, and its calibration from confidence to acceptance.

    Args:
        rule: the rule.
        drafted: chains of the draft; empty chains have no effect.
        draft_cost: cost of one drafted token, in plain tokens.
        costs: cost table, for verifications.
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
    """`rule` with pauses while the plan's drafts cost more than they give.

    Args:
        rule: decides how far to draft between pauses.
        plan: plan of the draft.
        costs: cost table of its forwards.
        context: number of context tokens at which the costs are read.
    """
    # The costs of a table that was measured on a busy machine may have a negative sum.
    draft_cost = max(0.0, costs.draft_cost(plan, context))
    return PauseWhenUnprofitable(
        rule, draft_cost=draft_cost, verify_cost=verify_cost(costs, rule.max_draft, context=context)
    )


def verify_cost(costs: CostTable, n_tokens: int, *, context: int) -> float:
    """Cost of verifying one more token, in plain tokens, on average over the first `n_tokens`."""
    more_s = costs.verification_s(n_tokens + 1, context) - costs.verification_s(1, context)
    return max(0.0, more_s / n_tokens / costs.plain_s(context))


def is_priced(spec: DraftSpec) -> bool:
    """Whether the tree of a spec has costs, or the spec has no tree."""
    return bool(getattr(spec.tree, "is_priced", True))


def priced(spec: DraftSpec, *, draft_cost: float, costs: CostTable, context: int) -> DraftSpec:
    """The spec with costs in its tree, if the tree needs them.

    Args:
        spec: spec of the draft.
        draft_cost: cost of one forward of the draft, in plain tokens.
        costs: cost table, for verifications.
        context: number of context tokens at which the costs are read.
    """
    tree = spec.tree
    if tree is None or is_priced(spec):
        return spec
    assert isinstance(tree, BestFirst)
    step = verify_cost(costs, tree.max_nodes, context=context)
    return replace(spec, tree=tree.priced(max(0.0, draft_cost), step))


def judged(reference: Reference, n_committed: int, chain: Chain) -> list[tuple[float, bool]]:
    """(confidence, whether the target chooses the token) for a chain's tokens up to the first rejection."""
    pairs = []
    for token, target, sure in zip(chain.tokens, reference.tokens[n_committed:], chain.confidences, strict=False):
        pairs.append((sure, token == target))
        if token != target:
            break
    return pairs


def calibration(pairs: Sequence[tuple[float, bool]]) -> tuple[tuple[float, float], ...]:
    """Rising (confidence, acceptance) knots from isotonic regression; the identity if there are too few pairs.

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
