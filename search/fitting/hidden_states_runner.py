"""Compute hidden states of many drafts, at a few positions of texts that the full model wrote.

The next token of a draft depends on the full model's keys and values of all earlier tokens, and on the draft's own
state of the current one. Any number of drafts can therefore pass a layer together, as queries with one copy of the
texts' keys and values; each query sees the earlier tokens and itself. The layers are the model's own with the patches
of `Decoder.bind`, so parallel residuals, norms after sublayers and windows need no special case. This module knows
nothing of searches.
"""

# N drafts, B texts, P positions of a text, D width, T queries of a text, S tokens of the longest text, V vocabulary

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from selfspec.engine.cache import ClockCache, ClockLayer
from selfspec.engine.forward import BoundForward, Forward
from selfspec.engine.masks import check_batches
from selfspec.engine.sampling import largest
from selfspec.errors import InputError
from selfspec.models.decoder import Decoder, share
from selfspec.skipping.skip_set import SkipSet

MAX_QUERIES = 512  # queries of a forward, over all texts, unless one draft has more; bounds memory; not tuned

_Call = tuple[tuple[Any, ...], dict[str, Any]]


class Text(Protocol):
    """A prompt and the full model's continuation; `search.replay.references.Reference` is one."""

    @property
    def prompt(self) -> Sequence[int]:
        """Token ids of the prompt."""
        ...

    @property
    def tokens(self) -> Sequence[int]:
        """Token ids of the continuation."""
        ...


class HiddenStateRunner:
    """Runs layers, whole or in part, on the residual stream of drafts at positions of texts.

    Args:
        decoder: the model.
        texts: positions are chosen among those whose next token is the model's own.
        n_positions: evenly spaced positions of each text; a text with fewer positions repeats some.
        keys: the full model's keys and values of the texts without their last tokens, which are not changed; None: they
            are computed.

    Raises:
        InputError: if there is no such position, or the model takes no explicit mask.
    """

    def __init__(
        self, decoder: Decoder, texts: Sequence[Text], *, n_positions: int, keys: ClockCache | None = None
    ) -> None:
        _check(decoder, texts, n_positions)
        self.n_layers = decoder.n_layers
        self._decoder = decoder
        positions = [_spaced(len(t.prompt) - 1, len(t.tokens), n_positions) for t in texts]
        ids = [[*t.prompt, *t.tokens] for t in texts]
        at = [[row[p] for p in ps] for row, ps in zip(ids, positions, strict=True)]
        self.positions_BP = torch.tensor(positions, device=decoder.device)
        self._ids_BP = torch.tensor(at, device=decoder.device)
        self._cache = _read_only(_keys_and_values(decoder, [row[:-1] for row in ids]) if keys is None else keys, ids)
        self._layers = {
            (attn, mlp): _layers(decoder, attn=attn, mlp=mlp) for attn in (False, True) for mlp in (False, True)
        }
        self._known: dict[int, list[_Call]] = {}
        self._chunk = 1 << (max(1, MAX_QUERIES // self.positions_BP.numel()).bit_length() - 1)

    @property
    def context(self) -> int:
        """Mean of the positions, in tokens."""
        return round(float(self.positions_BP.double().mean()))

    def start(self) -> Tensor:
        """Input of the first layer, [1, B, P, D], which is the same for every draft."""
        return self._unpacked(_hidden(self._calls(1)[0]), 1)

    @torch.inference_mode()
    def run(self, layer: int, states_NBPD: Tensor, *, attn: bool, mlp: bool) -> Tensor:
        """The states after `layer`, [N, B, P, D], if only the given sublayers run.

        Args:
            layer: index of the layer, 0-based.
            states_NBPD: states before the layer.
            attn, mlp: whether this sublayer runs; norms outside of the sublayers always run.
        """
        module = self._layers[attn, mlp][layer]
        found = []
        for part in self._chunks(states_NBPD):
            args, kwargs = _with_hidden(self._calls(len(part))[layer], self._packed(part))
            out = module(*args, **kwargs)
            found.append(self._unpacked(out if isinstance(out, Tensor) else out[0], len(part)))
        return torch.cat(found)

    @torch.inference_mode()
    def says(self, states_NBPD: Tensor) -> Tensor:
        """The most likely next tokens, [N, B, P], for states after the last layer."""
        found = []
        for part in self._chunks(states_NBPD):
            logits_BTV = self._around(len(part), last=self._packed(part))
            found.append(self._unpacked(largest(logits_BTV).unsqueeze(-1), len(part)).squeeze(-1))
        return torch.cat(found)

    def _chunks(self, states_NBPD: Tensor) -> Iterator[Tensor]:
        """Chunks whose sizes are powers of two, so that there are few sizes of forwards."""
        first = 0
        while n_left := len(states_NBPD) - first:
            n = min(self._chunk, 1 << (n_left.bit_length() - 1))
            yield states_NBPD[first : first + n]
            first += n

    def _calls(self, n: int) -> list[_Call]:
        """Arguments that the model passes to each of its layers for `n` drafts."""
        if n not in self._known:
            calls: list[_Call] = []
            self._around(n, calls=calls)
            self._known[n] = calls
        return self._known[n]

    @torch.inference_mode()
    def _around(self, n: int, *, calls: list[_Call] | None = None, last: Tensor | None = None) -> Tensor:
        """Logits if the last layer returns `last`; with None, only record the arguments of the layers in `calls`.

        The layers of a copy get another `forward` instead of hooks, since copies share the hooks of the model.
        """
        frame = share(_bound(self._decoder, attn=False, mlp=False).module)
        for i, layer in enumerate(frame.get_submodule(self._decoder.sublayers.path).children()):
            layer.forward = _noting(layer.forward, calls, last if i == self.n_layers - 1 else None)
        if last is None:
            frame.set_output_embeddings(nn.Identity())  # type: ignore[operator]  # the head is the most expensive part
        positions_BT, n_keys = self.positions_BP.repeat(1, n), self._cache.capacity
        # At its own position a query sees its own key and not the full model's.
        keys_1S = torch.arange(n_keys, device=positions_BT.device).unsqueeze(0)
        earlier_BTS = keys_1S[:, None, :] < positions_BT[:, :, None]
        itself_BTT = torch.eye(positions_BT.shape[1], dtype=torch.bool, device=positions_BT.device)
        return BoundForward(frame, self._decoder.context_length).tree(
            self._ids_BP.repeat(1, n),
            positions_BT=positions_BT,
            seen_BTS=torch.cat([earlier_BTS, itself_BTT.expand(len(positions_BT), -1, -1)], dim=-1),
            key_positions_BS=torch.cat([keys_1S.expand(len(positions_BT), -1), positions_BT], dim=-1),
            cache=self._cache,
        )

    def _packed(self, states_NBPD: Tensor) -> Tensor:
        """The states as queries, [B, T, D]."""
        return states_NBPD.transpose(0, 1).flatten(1, 2)

    def _unpacked(self, states_BTD: Tensor, n: int) -> Tensor:
        """The inverse of `_packed`."""
        b, _, width = states_BTD.shape
        return states_BTD.reshape(b, n, -1, width).transpose(0, 1)


def cosines(states_NBPD: Tensor, reference_BPD: Tensor) -> list[float]:
    """Mean cosine of each draft's states with the reference, over texts and positions."""
    # At least float32; one draft at a time, so that the wider copies stay small.
    dtype = torch.promote_types(reference_BPD.dtype, torch.float32)
    reference_BPD = reference_BPD.to(dtype)
    return [
        float(torch.cosine_similarity(states_BPD.to(dtype), reference_BPD, dim=-1).mean()) for states_BPD in states_NBPD
    ]


class _TextLayer(ClockLayer):
    """Keys and values of the texts; a call sees its own in addition, and does not store them."""

    def __init__(self, owner: ClockCache, layer: ClockLayer) -> None:
        super().__init__(owner)
        self.keys, self.values = layer.keys, layer.values
        self.dtype, self.device, self.is_initialized = layer.dtype, layer.device, True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The keys and values of the texts, followed by the new ones."""
        return torch.cat([self.keys, key_states], dim=2), torch.cat([self.values, value_states], dim=2)


@torch.inference_mode()
def _keys_and_values(decoder: Decoder, texts: Sequence[Sequence[int]]) -> ClockCache:
    """Keys and values of the full model."""
    caches = []
    for ids in texts:
        cache = decoder.new_cache(n_rows=1, capacity=len(ids))
        decoder.full(torch.tensor([ids], device=decoder.device), starts=[0], cache=cache, n_logits=1)
        caches.append(cache)
    return ClockCache.stack(caches)


def _read_only(cache: ClockCache, texts: Sequence[Sequence[int]]) -> ClockCache:
    """A view of the texts' keys and values; its clocks are after the longest text, where the queries' own keys are."""
    n_keys = max(len(ids) - 1 for ids in texts)
    found = ClockCache(len(cache.layers), n_rows=len(texts), capacity=n_keys, device=cache.device)
    for view, layer in zip(found.layers, cache.layers, strict=True):
        if layer.is_initialized:
            view.restore(layer.keys[:, :, :n_keys], layer.values[:, :, :n_keys], layer.device)
    found.layers = [_TextLayer(found, layer) for layer in found.layers]
    found.clocks = [n_keys] * len(texts)
    return found


def _bound(decoder: Decoder, *, attn: bool, mlp: bool) -> Forward:
    """The forward with or without the attention and the MLP of every layer."""
    every, none = frozenset(range(decoder.n_layers)), frozenset[int]()
    return decoder.bind(SkipSet(decoder.n_layers, none if attn else every, none if mlp else every))


def _layers(decoder: Decoder, *, attn: bool, mlp: bool) -> list[nn.Module]:
    return list(_bound(decoder, attn=attn, mlp=mlp).module.get_submodule(decoder.sublayers.path).children())


def _noting(forward: Callable[..., Any], calls: list[_Call] | None, last: Tensor | None) -> Callable[..., Any]:
    """`forward` that records its arguments and, with `last`, returns it in the structure of its output."""

    def noted(*args: Any, **kwargs: Any) -> Any:
        if calls is not None:
            calls.append((args, kwargs))
        out = forward(*args, **kwargs)
        if last is None:
            return out
        return last if isinstance(out, Tensor) else (last, *out[1:])

    return noted


def _hidden(call: _Call) -> Tensor:
    args, kwargs = call
    hidden: Tensor = args[0] if args else kwargs["hidden_states"]
    return hidden


def _with_hidden(call: _Call, hidden_BTD: Tensor) -> _Call:
    args, kwargs = call
    return ((hidden_BTD, *args[1:]), kwargs) if args else ((), {**kwargs, "hidden_states": hidden_BTD})


def _spaced(first: int, n: int, n_wanted: int) -> list[int]:
    """`n_wanted` of the positions first, first + 1, ..., first + n - 1."""
    return [first + int((k + 0.5) * n / n_wanted) for k in range(n_wanted)]


def _check(decoder: Decoder, texts: Sequence[Text], n_positions: int) -> None:
    if n_positions < 1:
        raise InputError(f"n_positions={n_positions}; hidden states are compared at 1 position of a text at least")
    empty = sum(not t.prompt or not t.tokens for t in texts)
    if empty or not texts:
        raise InputError(
            f"{empty} of {len(texts)} calibration texts have no prompt or no continuation, and hidden states are taken "
            "from both; give prompts after which the model says something"
        )
    try:
        check_batches(decoder.model.config)
    except InputError as error:
        kernel = decoder.config._attn_implementation
        raise InputError(
            f"hidden states of drafts need masks that a {decoder.config.model_type!r} model with attention={kernel} "
            "does not take; use model.attention=sdpa or eager, or a searcher that only scores skip sets"
        ) from error
