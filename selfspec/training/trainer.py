"""Train a draft head on stored texts: one loop for every kind of head.

The target, its embedding and its output head stay as they are. The master weights are float32; the forward may run in
bfloat16. Every step is a function of the seed and its number, and a checkpoint holds weights and optimiser, so a
training that was stopped ends with the same weights as one that was not.
"""

# B texts, T slots, D hidden size, V tokens of the draft's vocabulary

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selfspec.errors import InputError
from selfspec.heads.modules import Trainable
from selfspec.measure.stopwatch import Stopwatch
from selfspec.models.decoder import Decoder
from selfspec.records.run_files import write_file
from selfspec.training.batches import Batch, check_layers, groups, read, split
from selfspec.training.heldout import HeldOut, RoundCosts, held_out
from selfspec.training.losses import LOSSES, OUTSIDE, Slots
from selfspec.training.peers import ALONE, Peers
from selfspec.training.store import Store

log = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.pt"
Told = Callable[[Mapping[str, Any]], None]  # called with a row: step, loss, seconds, and now and then held-out figures


@dataclass(frozen=True, slots=True)
class Training:
    """Settings of a training.

    Attributes:
        losses: weight by name of a loss, see `losses.LOSSES`.
        depths: depths that are trained; each reads the outputs of the one before, as in drafting.
        decay: weight of depth d is decay to the power of d.
        lr, warmup, weight_decay, clip: of AdamW with a cosine schedule; `warmup` is a fraction of the steps.
        epochs: passes over the texts.
        max_steps: steps after which training ends; None: no limit.
        max_s: seconds after which training ends; None: no limit. The schedule follows whichever limit comes first.
        slots: padded slots of a step.
        max_slots: slots of a text; of a longer one the last count.
        noise: width of the uniform noise that is added to the features (EAGLE); 0: none.
        check_every: steps between two looks at the held-out texts, and between checkpoints.
        n_checked: held-out texts that are looked at.
        patience: looks without a better expected speedup after which training ends; None: never.
        bf16: run the forward in bfloat16.
        seed: of the order of texts.

    Raises:
        InputError: if a setting is impossible.
    """

    losses: Mapping[str, float] = field(default_factory=lambda: {"choice": 1.0})
    depths: int = 3
    decay: float = 0.8
    lr: float = 1e-3
    warmup: float = 0.05
    weight_decay: float = 0.0
    clip: float = 0.5
    epochs: int = 8
    max_steps: int | None = None
    max_s: float | None = None
    slots: int = 1536
    max_slots: int = 512
    noise: float = 0.0
    check_every: int = 100
    n_checked: int = 64
    patience: int | None = 5
    bf16: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = sorted(set(self.losses) - set(LOSSES))
        if unknown or not self.losses:
            raise InputError(f"losses={dict(self.losses)}; give weights for any of {', '.join(LOSSES)}")
        whole = {"depths": self.depths, "epochs": self.epochs, "slots": self.slots, "check_every": self.check_every}
        for name, value in whole.items():
            if value < 1:
                raise InputError(f"{name}={value}; it is at least 1")
        if self.lr <= 0 or self.clip <= 0 or not 0 <= self.warmup < 1:
            raise InputError(f"lr={self.lr}, clip={self.clip}, warmup={self.warmup}: above 0, above 0, in [0, 1)")


class Learner:
    """One step of training, for any batch.

    Args:
        decoder: the target; its embedding and output head stay as they are.
        module: the head; it is trained in place, in float32.
        vocabulary_V: ids of the tokens that the draft scores, in rising order.
        how: settings.
        peers: processes that train together.
    """

    def __init__(
        self, decoder: Decoder, module: Trainable, vocabulary_V: Tensor, how: Training, peers: Peers = ALONE
    ) -> None:
        self.module, self.how, self.peers, self.device = module.to(decoder.device).float(), how, peers, decoder.device
        model: Any = decoder.model
        self._embedding: Any = model.get_input_embeddings()
        self.rows_VD: Tensor = model.get_output_embeddings().weight.detach()[vocabulary_V].float()
        place = torch.full((decoder.n_vocab + 1,), OUTSIDE)  # the last one is that of goal -1
        place[vocabulary_V] = torch.arange(len(vocabulary_V))
        self._place = place.to(decoder.device)
        self.optimizer = torch.optim.AdamW(
            module.parameters(), lr=how.lr, betas=(0.9, 0.95), weight_decay=how.weight_decay
        )

    @torch.no_grad()
    def embed(self, ids_BT: Tensor) -> Tensor:
        """Embeddings [B, T, D] in float32."""
        found: Tensor = self._embedding(ids_BT.to(self._embedding.weight.device)).float()
        return found

    def step(self, batch: Batch | None, lr: float, number: int) -> dict[str, float]:
        """Change the weights once; returns the losses.

        Args:
            batch: this process's part of the batch; None: it has none.
            lr: learning rate.
            number: of the step.

        Raises:
            InputError: if loss or gradient are not finite; the weights then stay as they were.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        total, parts = self._losses(batch, number)
        self._check(number, "loss", parts["loss"])
        self.optimizer.zero_grad()
        if total.requires_grad:
            total.backward()  # type: ignore[no-untyped-call]
        self.peers.sum_gradients(self.module)
        norm = torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.how.clip)
        self._check(number, "gradient", norm.item())
        self.optimizer.step()
        return parts

    def _check(self, number: int, what: str, value: float) -> None:
        if not math.isfinite(value):
            raise InputError(
                f"the {what} of step {number} is {value}; train again with a smaller lr (now {self.how.lr})"
            )

    def _losses(self, batch: Batch | None, number: int) -> tuple[Tensor, dict[str, float]]:
        """The part of the loss that this process adds, and the losses of the whole batch."""
        how, total, sums = self.how, torch.zeros(()), dict.fromkeys(self.how.losses, 0.0)
        counts = [0.0 if batch is None else float(batch.counts(depth).sum()) for depth in range(how.depths)]
        shares = [own / max(n, 1) for own, n in zip(counts, self.peers.sum(counts), strict=True)]
        if batch is not None:
            total, sums = self._own_losses(batch.to(self.device), number, shares)
        loss, *parts = self.peers.sum([total.item(), *sums.values()])
        return total, {"loss": loss, **{f"loss_{name}": part for name, part in zip(sums, parts, strict=True)}}

    def _own_losses(self, batch: Batch, number: int, shares: Sequence[float]) -> tuple[Tensor, dict[str, float]]:
        """The losses of a part of a batch that has such shares of the whole batch's slots, by depth."""
        how = self.how
        features = [f.float() for f in batch.features]
        if how.noise:
            rng = torch.Generator().manual_seed(how.seed * 1_000_003 + number + 7_919 * self.peers.rank)
            features = [f + ((torch.rand(f.shape, generator=rng) - 0.5) * how.noise).to(f) for f in features]
        context = torch.autocast(self.device.type, torch.bfloat16) if how.bf16 else nullcontext()
        with context:
            predicted = self.module.predict(batch.whole_text, features, self.embed, how.depths)
        total, sums = torch.zeros((), device=self.device), dict.fromkeys(how.losses, 0.0)
        weights = [how.decay**depth for depth in range(len(predicted))]
        weights = [weight / sum(weights) * share for weight, share in zip(weights, shares, strict=False)]
        for depth, (one, weight) in enumerate(zip(predicted, weights, strict=True)):
            is_counted = batch.counts(depth)
            if not bool(is_counted.any()):
                continue
            for to_head in (one.to_head, one.refined):
                if to_head is None:
                    continue
                with context:
                    logits_MV = to_head[is_counted].to(self.rows_VD.dtype) @ self.rows_VD.T
                slots = Slots(
                    logits_MV.float(),
                    self._place[batch.goal_BT[is_counted]],
                    self._place[batch.top_ids_BTK[is_counted]],
                    batch.top_logprobs_BTK[is_counted].exp(),
                    None if one.feature is None else one.feature[is_counted].float(),
                    None if batch.last_BTD is None else batch.last_BTD[is_counted].float(),
                )
                for name, factor in how.losses.items():
                    loss = LOSSES[name](slots)
                    total = total + factor * weight * loss
                    sums[name] += loss.item() * weight
        return total, sums


@dataclass(slots=True)
class _Progress:
    step: int = 0
    seconds: float = 0.0
    best: float = -math.inf
    best_step: int = 0
    n_worse: int = 0
    untrained: float | None = None  # expected speedup before the first step, of what drafts without training


class Trainer:
    """Trains one head.

    Args:
        decoder: the target.
        module: the head; it is trained in place, in float32.
        stores: texts of the target.
        vocabulary_V: ids of the tokens that the draft scores, in rising order.
        how: settings.
        costs: what a round costs, for the expected speedup.
        folder: where the checkpoint lies, from which training goes on; None: none is written.
        peers: processes that train together; `how.slots` are those of all.

    Raises:
        InputError: if the stores lack a layer that the head reads, hold too little text, or the vocabulary is foreign.
    """

    def __init__(
        self,
        decoder: Decoder,
        module: Trainable,
        stores: Sequence[Store],
        vocabulary_V: Tensor,
        how: Training,
        costs: RoundCosts,
        folder: Path | None = None,
        peers: Peers = ALONE,
    ) -> None:
        check_layers(module.layers, stores)
        self.decoder, self.module, self.stores, self.how, self.costs = decoder, module.float(), stores, how, costs
        self.vocabulary_V, self.peers = vocabulary_V, peers
        self.texts, held = split(stores)
        self.held = held[: how.n_checked]
        self.learner = Learner(decoder, module, vocabulary_V, how, peers)
        self._file = None if folder is None else folder / CHECKPOINT
        self.progress, self._is_broken = _Progress(), False
        self.best_weights = _copy(module)
        self.steps_an_epoch = min(
            len(self._groups(self.texts, seed)) for seed in range(how.seed, how.seed + how.epochs)
        )
        if self._file is not None and self._file.is_file():
            self._load(self._file)

    @property
    def n_steps(self) -> int:
        """Steps of the whole training, if neither time nor patience ends it."""
        n_steps = self.how.epochs * self.steps_an_epoch
        return n_steps if self.how.max_steps is None else min(n_steps, self.how.max_steps)

    def run(self, told: Told | None = None) -> HeldOut:
        """Train to the end; the module then has the weights of the best look at the held-out texts.

        A loss or gradient that is nan is the end, too.

        Raises:
            InputError: if one is nan before the first look.
        """
        tell, watch = told or (lambda row: None), Stopwatch(self.decoder.device)
        if self.progress.step == 0 and self.module.drafts_untrained:
            self.progress.untrained = self._look()["expected_speedup"]  # training must not make it worse
        while not self._is_over():
            for batch in self._rest_of_epoch():
                begin = watch.now()
                try:
                    losses = self.learner.step(batch, self.how.lr * self._schedule(), self.progress.step + 1)
                except InputError as error:
                    if not self.progress.best_step:
                        raise
                    log.warning("%s; the draft is that of step %d", error, self.progress.best_step)
                    self._is_broken = True
                    break
                self.progress.seconds += self.peers.first(lambda begin=begin: watch.now() - begin)  # type: ignore[misc]
                self.progress.step += 1
                row: dict[str, Any] = {"step": self.progress.step, "seconds": self.progress.seconds, **losses}
                if self.progress.step % self.how.check_every == 0 or self._is_over():
                    row |= self._look()
                tell(row)
                if self._is_over():
                    break
        return self.best()

    def best(self) -> HeldOut:
        """Give the module its best weights so far; returns the acceptance on the held-out texts."""
        self.module.load_state_dict(self.best_weights)
        return self.check()

    def batches(self, chosen: Sequence[tuple[int, int]]) -> Iterator[Batch]:
        """Batches of some texts, each (store, text)."""
        return map(self._read, self._groups(chosen))

    def check(self) -> HeldOut:
        """Acceptance on the held-out texts."""
        return self.peers.first(self._check_alone)

    def _check_alone(self) -> HeldOut:
        self.module.eval()
        found = held_out(
            self.module,
            self.batches(self.held),
            self.learner.embed,
            self.vocabulary_V,
            self.learner.rows_VD,
            n_depths=self.module.max_depth or self.how.depths + 2,
        )
        self.module.train()
        return found

    def _look(self) -> dict[str, Any]:
        """Held-out figures; better weights are kept, and a checkpoint is written."""
        p, held = self.progress, self.check()
        speedup, length = self.costs.best(held)
        if speedup > p.best:
            p.best, p.best_step, p.n_worse, self.best_weights = speedup, p.step, 0, _copy(self.module)
        else:
            p.n_worse += 1
        if self._file is not None and self.peers.is_first:
            self._save(self._file)
        return {"conditional": list(held.conditional), "expected_speedup": speedup, "draft_length": length}

    def _is_over(self) -> bool:
        p, how = self.progress, self.how
        is_late = how.max_s is not None and p.seconds >= how.max_s
        return (
            self._is_broken
            or p.step >= self.n_steps
            or is_late
            or (how.patience is not None and p.n_worse >= how.patience)
        )

    def _groups(self, chosen: Sequence[tuple[int, int]], seed: int | None = None) -> list[list[tuple[int, int]]]:
        how = self.how
        return groups(self.stores, chosen, n_slots=how.slots, max_slots=how.max_slots, seed=seed)

    def _read(self, group: Sequence[tuple[int, int]]) -> Batch:
        return read(self.stores, group, self.module.layers, max_slots=self.how.max_slots)

    def _rest_of_epoch(self) -> Iterator[Batch | None]:
        epoch, done = divmod(self.progress.step, self.steps_an_epoch)
        for group in self._groups(self.texts, self.how.seed + epoch)[done : self.steps_an_epoch]:
            own = self.peers.part(group)
            yield self._read(own) if own else None

    def _schedule(self) -> float:
        p, how = self.progress, self.how
        done = p.step / self.n_steps
        if how.max_s is not None:
            done = max(done, min(1.0, p.seconds / how.max_s))
        if done < how.warmup:
            return max(done, 1 / self.n_steps) / how.warmup
        return 0.5 * (1 + math.cos(math.pi * (done - how.warmup) / (1 - how.warmup)))

    def _save(self, file: Path) -> None:
        state = {
            "module": self.module.state_dict(),
            "optimizer": self.learner.optimizer.state_dict(),
            "best": self.best_weights,
            "progress": {name: getattr(self.progress, name) for name in _Progress.__slots__},
            "lr": self.how.lr,  # the check before a training may have lowered it
        }
        write_file(file, lambda opened: torch.save(state, opened))  # to a path, torch hides why a disk refuses it

    def _load(self, file: Path) -> None:
        state = torch.load(file, weights_only=True, map_location="cpu")
        self.module.load_state_dict(state["module"])
        self.learner.optimizer.load_state_dict(state["optimizer"])
        self.best_weights, self.progress = state["best"], _Progress(**state["progress"])
        self.how = replace(self.how, lr=state.get("lr", self.how.lr))


def _copy(module: Trainable) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
