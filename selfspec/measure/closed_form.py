"""What a draft brings if every drafted token is accepted with the same probability: closed forms.

They relate four numbers: the chance of acceptance, the draft length, and the costs of drafting and verifying. They know
nothing of models, skip sets or measured rounds; what real rounds bring is counted, not computed here.
"""

from __future__ import annotations

import math

HALVINGS = 50  # of the interval [0, 1]: down to rounding


def expected_tokens(chance: float, n_drafted: float) -> float:
    """Mean tokens a round gives, the correction or bonus included: 1 + a + a² + ... + a^K.

    Args:
        chance: a, the probability that a drafted token is accepted if those before it are; in [0, 1].
        n_drafted: K, tokens drafted a round; a mean that is no whole number gives the value between.

    Raises:
        ValueError: if `chance` is no probability or `n_drafted` is negative.

    Source: Leviathan et al. 2023 (arXiv:2211.17192), equation 1: (1 - α^(γ+1)) / (1 - α); their α is a, their γ is K.
    """
    if not 0 <= chance <= 1 or n_drafted < 0:
        raise ValueError(f"chance={chance} must lie in [0, 1] and n_drafted={n_drafted} must not be negative")
    if chance in (0, 1):
        return 1 + chance * n_drafted
    # expm1: the plain formula loses its digits where the chance is close to 1
    return math.expm1((n_drafted + 1) * math.log(chance)) / (chance - 1)


def expected_speedup(chance: float, *, n_drafted: float, draft_cost: float, verify_cost: float = 1.0) -> float:
    """Seconds of plain decoding over seconds of drafting and verifying, for the same tokens.

    Args:
        chance: see `expected_tokens`.
        n_drafted: tokens drafted a round.
        draft_cost: c, of one drafted token, in plain tokens.
        verify_cost: v, of all else in a round, in plain tokens: the verification and the engine's own time.

    Source: Leviathan et al. 2023 (arXiv:2211.17192), theorem 3.8, with v in place of their 1.
    """
    return expected_tokens(chance, n_drafted) / (draft_cost * n_drafted + verify_cost)


def best_length(chance: float, *, draft_cost: float, verify_cost: float = 1.0, longest: int = 24) -> int:
    """The draft length of the largest expected speedup, from 1 to `longest` tokens."""

    def speedup(n_drafted: int) -> float:
        return expected_speedup(chance, n_drafted=n_drafted, draft_cost=draft_cost, verify_cost=verify_cost)

    return max(range(1, longest + 1), key=speedup)


def chance_of_acceptance(acceptance: float, n_drafted: int) -> float:
    """The chance a of each token that explains `acceptance` = accepted / drafted, if every round drafts K tokens.

    Tokens after the first rejection are drafted and never judged, so accepted / drafted is at most this chance: of a
    round of K tokens a + a² + ... + a^K are accepted on average.

    Args:
        acceptance: accepted over drafted tokens, pooled, in [0, 1].
        n_drafted: K, from 1 on.
    """
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        is_low = expected_tokens(middle, n_drafted) - 1 < acceptance * n_drafted
        low, high = (middle, high) if is_low else (low, middle)
    return high
