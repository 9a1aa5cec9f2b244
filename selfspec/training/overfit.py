"""A check before a long training: a head that is fed rightly learns one text by heart in seconds.

One that cannot is misaligned: hidden states of another layer or shifted by a token, or text of another template.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch

from selfspec.errors import InputError
from selfspec.heads.modules import Trainable
from selfspec.models.decoder import Decoder
from selfspec.training.batches import Batch, batch_of
from selfspec.training.heldout import held_out
from selfspec.training.store import Store
from selfspec.training.trainer import Learner, Training

ENOUGH = 0.98  # acceptance at the first depth on the text that was learnt
MAX_STEPS = 400
CHECK_EVERY = 25


def check_overfit(decoder: Decoder, module: Trainable, store: Store, how: Training, *, lr: float = 2e-3) -> float:
    """Train a copy of the head on the first text of a store; returns the acceptance at the first depth.

    Raises:
        InputError: if it stays below `ENOUGH`; the line says which shift of the hidden states does better, if one does.
    """
    text = next(store.text(i) for i in range(len(store)) if len(store.text(i, ()).tokens) > 3)
    ids = torch.tensor(
        sorted({*text.top_ids[:, 0].tolist(), *text.ids.tolist()})
    )  # every token of the text can be scored
    reached = {}
    for shift in (0, 1, -1) if module.layers else (0,):
        batch = batch_of([text], module.layers, max_slots=how.max_slots)
        reached[shift] = _learnt(decoder, copy.deepcopy(module), _shifted(batch, shift), ids, how, lr)
        if shift == 0 and reached[0] >= ENOUGH:
            return reached[0]
    best = max(reached, key=lambda shift: reached[shift])
    hint = f"; shifted by {best} it reaches {reached[best]:.2f}, so the hidden states are shifted" if best else ""
    raise InputError(
        f"the head cannot learn one text by heart: acceptance {reached[0]:.2f} after {MAX_STEPS} steps, {ENOUGH} is "
        f"usual{hint}; look at the layers ({list(module.layers)}), the template and the learning rate ({lr}), or set "
        "check_overfit=false"
    )


def _learnt(decoder: Decoder, module: Trainable, batch: Batch, ids_V: torch.Tensor, how: Training, lr: float) -> float:
    learner = Learner(decoder, module, ids_V, how)
    reached = 0.0
    for step in range(1, MAX_STEPS + 1):
        learner.step(batch, lr, step)
        if step % CHECK_EVERY == 0:
            module.eval()
            found = held_out(module, [batch], learner.embed, ids_V, learner.rows_VD, n_depths=1)
            module.train()
            reached = found.conditional[0]
            if reached >= ENOUGH:
                break
    return reached


def _shifted(batch: Batch, shift: int) -> Batch:
    if not shift:
        return batch
    return replace(batch, features=[f.roll(shift, 1) for f in batch.features])
