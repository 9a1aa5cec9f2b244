"""Autoregressive heads: one decoder layer that reads the target's hidden state, then its own.

One class covers EAGLE-1 (features of the last layer, joined with the embedding by a linear map), EAGLE-3 (features of
three layers, attention from [embedding; hidden], an output norm), the recursive module of FastMTP (both inputs normed),
HASS, which is EAGLE-1 with another loss, and a reconstruction of FSPAD (a gate on the features, two read-outs).
"""

# B rows, T slots, N slots or drafted tokens of all rows, D hidden size

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from selfspec.errors import InputError
from selfspec.heads.layer import DraftLayer, LayerSize, Memory, NewSlots, Norm, Unrolled, last_slots, shifted
from selfspec.heads.modules import DraftModule, Predicted

FUSIONS = ("linear", "attention", "gated")


@dataclass(slots=True)
class EagleState:
    """State of a row.

    Attributes:
        memory: keys and values of the accepted slots, and of the tokens drafted after them.
        n_slots: number of accepted slots.
        parents: of each drafted token its parent among them, or `ROOT`.
        outputs_1ND: what the next depth reads, of the newest accepted slot and of each drafted token.
    """

    memory: Memory = field(default_factory=Memory)
    n_slots: int = 0
    parents: list[int] = field(default_factory=list)
    outputs_1ND: Tensor | None = None


class Eagle(DraftModule):
    """A decoder layer after the target's features and the next token's embedding.

    Args:
        size: sizes of the layer.
        layers: layers of the target to read; several are joined by a linear map.
        fusion: how embedding and feature meet: `linear` (EAGLE-1, MTP), `attention` (EAGLE-3) or `gated` (FSPAD's
            feature sampling, reconstructed: the embedding gates the feature in a wider space).
        input_norm: normalise both inputs first.
        output_norm: normalise what enters the output head; the layer reads its own output without it.
        two_readouts: separate linear maps to the output head and to the feature that is fed back (FSPAD's partial
            alignment, reconstructed).
        mlp: inner size of the layer's MLP; None: the target's.
        norm_before_residual: attention and MLP are added to the normalised feature; with `fusion=attention` alone.
        norm_before_join: normalise the hidden states of all layers, joined, before the linear map.
        normed_feature: what the next depth reads is what enters the output head, normalised (EAGLE-3.1).
        layer: sizes of the layer that differ from the target's, see `size_of`.

    Source: Li et al. 2024, EAGLE (arXiv:2401.15077); 2025, EAGLE-3 (arXiv:2503.01840); Zhang et al. 2024, HASS
    (arXiv:2408.15766); Cai et al. 2025, FastMTP (arXiv:2509.18362); Gui et al. 2024, FSPAD (arXiv:2408.15562).
    """

    kind = "eagle"

    def __init__(
        self,
        size: LayerSize,
        *,
        layers: Sequence[int] = (-1,),
        fusion: str = "linear",
        input_norm: bool = False,
        output_norm: bool = False,
        two_readouts: bool = False,
        mlp: int | None = None,
        norm_before_residual: bool = False,
        norm_before_join: bool = False,
        normed_feature: bool = False,
        layer: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if fusion not in FUSIONS or not layers:
            raise InputError(
                f"a head with fusion={fusion}, layers={list(layers)}; fusion is one of {', '.join(FUSIONS)}"
            )
        self.settings = {
            "layers": list(layers),
            "fusion": fusion,
            "input_norm": input_norm,
            "output_norm": output_norm,
            "two_readouts": two_readouts,
            "mlp": mlp,
        }
        # only where they are set, so that heads of before keep their digests
        rare: dict[str, Any] = {"norm_before_residual": norm_before_residual, "norm_before_join": norm_before_join}
        rare |= {"normed_feature": normed_feature, "layer": layer}
        self.settings |= {name: value for name, value in rare.items() if value}
        self.norm_before_residual, self.normed_feature = norm_before_residual, normed_feature
        self.layers = tuple(layers)
        d = size.hidden
        self.join = nn.Linear(len(layers) * d, d, bias=False) if len(layers) > 1 else nn.Identity()
        self.join_norm = Norm(len(layers) * d, eps=size.eps) if norm_before_join else nn.Identity()
        self.embed_norm = Norm(d, eps=size.eps) if input_norm else nn.Identity()
        self.feature_norm = Norm(d, eps=size.eps) if input_norm else nn.Identity()
        if fusion == "gated":
            self.up, self.gate, self.down = nn.Linear(d, 2 * d), nn.Linear(d, 2 * d), nn.Linear(2 * d, d)
        if fusion != "attention":
            self.fc = nn.Linear(2 * d, d)
        self.layer = DraftLayer(
            size, width=2 if fusion == "attention" else 1, input_norm=input_norm and fusion != "attention"
        )
        self.output_norm = Norm(d, eps=size.eps) if output_norm else nn.Identity()
        self.to_feature = nn.Linear(d, d, bias=False) if two_readouts else nn.Identity()
        self.to_head = nn.Linear(d, d, bias=False) if two_readouts else nn.Identity()
        if two_readouts:
            for weight in (self.to_feature.weight, self.to_head.weight):
                nn.init.eye_(weight)  # type: ignore[arg-type]

    def begin(self) -> EagleState:
        """An empty memory."""
        return EagleState()

    def extend(
        self, states: Sequence[EagleState], features: Sequence[Tensor], embeds_1ND: Tensor, lengths: Sequence[int]
    ) -> Tensor:
        """See `DraftModule.extend`."""
        new = []
        for state, n in zip(states, lengths, strict=True):
            state.memory.n = state.n_slots
            new.append(NewSlots.accepted(state.memory, n))
            state.n_slots += n
        hidden_1ND = self.layer.step(*self._fused(embeds_1ND, self._joined(features)), new)
        last_1BD = last_slots(hidden_1ND, lengths)
        for state, out in zip(states, torch.split(self._fed_back(last_1BD), 1, 1), strict=True):
            state.parents, state.outputs_1ND = [], out
        return self._read(last_1BD)

    def step(
        self, states: Sequence[EagleState], parents: Sequence[Sequence[int]], embeds_ND: Tensor, depth: int
    ) -> Tensor:
        """See `DraftModule.step`."""
        new, features = [], []
        for state, above in zip(states, parents, strict=True):
            assert state.outputs_1ND is not None
            features.append(state.outputs_1ND[:, [parent + 1 for parent in above]])
            state.parents += above
            position = state.n_slots - 1 + depth
            new.append(NewSlots.drafted(state.memory, state.parents, len(above), position=position))
        hidden_1ND = self.layer.step(*self._fused(embeds_ND.unsqueeze(0), torch.cat(features, 1)), new)
        outs = torch.split(self._fed_back(hidden_1ND), [len(above) for above in parents], 1)
        for state, out in zip(states, outs, strict=True):
            assert state.outputs_1ND is not None
            state.outputs_1ND = torch.cat([state.outputs_1ND, out], 1)
        return self._read(hidden_1ND)

    def unroll(self, features: Sequence[Tensor], embeds_BTD: Tensor, n_depths: int) -> list[Predicted]:
        """See `DraftModule.unroll`; depth d reads the outputs of depth d - 1 at the slot before."""
        feature_BTD, before, found = self._joined(features), Unrolled(), []
        for _ in range(n_depths):
            x, residual = self._fused(embeds_BTD, feature_BTD)
            hidden_BTD = self.layer.unroll(x, residual, before)
            out = self._fed_back(hidden_BTD)
            found.append(Predicted(self.output_norm(self.to_head(hidden_BTD)), out))
            feature_BTD = shifted(out, 1)
        return found

    def _joined(self, features: Sequence[Tensor]) -> Tensor:
        joined: Tensor = self.join(self.join_norm(torch.cat(list(features), -1) if len(features) > 1 else features[0]))
        return joined

    def _fused(self, embeds: Tensor, feature: Tensor) -> tuple[Tensor, Tensor]:
        """The layer's input and residual."""
        e, f = self.embed_norm(embeds), self.feature_norm(feature)
        both = torch.cat([e, f], -1)
        if "fc" not in self._modules:
            return both, f if self.norm_before_residual else feature
        x = self.fc(both)
        if "gate" in self._modules:
            x = x + self.down(self.up(f) * silu(self.gate(e)))
        return x, x

    def _fed_back(self, hidden: Tensor) -> Tensor:
        """What the next depth reads in the place of the target's hidden state."""
        fed: Tensor = self.output_norm(self.to_head(hidden)) if self.normed_feature else self.to_feature(hidden)
        return fed

    def _read(self, hidden_1ND: Tensor) -> Tensor:
        read: Tensor = self.output_norm(self.to_head(hidden_1ND))[0]
        return read
