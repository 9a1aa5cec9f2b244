"""Processes that train one head together, as `torchrun` starts them, or `accelerate launch` on GPUs.

Each takes its part of every batch; losses and gradients are added, so that all of them take the step that one process
with the whole batch would take. Only the first one judges held-out texts and writes files.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Peers:
    """The processes, seen from one of them; alone, every method gives back what it was given.

    Attributes:
        rank: number of this process, from 0.
        n: number of processes.
    """

    rank: int = 0
    n: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process judges and writes."""
        return self.rank == 0

    def part(self, all_of_it: Sequence[T]) -> Sequence[T]:
        """What this process takes of a batch; it may be nothing."""
        return all_of_it if self.n == 1 else all_of_it[self.rank :: self.n]

    def sum(self, values: Iterable[float]) -> list[float]:
        """The sums of these numbers over all processes."""
        values = list(values)
        if self.n == 1:
            return values
        found = torch.tensor(values, dtype=torch.float64, device=_device())
        distributed.all_reduce(found)
        return [float(value) for value in found.tolist()]

    def sum_gradients(self, module: nn.Module) -> None:
        """Add the gradients of all processes, in place; a process without a part of the batch has none."""
        if self.n == 1:
            return
        weights = [weight for weight in module.parameters() if weight.requires_grad]
        flat = torch.cat([_gradient(weight).flatten().to(_device()) for weight in weights])
        distributed.all_reduce(flat)
        for weight, gradient in zip(weights, torch.split(flat, [w.numel() for w in weights]), strict=True):
            weight.grad = gradient.view_as(weight).to(weight)

    def first(self, compute: Callable[[], T]) -> T:
        """What the first process computes; the others wait for it."""
        found = [compute() if self.is_first else None]
        if self.n > 1:
            distributed.broadcast_object_list(found)
        return found[0]  # type: ignore[return-value]


ALONE = Peers()


def peers() -> Peers:
    """The processes that this one was started with; call it before a model is loaded, since it chooses the GPU."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return ALONE
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available())
    return Peers(int(state.process_index), int(state.num_processes))


def _device() -> torch.device:
    return torch.device("cuda" if distributed.get_backend() == "nccl" else "cpu")


def _gradient(weight: Tensor) -> Tensor:
    return torch.zeros_like(weight) if weight.grad is None else weight.grad
