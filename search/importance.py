"""What each sublayer is worth, skipped alone; and, from that alone, the most that plain skipping could bring.

A long search is worth its hours only where the most is more than plain decoding. It knows rows of trials and a table of
costs; it runs nothing.
"""

# L layers, K drafted

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from search.costs.table import CostTable
from selfspec.errors import InputError
from selfspec.measure.closed_form import chance_of_acceptance, expected_speedup
from selfspec.measure.metrics import acceptance
from selfspec.skipping.skip_set import SkipSet

Row = Mapping[str, Any]

PAYS = 1.02  # times plain decoding: less than noise and the engine's own time take away; chosen, not tuned


@dataclass(frozen=True, slots=True)
class Tried:
    """What a trial found.

    Attributes:
        value: the objective's; None if scoring ended early, on fewer prompts than others'.
        accepted, drafted, n_rounds: pooled over prompts.
        max_draft: the most tokens a round could draft, where the objective chose the stop rule for this very set.
    """

    value: float | None
    accepted: int
    drafted: int
    n_rounds: int
    max_draft: int | None = None

    @property
    def acceptance(self) -> float:
        """Accepted over drafted, in [0, 1]."""
        return acceptance(self.accepted, self.drafted)

    @classmethod
    def of(cls, row: Row) -> Tried:
        """What a row with counts tells."""
        value = row["value"] if row["state"] == "complete" else None
        stop = row.get("stop") or {}
        return cls(value, row["accepted"], row["drafted"], row["n_rounds"], stop.get("max_draft"))


@dataclass(frozen=True, slots=True)
class Importance:
    """What skipping each sublayer alone does.

    Attributes:
        n_layers: of the model.
        nothing: the draft that skips nothing, to which the others are compared.
        alone: by the set that skips one sublayer, those that were tried.
    """

    n_layers: int
    nothing: Tried
    alone: Mapping[SkipSet, Tried]

    @classmethod
    def of(cls, rows: Sequence[Row], n_layers: int) -> Importance:
        """What the rows of a search tell; of several rows of one set the first complete one counts, else a pruned one.

        Raises:
            InputError: if no row that skips nothing has a score.
        """
        tried: dict[str, Tried] = {}
        # Rows with other settings than the first, a start, are of another draft.
        settings = rows[0].get("settings") if rows else None
        rows = [row for row in rows if row.get("settings") == settings]
        for row in sorted(rows, key=lambda row: row["state"] != "complete"):
            if row["state"] != "failed" and row.get("drafted"):
                tried.setdefault(row["skip"], Tried.of(row))
        nothing = tried.get("none")
        if nothing is None:
            raise InputError(
                f"none of {len(rows)} trials skips nothing and has a score, so no sublayer has anything to be compared "
                "to; a search with skip=none among its starts has"
            )
        return cls(n_layers, nothing, {skip: tried[str(skip)] for skip in singles(n_layers) if str(skip) in tried})

    @property
    def missing(self) -> list[SkipSet]:
        """The sets of one sublayer of which nothing is known, in the order of the bits."""
        return [skip for skip in singles(self.n_layers) if skip not in self.alone]


def singles(n_layers: int) -> list[SkipSet]:
    """The 2·n_layers sets that skip one sublayer, in the order of `SkipSet.bits`."""
    return [SkipSet.from_bits([i == bit for i in range(2 * n_layers)]) for bit in range(2 * n_layers)]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The most that plain skipping could bring, and how.

    Attributes:
        bound: times plain decoding.
        skip: the set that is predicted to reach it.
        acceptance: of one drafted token, those before it accepted; predicted for `skip`, in [0, 1].
        draft_cost: of one drafted token, in plain tokens.
        draft_length: tokens a round.
        n_missing: sublayers that counted as harmless, since nothing is known of them.
    """

    bound: float
    skip: SkipSet
    acceptance: float
    draft_cost: float
    draft_length: int
    n_missing: int = 0

    def pays(self, threshold: float = PAYS) -> bool:
        """Whether the bound reaches `threshold`. If not, no search will; if so, one may."""
        return self.bound >= threshold

    def text(self, threshold: float = PAYS) -> str:
        """The verdict in one sentence."""
        n_sublayers = 2 * self.skip.n_layers
        known = f"{n_sublayers - self.n_missing} of {n_sublayers}" if self.n_missing else f"all {n_sublayers}"
        return (
            f"plain skipping {'may' if self.pays(threshold) else 'will not'} pay on this model and device: at best "
            f"{self.bound:.2f}x of plain decoding (predicted from {known} sublayers skipped alone, as if they did not "
            "make each other's losses worse)"
        )


def predict(importance: Importance, costs: CostTable, *, context: int, max_draft: int) -> Verdict:
    """An optimistic estimate of the best speedup of any skip set: a search may fall short of it, and hardly exceed it.

    A set's acceptance is the product of what each of its sublayers alone leaves of the acceptance of skipping nothing.
    That is exact if sublayers do not interact; mostly they do, for the worse, but this is no theorem. A sublayer of
    which nothing is known counts as harmless. The cost depends on nothing but how many sublayers of each kind are
    skipped, so the best of all sets is found among those of the least harmful ones.

    Args:
        importance: from trials under a stop rule that drafts up to `max_draft` tokens.
        costs: measured on the device.
        context: tokens before the draft, where costs are read; the more, the more a skipped attention saves.
        max_draft: the most tokens a round drafts, in those trials and in this prediction.

    Raises:
        InputError: if no sublayer was skipped alone, the trials drafted more than `max_draft` tokens a round, or the
            costs promise more than a round can give.
    """
    n_layers = importance.n_layers
    if not importance.alone:
        raise InputError(
            f"no trial skips one sublayer alone, so nothing can be predicted; search with the {2 * n_layers} sets that "
            "do among the starts"
        )
    whole = per_token(importance.nothing, max_draft=max_draft)
    kept = dict.fromkeys(singles(n_layers), 1.0)
    for skip, tried in importance.alone.items():
        kept[skip] = min(1.0, per_token(tried, max_draft=max_draft) / whole) if whole else 1.0
    mildest = sorted(kept, key=lambda skip: -kept[skip])
    attn = [(layer, kept[skip]) for skip in mildest for layer in skip.attn]
    mlp = [(layer, kept[skip]) for skip in mildest for layer in skip.mlp]
    best = Verdict(0.0, SkipSet(n_layers), 1.0, 1.0, 1)
    for n_attn in range(n_layers + 1):
        for n_mlp in range(n_layers + 1):
            attn_layers, mlp_layers = ([layer for layer, _ in s] for s in (attn[:n_attn], mlp[:n_mlp]))
            skip = SkipSet(n_layers, frozenset(attn_layers), frozenset(mlp_layers))
            chance = math.prod(share for _, share in attn[:n_attn] + mlp[:n_mlp])
            bound, draft_length = fixed_speedup(chance, skip, costs, context=context, max_draft=max_draft)
            if bound > best.bound:
                draft_cost = costs.draft_cost(skip, context)
                best = Verdict(bound, skip, chance, draft_cost, draft_length, len(importance.missing))
    if best.bound > max_draft + 1:
        raise InputError(
            f"the cost table predicts {best.bound:.2f}x of plain decoding, but a round of {max_draft} drafted tokens "
            f"gives at most {max_draft + 1}; the machine was busy: measure again while it is quiet (costs.refresh=true)"
        )
    return best


def fixed_speedup(chance: float, skip: SkipSet, costs: CostTable, *, context: int, max_draft: int) -> tuple[float, int]:
    """The speedup of drafting equally many tokens every round, at the length that is best for it; and that length.

    Args:
        chance: that a drafted token is accepted, those before it accepted.
        skip: what the draft leaves out.
        costs: measured on the device.
        context: tokens before the draft.
        max_draft: the longest draft that is tried.

    Source: `closed_form.expected_speedup`, with measured costs: that of verifying grows with the tokens.
    """
    plain_s, draft_cost = costs.plain_s(context), costs.draft_cost(skip, context)

    def speedup(n_drafted: int) -> float:
        verify_cost = (costs.verification_s(n_drafted + 1, context) + costs.round_s) / plain_s
        return expected_speedup(chance, n_drafted=n_drafted, draft_cost=draft_cost, verify_cost=verify_cost)

    return max((speedup(n_drafted), n_drafted) for n_drafted in range(1, max_draft + 1))


def per_token(tried: Tried, *, max_draft: int) -> float:
    """The chance that a drafted token is accepted, those before it accepted; in [0, 1], from pooled counts.

    It is what explains the counts if every round drafted `max_draft` tokens (see `closed_form.chance_of_acceptance`).
    For a rule that does (`fixed`) this is the usual estimate; for one that drafts fewer it is an optimistic one, since
    a shorter round loses less after its first rejection: k tokens are then predicted to get at least k times
    accepted / drafted accepted, which is what any rule got, one that stops by confidence too.

    Args:
        tried: the counts.
        max_draft: the most tokens a round could draft, where `tried` does not tell.

    Raises:
        InputError: if more than `max_draft` tokens a round were drafted.
    """
    max_draft = tried.max_draft or max_draft
    if tried.drafted > max_draft * tried.n_rounds:
        raise InputError(
            f"max_draft={max_draft}, but the trials drafted {tried.drafted / tried.n_rounds:.1f} tokens a round; give "
            "the max_draft of their stop rule"
        )
    return chance_of_acceptance(tried.acceptance, max_draft)
