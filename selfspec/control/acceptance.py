"""Tracked acceptance: how often the token at each position of a draft is accepted, by request and by source."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

POOL = -1  # the key under which all requests are counted together


@dataclass(slots=True)
class _Counts:
    """Fading counts by position: accepted tokens, and judged ones."""

    accepted: list[float] = field(default_factory=list)
    judged: list[float] = field(default_factory=list)

    def add(self, length: int, n_accepted: int, memory: float) -> None:
        for position in range(min(length, n_accepted + 1)):  # tokens after the first rejection were not judged
            if position == len(self.judged):
                self.accepted.append(0.0)
                self.judged.append(0.0)
            fading = 1 - 1 / memory
            self.accepted[position] = fading * self.accepted[position] + (position < n_accepted)
            self.judged[position] = fading * self.judged[position] + 1

    def at(self, position: int) -> tuple[float, float]:
        if position < len(self.judged):
            return self.accepted[position], self.judged[position]
        return 0.0, 0.0


@dataclass(slots=True)
class Acceptance:
    """The probability that each token of a draft is accepted if those before it are.

    A request's rate is its own, drawn towards that of all requests of the source; that of all is drawn towards the rate
    of the position before, and at the first position towards `start`. Positions that were never drafted so have the
    rate of the last one that was.

    Attributes:
        start: rate before anything was judged.
        weight: judgements that these assumptions count as.
        memory: judgements of a position after which a request's own count has faded to a third; those of all fade as
            slowly for each request of `n_pooled`.
        n_pooled: how many times longer the memory of all is.
    """

    start: float = 0.7
    weight: float = 4.0
    memory: float = 50.0
    n_pooled: float = 8.0
    _counts: dict[tuple[int, str], _Counts] = field(default_factory=dict)
    _breadths: dict[str, float] = field(default_factory=dict)

    def add(self, key: int, source: str, length: int, n_accepted: int, n_nodes: int) -> None:
        """Count a draft that was verified."""
        if length:
            self._counts.setdefault((key, source), _Counts()).add(length, n_accepted, self.memory)
            self._counts.setdefault((POOL, source), _Counts()).add(length, n_accepted, self.memory * self.n_pooled)
            before = self._breadths.get(source, n_nodes / length)
            self._breadths[source] = before + (n_nodes / length - before) / self.memory

    def survivals(self, key: int, source: str, n: int) -> list[float]:
        """The probabilities that the first, the first two, ..., the first `n` drafted tokens are accepted."""
        of_all, own = (self._counts.get((k, source), _Counts()) for k in (POOL, key))
        found, pooled, alive = [], self.start, 1.0
        for position in range(n):
            accepted, judged = of_all.at(position)
            pooled = (accepted + self.weight * pooled) / (judged + self.weight)
            accepted, judged = own.at(position)
            alive *= (accepted + self.weight * pooled) / (judged + self.weight)
            found.append(alive)
        return found

    def n_judged(self, key: int, source: str, position: int) -> float:
        """How often a position (from 0) of a request's drafts was judged; older judgements have faded."""
        return self._counts.get((key, source), _Counts()).at(position)[1]

    def breadth(self, sources: Iterable[str]) -> float:
        """Tokens that are verified for each level of a draft, of the broadest of these sources; 1 for chains."""
        return max((self._breadths.get(source, 1.0) for source in sources), default=1.0)

    def end(self, key: int) -> None:
        """Forget a request; what all have shown stays."""
        for of in [of for of in self._counts if of[0] == key]:
            del self._counts[of]
