"""The importance of each sublayer, and an upper estimate of the speedup of plain skipping.

Both come from the trials that skip one sublayer. A long search makes sense only if the estimate exceeds plain decoding.
This module reads rows of trials and a cost table; it runs nothing.
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

PAYS = 1.02  # speedup over plain decoding; noise and overhead take away a smaller one; chosen, not tuned


@dataclass(frozen=True, slots=True)
class Tried:
    """The result of a trial.

    Attributes:
        value: value of the objective; None if scoring ended early, on fewer prompts than in other trials.
        accepted, drafted, n_rounds: counts pooled over prompts.
        max_draft: limit of the stop rule, if the objective chose the rule for this set; None: that of the run.
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
    def from_row(cls, row: Row) -> Tried:
        """The result in a trial's row with counts."""
        value = row["value"] if row["state"] == "complete" else None
        stop = row.get("stop") or {}
        return cls(value, row["accepted"], row["drafted"], row["n_rounds"], stop.get("max_draft"))


@dataclass(frozen=True, slots=True)
class Importance:
    """Results of skipping each sublayer alone.

    Attributes:
        n_layers: number of layers of the model.
        nothing: result of skipping nothing, which is the reference.
        alone: results by the set that skips one sublayer, for those that were tried.
    """

    n_layers: int
    nothing: Tried
    alone: Mapping[SkipSet, Tried]

    @classmethod
    def from_rows(cls, rows: Sequence[Row], n_layers: int) -> Importance:
        """The importance from a search's rows; of several rows of a set the first complete one counts, or a pruned one.

        Raises:
            InputError: if no row that skips nothing has a score.
        """
        tried: dict[str, Tried] = {}
        # The first row is a start; rows with other settings are of another draft.
        settings = rows[0].get("settings") if rows else None
        rows = [row for row in rows if row.get("settings") == settings]
        for row in sorted(rows, key=lambda row: row["state"] != "complete"):
            if row["state"] != "failed" and row.get("drafted"):
                tried.setdefault(row["skip"], Tried.from_row(row))
        nothing = tried.get("none")
        if nothing is None:
            raise InputError(
                f"none of {len(rows)} trials skips nothing and has a score, so no sublayer has anything to be compared "
                "to; a search with skip=none among its starts has"
            )
        return cls(n_layers, nothing, {skip: tried[str(skip)] for skip in singles(n_layers) if str(skip) in tried})

    @property
    def missing(self) -> list[SkipSet]:
        """The sets of one sublayer without a result, in the order of the bits."""
        return [skip for skip in singles(self.n_layers) if skip not in self.alone]


def singles(n_layers: int) -> list[SkipSet]:
    """The 2·n_layers sets that skip one sublayer, in the order of `SkipSet.bits`."""
    return [SkipSet.from_bits([i == bit for i in range(2 * n_layers)]) for bit in range(2 * n_layers)]


@dataclass(frozen=True, slots=True)
class SpeedupBound:
    """An upper estimate of the speedup of plain skipping, and the set that would reach it.

    Attributes:
        bound: estimated speedup over plain decoding.
        skip: the set that is predicted to reach it.
        acceptance: predicted probability that `skip` gets a drafted token accepted, given those before it are.
        draft_cost: cost of one drafted token, in plain tokens.
        draft_length: number of drafted tokens in a round.
        n_missing: number of sublayers without a result, which count as harmless.
    """

    bound: float
    skip: SkipSet
    acceptance: float
    draft_cost: float
    draft_length: int
    n_missing: int = 0

    def pays(self, threshold: float = PAYS) -> bool:
        """Whether the bound reaches `threshold`. If not, a search will not reach it; otherwise it may."""
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


def predict(importance: Importance, costs: CostTable, *, context: int, max_draft: int) -> SpeedupBound:
    """An optimistic estimate of the best speedup of any skip set; a search rarely exceeds it.

    The acceptance of a set is estimated as the product of the relative acceptances of its sublayers, each skipped
    alone. This is exact if sublayers do not interact. Usually they do, and the acceptance is lower, but this is no
    theorem. A sublayer without a result counts as harmless. The cost depends only on the number of skipped sublayers of
    each kind, so the best set consists of the least harmful ones.

    Args:
        importance: from trials with a stop rule that drafts up to `max_draft` tokens.
        costs: costs measured on the device.
        context: number of tokens before the draft at which costs are read; attention saves more in a longer context.
        max_draft: largest number of drafted tokens in a round, in the trials and in this prediction.

    Raises:
        InputError: if no sublayer was skipped alone, the trials drafted more than `max_draft` tokens in a round, or the
            costs imply more speedup than a round allows.
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
    best = SpeedupBound(0.0, SkipSet(n_layers), 1.0, 1.0, 1)
    for n_attn in range(n_layers + 1):
        for n_mlp in range(n_layers + 1):
            attn_layers, mlp_layers = ([layer for layer, _ in s] for s in (attn[:n_attn], mlp[:n_mlp]))
            skip = SkipSet(n_layers, frozenset(attn_layers), frozenset(mlp_layers))
            chance = math.prod(share for _, share in attn[:n_attn] + mlp[:n_mlp])
            bound, draft_length = fixed_speedup(chance, skip, costs, context=context, max_draft=max_draft)
            if bound > best.bound:
                draft_cost = costs.draft_cost(skip, context)
                best = SpeedupBound(bound, skip, chance, draft_cost, draft_length, len(importance.missing))
    if best.bound > max_draft + 1:
        raise InputError(
            f"the cost table predicts {best.bound:.2f}x of plain decoding, but a round of {max_draft} drafted tokens "
            f"gives at most {max_draft + 1}; the machine was busy: measure again while it is quiet (costs.refresh=true)"
        )
    return best


def fixed_speedup(chance: float, skip: SkipSet, costs: CostTable, *, context: int, max_draft: int) -> tuple[float, int]:
    """The speedup of drafting the same number of tokens in every round, at the best length; and that length.

    Args:
        chance: probability that a drafted token is accepted, given those before it are.
        skip: skip set of the draft.
        costs: costs measured on the device.
        context: number of tokens before the draft.
        max_draft: longest draft to try.

    Source: `closed_form.expected_speedup`, with measured costs: that of verifying grows with the tokens.
    """
    plain_s, draft_cost = costs.plain_s(context), costs.draft_cost(skip, context)

    def speedup(n_drafted: int) -> float:
        verify_cost = (costs.verification_s(n_drafted + 1, context) + costs.overhead_s) / plain_s
        return expected_speedup(chance, n_drafted=n_drafted, draft_cost=draft_cost, verify_cost=verify_cost)

    return max((speedup(n_drafted), n_drafted) for n_drafted in range(1, max_draft + 1))


def per_token(tried: Tried, *, max_draft: int) -> float:
    """Probability a that a drafted token is accepted, given those before it are; in [0, 1], from pooled counts.

    The chance explains the counts if every round drafted `max_draft` tokens (see `closed_form.chance_of_acceptance`).
    For a rule that always does so (`fixed`) this is the usual estimate. For a rule that drafts fewer tokens it is
    optimistic, since a shorter round loses less after its first rejection: for k tokens it predicts at least k times
    accepted / drafted accepted tokens, which is the result of any rule, also of one that stops by confidence.

    Args:
        tried: the counts.
        max_draft: largest number of drafted tokens in a round, if `tried` does not hold it.

    Raises:
        InputError: if more than `max_draft` tokens were drafted in a round.
    """
    max_draft = tried.max_draft or max_draft
    if tried.drafted > max_draft * tried.n_rounds:
        raise InputError(
            f"max_draft={max_draft}, but the trials drafted {tried.drafted / tried.n_rounds:.1f} tokens a round; give "
            "the max_draft of their stop rule"
        )
    return chance_of_acceptance(tried.acceptance, max_draft)
