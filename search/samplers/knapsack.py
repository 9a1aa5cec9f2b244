"""Skip sets from a knapsack of hidden states: for each saving, the draft whose states stay nearest to the full model's.

This is a dynamic program over the sublayers in order. Of all drafts that save the same number of cost units up to a
sublayer, only the one with the best cosine is continued. That is a heuristic, since another draft may become better
later. The result is a short list with one set for each saving, which a real objective then scores.
"""

# N drafts, B texts, P positions of a text, D width

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import torch
from torch import Tensor

from search.costs.table import CostTable
from search.fitting.hidden_states_runner import HiddenStateRunner, Text, cosines
from selfspec.errors import InputError
from selfspec.models.decoder import Decoder
from selfspec.skipping.skip_set import SkipSet


@dataclass(frozen=True, slots=True)
class PartialDrafts:
    """Drafts up to a sublayer.

    Attributes:
        saved: cost units that each draft saves.
        bits: skipped sublayers of each draft, in the order of `SkipSet.bits`.
        states: hidden states of each draft, [N, B, P, D].
        cosines: cosine of each draft's states with those of the full model.
    """

    saved: list[int]
    bits: list[tuple[bool, ...]]
    states: Tensor
    cosines: list[float]

    @classmethod
    def start(cls, stream: HiddenStateRunner) -> PartialDrafts:
        """The empty draft before the first sublayer."""
        return cls([0], [()], stream.start(), [1.0])


def knapsack(
    decoder: Decoder,
    texts: Sequence[Text],
    *,
    costs: CostTable,
    n_positions: int = 4,
    keep_ends: bool = True,
    least_cosine: float = 0.5,
    largest_unit: int = 5,
) -> list[SkipSet]:
    """For each saving the skip set of best cosine, the cheapest draft last; without the empty set.

    Args:
        decoder: the model.
        texts: calibration prompts with the full model's continuations.
        costs: costs measured on this machine.
        n_positions: number of positions of each text at which states are compared.
        keep_ends: never skip in the first and the last layer.
        least_cosine: a draft with a smaller cosine at any sublayer is dropped.
        largest_unit: largest number of cost units of a sublayer, see `units`.

    Raises:
        InputError: if `HiddenStateRunner` or `units` refuses its arguments.

    Source: Cha et al. 2026 (arXiv:2602.20217, KnapSpec); the defaults of the last three settings are theirs.
    """
    stream = HiddenStateRunner(decoder, texts, n_positions=n_positions)
    attn, mlp = units(costs, stream.context, largest=largest_unit)
    drafts = solve(stream, attn=attn, mlp=mlp, keep_ends=keep_ends, least_cosine=least_cosine)
    return [SkipSet.from_bits(bits) for bits in drafts.bits[1:]]


def units(costs: CostTable, context: int, *, largest: int) -> tuple[int, int]:
    """The costs of one attention and one MLP sublayer as whole numbers from 1 to `largest`: the nearest small ratio.

    Args:
        costs: costs measured on this machine.
        context: number of tokens that attention reads.
        largest: limit for the more expensive sublayer; the number of drafts in the program grows with it.

    Raises:
        InputError: if neither costs anything.
    """
    parts = replace(costs, interaction_s=())  # without interaction, since the program needs additive costs
    whole = parts.draft_s(SkipSet(1), context)
    attn_s = whole - parts.draft_s(SkipSet(1, attn=frozenset({0})), context)
    mlp_s = whole - parts.draft_s(SkipSet(1, mlp=frozenset({0})), context)
    if max(attn_s, mlp_s) <= 0 or largest < 1:
        raise InputError(
            f"costs of {attn_s:.3g} s (attention) and {mlp_s:.3g} s (MLP) cannot be put into units of 1 to {largest}; "
            "measure them on a quiet machine, and allow 1 unit at least"
        )
    ratio = max(Fraction(1, largest), Fraction(min(attn_s, mlp_s) / max(attn_s, mlp_s)).limit_denominator(largest))
    small, large = ratio.numerator, ratio.denominator
    return (small, large) if attn_s < mlp_s else (large, small)


def solve(stream: HiddenStateRunner, *, attn: int, mlp: int, keep_ends: bool, least_cosine: float) -> PartialDrafts:
    """The best draft for each saving; the first one skips nothing.

    Args:
        stream: runs the layers.
        attn, mlp: units that skipping one sublayer saves; at least 1.
        keep_ends, least_cosine: as in `knapsack`.
    """
    drafts = PartialDrafts.start(stream)
    for i in range(stream.n_layers):
        inputs_NBPD, row = drafts.states, {bits: n for n, bits in enumerate(drafts.bits)}
        may_skip = not (keep_ends and i in (0, stream.n_layers - 1))
        half = stream.run(i, inputs_NBPD, attn=True, mlp=False)
        skipped = stream.run(i, inputs_NBPD, attn=False, mlp=False) if may_skip else None
        drafts = closest(drafts, half, skipped, bits=1, units=attn, least_cosine=least_cosine)
        # The MLP of a layer runs from the layer's input, since some layers have no state between attention and MLP.
        parents = [row[bits[:-1]] for bits in drafts.bits]
        whole = torch.empty_like(drafts.states)
        for runs_attn in (True, False):
            chosen = [n for n, bits in enumerate(drafts.bits) if bits[-1] is not runs_attn]
            if chosen:
                whole[chosen] = stream.run(i, inputs_NBPD[[parents[n] for n in chosen]], attn=runs_attn, mlp=True)
        skipped = drafts.states if may_skip else None
        drafts = closest(drafts, whole, skipped, bits=1, units=mlp, least_cosine=least_cosine)
    return drafts


def closest(
    drafts: PartialDrafts,
    kept_NBPD: Tensor,
    skipped_NBPD: Tensor | None,
    *,
    bits: int,
    units: int,
    least_cosine: float = float("-inf"),
) -> PartialDrafts:
    """For each saving the draft of best cosine after the next sublayers, the smallest saving first.

    Args:
        drafts: drafts before these sublayers; the first one skips nothing, so its states are those of the full model.
        kept_NBPD: states if the sublayers run.
        skipped_NBPD: states if the sublayers are skipped; None: they must run.
        bits: number of these sublayers.
        units: saving by skipping them; at least 1, since otherwise a draft could replace the full model.
        least_cosine: drafts with a smaller cosine are dropped.
    """
    options = [(kept_NBPD, False, 0)]
    if skipped_NBPD is not None:
        options.append((skipped_NBPD, True, units))
    saved = [n + more for _, _, more in options for n in drafts.saved]
    paths = [path + (bit,) * bits for _, bit, _ in options for path in drafts.bits]
    near = [c for states_NBPD, _, _ in options for c in cosines(states_NBPD, kept_NBPD[0])]
    best: dict[int, int] = {}
    for n in sorted(range(len(near)), key=lambda n: -near[n]):  # of equal ones the draft that keeps more comes first
        best.setdefault(saved[n], n)
    # The full model always stays.
    chosen = [best[s] for s in sorted(best) if s == 0 or near[best[s]] >= least_cosine]
    states_NBPD = torch.stack([options[n // len(kept_NBPD)][0][n % len(kept_NBPD)] for n in chosen])
    return PartialDrafts([saved[n] for n in chosen], [paths[n] for n in chosen], states_NBPD, [near[n] for n in chosen])
