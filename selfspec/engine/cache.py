"""One key/value cache with a logical clock for each row.

Every layer writes in place at `[clock, clock + T)` of preallocated buffers, and lengths and masks follow from
the clock. Setting the clock back rolls the cache back. A layer whose attention was skipped leaves a gap, which
verification overwrites. The cache is never cropped, so no committed key can be lost.
"""

# B rows, H key/value heads, T new tokens, C capacity, S tokens attended to, D head dimension

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from selfspec.errors import DrafterError

SLACK = 32  # extra tokens each time a cache grows, since growing copies all of it; chosen, not tuned


class ClockLayer(CacheLayerMixin):  # type: ignore[misc]  # transformers is untyped
    """Keys and values of one layer, [B, H, C, D]; allocated when the layer first runs."""

    is_compileable = False
    is_sliding = False  # the mask applies windows, so a rollback never needs a dropped key

    def __init__(self, owner: ClockCache) -> None:
        super().__init__()
        self.owner = owner

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate zeros: a masked gap must hold finite numbers, since 0 · nan is nan."""
        b, h, _, _ = key_states.shape
        capacity = self.owner.capacity
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys = key_states.new_zeros(b, h, capacity, key_states.shape[-1])
        self.values = value_states.new_zeros(b, h, capacity, value_states.shape[-1])
        self.is_initialized = True

    def restore(self, keys: Tensor, values: Tensor, device: torch.device) -> None:
        """Take keys and values, [B, H, C, D], that were stored; C is the capacity of the cache."""
        self.keys, self.values = keys.to(device), values.to(device)
        self.dtype, self.device, self.is_initialized = self.keys.dtype, self.keys.device, True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write [B, H, T, D] at each row's clock; returns the keys and values to attend to, [B, H, S, D], as views."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        clocks, n_new = self.owner.clocks, key_states.shape[-2]
        end = max(clocks) + n_new
        if self.owner.is_uniform:
            self.keys[:, :, clocks[0] : end] = key_states
            self.values[:, :, clocks[0] : end] = value_states
        else:
            for row, start in enumerate(clocks):
                self.keys[row, :, start : start + n_new] = key_states[row]
                self.values[row, :, start : start + n_new] = value_states[row]
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Number of keys to attend to, and the position of the first."""
        return max(self.owner.clocks) + query_length, 0

    def get_seq_length(self) -> int:
        """Clock of the longest row, in tokens."""
        return max(self.owner.clocks)

    def get_max_length(self) -> int:
        """The capacity in tokens."""
        return self.owner.capacity


class ClockCache(Cache):  # type: ignore[misc]
    """Cache of one decode: `n_rows` rows of `capacity` tokens, all clocks at 0. It grows when a row needs more."""

    def __init__(self, n_layers: int, *, n_rows: int, capacity: int, device: torch.device | None = None) -> None:
        self.capacity = capacity
        # of the input ids; the buffers of a layer lie on the layer's device
        self.device = device or torch.device("cpu")
        self.clocks = [0] * n_rows
        self._guard: tuple[Sequence[int], str] | None = None
        super().__init__(layers=[ClockLayer(self) for _ in range(n_layers)])

    @property
    def is_uniform(self) -> bool:
        """Whether all rows stand at the same position."""
        return all(c == self.clocks[0] for c in self.clocks)

    def set(self, starts: Sequence[int], n_new: int) -> None:
        """Set each row's clock before a forward that writes `n_new` tokens; later entries become invalid."""
        if self._guard is not None:
            self._check(starts, *self._guard)
        self.clocks = list(starts)
        if max(starts) + n_new > self.capacity:
            self._grow(max(starts) + n_new + SLACK)

    @contextmanager
    def guarded(self, committed: Sequence[int], by: str) -> Iterator[None]:
        """Within this context no row's clock can be set before `committed`: those keys are the target's.

        Args:
            committed: a position for each row.
            by: name of the drafter, for the error.

        Raises:
            DrafterError: if a clock is set to an earlier position.
        """
        self._guard = committed, by
        try:
            yield
        finally:
            self._guard = None

    def _check(self, starts: Sequence[int], committed: Sequence[int], by: str) -> None:
        for row, (start, first) in enumerate(zip(starts, committed, strict=True)):
            if start < first:
                raise DrafterError(
                    f"drafter {by} wrote keys and values of row {row} at position {start}, and those before {first} "
                    "are the target's; a draft begins at the row's last token"
                )

    def commit(self, row: int, start: int, path: Sequence[int]) -> None:
        """Move the keys and values of an accepted branch to consecutive slots from `start` on.

        The nodes of an accepted chain are in place already.

        Args:
            row: index of the row in the cache.
            start: position of the draft's first node.
            path: accepted nodes, in rising order.
        """
        n_in_place = next((i for i, node in enumerate(path) if node != i), len(path))
        moved = [start + node for node in path[n_in_place:]]
        if not moved:
            return
        to = slice(start + n_in_place, start + len(path))
        for layer in self.layers:
            if layer.is_initialized:
                index = torch.tensor(moved, device=layer.device)
                layer.keys[row, :, to] = layer.keys[row].index_select(1, index)
                layer.values[row, :, to] = layer.values[row].index_select(1, index)

    def _grow(self, capacity: int) -> None:
        """Make room for the padding of ragged rows, which may extend past the longest sequence."""
        for layer in self.layers:
            if layer.is_initialized:
                more = (0, 0, 0, capacity - self.capacity)
                layer.keys, layer.values = (torch.nn.functional.pad(t, more) for t in (layer.keys, layer.values))
        self.capacity = capacity

    @classmethod
    def stack(cls, caches: Sequence[ClockCache]) -> ClockCache:
        """One cache with the rows of all `caches`; their buffers are freed."""
        if len(caches) == 1:
            return caches[0]
        capacity = max(c.capacity for c in caches)
        n_rows = sum(len(c.clocks) for c in caches)
        stacked = cls(len(caches[0].layers), n_rows=n_rows, capacity=capacity, device=caches[0].device)
        stacked.clocks = [clock for c in caches for clock in c.clocks]
        for i, layer in enumerate(stacked.layers):
            parts = [c.layers[i] for c in caches]
            if not parts[0].is_initialized:
                continue
            for name in ("keys", "values"):
                first = getattr(parts[0], name)
                whole = first.new_zeros(len(stacked.clocks), first.shape[1], capacity, first.shape[3])
                row = 0
                for part in parts:
                    tensor = getattr(part, name)
                    whole[row : row + tensor.shape[0], :, : tensor.shape[2]] = tensor
                    row += tensor.shape[0]
                    setattr(part, name, None)
                setattr(layer, name, whole)
            layer.dtype, layer.device, layer.is_initialized = parts[0].dtype, parts[0].device, True
        return stacked

    def copied(self, capacity: int) -> ClockCache:
        """A copy with room for at least `capacity` tokens."""
        found = ClockCache(len(self.layers), n_rows=len(self.clocks), capacity=self.capacity, device=self.device)
        found.clocks = list(self.clocks)
        for copy, layer in zip(found.layers, self.layers, strict=True):
            if layer.is_initialized:
                copy.restore(layer.keys.clone(), layer.values.clone(), layer.device)
        if capacity > self.capacity:
            found._grow(capacity)
        return found

    def part(self, first: int, last: int) -> ClockCache:
        """The rows `first` to `last` (exclusive), for a draft: what is written there is written here.

        It keeps the guard of this cache. If it must grow, it goes on with a copy, which loses nothing: a verification
        writes the keys of a draft anew.
        """
        found = ClockCache(len(self.layers), n_rows=last - first, capacity=self.capacity, device=self.device)
        found.clocks = self.clocks[first:last]
        if self._guard is not None:
            committed, by = self._guard
            found._guard = committed[first:last], by
        for view, layer in zip(found.layers, self.layers, strict=True):
            if layer.is_initialized:
                view.restore(layer.keys[first:last], layer.values[first:last], layer.device)
        return found

    def chosen(self, rows: Sequence[int]) -> ClockCache:
        """Some rows, in rising order, for a draft: views of adjacent ones (`part`), copies of others.

        A copy loses nothing: a verification writes the keys of a draft anew.
        """
        first, last = rows[0], rows[-1] + 1
        found = self.part(first, last)
        if len(rows) < last - first:
            guard, found._guard = found._guard, None
            found.keep([row - first for row in rows])
            if guard is not None:
                found._guard = [guard[0][row - first] for row in rows], guard[1]
        return found

    def keep(self, rows: Sequence[int]) -> list[int]:
        """Keep `rows` and drop the others; returns the rows that were kept, in the order that they have now."""
        if len(rows) == len(self.clocks):
            return list(rows)
        self.clocks = [self.clocks[r] for r in rows]
        for layer in self.layers:
            if layer.is_initialized:
                index = torch.tensor(list(rows), dtype=torch.long, device=layer.device)
                layer.keys = layer.keys.index_select(0, index)
                layer.values = layer.values.index_select(0, index)
        return list(rows)
