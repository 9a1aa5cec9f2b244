"""Multi-token prediction on a frozen model: a decoder layer for each depth, in parallel or in a chain.

`parallel` layers all read the target's hidden state and see no drafted token (Gloeckle). In a `chain` each layer reads
the output of the one before and the embedding of the drafted token (DeepSeek-V3's module). The third form, one layer
applied again and again (FastMTP), is `Eagle` with normed inputs.
"""

# B rows, T slots, D hidden size

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from selfspec.errors import InputError
from selfspec.heads.layer import DraftLayer, LayerSize, Memory, Norm, Unrolled, shifted
from selfspec.heads.modules import DraftModule, Predicted


@dataclass(slots=True)
class MtpState:
    """State of a row.

    Attributes:
        memories: keys and values of each depth, of accepted slots.
        waiting: of each depth the input of the newest accepted slot, whose token is not known yet, [1, 1, D].
        last: of each depth the output at the newest slot, [1, 1, D]; in a chain only of the last depth that ran.
        n_slots: accepted slots.
    """

    memories: list[Memory]
    waiting: list[Tensor | None]
    last: list[Tensor] = field(default_factory=list)
    n_slots: int = 0


class Mtp(DraftModule):
    """A decoder layer for each depth.

    Args:
        size: sizes of the layers.
        k: number of depths.
        form: `parallel` or `chain`.
        mlp: inner size of the MLPs; None: the target's.

    Source: Gloeckle et al. 2024 (arXiv:2404.19737); DeepSeek-AI 2024 (arXiv:2412.19437).
    """

    kind = "mtp"

    def __init__(self, size: LayerSize, *, k: int = 3, form: str = "chain", mlp: int | None = None) -> None:
        super().__init__()
        if k < 1 or form not in ("parallel", "chain"):
            raise InputError(f"mtp heads with k={k}, form={form}; k is at least 1, form is parallel or chain")
        self.settings = {"k": k, "form": form, "mlp": mlp}
        self.layers, self.max_depth, self.form = (-1,), k, form
        d = size.hidden
        self.blocks = nn.ModuleList(DraftLayer(size) for _ in range(k))
        if form == "chain":
            self.embed_norms, self.feature_norms = (
                nn.ModuleList(Norm(d, eps=size.eps) for _ in range(k)) for _ in range(2)
            )
            self.joins = nn.ModuleList(nn.Linear(2 * d, d, bias=False) for _ in range(k))
        self.output_norm = Norm(d, eps=size.eps)

    def begin(self) -> MtpState:
        """Empty memories."""
        return MtpState([Memory() for _ in self._blocks()], [None for _ in self._blocks()])

    def extend(self, state: MtpState, features: Sequence[Tensor], embeds_1TD: Tensor) -> Tensor:
        """See `DraftModule.extend`.

        In a chain, slot i of depth d needs token i + 1 + d, so at each depth but the first the newest slot waits.
        """
        state.n_slots += embeds_1TD.shape[1]
        if self.form == "parallel":
            steps = zip(self._blocks(), state.memories, strict=True)
            state.last = [block.step(features[0], features[0], memory)[:, -1:] for block, memory in steps]
            return self._read(state.last[0])
        x_1TD: Tensor | None = features[0]
        for depth, memory in enumerate(state.memories):
            if depth and x_1TD is not None:
                old = state.waiting[depth]
                queue = x_1TD if old is None else torch.cat([old, x_1TD], 1)
                x_1TD, state.waiting[depth] = queue[:, :-1] if queue.shape[1] > 1 else None, queue[:, -1:]
            if x_1TD is not None:
                embeds = embeds_1TD[:, -x_1TD.shape[1] :]
                x_1TD = self._block(depth, x_1TD, embeds, memory, lag=depth)
            if depth == 0:
                assert x_1TD is not None
                state.last = [x_1TD[:, -1:]]
        return self._read(state.last[0])

    def step(self, state: MtpState, embed_1D: Tensor, depth: int) -> Tensor:
        """See `DraftModule.step`.

        In a chain, the newest d slots of depth d would need drafted tokens. No slot sees them, in training neither.
        """
        if self.form == "parallel":
            return self._read(state.last[depth])
        memory = state.memories[depth]
        n = memory.n
        out = self._block(depth, state.last[-1], embed_1D.unsqueeze(0), memory, position=state.n_slots - 1)
        memory.n = n
        state.last = [out]
        return self._read(out)

    def unroll(self, features: Sequence[Tensor], embeds_BTD: Tensor, n_depths: int) -> list[Predicted]:
        """See `DraftModule.unroll`."""
        found, x_BTD = [], features[0]
        for depth, block in enumerate(self._blocks()[:n_depths]):
            if self.form == "parallel":
                out = block.unroll(features[0], features[0], Unrolled())
            else:
                ahead_BTD = pad(embeds_BTD[:, depth:], (0, 0, 0, depth))
                joined = self._joined(depth, x_BTD, ahead_BTD)
                out = x_BTD = block.unroll(joined, joined, Unrolled(), lag=depth)
            found.append(Predicted(shifted(self.output_norm(out), depth)))
        return found

    def _blocks(self) -> list[DraftLayer]:
        return list(self.blocks)  # type: ignore[arg-type]

    def _joined(self, depth: int, x: Tensor, embeds: Tensor) -> Tensor:
        both = torch.cat([self.embed_norms[depth](embeds), self.feature_norms[depth](x)], -1)
        joined: Tensor = self.joins[depth](both)
        return joined

    def _block(
        self, depth: int, x: Tensor, embeds: Tensor, memory: Memory, *, position: int | None = None, lag: int = 0
    ) -> Tensor:
        joined = self._joined(depth, x, embeds)
        out: Tensor = self._blocks()[depth].step(joined, joined, memory, position=position, lag=lag)
        return out

    def _read(self, hidden_11D: Tensor) -> Tensor:
        read: Tensor = self.output_norm(hidden_11D)[:, 0]
        return read
