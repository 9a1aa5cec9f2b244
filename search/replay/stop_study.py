"""Compare stop rules on the same chains: a chain begins after each token of a text, so any rule can be replayed.

Only counts and costs in plain tokens are compared, by the same table of costs; nothing is timed here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from selfspec.stopping import StopPolicy
from selfspec.training.heldout import RoundCosts

Start = tuple[int, int]  # (text, answer tokens that stand)


@dataclass(frozen=True, slots=True)
class StudiedChain:
    """The longest draft after a start.

    Attributes:
        n_right: number of its first tokens that are the text's.
        signals: by name, what a rule may read of each token: a confidence, a certainty, a predicted acceptance.
        is_free: whether it takes no forward; then a rule ends it only if `signals` has what the rule reads.
    """

    n_right: int
    n_drafted: int
    signals: Mapping[str, Sequence[float]]
    is_free: bool = False


@dataclass(frozen=True, slots=True)
class Studied:
    """What a rule makes of all texts.

    Attributes:
        tokens: committed tokens, the first one of each text left out.
        rounds, drafted, accepted: counts.
        cost: of all rounds, in plain tokens.
    """

    tokens: int
    rounds: int
    drafted: int
    accepted: int
    cost: float

    @property
    def speedup(self) -> float:
        """Tokens for the cost of one plain token."""
        return self.tokens / self.cost

    @property
    def tokens_per_round(self) -> float:
        """Mean tokens that a round commits."""
        return self.tokens / self.rounds

    @property
    def wasted(self) -> float:
        """Drafted tokens that were not accepted, for each committed token."""
        return (self.drafted - self.accepted) / self.tokens


def run_rule(
    chains: Mapping[Start, StudiedChain], lengths: Sequence[int], rule: StopPolicy, signal: str, costs: RoundCosts
) -> Studied:
    """The rounds of a rule that reads one signal, with a new state for each text unless it carries over.

    Args:
        chains: a chain for each start; a start without one is a plain round.
        lengths: answer tokens of each text.
        rule: the rule.
        signal: name of what it reads.
        costs: of a round.
    """
    state, free = rule.begin(), rule.free() if hasattr(rule, "free") else rule
    tokens = rounds = drafted = accepted = 0
    cost = 0.0
    for text, length in enumerate(lengths):
        state, n = rule.begin(state), 1
        while n < length:
            chain = chains.get((text, n))
            k = 0
            if chain is not None and chain.is_free:
                k = _n_drafted(chain, free.begin().more, signal)
            elif chain is not None and state.begins():
                k = _n_drafted(chain, state.more, signal)
            n_right = min(k, chain.n_right) if chain is not None else 0
            committed = min(n_right + 1, length - n)
            if chain is None or not chain.is_free:
                state.observe(k, n_right)
            cost += round_cost(costs, k, is_free=chain is not None and chain.is_free)
            tokens, rounds, drafted, accepted, n = (
                tokens + committed,
                rounds + 1,
                drafted + k,
                accepted + n_right,
                n + committed,
            )
    return Studied(tokens, rounds, drafted, accepted, cost)


def run_oracle(chains: Mapping[Start, StudiedChain], lengths: Sequence[int], costs: RoundCosts) -> Studied:
    """The rounds of least cost in all, of a rule that knows which tokens will be accepted."""
    total = Studied(0, 0, 0, 0, 0.0)
    for text, length in enumerate(lengths):
        best: dict[int, Studied] = {length: Studied(0, 0, 0, 0, 0.0)}
        for n in range(length - 1, 0, -1):
            chain = chains.get((text, n))
            useful = min(chain.n_right, length - n) if chain is not None else 0
            options = []
            for k in range(useful + 1):
                committed = min(k + 1, length - n)
                rest = best[n + committed]
                spent = round_cost(costs, k, is_free=chain is not None and chain.is_free)
                options.append(
                    Studied(
                        *(rest.tokens + committed, rest.rounds + 1, rest.drafted + k, rest.accepted + k),
                        rest.cost + spent,
                    )
                )
            best[n] = min(options, key=lambda one: one.cost)
        found = best[1] if length > 1 else best[length]
        total = Studied(
            *(total.tokens + found.tokens, total.rounds + found.rounds, total.drafted + found.drafted),
            *(total.accepted + found.accepted, total.cost + found.cost),
        )
    return total


def best_of(rules: Sequence[StopPolicy], run: Callable[[StopPolicy], Studied]) -> StopPolicy:
    """The rule with the largest speedup on the texts that `run` replays; the first of equal ones."""
    return max(rules, key=lambda rule: run(rule).speedup)


def round_cost(costs: RoundCosts, n_drafted: int, *, is_free: bool) -> float:
    """Cost of a round in plain tokens; a round without a draft is a plain token."""
    if not n_drafted:
        return 1.0
    verify = costs.verify[min(n_drafted, len(costs.verify) - 1)]
    if n_drafted >= len(costs.verify):  # as the last two that were measured
        verify += (n_drafted - len(costs.verify) + 1) * (costs.verify[-1] - costs.verify[-2])
    return verify if is_free else verify + n_drafted * costs.draft + costs.overhead


def _n_drafted(chain: StudiedChain, more: Callable[[int, float], bool], signal: str) -> int:
    seen = chain.signals.get(signal)
    if seen is None:  # nothing is known of these tokens: none is left out
        return chain.n_drafted
    n = 1
    while n < chain.n_drafted and more(n, seen[n - 1]):
        n += 1
    return n
