"""What a round with a trained draft costs on this machine, in plain tokens."""

# D hidden size

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import torch

from search.costs.table import CostTable
from selfspec.drafters.chain import ModelDraft
from selfspec.engine.protocols import Drafter
from selfspec.heads.drafter import HeadDraft
from selfspec.measure.stopwatch import Stopwatch
from selfspec.models.decoder import Decoder
from selfspec.training.heldout import RoundCosts

CONTEXT = 128  # slots in the head's memory while it is timed


@torch.inference_mode()
def round_costs(
    decoder: Decoder, drafter: Drafter, table: CostTable, *, repeats: int, stopwatch: Stopwatch
) -> RoundCosts:
    """Time one drafted token; the costs of verifying are those of the table.

    Args:
        decoder: the target.
        drafter: the drafter of a head, or of layers.
        table: costs of the target's forwards.
        repeats: tokens that are timed; the median counts.
        stopwatch: measures the seconds.
    """
    context = table.contexts[0]
    plain_s = table.verification_s(1, context)
    n_slots = min(CONTEXT, decoder.context_length - repeats - 4)
    draft_one = (
        _head(decoder, drafter, n_slots) if isinstance(drafter, HeadDraft) else _layers(decoder, drafter, n_slots)
    )
    seconds = []
    for i in range(repeats + 3):
        begin = stopwatch.now()
        draft_one(i)
        seconds.append(stopwatch.now() - begin)
    verify = tuple(table.verification_s(n, context) / plain_s for n in range(1, len(table.verify_s) + 1))
    return RoundCosts(median(seconds[3:]) / plain_s, verify)


def _head(decoder: Decoder, drafter: HeadDraft, n_slots: int) -> Callable[[int], None]:
    """Drafts a token with a head, after slots of zeros."""
    module, output = drafter.module, drafter.output
    state, depths = module.begin(), module.max_depth or CONTEXT
    features = [torch.zeros(1, n_slots, decoder.config.hidden_size, dtype=decoder.dtype, device=decoder.device)]
    hidden_1D = module.extend(state, features * len(module.layers), output.embed([0] * n_slots))

    def draft_one(i: int) -> None:
        nonlocal hidden_1D
        token = int(output.logits(hidden_1D).argmax())
        if depths > 1:
            hidden_1D = module.step(state, output.embed([token])[0], 1 + i % (depths - 1))

    return draft_one


def _layers(decoder: Decoder, drafter: Drafter, n_slots: int) -> Callable[[int], None]:
    """Drafts a token with layers, after tokens of the target."""
    assert isinstance(drafter, ModelDraft)
    cache = decoder.new_cache(n_rows=1, capacity=n_slots + 1)
    decoder.full(torch.zeros(1, n_slots, dtype=torch.long, device=decoder.device), starts=[0], cache=cache, n_logits=1)
    ids_11 = torch.zeros(1, 1, dtype=torch.long, device=decoder.device)

    def draft_one(i: int) -> None:
        int(drafter.forward(ids_11, starts=[n_slots], cache=cache, n_logits=1).argmax())

    return draft_one
