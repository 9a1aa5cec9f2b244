"""What a round with a trained head costs on this machine, in plain tokens."""

# D hidden size

from __future__ import annotations

from statistics import median

import torch
from torch import Tensor

from search.costs.table import CostTable
from selfspec.heads.build import HeadDrafter
from selfspec.heads.refinement.drafter import RefineDraft
from selfspec.measure.stopwatch import Stopwatch
from selfspec.models.decoder import Decoder
from selfspec.training.heldout import RoundCosts

CONTEXT = 128  # slots in the head's memory while it is timed


@torch.inference_mode()
def round_costs(
    decoder: Decoder,
    drafter: HeadDrafter,
    table: CostTable,
    *,
    repeats: int,
    stopwatch: Stopwatch,
) -> RoundCosts:
    """Time one drafted token of a head; the costs of verifying are those of the table.

    Args:
        decoder: the target.
        drafter: the drafter of the head.
        table: costs of the target's forwards.
        repeats: tokens that are timed; the median counts.
        stopwatch: measures the seconds.
    """
    context = table.contexts[0]
    plain_s = table.verification_s(1, context)
    module, output = drafter.module, drafter.output
    state, ids = module.begin(), [0] * CONTEXT
    features = [torch.zeros(1, CONTEXT, decoder.config.hidden_size, dtype=decoder.dtype, device=decoder.device)]
    hidden_1D = module.extend([state], features * len(module.layers), output.embed(ids), [CONTEXT])
    depths = module.max_depth or CONTEXT

    def drafted(number: int, hidden_1D: Tensor) -> Tensor:
        if isinstance(drafter, RefineDraft):  # all depths at once
            drafter.paths([ids], [state]).tokens_BPK.tolist()
            return hidden_1D
        token, depth = int(output.logits(hidden_1D.unsqueeze(1)).argmax()), 1 + number % max(1, depths - 1)
        return hidden_1D if depths == 1 else module.step([state], [[depth - 2]], output.embed([token])[0], depth)

    seconds = []
    for i in range(repeats + 3):
        begin = stopwatch.now()
        hidden_1D = drafted(i, hidden_1D)
        seconds.append(stopwatch.now() - begin)
    token_s = median(seconds[3:]) / (depths if isinstance(drafter, RefineDraft) else 1)
    verify = tuple(table.verification_s(n, context) / plain_s for n in range(1, len(table.verify_s) + 1))
    return RoundCosts(token_s / plain_s, verify)
