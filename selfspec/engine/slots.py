"""A key/value cache whose rows come and go: a row that leaves frees its slot for the next one.

Buffers for all slots are allocated once for a number of slots and a length, and again only where another shape is
reserved. The first slots hold the rows that decode. The slot behind them may be open, for a prompt that is read there
in pieces. A row that leaves gives its slot to the last row, so that the rows in use stay adjacent.
"""

# R slots, H key/value heads, C capacity, D head dimension

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from selfspec.engine.cache import ClockCache
from selfspec.errors import InputError


class SlotCache(ClockCache):
    """The rows that decode, as the views of the first slots.

    Args:
        n_layers: layers of the model.
        device: of the input ids.

    Attributes:
        n_slots: number of slots, R.
    """

    def __init__(self, n_layers: int, *, device: torch.device | None = None) -> None:
        super().__init__(n_layers, n_rows=0, capacity=0, device=device)
        self.n_slots = 0
        self._buffers: list[tuple[Tensor, Tensor] | None] = [None] * n_layers  # [R, H, C, D] each
        self._opened: ClockCache | None = None
        self._n_written = 0  # no row has a key behind this position

    @property
    def n_tokens(self) -> int:
        """Tokens whose keys and values the buffers hold, in use or not."""
        return self.n_slots * self.capacity if any(self._buffers) else 0

    def reserve(self, n_slots: int, capacity: int) -> None:
        """Allocate `n_slots` slots of `capacity` tokens, while none is open; what the rows hold is copied."""
        in_use = len(self.clocks)
        assert self._opened is None and n_slots >= in_use, "a row in use would lose its slot"
        if (n_slots, capacity) == (self.n_slots, self.capacity):
            return
        n = min(self.capacity, capacity)
        self.n_slots, self.capacity = n_slots, capacity
        for i, both in enumerate(self._buffers):
            if both is not None:  # so that each old buffer is freed before the next layer's turn
                keys, values = (_moved(t, n_slots, capacity, in_use, n) for t in both)
                self._buffers[i] = keys, values
                self._put(self, 0, in_use, layers=[i])

    def open(self) -> ClockCache:
        """The slot behind the rows that decode, as a cache of one row; `join` makes it one of them."""
        assert self._opened is None and len(self.clocks) < self.n_slots
        self._opened = self._slot([0])
        return self._opened

    @property
    def opened(self) -> ClockCache:
        """The open slot. It is another object after a row has left or `reserve` was called."""
        assert self._opened is not None
        return self._opened

    def join(self) -> None:
        """The row of the open slot decodes from now on."""
        opened, n = self.opened, len(self.clocks)
        for i, layer in enumerate(opened.layers):
            if layer.is_initialized and self._buffers[i] is None:  # the very first row: sizes of heads are known now
                keys, values = (
                    _moved(t, self.n_slots, self.capacity, 1, t.shape[2], n) for t in (layer.keys, layer.values)
                )
                self._buffers[i] = keys, values
        self.clocks = [*self.clocks, *opened.clocks]
        self._opened = None
        self._show()

    def close(self) -> None:
        """Give the open slot back: its row ended before it decoded."""
        self._opened = None

    def set(self, starts: Sequence[int], n_new: int) -> None:
        """See `ClockCache.set`."""
        super().set(starts, n_new)
        self._n_written = max(starts) + n_new

    def keep(self, rows: Sequence[int]) -> list[int]:
        """Keep `rows`; the last ones move into the slots of those that left. See `ClockCache.keep`."""
        n_before = len(self.clocks)
        if len(rows) == n_before:
            return list(rows)
        order = compacted(rows)
        for slot, row in enumerate(order):
            if row != slot:
                self._copy(row, slot, self._n_written)
        self.clocks = [self.clocks[row] for row in order]
        if self._opened is not None:
            self._copy(n_before, len(order), self.capacity)
            self._opened = self._slot(self._opened.clocks)
        self._show()
        return order

    def _copy(self, source: int, slot: int, n: int) -> None:
        for both in self._buffers:
            for buffer in both or ():
                buffer[slot, :, :n] = buffer[source, :, :n]

    def _slot(self, clocks: Sequence[int]) -> ClockCache:
        n = len(self.clocks)
        found = ClockCache(len(self.layers), n_rows=1, capacity=self.capacity, device=self.device)
        found.clocks = list(clocks)
        self._put(found, n, n + 1)
        return found

    def _show(self) -> None:
        self._put(self, 0, len(self.clocks))

    def _put(self, cache: ClockCache, first: int, last: int, layers: Iterable[int] | None = None) -> None:
        for i in range(len(self._buffers)) if layers is None else layers:
            layer: Any = cache.layers[i]
            if (both := self._buffers[i]) is not None:
                layer.restore(both[0][first:last], both[1][first:last], both[0].device)

    def _grow(self, capacity: int) -> None:
        raise InputError(
            f"a draft needs room for {capacity} tokens in each row of the batch, and {self.capacity} are reserved; "
            "give the rows more room behind their end (memory.margin), or draft smaller trees"
        )


def compacted(rows: Sequence[int]) -> list[int]:
    """The row of each of the first slots after all but `rows` have left: the last rows fill the slots of those."""
    kept, tail = set(rows), [row for row in sorted(rows) if row >= len(rows)]
    return [slot if slot in kept else tail.pop() for slot in range(len(rows))]


def _moved(old: Tensor, n_slots: int, capacity: int, n_rows: int, n: int, at: int = 0) -> Tensor:
    """Zeros of another shape, with the first `n` tokens of the first `n_rows` rows from slot `at` on."""
    found = old.new_zeros(n_slots, old.shape[1], capacity, old.shape[3])
    found[at : at + n_rows, :, :n] = old[:n_rows, :, :n]
    return found
