"""Pack weights for oneDNN once, instead of at every call.

On a CPU `F.linear` reorders a weight each time it is used, which takes most of a decode step of one token. A packed
layer holds its weight in oneDNN's layout and nothing else. In bfloat16 the results are bitwise equal to those of
`F.linear`; in float32 the order of the sums differs.

In many small models the head's weight is also the embedding. The embedding then keeps it, since a packed weight has no
rows to look up, and the head is packed as a second copy: the head takes a third to a half of its former time (LOG) for
the memory of one embedding.
"""

# V vocabulary, O output features, I input features

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn


class PackedLinear(nn.Module):
    """A linear layer whose weight is in oneDNN's layout; it is saved and loaded like an ordinary one.

    Args:
        linear: the layer to pack; its weight can be freed afterwards.
        is_shared: whether another module, such as an embedding, keeps the weight as well.
    """

    def __init__(self, linear: nn.Linear, *, is_shared: bool = False) -> None:
        super().__init__()
        # in a tuple, so that it is no parameter of this module
        self._kept = (linear.weight.detach(),) if is_shared else ()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        # Packed for one row, which is the usual case in decoding; packing for several makes one row slow.
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), 1)
        self.bias = linear.bias

    @property
    def shared(self) -> Tensor | None:
        """The weight [O, I] that another module holds; None if there is none."""
        return self._kept[0] if self._kept else None

    @property
    def weight(self) -> Tensor:
        """The weight [O, I]; an unpacked copy unless it is shared."""
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

    def __getstate__(self) -> dict[str, Any]:
        """The layer with its weight [O, I] unpacked: oneDNN's layout belongs to a process and cannot be written."""
        return {**self.__dict__, "packed": self.weight}

    def __setstate__(self, state: dict[str, Any]) -> None:
        packed = torch.ops.mkldnn._reorder_linear_weight(state["packed"], 1)
        super().__setstate__({**state, "packed": packed})  # type: ignore[no-untyped-call]

    def extra_repr(self) -> str:
        """Sizes, for `repr`."""
        return f"in_features={self.in_features}, out_features={self.out_features}, packed"


def n_bytes(module: nn.Module) -> int:
    """Bytes of the weights of `module`, packed ones included; a shared weight counts once."""
    own: int = sum(p.numel() * p.element_size() for p in module.parameters())
    packed = (m.packed for m in module.modules() if isinstance(m, PackedLinear))
    return own + int(sum(t.numel() * t.element_size() for t in packed))


def packs(dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies weights of `dtype` on this CPU; bfloat16 needs AVX-512 or newer."""
    if not torch._C._has_mkldnn:
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()))


def can_pack(model: nn.Module) -> bool:
    """Whether the weights are on the CPU, in a dtype that oneDNN multiplies there."""
    return _can_pack(next(model.parameters()))


def _can_pack(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and packs(weight.dtype)


def pack(model: nn.Module) -> int:
    """Pack in place every linear layer that shares its weight with no other one; returns the number of them."""
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
