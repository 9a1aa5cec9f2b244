"""A causal language model whose sublayers can be skipped: `bind` a skip set or a plan, and get a forward.

A draft is a copy of the module tree that shares every parameter. In it each skipped sublayer returns zeros or the
output of its bridge. The model itself is never changed, so any number of drafts can exist at the same time.
"""

# B rows, T tokens, S keys, V vocabulary

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from selfspec.engine.cache import ClockCache
from selfspec.engine.forward import BoundForward, Forward
from selfspec.errors import InputError
from selfspec.models.context import context_length
from selfspec.models.packing import PackedLinear, n_bytes
from selfspec.models.sublayers import Patch, Sublayers, find_sublayers
from selfspec.skipping.bridges import Map, as_map, linear_of, stand_in
from selfspec.skipping.plan import DraftPlan, Precision, Sublayer, format_sublayer, sublayer
from selfspec.skipping.rounding import RoundedCopies, RoundedLinear, round_linear
from selfspec.skipping.skip_set import SkipSet
from selfspec.skipping.trimmed_head import TrimmedHead, trimmed

N_HEADS = 6  # trimmed heads to keep, since a search may alternate between several; chosen, not tuned


class Decoder:
    """A decoder-only transformers model that can draft and verify.

    Args:
        model: a causal language model in eval mode; it is not changed.

    Raises:
        InputError: if its sublayers cannot be found or skipped.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.sublayers: Sublayers = find_sublayers(model)
        config: Any = model.config
        self.config = config.get_text_config()
        self.n_layers = self.sublayers.n_layers
        self._heads: dict[tuple[bytes, Precision], TrimmedHead] = {}
        self._rounded = RoundedCopies(model)
        self.full: Forward = BoundForward(model, self.context_length, layers=self.sublayers.path)
        self._leave_out_everything()

    @property
    def device(self) -> torch.device:
        """Device of the input ids."""
        return self.model.get_input_embeddings().weight.device  # type: ignore[operator, no-any-return]

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights, packed or not."""
        return next(self.model.parameters()).dtype

    @property
    def context_length(self) -> int:
        """Length of the longest sequence that the model supports, in tokens."""
        return context_length(self.config)

    @property
    def n_vocab(self) -> int:
        """Size of the vocabulary."""
        return int(self.config.vocab_size)

    @property
    def eos_ids(self) -> frozenset[int]:
        """Token ids that end a sequence, from the generation config or else from the model config."""
        settings: Any = getattr(self.model, "generation_config", None)
        eos = getattr(settings, "eos_token_id", None)
        eos = self.config.eos_token_id if eos is None else eos
        return frozenset() if eos is None else frozenset([eos] if isinstance(eos, int) else eos)

    def new_cache(self, *, n_rows: int, capacity: int) -> ClockCache:
        """An empty cache of `n_rows` rows with `capacity` tokens each."""
        return ClockCache(self.n_layers, n_rows=n_rows, capacity=capacity, device=self.device)

    def bind(self, draft: SkipSet | DraftPlan) -> Forward:
        """The forward of a draft, given as a skip set or a plan.

        Raises:
            InputError: if it is for another number of layers, a bridge has another size or is at a sublayer that
                takes none, or its precision has no kernel here.
        """
        plan = _plan(draft)
        if plan.trained is not None:
            raise InputError(f"{plan} drafts with a trained head, not with layers; build_drafter makes its drafter")
        if plan.skip.n_layers != self.n_layers:
            raise InputError(
                f"the skip set is for a model of {plan.skip.n_layers} layers, but this model has {self.n_layers}; "
                "use a set that was found for it"
            )
        if not len(plan.skip) and plan.head is None and plan.precision == "same" and not plan.tuned:
            return self.full
        copied = self.without(plan.skipped, {at: self._map(plan, at) for at in plan.bridges})
        if plan.precision != "same":
            self._round(copied, plan)
        for at, weights in plan.tuned.items():
            self._put_tuned(copied, at, weights, plan.precision)
        head = None if plan.head is None else self._trimmed_head(plan.head, plan.precision)
        if head is not None:
            trimmed(copied, head)
        return BoundForward(copied, self.context_length, head, self.sublayers.path)

    def without(self, skipped: Iterable[Sublayer], maps: Mapping[Sublayer, Map]) -> nn.Module:
        """A copy of the module tree, which shares every parameter, without some sublayers.

        Args:
            skipped: these sublayers.
            maps: what stands in for some of them; one without a map adds nothing.

        Raises:
            InputError: if a sublayer with a map consists of several modules.
        """
        copied = share(self.model)
        for at in skipped:
            patches = self._patches(at)
            if at in maps:
                patches = (Patch(patches[0].name, stand_in(maps[at], patches)),)
            for path, patch in zip(self.paths(at), patches, strict=False):
                copied.get_submodule(path).forward = patch.forward
        return copied

    def paths(self, at: Sublayer) -> list[str]:
        """Paths of a sublayer's modules."""
        return [f"{self.sublayers.path}.{at[1]}.{patch.name}" for patch in self._patches(at)]

    def output_head(self, ids_N: Tensor | None, precision: Precision) -> nn.Module:
        """The output head of a draft.

        Args:
            ids_N: tokens to score, in rising order; None: all.
            precision: precision of its rows.

        Raises:
            InputError: if it cannot be trimmed, or the precision has no kernel here.
        """
        if ids_N is not None:
            return self._trimmed_head(ids_N, precision)
        copied: Any = share(self.model)
        if precision != "same":
            self._rounded.put(copied, self._head_paths(), precision)
        head: nn.Module = copied.get_output_embeddings()
        return head

    def _head_paths(self) -> list[str]:
        whole = self.model.get_output_embeddings()  # type: ignore[operator]
        return [path for path, module in self.model.named_modules() if module is whole]

    def _trimmed_head(self, ids_N: Tensor, precision: Precision) -> TrimmedHead:
        """The trimmed head of these ids; the last few heads are kept and shared by drafts."""
        key = ids_N.cpu().numpy().tobytes(), precision
        if key not in self._heads:
            head = TrimmedHead(self.model.get_output_embeddings(), ids_N)  # type: ignore[operator]
            if precision != "same":
                head.add_module("rows", round_linear(head.rows, precision))
            if len(self._heads) == N_HEADS:
                del self._heads[next(iter(self._heads))]
            self._heads[key] = head
        return self._heads[key]

    def _round(self, copied: nn.Module, plan: DraftPlan) -> None:
        """Replace the linear layers that a plan keeps, and a whole head, by rounded copies."""
        kept = [sublayer(i) for i, bit in enumerate(plan.skip.bits()) if not bit]
        paths = [path for at in kept for path in self.paths(at)]
        if not self._rounded.put(copied, paths, plan.precision) and kept:
            raise InputError(
                f"precision={plan.precision} was asked for, but the sublayers of a {self.config.model_type!r} model "
                "hold no plain linear layers; use same"
            )
        if plan.head is None:
            self._rounded.put(copied, self._head_paths(), plan.precision)

    def _patches(self, at: Sublayer) -> tuple[Patch, ...]:
        return self.sublayers.attn if at[0] == "attn" else self.sublayers.mlp

    def _put_tuned(self, copied: nn.Module, at: Sublayer, weights: Mapping[str, Tensor], precision: Precision) -> None:
        """Replace linear layers of a sublayer by those of trained weights."""
        path = self.paths(at)[0]
        for name in (n.removesuffix(".weight") for n in weights if n.endswith(".weight")):
            try:
                own: Any = self.model.get_submodule(f"{path}.{name}")
                weight_OI = weights[f"{name}.weight"].to(own.weight.device, self.dtype)
                fits = weight_OI.shape == (own.out_features, own.in_features)
            except AttributeError:
                fits = False
            if not fits:
                raise InputError(
                    f"the plan has trained weights {name} of {format_sublayer(at)}, which this model has not in that "
                    "shape; train them for this model"
                )
            bias_O = weights.get(f"{name}.bias")
            linear = linear_of(weight_OI, None if bias_O is None else bias_O.to(weight_OI))
            made: nn.Module = linear
            if precision != "same":
                made = round_linear(linear, precision)
            elif isinstance(own, PackedLinear):
                made = PackedLinear(linear)
            copied.set_submodule(f"{path}.{name}", made)

    def _map(self, plan: DraftPlan, at: Sublayer) -> Map:
        bridge = plan.bridges[at]
        if len(bridge.bias) != self.config.hidden_size:
            raise InputError(
                f"the bridge at {format_sublayer(at)} is for a hidden size of {len(bridge.bias)}, but this model's is "
                f"{self.config.hidden_size}; fit it for this model"
            )
        return as_map(bridge, self.model.get_submodule(self.paths(at)[0]), self.dtype)

    def weight_bytes(self, draft: SkipSet | DraftPlan) -> int:
        """Bytes of the weights that a draft reads for a token, bridges included.

        An embedding counts only if it is also the head; otherwise a token reads one of its rows.
        """
        plan = _plan(draft)
        is_plain = plan.head is None and plan.precision == "same"
        module: Any = self.model if is_plain else self.bind(plan).module
        skipped = (self.model.get_submodule(path) for at in plan.skipped for path in self.paths(at))
        embedding, head = module.get_input_embeddings(), module.get_output_embeddings()
        embedding_bytes = 0 if getattr(head, "weight", None) is embedding.weight else n_bytes(embedding)
        rounded = sum(m.n_bytes for m in module.modules() if isinstance(m, RoundedLinear))
        return n_bytes(module) + rounded + self._bridge_bytes(plan) - sum(map(n_bytes, skipped)) - embedding_bytes

    def extra_bytes(self, plan: DraftPlan) -> int:
        """Bytes that a plan takes in addition to the model: bridges, head rows, rounded copies, and a trained head.

        The weights of a trained head count in the model's dtype, also where they are rounded when it drafts.
        """
        if plan.trained is not None:
            head = None if plan.head is None else self._trimmed_head(plan.head, plan.precision)
            own = sum(t.numel() for t in plan.trained.weights.values()) * self.dtype.itemsize
            return own + (0 if head is None else head.n_bytes)
        made = (m for m in self.bind(plan).module.modules() if isinstance(m, RoundedLinear | TrimmedHead))
        tuned = 0  # rounded ones are among the copies
        if plan.precision == "same":
            tuned = sum(t.numel() for weights in plan.tuned.values() for t in weights.values()) * self.dtype.itemsize
        return sum(m.n_bytes for m in made) + tuned + self._bridge_bytes(plan)

    def _bridge_bytes(self, plan: DraftPlan) -> int:
        return sum(t.numel() for b in plan.bridges.values() for t in b.tensors) * self.dtype.itemsize

    @torch.inference_mode()
    def _leave_out_everything(self) -> None:
        """Check that the layers of the model accept the outputs of the patches, with one cheap forward.

        With one row, a layer that unpacks a tuple fails if it gets a tensor; with two rows it would not.
        """
        everything = SkipSet.from_bits([True] * (2 * self.n_layers))
        ids_BT = torch.zeros(1, 2, dtype=torch.long, device=self.device)
        try:
            self.bind(everything)(ids_BT, starts=[0], cache=self.new_cache(n_rows=1, capacity=2))
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            raise InputError(
                f"cannot leave out the sublayers of a {self.config.model_type!r} model ({reason}); "
                "add what they return to selfspec/models/sublayers.py"
            ) from error


def _plan(draft: SkipSet | DraftPlan) -> DraftPlan:
    return draft if isinstance(draft, DraftPlan) else DraftPlan.from_skip_set(draft)


def share(module: nn.Module) -> nn.Module:
    """A copy of the module tree that shares every parameter and buffer with the original."""
    copied = module.__class__.__new__(module.__class__)
    # accelerate stores a `forward` bound to the module in the module itself; rebind it to the copy.
    copied.__dict__.update({name: _rebind(value, module, copied) for name, value in module.__dict__.items()})
    copied._modules = {name: child if child is None else share(child) for name, child in module._modules.items()}
    return copied


def _rebind(value: Any, module: nn.Module, copied: nn.Module) -> Any:
    """A bound method or partial of `module`, rebound to `copied`; any other value unchanged."""
    if isinstance(value, MethodType) and value.__self__ is module:
        return MethodType(value.__func__, copied)
    if isinstance(value, partial) and any(arg is module for arg in value.args):
        return partial(value.func, *(copied if arg is module else arg for arg in value.args), **value.keywords)
    return value
