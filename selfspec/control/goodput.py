"""Goodput by request: the next drafted token goes where it gives most for its seconds, or nowhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from operator import mul
from typing import ClassVar

from selfspec.control.acceptance import Acceptance
from selfspec.control.allotment import allot, goodput
from selfspec.control.base import (
    Controller,
    ControlState,
    Judged,
    Proposal,
    Standing,
    check_lengths,
    check_shares,
    mean_context,
)
from selfspec.control.step_costs import BatchCosts, StepCosts
from selfspec.errors import InputError

SURE_LOSS = 0.1  # of the seconds of what is tried out, however much it promises; chosen, not tuned
RENEWED = 16  # steps after which lengths are chosen anew although nothing was drafted: contexts grow


@dataclass(frozen=True, slots=True)
class Goodput(Controller):
    """Maximises the expected tokens for a second of each step, request by request; see `allotment.allot`.

    Acceptance is tracked by position, source and request. Drafts that cost no forward are looked up first and cut to
    what pays to verify. A request that drafts nothing, or less than it might, is asked for one more token from time to
    time, so that a change is noticed. The seconds that these tokens are expected to lose stay below the share `explore`
    of plain decoding's.

    Attributes:
        explore: largest share of the seconds that may be lost by finding out.
        min_gain: factor by which drafting must exceed plain decoding, since costs are estimates; chosen, not tuned.
        patience: what staying with the lengths of the last steps must have cost before they change, in steps; two
            lengths that are as good as each other so do not alternate; chosen, not tuned.
        start: acceptance before anything was judged.
        weight: judgements that this counts as.
        memory: judgements after which a request's own have faded to a third.

    Source: goodput, Liu et al. 2024 (arXiv:2406.14066); one token after another to the request that gains most, as in
    TETRIS (arXiv:2502.15197).
    """

    max_draft: int = 12
    explore: float = 0.01
    min_gain: float = 1.03
    patience: float = 0.2
    start: float = 0.7
    weight: float = 4.0
    memory: float = 50.0

    def __post_init__(self) -> None:
        check_lengths(max_draft=self.max_draft)
        check_shares(explore=self.explore, start=self.start)
        if self.min_gain < 1 or self.patience < 0 or self.weight <= 0 or self.memory < 2:
            raise InputError(
                f"controller.min_gain={self.min_gain}, patience={self.patience}, weight={self.weight}, memory="
                f"{self.memory}: min_gain is at least 1, patience not negative, weight above 0, memory at least 2"
            )

    def begin(self, costs: StepCosts) -> GoodputState:
        """A state that knows nothing of any request."""
        return GoodputState(self, costs, Acceptance(self.start, self.weight, self.memory))


@dataclass(frozen=True, slots=True)
class Oracle(Controller):
    """Knows the acceptance of each position instead of learning it; what the other controllers are compared with.

    Attributes:
        acceptance: probability that the token at each position is accepted if those before it are; the last one holds
            for all later positions.
    """

    acceptance: tuple[float, ...] = (0.8,)
    max_draft: int = 12
    explore: ClassVar[float] = 0.0
    min_gain: ClassVar[float] = 1.0
    patience: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "acceptance", tuple(self.acceptance))
        check_lengths(max_draft=self.max_draft)
        check_shares(**{f"acceptance[{i}]": rate for i, rate in enumerate(self.acceptance)})
        if not self.acceptance:
            raise InputError("controller.acceptance=[]; give a probability for each position, at least for the first")

    def begin(self, costs: StepCosts) -> GoodputState:
        """A state that learns nothing."""
        return GoodputState(self, costs, _Known(rates=self.acceptance))


@dataclass(slots=True)
class _Known(Acceptance):
    """Acceptance that is given: by position, the last one for all later ones."""

    rates: tuple[float, ...] = ()

    def survivals(self, key: int, source: str, n: int) -> list[float]:
        padded = [*self.rates[:n], *([self.rates[-1]] * (n - len(self.rates)))]
        return list(accumulate(padded, mul))


@dataclass(slots=True)
class GoodputState(ControlState):
    """What was seen of the requests, and how much was spent on finding out.

    Attributes:
        plain_s: seconds that plain decoding would have taken for all steps so far, a lower bound of what they took.
        explored_s: seconds that tokens which did not promise to pay were expected to lose.
    """

    policy: Goodput | Oracle
    costs: StepCosts
    seen: Acceptance
    plain_s: float = 0.0
    explored_s: float = 0.0
    _last: dict[int, int] = field(default_factory=dict)  # lengths of the last step by key
    _age: int = 0  # steps since they were chosen
    _regret: float = 0.0  # what staying with them has cost since they were last the best, in steps
    cuts: ClassVar[bool] = True

    def limits(self, rows: Sequence[Standing]) -> list[int]:
        """The lengths with the largest goodput; those of the last step as long as staying has cost little."""
        rooms = [min(row.room, self.policy.max_draft) for row in rows]
        batch = self._batch(rows, max(rooms), {row.source for row in rows})
        self.plain_s += batch.verify_s[0]
        if self.costs.draft is None:
            return [0] * len(rows)
        before = [min(self._last.get(row.key, -1), room) for row, room in zip(rows, rooms, strict=True)]
        self._age += 1
        if min(before) >= 0 and len(rows) == len(self._last) and self._age < RENEWED:
            found = before
        else:
            found = self._best(rows, rooms, batch, before)
            self._age = 0
        self._last = {row.key: length for row, length in zip(rows, found, strict=True)}
        return self._explored(rows, found, rooms, batch)

    def _best(self, rows: Sequence[Standing], rooms: Sequence[int], batch: BatchCosts, before: list[int]) -> list[int]:
        survivals = [self.seen.survivals(r.key, r.source, n) for r, n in zip(rows, rooms, strict=True)]
        found, rate = allot(survivals, batch, min_gain=self.policy.min_gain)
        if min(before) < 0 or found == before:
            self._regret = 0.0
            return found
        self._regret += max(0.0, rate / goodput(survivals, batch, before) - 1)
        if self._regret <= self.policy.patience:
            return before
        self._regret = 0.0
        return found

    def keeps(self, rows: Sequence[Standing], proposals: Sequence[Proposal]) -> list[int]:
        """All of the drafts that took forwards, and as much of the others as pays to verify beside them."""
        lengths = [proposal.length for proposal in proposals]
        fixed = [0 if proposal.can_cut else proposal.length for proposal in proposals]
        if lengths == fixed:
            return lengths
        batch = self._batch(rows, max(lengths), {proposal.source for proposal in proposals})
        survivals = [
            self.seen.survivals(row.key, proposal.source, proposal.length)
            for row, proposal in zip(rows, proposals, strict=True)
        ]
        found, _ = allot(survivals, BatchCosts(batch.verify_s), least=max(fixed), min_gain=self.policy.min_gain)
        longest = max(*found, *fixed)
        extra_s = batch.verify_s[min(longest + 1, max(lengths))] - batch.verify_s[longest]
        if extra_s and self._may_spend(extra_s):
            self.explored_s += extra_s
            longest += 1
        return [min(length, max(longest, at_least)) for length, at_least in zip(lengths, fixed, strict=True)]

    def observe(self, step: Sequence[Judged]) -> None:
        """Count each draft under its request and its source."""
        self._age = RENEWED if any(row.length for row in step) else self._age
        for row in step:
            self.seen.add(row.key, row.source, row.length, row.n_accepted, row.n_nodes)

    def end(self, key: int) -> None:
        """Forget a request; what all requests have shown stays."""
        self.seen.end(key)
        self._last.pop(key, None)

    def _batch(self, rows: Sequence[Standing], longest: int, sources: set[str]) -> BatchCosts:
        return self.costs.of_batch(len(rows), mean_context(rows), longest, self.seen.breadth(sources))

    def _may_spend(self, seconds: float) -> bool:
        return self.explored_s + seconds <= self.policy.explore * self.plain_s

    def _explored(
        self, rows: Sequence[Standing], lengths: list[int], rooms: Sequence[int], batch: BatchCosts
    ) -> list[int]:
        """The lengths with one token more where the next position is known least, if that is not dear.

        Where it would lengthen the longest draft, the others get a token more as well: once the forward of all rows is
        longer, theirs costs little, and tells as much.
        """
        can = [b for b, room in enumerate(rooms) if lengths[b] < room]
        if not can:
            return lengths
        least = min(can, key=lambda b: self.seen.n_judged(rows[b].key, rows[b].source, lengths[b]))
        chosen = can if lengths[least] == max(lengths) else [least]
        more = [length + (b in chosen) for b, length in enumerate(lengths)]
        extra_s = batch.seconds(more) - batch.seconds(lengths)
        if not self._may_spend(SURE_LOSS * extra_s):
            return lengths
        survivals = [self.seen.survivals(r.key, r.source, n) for r, n in zip(rows, more, strict=True)]
        gained = sum(survivals[b][-1] for b in chosen)
        loss_s = max(SURE_LOSS * extra_s, extra_s - gained / goodput(survivals, batch, lengths))
        if not self._may_spend(loss_s):
            return lengths
        self.explored_s += loss_s
        return more
