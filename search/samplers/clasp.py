"""Skip sets of whole layers from hidden states: for each number of layers, the draft nearest to the full model.

This is the dynamic program of `search.samplers.knapsack` over layers of equal cost. It needs no measured costs.
"""

# N drafts, B texts, P positions of a text, D width

from __future__ import annotations

from collections.abc import Sequence

from search.fitting.hidden_states_runner import HiddenStateRunner, Text
from search.samplers.knapsack import PartialDrafts, closest
from selfspec.models.decoder import Decoder
from selfspec.skipping.skip_set import SkipSet


def clasp(decoder: Decoder, texts: Sequence[Text], *, n_positions: int = 4, keep_ends: bool = False) -> list[SkipSet]:
    """The best sets of 1, 2, 3, ... skipped layers; at least one layer is kept.

    Args:
        decoder: the model.
        texts: calibration prompts with the full model's continuations.
        n_positions: number of positions of each text at which states are compared.
        keep_ends: never skip the first and the last layer.

    Raises:
        InputError: if `HiddenStateRunner` refuses the texts or the model.

    Source: Chen et al. 2025 (arXiv:2505.24196, CLaSp), who compare the state of the last accepted token. Here it is the
    mean over positions of all texts, since one set serves all of them.
    """
    drafts = solve_layers(HiddenStateRunner(decoder, texts, n_positions=n_positions), keep_ends=keep_ends)
    found = [SkipSet.from_bits(bits) for bits in drafts.bits]
    return [skip for skip in found if 0 < len(skip.attn) < skip.n_layers]


def solve_layers(stream: HiddenStateRunner, *, keep_ends: bool) -> PartialDrafts:
    """The best draft for each number of skipped layers, from 0 on."""
    drafts = PartialDrafts.start(stream)
    for i in range(stream.n_layers):
        may_skip = not (keep_ends and i in (0, stream.n_layers - 1))
        kept = stream.run(i, drafts.states, attn=True, mlp=True)
        skipped = stream.run(i, drafts.states, attn=False, mlp=False) if may_skip else None
        drafts = closest(drafts, kept, skipped, bits=2, units=1)
    return drafts
