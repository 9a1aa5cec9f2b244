"""Kept sublayers with trained parts in place of the skipped runs, trained through the draft's own forward.

What is trained are the bridges of a plan and the weights of single kept layers; the kept sublayers, norms and output
head stay the target's. A drafted token reads the target's keys and values before the draft, and those that the draft
made itself after it. `predict` computes all drafts of a text at once: at each depth every slot reads the keys and
values that a draft which began there would find in its cache.
"""

# B rows, T slots, S tokens of a text (T + 1), D hidden size, O output features, I input features, G heads of keys

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers.cache_utils import Cache

from selfspec.engine.cache import ClockCache, ClockLayer
from selfspec.engine.masks import tree_mask
from selfspec.errors import InputError, unknown_name
from selfspec.heads.modules import Predicted, Trainable
from selfspec.models.decoder import Decoder, share
from selfspec.models.packing import PackedLinear
from selfspec.skipping.bridges import ADAPTERS, Bridge, linear_of
from selfspec.skipping.plan import BRIDGED, DraftPlan, Sublayer, format_sublayer, sublayer
from selfspec.skipping.skip_set import SkipSet

LAYER = "layer"  # the form that keeps and trains one layer of a run
FORMS = (*ADAPTERS, LAYER)


class Bridged(Trainable):
    """The trained parts of a plan: all of its bridges, and its sublayers in `tuned`.

    Args:
        decoder: the target; its parameters are frozen.
        plan: what training begins with; of kind `bridged`, unless it is only judged.

    Raises:
        InputError: if the plan has nothing to train, or the model takes no explicit mask.
    """

    layers = ()
    drafts_untrained = True

    def __init__(self, decoder: Decoder, plan: DraftPlan) -> None:
        super().__init__()
        if not plan.bridges and not plan.tuned:
            raise InputError(f"{plan} has nothing to train: skip sublayers that a bridge can stand in for")
        frozen = _frozen(decoder, plan)
        # in a function, so that a copy of this module has the same target
        self._target: Callable[[], Decoder] = lambda: frozen
        self.skip, self.kind = plan.skip, plan.kind
        self.bridges = nn.ModuleDict({format_sublayer(at): _Map(bridge) for at, bridge in plan.bridges.items()})
        self.tuned = nn.ModuleDict({format_sublayer(at): _Weights(named) for at, named in plan.tuned.items()})
        self._places = {format_sublayer(at): at for at in (*plan.bridges, *plan.tuned)}

    def predict(
        self, text_BS: Tensor, features: Sequence[Tensor], embed: Callable[[Tensor], Tensor], n_depths: int
    ) -> list[Predicted]:
        """See `Trainable.predict`; it reads the tokens alone."""
        target, module = self._target(), self._draft()
        text_BS = text_BS.to(target.device)
        n = text_BS.shape[1] - 1
        cache = _with_true_keys(target, text_BS[:, :n])
        slots_T = torch.arange(n, device=target.device)
        own_TS = slots_T[:, None] - slots_T[None, :]  # how many slots a slot lies behind
        found = []
        for depth in range(n_depths):
            # the target's keys up to the token before the draft, then of each depth the slot that the draft passed
            seen_TS = torch.cat([own_TS >= depth, *(own_TS == depth - j for j in range(depth + 1))], 1)
            positions_1S = torch.cat([slots_T, *[slots_T + 1] * (depth + 1)]).unsqueeze(0)
            mask = tree_mask(
                module.config,
                slots_T.unsqueeze(0) + 1,
                seen_BTS=seen_TS.unsqueeze(0),
                key_positions_BS=positions_1S,
                dtype=target.dtype,
            )
            hidden_BTD = module.base_model(
                input_ids=text_BS[:, 1:],
                attention_mask=mask,
                position_ids=slots_T.unsqueeze(0) + 1,
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state
            found.append(Predicted(hidden_BTD, hidden_BTD))
        return found

    def into(self, plan: DraftPlan) -> DraftPlan:
        """See `Trainable.into`; weights are in the dtype of the target."""
        dtype = self._target().dtype
        with torch.no_grad():
            bridges = {at: part.bridge(dtype) for at, part in self._maps().items()}
            tuned = {at: part.named(dtype) for at, part in self._weights().items()}
        return replace(plan, skip=self.skip, bridges=bridges, tuned=tuned, kind=self.kind)

    def _draft(self) -> Any:
        """The draft's module tree, with the trained parts as they are now."""
        target = self._target()
        skipped = [sublayer(i) for i, bit in enumerate(self.skip.bits()) if bit]
        copied = target.without(skipped, self._maps())
        for at, part in self._weights().items():
            for path, layer in part.layers.items():
                copied.set_submodule(f"{target.paths(at)[0]}.{path.replace('/', '.')}", layer)
        return copied

    def _maps(self) -> dict[Sublayer, _Map]:
        return {self._places[name]: part for name, part in self.bridges.items()}  # type: ignore[misc]

    def _weights(self) -> dict[Sublayer, _Weights]:
        return {self._places[name]: part for name, part in self.tuned.items()}  # type: ignore[misc]


class _Map(nn.Module):
    """A bridge whose tensors are parameters."""

    def __init__(self, bridge: Bridge) -> None:
        super().__init__()
        self.n_matrices = len(bridge.matrices)
        self.parts = nn.ParameterList(t.detach().float().clone() for t in bridge.tensors)

    def bridge(self, dtype: torch.dtype) -> Bridge:
        """The bridge in another dtype."""
        bias_D, *more = (part.to(dtype) for part in self.parts)
        return Bridge(bias_D, tuple(more[: self.n_matrices]), tuple(more[self.n_matrices :]))

    def forward(self, x: Tensor) -> Tensor:
        """What the bridge adds for x [..., D]."""
        return self.bridge(x.dtype)(x)


class _Weights(nn.Module):
    """The linear layers of a kept sublayer, as parameters."""

    def __init__(self, named: Mapping[str, Tensor]) -> None:
        super().__init__()
        paths = [name.removesuffix(".weight") for name in named if name.endswith(".weight")]
        # the names of a ModuleDict hold no dots
        self.layers = nn.ModuleDict(
            {path.replace(".", "/"): _Linear(named[f"{path}.weight"], named.get(f"{path}.bias")) for path in paths}
        )

    def named(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """The weights by name in another dtype."""
        return {
            f"{path.replace('/', '.')}.{name}": weight.detach().to(dtype)
            for path, layer in self.layers.items()
            for name, weight in layer.named_parameters()
        }


class _Linear(nn.Module):
    """A linear layer with float32 weights that multiplies in the dtype of its input."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight_OI.detach().float().clone())
        self.bias = None if bias_O is None else nn.Parameter(bias_O.detach().float().clone())

    def forward(self, x: Tensor) -> Tensor:
        """x [..., I] to [..., O]."""
        return linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


class _GrowingLayer(ClockLayer):
    """Keys and values [B, G, S, D] that new ones are appended to, none of them in place."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append [B, G, T, D]; returns all keys and values."""
        self.keys, self.values = torch.cat([self.keys, key_states], 2), torch.cat([self.values, value_states], 2)
        return self.keys, self.values


@torch.no_grad()
def _with_true_keys(target: Decoder, ids_BT: Tensor) -> Cache:
    """A cache that holds the target's keys and values of these tokens, and grows."""
    n_rows, n = ids_BT.shape
    cache: ClockCache = target.new_cache(n_rows=n_rows, capacity=n)
    target.full(ids_BT, starts=[0] * n_rows, cache=cache, n_logits=1)
    layers = [_GrowingLayer(cache) for _ in cache.layers]
    for layer, known in zip(layers, cache.layers, strict=True):
        layer.restore(known.keys[:, :, :n], known.values[:, :, :n], known.keys.device)
    return Cache(layers=layers)


def _frozen(decoder: Decoder, plan: DraftPlan) -> Decoder:
    """The target with kept sublayers through which gradients can pass: a packed layer has none, so it is unpacked."""
    copied = share(decoder.model).requires_grad_(False)
    for at in (sublayer(i) for i, bit in enumerate(plan.skip.bits()) if not bit):
        for path in decoder.paths(at):
            for name, module in list(copied.get_submodule(path).named_modules()):
                if isinstance(module, PackedLinear):
                    copied.set_submodule(f"{path}.{name}", linear_of(module.weight, module.bias))
    return Decoder(copied)


def kept_layers(skip: SkipSet) -> tuple[SkipSet, list[int]]:
    """The skip set without the first whole layer of each run of adjacent skipped sublayers, and these layers."""
    bits, found, is_new = list(skip.bits()), [], True
    for layer in range(skip.n_layers):
        attn, mlp = skip.bits()[2 * layer : 2 * layer + 2]
        if attn and mlp and is_new:
            bits[2 * layer] = bits[2 * layer + 1] = False
            found.append(layer)
        is_new = not (attn and mlp)
    return SkipSet.from_bits(bits), found


def own_weights(decoder: Decoder, layers: Sequence[int]) -> dict[Sublayer, dict[str, Tensor]]:
    """Weights of the linear layers of whole layers, by sublayer: what their training begins with.

    Raises:
        InputError: if a sublayer holds no plain linear layers.
    """
    found: dict[Sublayer, dict[str, Tensor]] = {}
    for at in (sublayer(2 * layer + i) for layer in layers for i in range(2)):
        (path, *others) = decoder.paths(at)
        modules = decoder.model.get_submodule(path).named_modules()
        held = {name: m for name, m in modules if isinstance(m, PackedLinear) or type(m) is nn.Linear}
        if others or not held:
            raise InputError(
                f"the sublayers of a {decoder.config.model_type!r} model hold no plain linear layers; "
                f"use adapter={' or '.join(ADAPTERS)}"
            )
        found[at] = {f"{name}.weight": m.weight.detach() for name, m in held.items()}
        found[at] |= {f"{name}.bias": m.bias.detach() for name, m in held.items() if m.bias is not None}
    return found


def with_adapters(plan: DraftPlan, form: str, width: int, *, seed: int) -> DraftPlan:
    """The plan with an adapter beside each bridge; it drafts as before, since an adapter begins at zero.

    Args:
        plan: a plan with bridges.
        form: one of `ADAPTERS`.
        width: inner size of an adapter.
        seed: of its first weights.

    Raises:
        InputError: if the form is unknown, or the width is impossible.
    """
    if form not in ADAPTERS:
        raise unknown_name("adapter", form, list(FORMS))
    if width < 1:
        raise InputError(f"width={width}; an adapter has an inner size of at least 1")
    rng = torch.Generator().manual_seed(seed)

    def adapter(bias_D: Tensor) -> tuple[Tensor, ...]:
        d = len(bias_D)
        ins = [torch.randn(width, d, generator=rng) * d**-0.5 for _ in range(ADAPTERS[form] - 1)]
        return tuple(m.to(bias_D) for m in (*ins, torch.zeros(d, width)))

    bridges = {at: Bridge(b.bias, b.matrices, adapter(b.bias)) for at, b in plan.bridges.items()}
    return replace(plan, bridges=bridges, kind=BRIDGED)
