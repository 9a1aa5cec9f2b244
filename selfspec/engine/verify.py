"""Verification: which drafted tokens are accepted, and the correction or bonus after them.

Pure functions of tokens and distributions. For any draft, chain or tree, the committed tokens have exactly the
target's distribution; in greedy decoding they are the target's tokens.
"""

# N nodes of a draft, K tokens of a chain, B rows, T tokens, V vocabulary

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from selfspec.engine.protocols import ROOT, Draft, Row, Verdict
from selfspec.engine.sampling import check_choice, choices, draw, probability

Target = Callable[[int], Tensor]  # node, or ROOT -> the target's distribution [V] after it


def judge_greedy(draft: Draft, target: Callable[[int], int] | Sequence[int]) -> Verdict:
    """Verdict of greedy decoding: the path of nodes that equal the target's choices.

    Args:
        draft: a chain or a tree.
        target: the target's choice after the root and after each node, N + 1 token ids in that order; or a function
            from a node or `ROOT` to that choice.
    """
    after = target if callable(target) else lambda node: target[node + 1]
    path: list[int] = []
    node, token = ROOT, after(ROOT)
    while (right := next((c for c in draft.children(node) if draft.tokens[c] == token), None)) is not None:
        path.append(right)
        node, token = right, after(right)
    return Verdict(path, token)


def judge_sampled(draft: Draft, target: Target, rng: torch.Generator) -> Verdict:
    """Verdict of recursive rejection sampling; the output has exactly the target's distribution.

    Siblings drawn without replacement are judged against the rest of their draft distribution. Siblings chosen without
    randomness are judged as point masses.

    Args:
        draft: a chain or a tree.
        target: the target's distribution after a node; called in order, and only for the nodes that are needed.
        rng: the target's random stream.

    Source: for chains Leviathan et al. 2023 (arXiv:2211.17192), section 2.3; for siblings Jeon et al. 2024, RSD
    (arXiv:2402.14160), theorem 3.1. Their p is our target, their q our draft.
    """
    path: list[int] = []
    node = ROOT
    while True:
        left_V = target(node)
        children = draft.children(node)
        draft_V = None if draft.probabilities is None or not children else draft.probabilities[children[0]]
        for child in children:
            token = draft.tokens[child]
            chance = float(torch.rand((), generator=rng, dtype=torch.float64))
            if chance < acceptance_probability(token, draft_V, left_V):
                break
            left_V = residual(token, draft_V, left_V)
            draft_V = None if draft_V is None else without(token, draft_V)
        else:
            return Verdict(path, draw(left_V, rng))
        path.append(child)
        node = child


def judge_block(draft: Draft, target: Target, rng: torch.Generator) -> Verdict:
    """Verdict of block verification: judges a sampled chain as a whole.

    It is as exact as verification token by token and accepts as many tokens or more: a token that the target prefers
    more than the draft does compensates for an earlier one that it prefers less.

    Args:
        draft: a chain.
        target: the target's distribution after a node; called for `ROOT` and for every node.
        rng: the target's random stream.

    Source: Sun et al. 2024 (arXiv:2403.10444), algorithm 2; their M_b is our target, their M_s our draft. The stop
    rule may depend on the drafted tokens: the proof holds for any length that they determine.
    """
    n = len(draft.tokens)
    targets = [target(node) for node in range(ROOT, n)]
    drafts = [_drawn_from(draft, i, targets[i]) for i in range(n)]
    n_accepted, alive, alive_there = 0, 1.0, 1.0
    for i, token in enumerate(draft.tokens):
        alive = min(1.0, alive * probability(targets[i], token) / float(drafts[i][token]))
        chance = alive
        if i + 1 < n:  # grows with the part of the target that the later tokens would leave uncovered
            over = float((alive * targets[i + 1] - drafts[i + 1]).clamp_(min=0).sum())
            chance = over / (over + 1 - alive) if over + 1 - alive > 0 else 1.0
        if float(torch.rand((), generator=rng, dtype=torch.float64)) < chance:
            n_accepted, alive_there = i + 1, alive
    final_V = targets[n_accepted]
    if n_accepted < n:
        final_V = residual_of_block(alive_there, drafts[n_accepted], final_V)
    return Verdict(list(range(n_accepted)), draw(final_V, rng))


def residual_of_block(alive: float, draft_V: Tensor, target_V: Tensor) -> Tensor:
    """The distribution of a correction after a block, [V]: max(alive · target - draft, 0), normalised.

    Args:
        alive: p of the accepted prefix, in Sun et al.'s algorithm 2.
    """
    left_V = (alive * target_V - draft_V).clamp_(min=0)
    total = left_V.sum()
    return left_V / total if total > 0 else target_V


def _drawn_from(draft: Draft, i: int, like_V: Tensor) -> Tensor:
    """The distribution that token i of a chain was drawn from; a point mass if it was not drawn."""
    if draft.probabilities is not None:
        return draft.probabilities[i]
    point_V = torch.zeros_like(like_V)
    point_V[draft.tokens[i]] = 1
    return point_V


def acceptance_probability(token: int, draft_V: Tensor | None, target_V: Tensor) -> float:
    """min(1, target / draft) at `token`; a point-mass draft has probability 1 there."""
    if draft_V is None:
        return probability(target_V, token)
    return min(1.0, probability(target_V, token) / float(draft_V[token]))


def residual(token: int, draft_V: Tensor | None, target_V: Tensor) -> Tensor:
    """The residual distribution after a rejection, [V]: max(target - draft, 0), normalised.

    The correction is drawn from it, or the next sibling is judged against it.

    Args:
        token: the rejected token; used if the draft is a point mass (`draft_V` is None).
    """
    if draft_V is None:
        left_V = target_V.clone()
        left_V[token] = 0
    else:
        left_V = (target_V - draft_V).clamp_(min=0)
    total = left_V.sum()
    # The residual is zero if draft and target differ only by rounding; then the target itself is used.
    return left_V / total if total > 0 else target_V


def without(token: int, draft_V: Tensor) -> Tensor:
    """The distribution of the next sibling, [V]: the draft's distribution without the drawn token, normalised."""
    left_V = draft_V.clone()
    left_V[token] = 0
    total = left_V.sum()
    return left_V / total if total > 0 else draft_V


@dataclass(frozen=True, slots=True)
class Exact:
    """The default verifier: lossless, in greedy decoding token by token and in sampling in distribution.

    Attributes:
        by_block: judge sampled chains as blocks instead of token by token.
    """

    by_block: bool = False

    def judge(self, rows: Sequence[Row], drafts: Sequence[Draft], logits_BTV: Tensor) -> list[Verdict]:
        """A verdict for each row; reads from the device once if all rows are greedy without processors."""
        if all(row.chooser.is_plain_greedy for row in rows):
            chosen = choices(logits_BTV).tolist()
            verdicts = [judge_greedy(draft, tokens) for draft, tokens in zip(drafts, chosen, strict=True)]
            for verdict in verdicts:
                check_choice(verdict.token)  # accepted tokens are drafted tokens, so they are valid
            return verdicts
        return [self._row(*each) for each in zip(rows, drafts, logits_BTV, strict=True)]

    def _row(self, row: Row, draft: Draft, logits_TV: Tensor) -> Verdict:
        chooser = row.chooser

        def ids_after(node: int) -> list[int]:
            return row.ids + draft.path(node)

        if not chooser.do_sample:
            return judge_greedy(draft, lambda node: chooser.greedy(ids_after(node), logits_TV[node + 1]))

        def target(node: int) -> Tensor:
            return chooser.probabilities(ids_after(node), logits_TV[node + 1])

        judge = judge_block if self.by_block and draft.parents is None else judge_sampled
        return judge(draft, target, chooser.target_rng)
