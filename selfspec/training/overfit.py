"""A check before a long training: a head that is fed rightly learns one text by heart in seconds.

One that cannot is misaligned: hidden states of another layer or shifted by a token, or text of another template.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

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
RATES = (2.0, 0.5, 0.125)  # learning rates that are tried one after another, in those of the training
HOPELESS = 0.3  # acceptance after a quarter of the steps below which a smaller learning rate is tried


@dataclass(frozen=True, slots=True)
class Overfit:
    """What the check found.

    Attributes:
        acceptance: at the first depth, on the text that was learnt.
        lr: learning rate for the training: that of the settings, or a smaller one where the head diverges at twice it,
            as heads without norms do on large hidden states.
    """

    acceptance: float
    lr: float


def check_overfit(decoder: Decoder, module: Trainable, store: Store, how: Training) -> Overfit:
    """Train a copy of the head on the first text of a store.

    Raises:
        InputError: if no text is long enough, or if the acceptance stays below `ENOUGH` at each learning rate; the line
            says which shift of the hidden states does better, if one does.
    """
    text = next((store.text(i) for i in range(len(store)) if len(store.text(i, ()).tokens) > 3), None)
    if text is None:
        raise InputError(
            f"no answer of the store {store.path} is longer than 3 tokens; collect with more max_new_tokens"
        )
    ids = torch.tensor(
        sorted({*text.top_ids[:, 0].tolist(), *text.ids.tolist()})
    )  # every token of the text can be scored
    batch = batch_of([text], module.layers, max_slots=how.max_slots)

    def learnt(shift: int, rate: float) -> float:
        return _learnt(decoder, copy.deepcopy(module), _shifted(batch, shift), ids, how, rate * how.lr)

    by_rate = {}
    for rate in RATES:
        by_rate[rate] = learnt(0, rate)
        if by_rate[rate] >= ENOUGH:
            return Overfit(by_rate[rate], how.lr * rate / RATES[0])
    rate = max(by_rate, key=lambda rate: by_rate[rate])
    reached = {0: by_rate[rate], **{shift: learnt(shift, rate) for shift in ((1, -1) if module.layers else ())}}
    best = max(reached, key=lambda shift: reached[shift])
    hint = f"; shifted by {best} it reaches {reached[best]:.2f}, so the hidden states are shifted" if best else ""
    raise InputError(
        f"the head cannot learn one text by heart: acceptance {reached[0]:.2f} after {MAX_STEPS} steps, {ENOUGH} is "
        f"usual{hint}; look at the layers ({list(module.layers)}), the template and the learning rate (down to "
        f"{RATES[-1] * how.lr:g} was tried), or set check_overfit=false"
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
            if reached >= ENOUGH or (step >= MAX_STEPS // 4 and reached < HOPELESS):
                break
    return reached


def _shifted(batch: Batch, shift: int) -> Batch:
    if not shift:
        return batch
    return replace(batch, features=[f.roll(shift, 1) for f in batch.features])
