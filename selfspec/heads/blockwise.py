"""Blind heads: each predicts one token further ahead from the target's last hidden state, and sees no drafted token.

They cost one small product a depth, and no attention. What they cannot know is which token was drafted before.
"""

# B rows, T slots, N slots or drafted tokens of all rows, D hidden size

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import relu, silu

from selfspec.errors import InputError
from selfspec.heads.layer import LayerSize, shifted
from selfspec.heads.modules import DraftModule, Predicted


@dataclass(slots=True)
class BlindState:
    """The hidden state of the last accepted token, [1, D]."""

    feature_1D: Tensor | None = None


class Blockwise(DraftModule):
    """k residual heads on the target's last hidden state; the target itself is the first head.

    Args:
        size: sizes.
        k: number of heads.
        form: `stern` adds O relu(H h), with an inner layer; `medusa` adds SiLU(W h), with W zero at the start.
        inner: inner size of a `stern` head; None: the hidden size.

    Source: Stern et al. 2018 (arXiv:1811.03115); Cai et al. 2024, Medusa (arXiv:2401.10774).
    """

    kind = "blockwise"

    def __init__(self, size: LayerSize, *, k: int = 3, form: str = "stern", inner: int | None = None) -> None:
        super().__init__()
        if k < 1 or form not in ("stern", "medusa"):
            raise InputError(f"blockwise heads with k={k}, form={form}; k is at least 1, form is stern or medusa")
        self.settings = {"k": k, "form": form, "inner": inner}
        self.layers, self.max_depth = (-1,), k
        d, h = size.hidden, inner or size.hidden
        if form == "stern":
            self.inner = nn.ModuleList(nn.Linear(d, h) for _ in range(k))
            self.outer = nn.ModuleList(nn.Linear(h, d) for _ in range(k))
        else:
            self.inner = nn.ModuleList(nn.Linear(d, d) for _ in range(k))
        self.form = form
        for last in self.outer if form == "stern" else self.inner:
            nn.init.zeros_(last.weight)  # type: ignore[arg-type]  # each head starts as the target's own
            nn.init.zeros_(last.bias)  # type: ignore[arg-type]

    def begin(self) -> BlindState:
        """Nothing known yet."""
        return BlindState()

    def extend(
        self, states: Sequence[BlindState], features: Sequence[Tensor], embeds_1ND: Tensor, lengths: Sequence[int]
    ) -> Tensor:
        """See `DraftModule.extend`."""
        for state, feature_TD in zip(states, torch.split(features[0][0], list(lengths)), strict=True):
            state.feature_1D = feature_TD[-1:]
        return self._head(0, _features(states, [1] * len(states)))

    def step(
        self, states: Sequence[BlindState], parents: Sequence[Sequence[int]], embeds_ND: Tensor, depth: int
    ) -> Tensor:
        """See `DraftModule.step`; the drafted tokens are not read, so those of a row get the same output."""
        return self._head(depth, _features(states, [len(row) for row in parents]))

    def unroll(self, features: Sequence[Tensor], embeds_BTD: Tensor, n_depths: int) -> list[Predicted]:
        """See `DraftModule.unroll`."""
        return [
            Predicted(shifted(self._head(depth, features[0]), depth)) for depth in range(min(n_depths, len(self.inner)))
        ]

    def _head(self, depth: int, h: Tensor) -> Tensor:
        x = self.inner[depth](h)
        return h + (self.outer[depth](relu(x)) if self.form == "stern" else silu(x))


def _features(states: Sequence[BlindState], counts: Sequence[int]) -> Tensor:
    """The hidden state of each row, as often as counted, [N, D]."""
    found = []
    for state, n in zip(states, counts, strict=True):
        assert state.feature_1D is not None
        found.append(state.feature_1D.expand(n, -1))
    return torch.cat(found)
