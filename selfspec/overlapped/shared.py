"""Memory that the two processes of overlapped decoding share; each part of it is written by one of them alone.

It consists of tensors alone. Their files in /dev/shm lose their names as soon as they are made, so nothing stays behind
when a process is killed.
"""

# L layers, C capacity in tokens, D hidden size, R slots of the ring, V vocabulary

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from selfspec.engine.cache import ClockCache
from selfspec.errors import InputError
from selfspec.models.packing import PackedLinear
from selfspec.overlapped.state import Drafted

SHM = "/dev/shm"
NO_TOKEN = -1  # in place of a token: the block has ended


@dataclass(frozen=True, slots=True)
class SharedText:
    """One text as the target knows it; the target's process alone writes it.

    Attributes:
        ids_C: committed tokens, then pending ones.
        layers: keys and values of each layer, [1, H, C, D]; None for a layer without any.
        hidden: hidden states [1, C, D] by layer.
    """

    ids_C: Tensor
    layers: list[tuple[Tensor, Tensor] | None]
    hidden: dict[int, Tensor]

    @property
    def capacity(self) -> int:
        """Tokens that it has room for."""
        return len(self.ids_C)

    @classmethod
    def like(cls, cache: ClockCache, hidden: Mapping[int, Tensor], *, capacity: int) -> SharedText:
        """An empty text of the form of a cache of one row and of hidden states [1, T, D]."""

        def room(t: Tensor, n_heads: int | None = None) -> Tensor:
            shape = (1, capacity, t.shape[-1]) if n_heads is None else (1, n_heads, capacity, t.shape[-1])
            return _shared(t.new_zeros(shape, device="cpu"))

        layers: list[tuple[Tensor, Tensor] | None] = [
            (room(layer.keys, layer.keys.shape[1]), room(layer.values, layer.values.shape[1]))
            if layer.is_initialized
            else None
            for layer in cache.layers
        ]
        ids_C = _shared(torch.zeros(capacity, dtype=torch.long))
        return cls(ids_C, layers, {at: room(states) for at, states in hidden.items()})

    def cache(self) -> ClockCache:
        """The keys and values as a cache: what is written there is written here."""
        found = ClockCache(len(self.layers), n_rows=1, capacity=self.capacity)
        for layer, pair in zip(found.layers, self.layers, strict=True):
            if pair is not None:
                layer.restore(*pair, torch.device("cpu"))
        return found

    def take(self, cache: ClockCache, n: int) -> ClockCache:
        """Copy the first `n` tokens of a cache; returns this text as a cache."""
        found = self.cache()
        for own, other in zip(found.layers, cache.layers, strict=True):
            if own.is_initialized:
                own.keys[:, :, :n] = other.keys[:, :, :n]
                own.values[:, :, :n] = other.values[:, :, :n]
        return found

    def write(self, ids: Sequence[int], pending: Sequence[int]) -> None:
        """Write the text, with its pending tokens."""
        self.ids_C[: len(ids) + len(pending)] = torch.tensor([*ids, *pending])

    def read(self, n: int, n_pending: int) -> tuple[list[int], list[int]]:
        """The committed tokens and the pending ones."""
        ids = self.ids_C[: n + n_pending].tolist()
        return ids[:n], ids[n:]


class Ring:
    """Drafted tokens on their way to the target; the drafter's process alone writes it.

    Args:
        n_slots: R; the reader takes every token before R further ones are written.
        n_vocab: V, if distributions travel with the tokens; None: point masses.
        dtype: of the distributions.
    """

    def __init__(self, n_slots: int, *, n_vocab: int | None, dtype: torch.dtype = torch.float32) -> None:
        self.slots_R3 = _shared(torch.zeros(n_slots, 3, dtype=torch.long))  # (block, token, is drawn)
        self.written_1 = _shared(torch.zeros(1, dtype=torch.long))
        self.drafts_RV: Tensor | None = None
        if n_vocab is not None:
            self.drafts_RV = _shared(torch.zeros(n_slots, n_vocab, dtype=dtype))

    @property
    def n_written(self) -> int:
        """Number of tokens written so far."""
        return int(self.written_1)

    def put(self, block: int, drafted: Drafted | None) -> None:
        """Write a token of a block, or its end."""
        slot = self.n_written % len(self.slots_R3)
        token, draft_V = (NO_TOKEN, None) if drafted is None else (drafted.token, drafted.draft_V)
        if draft_V is not None:
            assert self.drafts_RV is not None, "this ring was made for point masses"
            self.drafts_RV[slot] = draft_V
        self.slots_R3[slot] = torch.tensor([block, token, int(draft_V is not None)])
        self.written_1 += 1  # last, so that a reader never sees half a token

    def get(self, n: int) -> tuple[int, Drafted | None]:
        """Entry `n` since the beginning: the number of its block, and the token; None: the block has ended."""
        slot = n % len(self.slots_R3)
        block, token, is_drawn = self.slots_R3[slot].tolist()
        draft_V = None
        if is_drawn:
            assert self.drafts_RV is not None
            draft_V = self.drafts_RV[slot].clone()
        return block, None if token == NO_TOKEN else Drafted(token, draft_V)


def _shared(tensor: Tensor) -> Tensor:
    """The tensor, moved to shared memory."""
    moved: Tensor = tensor.share_memory_()  # type: ignore[no-untyped-call]
    return moved


def check_room(model: nn.Module, *others: int) -> None:
    """Refuse weights that /dev/shm has no room for: writing to it would kill the process.

    Args:
        model: whose weights are about to be shared; those that are shared already need no room.
        others: bytes that are needed besides.

    Raises:
        InputError: with the bytes there are and the bytes needed.
    """
    if not os.path.isdir(SHM):
        return
    needed = sum(t.numel() * t.element_size() for t in _unshared(model)) + sum(others)
    room = os.statvfs(SHM)
    free = room.f_bavail * room.f_frsize
    if needed > free:
        raise InputError(
            f"drafting in another process shares {needed / 1e6:.0f} MB, and {SHM} has {free / 1e6:.0f} MB; enlarge it "
            "(docker: --shm-size=8g), or use schedule=sequential"
        )


def _unshared(model: nn.Module) -> Iterable[Any]:
    """Weights that are not in shared memory; a packed one is shared unpacked."""
    seen: set[int] = set()
    for tensor in (*model.parameters(), *model.buffers()):
        is_shared = tensor.is_shared()  # type: ignore[no-untyped-call]
        if not is_shared and id(tensor) not in seen:
            seen.add(id(tensor))
            yield tensor
    for module in model.modules():
        if isinstance(module, PackedLinear) and module.shared is None:
            yield module.packed
