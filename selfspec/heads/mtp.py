"""Multi-token prediction on a frozen model: a decoder layer for each depth, in parallel or in a chain.

`parallel` layers all read the target's hidden state and see no drafted token (Gloeckle). In a `chain` each layer reads
the output of the one before and the embedding of the drafted token (DeepSeek-V3's module). The third form, one layer
applied again and again (FastMTP), is `Eagle` with normed inputs.
"""

# B rows, T slots, N slots or drafted tokens of all rows, D hidden size

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from selfspec.engine.protocols import ROOT
from selfspec.errors import InputError
from selfspec.heads.layer import DraftLayer, LayerSize, Memory, NewSlots, Norm, Unrolled, last_slots, shifted
from selfspec.heads.modules import DraftModule, Predicted


@dataclass(slots=True)
class MtpState:
    """State of a row.

    Attributes:
        memories: keys and values of each depth, of accepted slots.
        waiting: of each depth but the first the inputs of the newest accepted slots, whose tokens are not known yet,
            [1, T, D].
        last: what later depths read, [1, N, D] in all: of `parallel` layers the output of each at the newest slot, in
            a chain that of depth 0 and of each drafted token.
        n_slots: accepted slots.
    """

    memories: list[Memory]
    waiting: list[Tensor | None]
    last: Tensor | None = None
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

    def extend(
        self, states: Sequence[MtpState], features: Sequence[Tensor], embeds_1ND: Tensor, lengths: Sequence[int]
    ) -> Tensor:
        """See `DraftModule.extend`.

        In a chain, slot i of depth d needs token i + 1 + d, so at each depth but the first the newest slot waits.
        """
        counts = list(lengths)
        for state, n in zip(states, counts, strict=True):
            state.n_slots += n
        if self.form == "parallel":
            lasts = []
            for depth, block in enumerate(self._blocks()):
                new = [NewSlots.accepted(s.memories[depth], n) for s, n in zip(states, counts, strict=True)]
                lasts.append(last_slots(block.step(features[0], features[0], new), counts))
            for b, state in enumerate(states):
                state.last = torch.cat([last_1BD[:, b : b + 1] for last_1BD in lasts], 1)
            return self._read(lasts[0])
        embeds, inputs = (list(torch.split(x_1ND, counts, 1)) for x_1ND in (embeds_1ND, features[0]))
        inputs, first_1BD = self._advance(states, inputs, embeds, 0)
        for state, last_11D in zip(states, torch.split(first_1BD, 1, 1), strict=True):
            state.last = last_11D
        for depth in range(1, len(self.blocks)):
            inputs = [self._waited(state, depth, x_1TD) for state, x_1TD in zip(states, inputs, strict=True)]
            on = [b for b, x_1TD in enumerate(inputs) if x_1TD.shape[1]]
            states, inputs, embeds = [states[b] for b in on], [inputs[b] for b in on], [embeds[b] for b in on]
            if not on:
                break
            inputs, _ = self._advance(states, inputs, embeds, depth)
        return self._read(first_1BD)

    def step(
        self, states: Sequence[MtpState], parents: Sequence[Sequence[int]], embeds_ND: Tensor, depth: int
    ) -> Tensor:
        """See `DraftModule.step`.

        In a chain, the newest d slots of depth d would need drafted tokens. No slot sees them, in training neither.
        """
        above = []
        for state, row in zip(states, parents, strict=True):
            assert state.last is not None
            at = [depth] * len(row) if self.form == "parallel" else [parent + 1 for parent in row]
            above.append(state.last[:, at])
        if self.form == "parallel":
            return self._read(torch.cat(above, 1))
        counts, new = [len(row) for row in parents], []
        for state, n in zip(states, counts, strict=True):
            memory, position = state.memories[depth], state.n_slots - 1
            new.append(NewSlots.drafted(memory, [ROOT] * n, n, position=position))
        out = self._block(depth, torch.cat(above, 1), embeds_ND.unsqueeze(0), new)
        for state, n, x_1TD in zip(states, counts, torch.split(out, counts, 1), strict=True):
            assert state.last is not None
            state.memories[depth].n -= n
            state.last = torch.cat([state.last, x_1TD], 1)
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

    def _advance(
        self, states: Sequence[MtpState], inputs: Sequence[Tensor], embeds: Sequence[Tensor], depth: int
    ) -> tuple[list[Tensor], Tensor]:
        """Add accepted slots at a depth of a chain: each row's outputs [1, T, D], and its newest one, [1, B, D]."""
        counts = [x_1TD.shape[1] for x_1TD in inputs]
        rows = zip(states, counts, strict=True)
        new = [NewSlots.accepted(state.memories[depth], n, lag=depth) for state, n in rows]
        ahead = [row[:, -n:] for row, n in zip(embeds, counts, strict=True)]
        out = self._block(depth, torch.cat(list(inputs), 1), torch.cat(ahead, 1), new)
        return list(torch.split(out, counts, 1)), last_slots(out, counts)

    def _waited(self, state: MtpState, depth: int, x_1TD: Tensor) -> Tensor:
        """The inputs of a depth whose tokens are known by now, [1, T, D]; the newest one waits."""
        if not x_1TD.shape[1]:
            return x_1TD
        old = state.waiting[depth]
        queue = x_1TD if old is None else torch.cat([old, x_1TD], 1)
        state.waiting[depth] = queue[:, -1:]
        return queue[:, :-1]

    def _block(self, depth: int, x_1ND: Tensor, embeds_1ND: Tensor, new: Sequence[NewSlots]) -> Tensor:
        joined = self._joined(depth, x_1ND, embeds_1ND)
        return self._blocks()[depth].step(joined, joined, new)

    def _read(self, hidden_1ND: Tensor) -> Tensor:
        read: Tensor = self.output_norm(hidden_1ND)[0]
        return read
