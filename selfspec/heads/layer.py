"""One decoder layer of a draft head: grouped attention with rotary positions, and a gated MLP, as in Llama.

Any target takes it, since a head reads only hidden states and embeddings. It runs in two ways. `step` is for drafting:
new slots attend to the slots in their row's memory and to themselves. `unroll` is for training: the slots of depth d
see the slots that drafting would have in its memory at that depth.

In `step` the slots of all rows lie one after another, so that each weight is read once for all rows and no row is
padded; only attention runs row by row, each over its own memory.
"""

# B rows, T slots, N slots of all rows, D hidden size, H heads, G heads of keys and values, C size of a head,
# W width of the input, S slots of a memory

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention, silu

from selfspec.engine.protocols import ROOT


@dataclass(frozen=True, slots=True)
class LayerSize:
    """Sizes of a layer; those of the target, unless a head says otherwise.

    Attributes:
        hidden: D.
        mlp: inner size of the MLP.
        n_heads, n_kv_heads, head_size: of attention.
        theta: base of the rotary angles.
        eps: of the norms.
        angles: rotary angle of each pair for one position, where it is no power of theta; empty: it is.
    """

    hidden: int
    mlp: int
    n_heads: int
    n_kv_heads: int
    head_size: int
    theta: float = 10000.0
    eps: float = 1e-6
    angles: Sequence[float] = ()


@dataclass(slots=True)
class Memory:
    """Keys and values of one row's slots, [1, G, S, C]; the first `n` slots count."""

    n: int = 0
    keys: Tensor | None = None
    values: Tensor | None = None

    def add(self, keys_1GTC: Tensor, values_1GTC: Tensor) -> tuple[Tensor, Tensor]:
        """Write after the slots that count; returns keys and values of all slots. The new slots count from now on."""
        end = self.n + keys_1GTC.shape[2]
        if self.keys is None or self.values is None or end > self.keys.shape[2]:
            self.keys, self.values = (
                self._longer(self.keys, keys_1GTC, end),
                self._longer(self.values, values_1GTC, end),
            )
        self.keys[:, :, self.n : end] = keys_1GTC
        self.values[:, :, self.n : end] = values_1GTC
        self.n = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def _longer(self, old: Tensor | None, like: Tensor, end: int) -> Tensor:
        found = like.new_empty(1, like.shape[1], 2 * end, like.shape[3])
        if old is not None:
            found[:, :, : self.n] = old[:, :, : self.n]
        return found


@dataclass(frozen=True, slots=True)
class NewSlots:
    """Slots of one row that join its memory.

    Attributes:
        memory: the slots before them.
        positions: of the new slots, [T].
        seen: which slots each of them sees, its own included, [T, S]; None: all.
    """

    memory: Memory
    positions: Tensor
    seen: Tensor | None = None

    @classmethod
    def accepted(cls, memory: Memory, n: int, *, lag: int = 0) -> NewSlots:
        """`n` slots of accepted tokens, each of which sees those before it; for `lag` see `DraftLayer.unroll`."""
        end = memory.n + n
        own_T1 = torch.arange(memory.n, end).unsqueeze(1)
        if n == 1 and not lag:
            return cls(memory, own_T1[:, 0])
        slots_S = torch.arange(end)
        return cls(memory, own_T1[:, 0], (slots_S <= own_T1 - lag) | (slots_S == own_T1))

    @classmethod
    def drafted(cls, memory: Memory, parents: Sequence[int], n: int, *, position: int) -> NewSlots:
        """The last `n` drafted tokens of a row, each of which sees the accepted slots and its own branch.

        Args:
            memory: accepted slots, and drafted ones after them.
            parents: of each drafted token its parent among them, or `ROOT`; those of the new ones are the last.
            n: number of new ones.
            position: position of the new ones, which are of one depth.
        """
        n_accepted = memory.n + n - len(parents)
        seen = torch.zeros(n, memory.n + n, dtype=torch.bool)
        seen[:, :n_accepted] = True
        for row in range(n):
            node = len(parents) - n + row
            while node != ROOT:
                seen[row, n_accepted + node] = True
                node = parents[node]
        return cls(memory, torch.full((n,), position), None if bool(seen.all()) else seen)


@dataclass(slots=True)
class Unrolled:
    """Keys and values of the depths so far, [B, G, T, C] each; the first is that of the true hidden states."""

    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)


class Norm(nn.RMSNorm):
    """Root-mean-square norm in the dtype of its weight, also where the rest runs in bfloat16."""

    def forward(self, x: Tensor) -> Tensor:
        """x [..., D], normalised."""
        return super().forward(x.to(self.weight.dtype))


class DraftLayer(nn.Module):
    """Attention and MLP with residuals.

    Args:
        size: sizes.
        width: width of the attention's input in hidden sizes; 2 in EAGLE-3, which attends from [embedding; hidden].
        input_norm: normalise the attention's input; EAGLE-1 does not.
    """

    def __init__(self, size: LayerSize, *, width: int = 1, input_norm: bool = True) -> None:
        super().__init__()
        self.size = size
        d, c = size.hidden, size.head_size
        self.q_proj = nn.Linear(width * d, size.n_heads * c, bias=False)
        self.k_proj = nn.Linear(width * d, size.n_kv_heads * c, bias=False)
        self.v_proj = nn.Linear(width * d, size.n_kv_heads * c, bias=False)
        self.o_proj = nn.Linear(size.n_heads * c, d, bias=False)
        self.gate_proj = nn.Linear(d, size.mlp, bias=False)
        self.up_proj = nn.Linear(d, size.mlp, bias=False)
        self.down_proj = nn.Linear(size.mlp, d, bias=False)
        self.input_norm = Norm(width * d, eps=size.eps) if input_norm else nn.Identity()
        self.mlp_norm = Norm(d, eps=size.eps)
        angles = size.theta ** (-torch.arange(0, c, 2, dtype=torch.float32) / c)
        if size.angles:
            angles = torch.tensor(size.angles, dtype=torch.float32)
        self.angles: Tensor = nn.Buffer(angles, persistent=False)

    def step(self, x_1NW: Tensor, residual_1ND: Tensor, rows: Sequence[NewSlots]) -> Tensor:
        """The output [1, N, D] of new slots of several rows, which join the memories of their rows.

        Args:
            x_1NW: input of the attention; the slots of a row are adjacent, rows in the order of `rows`.
            residual_1ND: what attention and MLP are added to.
            rows: places of the slots.
        """
        lengths = [len(row.positions) for row in rows]
        positions_N = torch.cat([row.positions for row in rows]).to(x_1NW.device)
        parts = (torch.split(t, lengths, 2) for t in self._projected(x_1NW, positions_N))
        seen = []
        for row, q, k, v in zip(rows, *parts, strict=True):
            keys, values = row.memory.add(k, v)
            mask = None if row.seen is None else row.seen.to(q.device)
            seen.append(scaled_dot_product_attention(q, keys, values, attn_mask=mask, enable_gqa=True))
        return self._after(torch.cat(seen, 2), residual_1ND)

    def unroll(self, x_BTW: Tensor, residual_BTD: Tensor, before: Unrolled, *, lag: int = 0) -> Tensor:
        """The output [B, T, D] of all slots at the next depth; their keys and values join `before`.

        At depth d, slot i sees the true slots up to i - d, and of depth j = 1..d the slot i - d + j: what a draft that
        began at slot i - d has in its memory.

        Args:
            x_BTW: input of the attention.
            residual_BTD: what attention and MLP are added to.
            before: keys and values of the depths before; it changes.
            lag: newest true slots that a slot does not see, its own aside; for layers that run at one depth only.
        """
        n, depth = x_BTW.shape[1], len(before.keys)
        q, k, v = self._projected(x_BTW, torch.arange(n, device=x_BTW.device))
        before.keys.append(k)
        before.values.append(v)
        groups = self.size.n_heads // self.size.n_kv_heads
        keys, values = ([t.repeat_interleave(groups, 1) for t in ts] for ts in (before.keys, before.values))
        scores = q @ keys[0].transpose(-1, -2) * self.size.head_size**-0.5
        at = torch.arange(n, device=q.device)
        is_hidden = at[None, :] > at[:, None] - depth - lag
        if lag:
            is_hidden = is_hidden & (at[None, :] != at[:, None])
        scores = scores.masked_fill(is_hidden, -torch.inf)
        own = [shifted(keys[j], depth - j) for j in range(1, depth + 1)]
        more = [(q * key).sum(-1, keepdim=True) * self.size.head_size**-0.5 for key in own]
        for j, score in enumerate(more, start=1):  # slots before the text's first do not exist
            score[:, :, : depth - j] = -torch.inf
        weights = torch.cat([scores, *more], -1)
        # a slot that sees nothing, before any draft of this depth can reach it, gets zeros instead of nan
        wide = torch.promote_types(weights.dtype, torch.float32)
        weights = weights.softmax(-1, dtype=wide).nan_to_num(0).to(v.dtype)
        seen = weights[..., :n] @ values[0]
        for j in range(1, depth + 1):
            seen = seen + weights[..., n + j - 1 : n + j] * shifted(values[j], depth - j)
        return self._after(seen, residual_BTD)

    def _projected(self, x_BTW: Tensor, positions_T: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x_BTW = self.input_norm(x_BTW)
        shape = (*x_BTW.shape[:2], -1, self.size.head_size)
        q, k, v = (p(x_BTW).view(shape).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        turned = positions_T[:, None].float() * self.angles
        cos, sin = (f(torch.cat([turned, turned], -1)).to(q.dtype) for f in (torch.cos, torch.sin))
        return _rotated(q, cos, sin), _rotated(k, cos, sin), v

    def _after(self, seen_BHTC: Tensor, residual_BTD: Tensor) -> Tensor:
        hidden = residual_BTD + self.o_proj(seen_BHTC.transpose(1, 2).flatten(2))
        x = self.mlp_norm(hidden)
        out: Tensor = hidden + self.down_proj(silu(self.gate_proj(x)) * self.up_proj(x))
        return out


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin


def shifted(x: Tensor, n: int) -> Tensor:
    """Of [..., T, D]: slot i holds what slot i - n held; the first n slots hold zeros."""
    return pad(x, (0, 0, n, 0))[..., : x.shape[-2], :] if n else x


def last_slots(x_1ND: Tensor, lengths: Sequence[int]) -> Tensor:
    """The last slot of each row, [1, B, D], where the slots of a row are adjacent."""
    return torch.cat([row[:, -1:] for row in torch.split(x_1ND, list(lengths), 1)], 1)
