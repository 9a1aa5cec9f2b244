"""Fits of bridges that are kept in a cache: a later search on the same texts finds them again.

The hidden states that bridges are fitted to are large and are not kept. They are computed again, in one pass over the
texts, when a bridge is needed that was never fitted.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

from search.fitting.bridge_fitting import BridgeFitter, Key
from search.fitting.hidden_states_runner import Text
from search.fitting.observing import LaterObserved, Outline, observe
from selfspec.measure.phases import Phases, unwatched
from selfspec.models.decoder import Decoder
from selfspec.records.content_cache import ContentCache
from selfspec.skipping.bridges import Bridge

log = logging.getLogger(__name__)

OUTLINES, BRIDGES = "outlines", "bridges"  # kinds of entries
KEPT_BYTES = 2 << 30  # largest size of all bridges in a cache, so that it fits on a laptop; chosen, not tuned


def bridge_fitter(
    decoder: Decoder,
    texts: Sequence[Text],
    *,
    n_tokens: int,
    cache: ContentCache | None = None,
    phase: Phases = unwatched,
) -> BridgeFitter:
    """The fitter of bridges to the model's hidden states on these texts.

    Args:
        decoder: the model.
        texts: see `observe`.
        n_tokens: largest number of observed tokens.
        cache: of this model: holds the bridges that were fitted before, and keeps those that are fitted now.
        phase: is told how the observation goes on.
    """
    make = partial(observe, decoder, texts, n_tokens=n_tokens, phase=phase)
    if cache is None:
        return BridgeFitter(make())
    content = hashlib.sha256(str([(list(t.prompt), list(t.tokens)) for t in texts]).encode()).hexdigest()
    of = {"texts": content, "n_tokens": n_tokens}
    kept = _Kept(cache, of, decoder.device)
    entry = cache.get(OUTLINES, of)
    if entry is not None:
        body = entry.body
        adds, takes, dtype = tuple(body["adds"]), tuple(body["takes"]), getattr(torch, body["dtype"])
        outline = Outline(adds, takes, body["n_tokens"], body["width"], dtype)
        return BridgeFitter(LaterObserved(outline, make), kept=kept)
    observed = make()
    cache.put(OUTLINES, of, asdict(observed.outline) | {"dtype": str(observed.outline.dtype)[6:]})
    return BridgeFitter(observed, kept=kept)


class _Kept:
    """Bridges in a cache; when the folder is full, no more are added."""

    def __init__(self, cache: ContentCache, of: Mapping[str, Any], device: torch.device) -> None:
        self._cache, self._of, self._device = cache, of, device
        self._n_bytes = cache.n_bytes(BRIDGES)

    def get(self, key: Key) -> Bridge | None:
        entry = self._cache.get(BRIDGES, self._at(key), has_tensors=True)
        if entry is None:
            return None
        bias, *matrices = (entry.tensors[str(i)].to(self._device) for i in range(len(entry.tensors)))
        return Bridge(bias, tuple(matrices))

    def put(self, key: Key, bridge: Bridge) -> None:
        if self._n_bytes + bridge.n_bytes > KEPT_BYTES:
            return
        self._n_bytes += bridge.n_bytes
        tensors = {str(i): tensor for i, tensor in enumerate(bridge.tensors)}
        self._cache.put(BRIDGES, self._at(key), {}, tensors)

    def _at(self, key: Key) -> dict[str, Any]:
        first, last, kind, rank = key
        return {**self._of, "first": first, "last": last, "bridge": kind, "rank": rank}
