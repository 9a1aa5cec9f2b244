"""Keys and values at fixed addresses: what a recorded forward (a CUDA graph) can write and read again and again.

A `ClockCache` allocates anew for every prompt and cuts its views to the tokens at hand; a recording can do neither. A
`StaticCache` holds one set of buffers that `ClockCache`s take turns to live in: `hold` moves a cache's rows in, and
from then on the cache's own layers are views of the buffers, so that recorded and ordinary forwards, target and draft,
share one cache with its clocks. Rolling back is still setting the clock.

Inside a recording nothing is known but tensors: keys are written at the slots of a tensor of positions, and a fixed
number of keys is returned, of which the mask hides those that lie behind a row's clock.
"""

# B rows, H key/value heads, T new tokens, C capacity, S keys attended to, D head dimension

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from selfspec.engine.cache import ClockCache

ROWS = (1, 2, 4, 8, 16, 32, 64)  # rows a recording is made for
TOKENS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 16, 17, 24, 32, 33, 48, 64)  # new tokens a recording is made for
SMALLEST = 128  # keys that the shortest recording attends to; the next are twice as many; chosen, not tuned


def bucket(n: int, sizes: tuple[int, ...]) -> int:
    """The smallest of `sizes` that is at least `n`; `n` itself beyond the last."""
    return next((size for size in sizes if size >= n), n)


def key_bucket(n: int) -> int:
    """The smallest `SMALLEST` · 2^i that is at least `n`."""
    size = SMALLEST
    while size < n:
        size *= 2
    return size


class StaticLayer(CacheLayerMixin):  # type: ignore[misc]  # transformers is untyped
    """Keys and values of one layer, [B, H, C, D], for as long as their `StaticCache` lives."""

    is_compileable = True
    is_sliding = False  # windows are applied by the mask

    def __init__(self, owner: StaticCache, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.owner, self.keys, self.values = owner, keys, values
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing is left to do: the buffers are there from the beginning."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write [B, H, T, D] at the owner's slots; returns the first S keys and values, [B, H, S, D], as views."""
        at = self.owner.rows_B1, self.owner.slots_BT
        self.keys.transpose(1, 2).index_put_(at, key_states.transpose(1, 2))
        self.values.transpose(1, 2).index_put_(at, value_states.transpose(1, 2))
        n = self.owner.n_keys
        return self.keys[:, :, :n], self.values[:, :, :n]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Tokens attended to, and the position of the first of them."""
        return self.owner.n_keys, 0

    def get_seq_length(self) -> int:
        """Tokens attended to but the new ones; models use it only where nobody gives them positions and a mask."""
        return self.owner.n_keys - self.owner.slots_BT.shape[1]

    def get_max_length(self) -> int:
        """The capacity in tokens."""
        return self.owner.capacity


class StaticCache(Cache):  # type: ignore[misc]
    """Buffers of `capacity` tokens for each of `n_rows` rows, in the shapes of an existing cache's layers.

    Args:
        n_rows: rows.
        capacity: tokens a row.
        like: a cache all of whose layers have run.
    """

    def __init__(self, *, n_rows: int, capacity: int, like: ClockCache) -> None:
        self.n_rows, self.capacity = n_rows, capacity
        self.n_keys = capacity
        first = like.layers[0].keys
        self.rows_B1 = torch.arange(n_rows, device=first.device).unsqueeze(1)
        self.slots_BT = torch.zeros(n_rows, 1, dtype=torch.long, device=first.device)
        self._views: list[tuple[Tensor, Tensor]] = []
        self._held: weakref.ref[ClockCache] | None = None
        super().__init__(
            layers=[
                StaticLayer(self, *(t.new_zeros(n_rows, t.shape[1], capacity, t.shape[3]) for t in (x.keys, x.values)))
                for x in like.layers
            ]
        )

    def holds(self, cache: ClockCache) -> bool:
        """Whether the cache's keys and values are these buffers."""
        if self._held is None or self._held() is not cache:
            return False
        return all(
            x.keys is keys and x.values is values for x, (keys, values) in zip(cache.layers, self._views, strict=True)
        )

    def hold(self, cache: ClockCache) -> None:
        """Move the cache's rows in; a cache that lived here before moves out, with all it has."""
        if self.holds(cache):
            return
        self._let_go(besides=cache)
        n_rows = len(cache.clocks)
        self._views = [(x.keys[:n_rows], x.values[:n_rows]) for x in self.layers]
        for layer, views in zip(cache.layers, self._views, strict=True):
            for view, tensor in zip(views, (layer.keys, layer.values), strict=True):
                if tensor.untyped_storage().data_ptr() == view.untyped_storage().data_ptr():
                    tensor = tensor.clone()  # rows of these very buffers, on their way to other rows
                view[:, :, : tensor.shape[2]].copy_(tensor)
            layer.keys, layer.values = views
        cache.capacity = self.capacity
        self._held = weakref.ref(cache)

    def _let_go(self, *, besides: ClockCache) -> None:
        """Give the cache that lives here buffers of its own; its clocks stay."""
        held = None if self._held is None else self._held()
        if held is None or held is besides:
            return
        for layer, views in zip(held.layers, self._views, strict=True):
            if layer.keys is views[0]:
                layer.keys, layer.values = views[0].clone(), views[1].clone()

    @property
    def n_bytes(self) -> int:
        """Of all buffers."""
        return sum(t.numel() * t.element_size() for x in self.layers for t in (x.keys, x.values))


class StaticCaches:
    """The static caches of a decoder: one for each number of rows and capacity, the longest unused dropped first.

    Args:
        max_caches: how many are kept.
    """

    def __init__(self, *, max_caches: int = 4) -> None:
        self._max_caches = max_caches
        self._on_drop: Callable[[StaticCache], None] = lambda dropped: None
        self._made: OrderedDict[tuple[int, int], StaticCache] = OrderedDict()

    def when_dropped(self, call: Callable[[StaticCache], None]) -> None:
        """Have a cache that is dropped reported: its recordings are worthless then."""
        self._on_drop = call

    def holding(self, cache: ClockCache, *, n_tokens: int) -> StaticCache | None:
        """A static cache that holds `cache`, with room for `n_tokens` a row; None if a layer of it has never run."""
        if not all(layer.is_initialized for layer in cache.layers):
            return None
        n_rows = bucket(len(cache.clocks), ROWS)
        capacity = key_bucket(max(n_tokens, cache.capacity))
        # A longer one that is there already will do: its recordings are made.
        fit = [size for size in self._made if size[0] == n_rows and size[1] >= capacity]
        size = min(fit) if fit else (n_rows, capacity)
        if size not in self._made:
            while len(self._made) >= self._max_caches:
                self._on_drop(self._made.popitem(last=False)[1])
            self._made[size] = StaticCache(n_rows=n_rows, capacity=capacity, like=cache)
        self._made.move_to_end(size)
        found = self._made[size]
        found.hold(cache)
        return found

    def __len__(self) -> int:
        return len(self._made)
