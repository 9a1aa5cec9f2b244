"""Keys and values at fixed addresses, which a recorded forward (a CUDA graph) can write and read repeatedly.

A `ClockCache` allocates buffers for every prompt and returns views of the current length; a recording can do neither. A
`StaticCache` owns one set of buffers, which one `ClockCache` at a time uses. `hold` copies a cache's rows into the
buffers, and the cache's layers become views of them. Recorded and ordinary forwards of target and draft then share one
cache with its clocks, and setting a clock back still rolls the cache back.

A recording sees only tensors: it writes keys at the slots of a position tensor and returns a fixed number of keys. The
mask hides those after a row's clock.
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

ROWS = (1, 2, 4, 8, 16, 32, 64)  # numbers of rows of recordings
TOKENS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 16, 17, 24, 32, 33, 48, 64)  # numbers of new tokens of recordings
SMALLEST = 128  # keys of the shortest recording; each next size is twice as large; chosen, not tuned


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
    """Keys and values of one layer, [B, H, C, D], which exist as long as their `StaticCache`."""

    is_compileable = True
    is_sliding = False  # windows are applied by the mask

    def __init__(self, owner: StaticCache, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.owner, self.keys, self.values = owner, keys, values
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Do nothing: the buffers exist from the beginning."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write [B, H, T, D] at the owner's slots; returns the first S keys and values, [B, H, S, D], as views."""
        at = self.owner.rows_B1, self.owner.slots_BT
        self.keys.transpose(1, 2).index_put_(at, key_states.transpose(1, 2))
        self.values.transpose(1, 2).index_put_(at, value_states.transpose(1, 2))
        n = self.owner.n_keys
        return self.keys[:, :, :n], self.values[:, :, :n]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Number of keys to attend to, and the position of the first."""
        return self.owner.n_keys, 0

    def get_seq_length(self) -> int:
        """Number of keys before the new ones; models use it only without explicit positions and mask."""
        return self.owner.n_keys - self.owner.slots_BT.shape[1]

    def get_max_length(self) -> int:
        """The capacity in tokens."""
        return self.owner.capacity


class StaticCache(Cache):  # type: ignore[misc]
    """Buffers of `capacity` tokens for each of `n_rows` rows, with the shapes of an existing cache's layers.

    Args:
        n_rows: number of rows.
        capacity: tokens in each row.
        like: a cache of which every layer has run.
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
        """Copy the cache's rows into these buffers; the cache that used them before gets copies of its own."""
        if self.holds(cache):
            return
        self._let_go(besides=cache)
        n_rows = len(cache.clocks)
        self._views = [(x.keys[:n_rows], x.values[:n_rows]) for x in self.layers]
        for layer, views in zip(cache.layers, self._views, strict=True):
            for view, tensor in zip(views, (layer.keys, layer.values), strict=True):
                if tensor.untyped_storage().data_ptr() == view.untyped_storage().data_ptr():
                    tensor = tensor.clone()  # these are rows of the same buffers, which the copy may overwrite
                view[:, :, : tensor.shape[2]].copy_(tensor)
            layer.keys, layer.values = views
        cache.capacity = self.capacity
        self._held = weakref.ref(cache)

    def _let_go(self, *, besides: ClockCache) -> None:
        """Give the cache that uses these buffers a copy of its own; its clocks stay."""
        held = None if self._held is None else self._held()
        if held is None or held is besides:
            return
        for layer, views in zip(held.layers, self._views, strict=True):
            if layer.keys is views[0]:
                layer.keys, layer.values = views[0].clone(), views[1].clone()

    @property
    def n_bytes(self) -> int:
        """Bytes of all buffers."""
        return sum(t.numel() * t.element_size() for x in self.layers for t in (x.keys, x.values))


class StaticCaches:
    """The static caches of a decoder, one for each number of rows and capacity; the least recently used is dropped.

    Args:
        max_caches: largest number of caches to keep.
    """

    def __init__(self, *, max_caches: int = 4) -> None:
        self._max_caches = max_caches
        self._on_drop: Callable[[StaticCache], None] = lambda dropped: None
        self._made: OrderedDict[tuple[int, int], StaticCache] = OrderedDict()

    def when_dropped(self, call: Callable[[StaticCache], None]) -> None:
        """Set a function that is called with each dropped cache, whose recordings are invalid."""
        self._on_drop = call

    def holding(self, cache: ClockCache, *, n_tokens: int) -> StaticCache | None:
        """A static cache that holds `cache`, with room for `n_tokens` in each row; None if a layer has never run."""
        if not all(layer.is_initialized for layer in cache.layers):
            return None
        n_rows = bucket(len(cache.clocks), ROWS)
        capacity = key_bucket(max(n_tokens, cache.capacity))
        # A longer existing cache is used as well, since it has recordings.
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
