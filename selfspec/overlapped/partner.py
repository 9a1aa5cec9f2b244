"""Who drafts while the target verifies: the protocol, and a partner in this process, which is its simulation."""

# C capacity, T tokens, D hidden size

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from torch import Tensor

from selfspec.engine.cache import ClockCache
from selfspec.engine.protocols import Drafter, Output, Row
from selfspec.models.decoder import Decoder
from selfspec.overlapped.blocks import BlockDrafter
from selfspec.overlapped.state import Drafted


class Partner(Protocol):
    """Drafts blocks for the row that is open, at the same time as this process verifies."""

    @property
    def name(self) -> str:
        """Name of its drafter."""
        ...

    @property
    def hidden(self) -> tuple[int, ...]:
        """Layers whose hidden states its drafter needs."""
        ...

    @property
    def is_there(self) -> bool:
        """Whether it can still draft; if not, the verifier goes on alone."""
        ...

    def open(self, row: Row, cache: ClockCache, prompt: Output) -> ClockCache:
        """Begin a row; returns the cache that the target goes on with, which the partner reads.

        Args:
            row: the row, after its first new token was committed.
            cache: keys and values of the prompt.
            prompt: hidden states of the prompt, if the drafter needs some.
        """
        ...

    def ask(self, ids: Sequence[int], pending: Sequence[int], n: int) -> None:
        """Ask for a block of `n` tokens behind `ids` and `pending`; an earlier block is no longer wanted.

        From now on, and until the next call, the target writes keys, values and hidden states only from the position of
        the last token of `ids` on.
        """
        ...

    def tell(self, start: int, hidden: Mapping[int, Tensor]) -> None:
        """Hand over hidden states [1, T, D] of the positions from `start` on."""
        ...

    def first(self) -> Drafted | None:
        """The first token of the block; None: there is none."""
        ...

    def block(self, *, is_whole: bool) -> list[Drafted]:
        """The block, whole or as far as it is drafted now."""
        ...

    def close(self) -> None:
        """End the row."""
        ...


class SamePartner:
    """Drafts in this process, when it is asked: a simulation that gives the same tokens as another process.

    Args:
        decoder: the target.
        drafter: drafts chains.
        lengths: lengths of the blocks, as if the verifier had taken them after so many tokens; None: whole blocks.
    """

    is_there = True

    def __init__(self, decoder: Decoder, drafter: Drafter, *, lengths: Iterable[int] | None = None) -> None:
        self._blocks = BlockDrafter(drafter, decoder)
        self._lengths = None if lengths is None else iter(lengths)
        self._drafted: list[Drafted] = []

    @property
    def name(self) -> str:
        """Name of the drafter."""
        return self._blocks.drafter.name

    @property
    def hidden(self) -> tuple[int, ...]:
        """Layers whose hidden states the drafter needs."""
        return self._blocks.drafter.needs.hidden

    def open(self, row: Row, cache: ClockCache, prompt: Output) -> ClockCache:
        """Begin a row with copies of what another process would get."""
        self._hidden = hidden_buffers(prompt.hidden, cache.capacity)
        self._blocks.open(copy.deepcopy(row), cache, self._hidden)
        return cache

    def ask(self, ids: Sequence[int], pending: Sequence[int], n: int) -> None:
        """Draft the block."""
        if self._lengths is not None:
            n = min(n, next(self._lengths))
        self._drafted = list(self._blocks.draft(ids, pending, n)) if n else []

    def tell(self, start: int, hidden: Mapping[int, Tensor]) -> None:
        """Keep hidden states."""
        write_hidden(self._hidden, start, hidden)

    def first(self) -> Drafted | None:
        """The first token of the block."""
        return self._drafted[0] if self._drafted else None

    def block(self, *, is_whole: bool) -> list[Drafted]:
        """The whole block: it was drafted when it was asked for."""
        return self._drafted

    def close(self) -> None:
        """End the row."""
        self._blocks.close()


def hidden_buffers(prompt: Mapping[int, Tensor], capacity: int) -> dict[int, Tensor]:
    """Buffers [1, C, D] by layer that begin with the hidden states [1, T, D] of a prompt."""
    found = {layer: h.new_zeros(1, capacity, h.shape[-1]) for layer, h in prompt.items()}
    write_hidden(found, 0, prompt)
    return found


def write_hidden(buffers: Mapping[int, Tensor], start: int, hidden: Mapping[int, Tensor]) -> None:
    """Write hidden states [1, T, D] by layer into buffers [1, C, D], from a position on."""
    for layer, states in hidden.items():
        buffers[layer][:, start : start + states.shape[1]] = states
