"""What a round of a draft gains and what it costs, in plain tokens: why a system wins or loses.

A round gives one token as plain decoding would, and the accepted ones besides. It takes the time of one plain token,
and besides the time of drafting, of verifying more than one token, and of everything else. So

    speedup = (1 + accepted) / (1 + drafting of accepted + drafting of rejected + verification + overhead),

where all terms are means over rounds, in units of a plain token's time. A system loses exactly where its four costs
together exceed `accepted`. This module knows counts and seconds; it must not know runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from experiments.paper.evidence import Measured
from experiments.results.tables import number
from selfspec.measure.metrics import ratio

C, ACCEPTANCE, VERIFICATION, OVERHEAD = "c", "acceptance", "verification", "overhead"
REASONS = {
    C: "a drafted token is too expensive, even where it is accepted",
    ACCEPTANCE: "most of the time goes into drafts that are rejected",
    VERIFICATION: "verifying drafts takes more than they bring",
    OVERHEAD: "the time besides drafting and verifying is too long",
}


@dataclass(frozen=True, slots=True)
class Account:
    """Means over the rounds of a system.

    Attributes:
        accepted: accepted tokens.
        drafted: drafted tokens.
        draft_cost: c, the time of a drafted token in plain tokens; 0 if nothing was drafted.
        verification: time of verifying beyond that of a plain token; negative if it was faster.
        overhead: all other time.
        shares: fractions of the decoding time for drafting, verifying and the rest.
    """

    accepted: float
    drafted: float
    draft_cost: float
    verification: float
    overhead: float
    shares: tuple[float, float, float]

    @property
    def costs(self) -> dict[str, float]:
        """The four costs of a round by their names, in plain tokens."""
        return {
            C: self.draft_cost * self.accepted,
            ACCEPTANCE: self.draft_cost * (self.drafted - self.accepted),
            VERIFICATION: self.verification,
            OVERHEAD: self.overhead,
        }

    @property
    def speedup(self) -> float:
        """The speedup over plain decoding that these terms make up."""
        return ratio(1 + self.accepted, 1 + sum(self.costs.values()))

    @property
    def largest(self) -> str:
        """The name of the largest cost."""
        return max(self.costs, key=lambda name: self.costs[name])


def account(arms: Sequence[Measured]) -> Account | None:
    """The account of a system over the runs that measured it; None without rounds, as of `generate`."""
    arms = [arm for arm in arms if arm.row.n_rounds and all(row.get("draft_s") is not None for row in arm.rows)]
    n_rounds = sum(arm.row.n_rounds for arm in arms)
    drafted = sum(arm.row.drafted for arm in arms)
    if not n_rounds or not drafted:
        return None

    def in_plain_tokens(name: str) -> float:
        return sum(ratio(sum(row.get(name) or 0.0 for row in arm.rows), arm.plain_s) for arm in arms)

    draft, verify, other = (in_plain_tokens(name) for name in ("draft_s", "verify_s", "other_s"))
    if math.isnan(draft + verify + other):
        return None
    total = draft + verify + other
    return Account(
        accepted=sum(arm.row.accepted for arm in arms) / n_rounds,
        drafted=drafted / n_rounds,
        draft_cost=draft / drafted,
        verification=verify / n_rounds - 1,
        overhead=other / n_rounds,
        shares=(ratio(draft, total), ratio(verify, total), ratio(other, total)),
    )


def reason(found: Account) -> str:
    """Why a system loses, from its counts: what a round gains, what it pays, and the largest term of that."""
    paid = ", ".join(f"{name} {number(cost, 2)}" for name, cost in found.costs.items())
    return (
        f"a round gains {number(found.accepted, 2)} tokens and pays {number(sum(found.costs.values()), 2)} ({paid}); "
        f"{found.largest}: {REASONS[found.largest]}"
    )
