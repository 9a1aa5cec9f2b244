"""The hidden states of drafts, at a few positions of texts that the full model wrote.

What a draft says next depends on the full model's keys and values of all earlier tokens and on the draft's own state of
this one. So any number of drafts can pass a layer together, as queries beside one copy of the texts' keys and values,
each of which sees the earlier tokens and itself. The layers are the model's own, with the patches of `Decoder.bind`:
parallel residuals, norms behind the sublayers and windows need no word here. It knows nothing of what is searched.
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

MAX_QUERIES = 512  # of one forward, all texts together, unless a single draft has more: bounds memory; not tuned

_Call = tuple[tuple[Any, ...], dict[str, Any]]


class Text(Protocol):
    """A prompt and what the full model says after it; `search.replay.references.Reference` is one."""

    @property
    def prompt(self) -> Sequence[int]:
        """Token ids."""
        ...

    @property
    def tokens(self) -> Sequence[int]:
        """Token ids of the continuation."""
        ...


class HiddenStateRunner:
    """The residual stream at positions of texts: its start, and what each layer, whole or in part, makes of it.

    Args:
        decoder: the model.
        texts: their positions are drawn from those whose next token is the model's own.
        n_positions: of each text, evenly spaced; a text that has fewer gives some of them more than once.

    Raises:
        InputError: if there is nothing to draw from, or if the model takes no masks but its own.
    """

    def __init__(self, decoder: Decoder, texts: Sequence[Text], *, n_positions: int) -> None:
        _check(decoder, texts, n_positions)
        self.n_layers = decoder.n_layers
        self._decoder = decoder
        positions = [_spaced(len(t.prompt) - 1, len(t.tokens), n_positions) for t in texts]
        ids = [[*t.prompt, *t.tokens] for t in texts]
        at = [[row[p] for p in ps] for row, ps in zip(ids, positions, strict=True)]
        self.positions_BP = torch.tensor(positions, device=decoder.device)
        self._ids_BP = torch.tensor(at, device=decoder.device)
        self._cache = _keys_and_values(decoder, [row[:-1] for row in ids])
        self._layers = {
            (attn, mlp): _layers(decoder, attn=attn, mlp=mlp) for attn in (False, True) for mlp in (False, True)
        }
        self._known: dict[int, list[_Call]] = {}
        self._chunk = 1 << (max(1, MAX_QUERIES // self.positions_BP.numel()).bit_length() - 1)

    @property
    def context(self) -> int:
        """The mean of the positions, in tokens."""
        return round(float(self.positions_BP.double().mean()))

    def start(self) -> Tensor:
        """What the first layer is given, [1, B, P, D]: the same for every draft."""
        return self._unpacked(_hidden(self._calls(1)[0]), 1)

    @torch.inference_mode()
    def run(self, layer: int, states_NBPD: Tensor, *, attn: bool, mlp: bool) -> Tensor:
        """The states after `layer`, of which only the named sublayers run.

        Args:
            layer: 0-based.
            states_NBPD: before the layer.
            attn, mlp: whether this sublayer runs; norms that lie outside of the sublayers always do.
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
        """The most likely next tokens, [N, B, P], after states that have passed the last layer."""
        found = []
        for part in self._chunks(states_NBPD):
            logits_BTV = self._around(len(part), last=self._packed(part))
            found.append(self._unpacked(largest(logits_BTV).unsqueeze(-1), len(part)).squeeze(-1))
        return torch.cat(found)

    def _chunks(self, states_NBPD: Tensor) -> Iterator[Tensor]:
        """Powers of two, so that few sizes of forwards have to be known."""
        first = 0
        while n_left := len(states_NBPD) - first:
            n = min(self._chunk, 1 << (n_left.bit_length() - 1))
            yield states_NBPD[first : first + n]
            first += n

    def _calls(self, n: int) -> list[_Call]:
        """What the model gives to each of its layers when `n` drafts pass them together."""
        if n not in self._known:
            calls: list[_Call] = []
            self._around(n, calls=calls)
            self._known[n] = calls
        return self._known[n]

    @torch.inference_mode()
    def _around(self, n: int, *, calls: list[_Call] | None = None, last: Tensor | None = None) -> Tensor:
        """Logits after `last`, which the last layer returns; if None, only notes in `calls` what the layers are given.

        The layers of a copy get another `forward`, not hooks: copies share the hooks of the model.
        """
        frame = share(_bound(self._decoder, attn=False, mlp=False).module)
        for i, layer in enumerate(frame.get_submodule(self._decoder.sublayers.path).children()):
            layer.forward = _noting(layer.forward, calls, last if i == self.n_layers - 1 else None)
        if last is None:
            frame.set_output_embeddings(nn.Identity())  # type: ignore[operator]  # the head is the dearest part
        positions_BT, n_keys = self.positions_BP.repeat(1, n), self._cache.capacity
        # At its own position a query sees its own key, not the full model's.
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
        """As queries, [B, T, D]."""
        return states_NBPD.transpose(0, 1).flatten(1, 2)

    def _unpacked(self, states_BTD: Tensor, n: int) -> Tensor:
        """Inverse of `_packed`."""
        b, _, width = states_BTD.shape
        return states_BTD.reshape(b, n, -1, width).transpose(0, 1)


def cosines(states_NBPD: Tensor, reference_BPD: Tensor) -> list[float]:
    """How near each draft's states are to the reference: the mean of their cosines over texts and positions."""
    # No less than float32; one draft at a time, so that the wider copies stay small.
    dtype = torch.promote_types(reference_BPD.dtype, torch.float32)
    reference_BPD = reference_BPD.to(dtype)
    return [
        float(torch.cosine_similarity(states_BPD.to(dtype), reference_BPD, dim=-1).mean()) for states_BPD in states_NBPD
    ]


class _TextLayer(ClockLayer):
    """Keys and values of the texts; each call sees its own beside them, and leaves no trace."""

    def __init__(self, owner: ClockCache, layer: ClockLayer) -> None:
        super().__init__(owner)
        self.keys, self.values = layer.keys, layer.values
        self.dtype, self.device, self.is_initialized = layer.dtype, layer.device, True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The texts' and, behind them, the new ones."""
        return torch.cat([self.keys, key_states], dim=2), torch.cat([self.values, value_states], dim=2)


@torch.inference_mode()
def _keys_and_values(decoder: Decoder, texts: Sequence[Sequence[int]]) -> ClockCache:
    """Of the full model; the clocks stand behind the longest text, where the queries' own keys are."""
    caches = []
    for ids in texts:
        cache = decoder.new_cache(n_rows=1, capacity=len(ids))
        decoder.full(torch.tensor([ids], device=decoder.device), starts=[0], cache=cache, n_logits=1)
        caches.append(cache)
    cache = ClockCache.stack(caches)
    cache.layers = [_TextLayer(cache, layer) for layer in cache.layers]
    cache.clocks = [cache.capacity] * len(texts)
    return cache


def _bound(decoder: Decoder, *, attn: bool, mlp: bool) -> Forward:
    """The forward without the attention or the MLP of every layer."""
    every, none = frozenset(range(decoder.n_layers)), frozenset[int]()
    return decoder.bind(SkipSet(decoder.n_layers, none if attn else every, none if mlp else every))


def _layers(decoder: Decoder, *, attn: bool, mlp: bool) -> list[nn.Module]:
    return list(_bound(decoder, attn=attn, mlp=mlp).module.get_submodule(decoder.sublayers.path).children())


def _noting(forward: Callable[..., Any], calls: list[_Call] | None, last: Tensor | None) -> Callable[..., Any]:
    """`forward` that writes down what it is given and, if told to, returns `last` in its own structure."""

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
