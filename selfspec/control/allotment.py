"""Share the drafted tokens of a step among the rows of a batch so that it gives the most tokens for its seconds."""

from __future__ import annotations

from collections.abc import Sequence

from selfspec.control.step_costs import BatchCosts


def allot(
    survivals: Sequence[Sequence[float]], costs: BatchCosts, *, least: int = 0, min_gain: float = 1.0
) -> tuple[list[int], float]:
    """The length of each row's draft with the largest goodput, and that goodput, in tokens for a second.

    All rows are read in one forward that is as long as the longest draft. So for each possible longest draft, tokens
    are given out in falling order of their probability, each as long as it gives more for its seconds than the step has
    so far (water-filling); the best longest draft counts. For costs of this form that is the optimum.

    Args:
        survivals: for each row, the probability that its first 1, 2, ... drafted tokens are accepted; falling.
        costs: of this batch.
        least: shortest longest draft to consider; some rows' drafts cannot be cut.
        min_gain: factor by which drafting must exceed the goodput of drafting nothing.
    """
    n_rows = len(survivals)
    best, best_rate = [0] * n_rows, n_rows / costs.verify_s[0] * min_gain if not least else 0.0
    # tokens of equal probability keep the order of their positions, so that a row's tokens come in their order
    tokens = sorted(
        ((-alive, position, b) for b, row in enumerate(survivals) for position, alive in enumerate(row)),
    )
    for longest in range(max(1, least), len(costs.verify_s)):
        gained, spent_s = float(n_rows), costs.verify_s[longest] + longest * costs.forward_s
        lengths, reached = [0] * n_rows, False
        for minus_alive, position, b in tokens:
            if position >= longest:
                continue
            if -minus_alive * spent_s <= gained * costs.row_s:
                break
            gained -= minus_alive
            spent_s += costs.row_s
            lengths[b] = position + 1
            reached = reached or position + 1 == longest
        if gained > best_rate * spent_s and (reached or longest == least):
            best, best_rate = lengths, gained / spent_s
    return best, goodput(survivals, costs, best)


def goodput(survivals: Sequence[Sequence[float]], costs: BatchCosts, lengths: Sequence[int]) -> float:
    """Expected tokens for a second of a step in which the rows draft these numbers of tokens."""
    tokens = sum(1 + sum(row[:length]) for row, length in zip(survivals, lengths, strict=True))
    return tokens / costs.seconds(lengths)
