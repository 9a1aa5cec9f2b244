"""Weights laid out once for oneDNN, instead of at every call.

On a CPU `F.linear` re-lays a weight each time it is used; a decode step of one token is then mostly that. A packed
layer holds its weight in oneDNN's own layout and nothing else. In bfloat16 the results are
equal to `F.linear`'s to the bit; in float32 the sums are taken in another order.

Where a head's weight is also the embedding, as in many small models, the embedding keeps it, since a packed weight has
no rows to look up, and the head is packed as a second copy: a head then takes a third to a half of its time (LOG),
for the memory of one embedding.
"""

# V vocabulary, O output features, I input features

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn


class PackedLinear(nn.Module):
    """A linear layer whose weight lies in oneDNN's layout; saved and loaded as an ordinary one.

    Args:
        linear: the layer to take over; its weight can be dropped afterwards.
        is_shared: the weight stays where it is besides, as that of an embedding.
    """

    def __init__(self, linear: nn.Linear, *, is_shared: bool = False) -> None:
        super().__init__()
        self._kept = (linear.weight.detach(),) if is_shared else ()  # in a tuple, no parameter of this module
        self.in_features, self.out_features = linear.in_features, linear.out_features
        # Packed for one row: packing for several makes one row slow, and one row is what decoding mostly has.
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), 1)
        self.bias = linear.bias

    @property
    def shared(self) -> Tensor | None:
        """The weight [O, I] as the embedding has it; None where nobody has."""
        return self._kept[0] if self._kept else None

    @property
    def weight(self) -> Tensor:
        """The weight [O, I]; where it is not shared, unpacked: a copy."""
        dense: Tensor = self.packed.to_dense() if self.shared is None else self.shared
        return dense

    def forward(self, x: Tensor) -> Tensor:
        """x [..., I] to [..., O]."""
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")  # type: ignore[no-any-return]

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "weight"] = self.weight

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        weight = state_dict.pop(prefix + "weight", None)
        if weight is not None:
            self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.to(self.packed.dtype), 1)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        """As of a linear layer."""
        return f"in_features={self.in_features}, out_features={self.out_features}, packed"


def n_bytes(module: nn.Module) -> int:
    """Bytes of the weights of `module`, packed ones included; one that is shared counts once."""
    own: int = sum(p.numel() * p.element_size() for p in module.parameters())
    packed = (m.packed for m in module.modules() if isinstance(m, PackedLinear))
    return own + int(sum(t.numel() * t.element_size() for t in packed))


def packs(dtype: torch.dtype) -> bool:
    """Whether oneDNN is there and multiplies weights of `dtype` on this CPU; bfloat16 takes AVX-512 or newer."""
    if not torch._C._has_mkldnn:
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()))


def can_pack(model: nn.Module) -> bool:
    """Whether packing is possible: the weights lie on the CPU in a dtype that oneDNN multiplies there."""
    return _can_pack(next(model.parameters()))


def _can_pack(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and packs(weight.dtype)


def pack(model: nn.Module) -> int:
    """Pack in place every linear layer of `model` that can be and shares its weight with no other; returns how many."""
    embedded = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    others = (module for module in model.modules() if not isinstance(module, nn.Embedding))
    owners = Counter(id(p) for module in others for p in module._parameters.values() if p is not None)
    n_packed = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and owners[id(child.weight)] == 1 and _can_pack(child.weight):
                setattr(parent, name, PackedLinear(child, is_shared=id(child.weight) in embedded))
                n_packed += 1
    return n_packed
