"""Accept, correct, bonus: which drafted tokens stand, and what the target says after them.

Pure functions of tokens and distributions. Whatever is drafted, as a chain or as a tree, the committed tokens are
distributed exactly as the target's own (greedy: are the target's own).
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
    """The path of nodes that are the target's choices.

    Args:
        draft: a chain or a tree.
        target: what the target chooses after the root and after each node, N + 1 token ids in that order; or a function
            that says it of a node or of `ROOT`.
    """
    after = target if callable(target) else lambda node: target[node + 1]
    path: list[int] = []
    node, token = ROOT, after(ROOT)
    while (right := next((c for c in draft.children(node) if draft.tokens[c] == token), None)) is not None:
        path.append(right)
        node, token = right, after(right)
    return Verdict(path, token)


def judge_sampled(draft: Draft, target: Target, rng: torch.Generator) -> Verdict:
    """Rejection sampling, from sibling to sibling and from node to node: the target's distribution exactly.

    Siblings that were drawn without replacement are judged against what is left of their draft distribution, siblings
    that were chosen without chance as point masses.

    Args:
        draft: a chain or a tree.
        target: the target's distribution after a node, asked in order and no further than needed.
        rng: the target's stream.

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
    """A sampled chain judged as a whole: accepts as many tokens as token by token or more, and is as exact.

    A token that the target likes better than the draft makes up for one before it that it likes less.

    Args:
        draft: a chain.
        target: see `judge_sampled`; asked after every token.
        rng: the target's stream.

    Source: Sun et al. 2024 (arXiv:2403.10444), algorithm 2; their M_b is our target, their M_s our draft. The rule that
    ends a draft may look at its tokens: the proof goes through for any length that they decide.
    """
    n = len(draft.tokens)
    targets = [target(node) for node in range(ROOT, n)]
    drafts = [_drawn_from(draft, i, targets[i]) for i in range(n)]
    n_accepted, alive, alive_there = 0, 1.0, 1.0
    for i, token in enumerate(draft.tokens):
        alive = min(1.0, alive * probability(targets[i], token) / float(drafts[i][token]))
        chance = alive
        if i + 1 < n:  # the more likely, the more of the target the tokens behind would leave unserved
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
    """The distribution that token i of a chain was drawn from; a point mass where it was chosen without chance."""
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
    """What of the target the draft under-serves, [V]: max(target - draft, 0), normalised.

    A correction follows it; or the next sibling is judged against it.

    Args:
        token: the rejected token, where the draft is a point mass (`draft_V` is None).
    """
    if draft_V is None:
        left_V = target_V.clone()
        left_V[token] = 0
    else:
        left_V = (target_V - draft_V).clamp_(min=0)
    total = left_V.sum()
    # Nothing is left where draft and target differ by rounding alone; then the target itself is what is left of it.
    return left_V / total if total > 0 else target_V


def without(token: int, draft_V: Tensor) -> Tensor:
    """What the next sibling is drawn from, [V]: the draft's distribution without a token that was drawn."""
    left_V = draft_V.clone()
    left_V[token] = 0
    total = left_V.sum()
    return left_V / total if total > 0 else draft_V


@dataclass(frozen=True, slots=True)
class Exact:
    """The verifier: the target's own output, greedy or in distribution.

    Attributes:
        by_block: sampled chains are judged as blocks instead of token by token.
    """

    by_block: bool = False

    def judge(self, rows: Sequence[Row], drafts: Sequence[Draft], logits_BTV: Tensor) -> list[Verdict]:
        """See `Verifier`; one read from the device where all rows are plainly greedy."""
        if all(row.chooser.is_plain_greedy for row in rows):
            chosen = choices(logits_BTV).tolist()
            verdicts = [judge_greedy(draft, tokens) for draft, tokens in zip(drafts, chosen, strict=True)]
            for verdict in verdicts:
                check_choice(verdict.token)  # the path's tokens are drafted ones
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
