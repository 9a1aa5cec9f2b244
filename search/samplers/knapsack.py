"""Skip sets from a knapsack of hidden states: for each saving, the draft whose states stay nearest to the full model's.

A dynamic program over the sublayers in order. Of all drafts that save the same number of cost units up to a sublayer,
only the one of best cosine goes on; that is a heuristic, since a draft that is behind may still catch up. What comes
out is a short list, a set for each saving, to be scored by a real objective.
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
class Drafts:
    """Drafts up to a sublayer.

    Attributes:
        saved: cost units of what each leaves out.
        bits: what each leaves out, in the order of `SkipSet.bits`.
        states: hidden states of each, [N, B, P, D].
        cosines: of each with the full model's.
    """

    saved: list[int]
    bits: list[tuple[bool, ...]]
    states: Tensor
    cosines: list[float]

    @classmethod
    def start(cls, stream: HiddenStateRunner) -> Drafts:
        """The one that has not begun."""
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
    """For each saving the skip set of best cosine, the cheapest draft last; skipping nothing is left out.

    Args:
        decoder: the model.
        texts: calibration prompts and what the full model says after them.
        costs: measured on this machine.
        n_positions: of each text, where states are compared.
        keep_ends: never skip in the first and the last layer.
        least_cosine: a draft below it, at any sublayer, is given up.
        largest_unit: of the cost units, see `units`.

    Raises:
        InputError: see `HiddenStateRunner` and `units`.

    Source: Cha et al. 2026 (arXiv:2602.20217, KnapSpec), whose choices the defaults of the last three settings are.
    """
    stream = HiddenStateRunner(decoder, texts, n_positions=n_positions)
    attn, mlp = units(costs, stream.context, largest=largest_unit)
    drafts = solve(stream, attn=attn, mlp=mlp, keep_ends=keep_ends, least_cosine=least_cosine)
    return [SkipSet.from_bits(bits) for bits in drafts.bits[1:]]


def units(costs: CostTable, context: int, *, largest: int) -> tuple[int, int]:
    """The costs of one attention and one MLP sublayer as whole numbers from 1 to `largest`: the nearest small ratio.

    Args:
        costs: measured on this machine.
        context: tokens that attention looks back on.
        largest: the more expensive one's limit; the number of drafts in the program grows with it.

    Raises:
        InputError: if neither costs anything.
    """
    parts = replace(costs, interaction_s=())  # a sum, as the program needs it
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


def solve(stream: HiddenStateRunner, *, attn: int, mlp: int, keep_ends: bool, least_cosine: float) -> Drafts:
    """The drafts that reach the end of the model, the one that skips nothing first.

    Args:
        stream: what they pass.
        attn, mlp: units that leaving out one sublayer saves; 1 at least.
        keep_ends, least_cosine: see `knapsack`.
    """
    drafts = Drafts.start(stream)
    for i in range(stream.n_layers):
        inputs_NBPD, row = drafts.states, {bits: n for n, bits in enumerate(drafts.bits)}
        may_skip = not (keep_ends and i in (0, stream.n_layers - 1))
        half = stream.run(i, inputs_NBPD, attn=True, mlp=False)
        skipped = stream.run(i, inputs_NBPD, attn=False, mlp=False) if may_skip else None
        drafts = closest(drafts, half, skipped, bits=1, units=attn, least_cosine=least_cosine)
        # The MLP of a layer is run from the layer's input: between the halves there may be no state to go on from.
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
    drafts: Drafts,
    kept_NBPD: Tensor,
    skipped_NBPD: Tensor | None,
    *,
    bits: int,
    units: int,
    least_cosine: float = float("-inf"),
) -> Drafts:
    """For each saving the draft of best cosine, the smallest saving first.

    Args:
        drafts: before the sublayers in question; the first one skips nothing, so its states are the full model's.
        kept_NBPD: their states if these run.
        skipped_NBPD: if these are left out; None: they must run.
        bits: how many sublayers are in question.
        units: what leaving them out saves; 1 at least, or the full model could lose its place to a draft.
        least_cosine: what is below is dropped.
    """
    options = [(kept_NBPD, False, 0)]
    if skipped_NBPD is not None:
        options.append((skipped_NBPD, True, units))
    saved = [n + more for _, _, more in options for n in drafts.saved]
    paths = [path + (bit,) * bits for _, bit, _ in options for path in drafts.bits]
    near = [c for states_NBPD, _, _ in options for c in cosines(states_NBPD, kept_NBPD[0])]
    best: dict[int, int] = {}
    for n in sorted(range(len(near)), key=lambda n: -near[n]):  # of equals the one that keeps more comes first
        best.setdefault(saved[n], n)
    # The full model stays, whatever was asked of the others.
    chosen = [best[s] for s in sorted(best) if s == 0 or near[best[s]] >= least_cosine]
    states_NBPD = torch.stack([options[n // len(kept_NBPD)][0][n % len(kept_NBPD)] for n in chosen])
    return Drafts([saved[n] for n in chosen], [paths[n] for n in chosen], states_NBPD, [near[n] for n in chosen])
