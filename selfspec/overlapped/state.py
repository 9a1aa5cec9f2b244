"""The state machine of PEARL: which tokens a round tests, and what it leaves unverified.

Between two rounds the text ends with tokens that were drafted and not verified, the *pending* ones. In a round the
target reads the last committed token and the pending ones, while the drafter drafts the next *block* behind them.
The target can then test every pending token and the first one of the block:

    pre-verify (nothing pending)      tests block[0]
    post-verify (p tokens pending)    tests pending[0..p-1], block[0]

If all stand, the rest of the block is pending and drafting never stopped. If one is rejected, it is corrected, and the
block is thrown away. Pure functions of tokens and distributions: they know nothing of models, caches or processes.

Source: Liu et al. 2024, PEARL (arXiv:2408.11850), section 4: pre-verify and post-verify.
"""

# T tokens read (the last committed one and the pending ones), V vocabulary

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from selfspec.engine.protocols import Row
from selfspec.engine.sampling import check_choice, choices, draw
from selfspec.engine.verify import acceptance_probability, residual

Mode = Literal["pre-verify", "post-verify"]


@dataclass(frozen=True, slots=True, eq=False)
class Drafted:
    """A drafted token.

    Attributes:
        token: its id.
        draft_V: the distribution that it was drawn from; None: it was chosen without randomness.
    """

    token: int
    draft_V: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the tests of a round found.

    Attributes:
        n_tested: tokens that were tested, a rejected one included.
        n_accepted: tokens that stand.
        token: the correction of the rejected token; the bonus if there was no block; None: every tested token stands,
            and the block goes on behind them.
    """

    n_tested: int
    n_accepted: int
    token: int | None


def mode(pending: Sequence[Drafted]) -> Mode:
    """The state that a round begins in."""
    return "post-verify" if pending else "pre-verify"


def advance(
    pending: Sequence[Drafted], block: Sequence[Drafted], outcome: Outcome
) -> tuple[list[int], tuple[Drafted, ...]]:
    """The tokens that a round commits, and the pending tokens that it leaves.

    Args:
        pending: the pending tokens that it began with.
        block: what was drafted meanwhile; read only if every tested token stands.
        outcome: of the tests.
    """
    tested = [*pending, *block[:1]]
    committed = [drafted.token for drafted in tested[: outcome.n_accepted]]
    if outcome.token is not None:
        return [*committed, outcome.token], ()
    assert block and outcome.n_accepted == len(tested), "without a block the last row of logits gives a bonus"
    return committed, tuple(block[1:])


def judge(row: Row, pending: Sequence[Drafted], logits_TV: Tensor, first: Callable[[], Drafted | None]) -> Outcome:
    """Test the pending tokens in order, and then the first one of the block.

    A token that was drawn from a distribution is accepted with probability min(1, target / draft), and its correction
    is drawn from the residual. For a token that was not drawn, the target chooses its own token as plain decoding does,
    with the same draw from the same stream, and the token stands if it is that one. So the output is that of plain
    decoding token by token, sampled or greedy; a token stands with the target's probability of it, as by nano-PEARL's
    test against a one-hot distribution.

    Args:
        row: the row, before any token of the round is committed.
        pending: p tokens.
        logits_TV: the target's logits after the last committed token and after each pending one; T = p + 1.
        first: waits for the first token of the block; None: there is no block. Called only if all pending tokens stand.

    Raises:
        PromptError: if the target's logits are nan or infinite.

    Source: Leviathan et al. 2023 (arXiv:2211.17192), section 2.3, for drawn tokens.
    """
    chosen = choices(logits_TV).tolist() if row.chooser.is_plain_greedy else None
    ids = list(row.ids)
    for i in range(len(pending) + 1):
        tested = pending[i] if i < len(pending) else first()
        draft_V = None if tested is None else tested.draft_V
        if tested is None or draft_V is None:
            token = check_choice(chosen[i]) if chosen is not None else _own_choice(row, ids, logits_TV[i])
            if tested is None:
                return Outcome(i, i, token)
            if token != tested.token:
                return Outcome(i + 1, i, token)
        else:
            rng = row.chooser.target_rng
            target_V = row.chooser.probabilities(ids, logits_TV[i])
            chance = float(torch.rand((), generator=rng, dtype=torch.float64))
            if chance >= acceptance_probability(tested.token, draft_V, target_V):
                return Outcome(i + 1, i, draw(residual(tested.token, draft_V, target_V), rng))
        ids.append(tested.token)
    return Outcome(len(pending) + 1, len(pending) + 1, None)


def _own_choice(row: Row, ids: Sequence[int], logits_V: Tensor) -> int:
    """The token that plain decoding adds to `ids`."""
    if row.chooser.do_sample:
        return draw(row.chooser.probabilities(ids, logits_V), row.chooser.target_rng)
    return row.chooser.greedy(ids, logits_V)
