"""The arithmetic of overlapped decoding: tokens a round, speedups, and the r that it needs to beat decoding in turn.

Acceptance alpha is that of every token, whatever came before. Seconds are of one forward. r is the speed that drafter
and verifier keep when both run at once: 1 on two machines, a half where they share what one of them already uses up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

MAX_DRAFT = 16  # the longest draft that decoding in turn is granted in a comparison; chosen, not tuned


def post_share(alpha: float, gamma: int) -> float:
    """Share of the rounds that begin with pending tokens, in the long run; 0 for gamma = 1.

    A pre-verify round goes over into post-verify with probability alpha, a post-verify round stays there with
    alpha ** gamma. With gamma = 1 nothing is ever pending.
    """
    if gamma == 1:
        return 0.0
    return alpha / (1 + alpha - alpha**gamma)


def tokens_per_round(alpha: float, gamma: int) -> float:
    """Tokens that a round of PEARL commits on average.

    A pre-verify round commits 1; a post-verify round tests gamma tokens and commits (1 - alpha ** gamma) / (1 - alpha),
    or gamma for alpha = 1.
    """
    post = post_share(alpha, gamma)
    return 1 - post + post * _geometric(alpha, gamma)


def tokens_per_turn(alpha: float, n_draft: int) -> float:
    """Tokens that a round of decoding in turn commits on average, with drafts of `n_draft` tokens."""
    return _geometric(alpha, n_draft + 1)


def _geometric(alpha: float, n: int) -> float:
    """1 + alpha + ... + alpha ** (n - 1)."""
    return float(n) if alpha == 1 else (1 - alpha**n) / (1 - alpha)


def acceptance(n_accepted: int, n_tested: int) -> float:
    """Acceptance of a token, from counts pooled over rounds; nan if nothing was tested.

    `n_tested` counts accepted tokens and rejected ones, and none behind a rejected one.
    """
    return n_accepted / n_tested if n_tested else math.nan


@dataclass(frozen=True, slots=True)
class Seconds:
    """Seconds of forwards, each while nothing else runs.

    Attributes:
        plain: of the target for one token.
        verify: of the target for a verification.
        draft: of the draft for one token.
    """

    plain: float
    verify: float
    draft: float


def overlapped_speedup(alpha: float, gamma: int, seconds: Seconds, r: float = 1.0) -> float:
    """Speed of PEARL over plain decoding: a round takes as long as the slower of drafting and verifying, over r.

    Source: systems' arithmetic of Liu et al. 2024 (arXiv:2408.11850): T = max(gamma * draft, verify) in both states.
    """
    return tokens_per_round(alpha, gamma) * seconds.plain * r / max(gamma * seconds.draft, seconds.verify)


def in_turn_speedup(alpha: float, seconds: Seconds, n_draft: int | None = None) -> float:
    """Speed of drafting and verifying in turn over plain decoding, with drafts of `n_draft` tokens.

    None: the best length up to `MAX_DRAFT`. A verification is taken to cost the same for each of them.
    """
    lengths = range(1, MAX_DRAFT + 1) if n_draft is None else [n_draft]
    return max(tokens_per_turn(alpha, k) * seconds.plain / (k * seconds.draft + seconds.verify) for k in lengths)


def break_even(alpha: float, gamma: int, seconds: Seconds) -> float:
    """The r from which PEARL is faster than the best of plain decoding and decoding in turn."""
    return max(1.0, in_turn_speedup(alpha, seconds)) / overlapped_speedup(alpha, gamma, seconds)


def balanced_gamma(verify_s: float, draft_s: float, *, most: int) -> int:
    """The block length at which drafting takes as long as verifying: the ratio of the two rates, from 2 to `most`.

    Source: nano-PEARL, gamma = -1: round(drafts a second / verifications a second).
    """
    return min(most, max(2, round(verify_s / draft_s)))
