"""The drafter of a trained head: chains of tokens from the target's hidden states."""

# B rows, T tokens, D hidden size, V vocabulary

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from selfspec.drafters.chain import ChainDraft
from selfspec.engine.cache import ClockCache
from selfspec.engine.protocols import Draft, Needs, Output, Row, Verdict
from selfspec.heads.modules import DraftModule, module_of
from selfspec.heads.output import OutputHead
from selfspec.heads.trained import OWN
from selfspec.models.decoder import Decoder
from selfspec.models.packing import can_pack, pack
from selfspec.skipping.plan import DraftPlan
from selfspec.skipping.rounding import round_linear

HEAD = "head"  # the source of its drafts


@dataclass(slots=True)
class _Slots:
    """State of a row, and what the head has not read yet: hidden states [1, T, D] by layer, and the next tokens."""

    state: Any
    features: list[list[Tensor]]
    tokens: list[int]
    n_read: int = 0


class HeadDraft(ChainDraft):
    """Drafts chains with a trained head; it keeps a small memory for each row and writes nothing into the cache.

    Args:
        module: the head.
        output: output head and embedding of the target, as the draft uses them.
        sample: draw from the draft's distribution if the target samples; otherwise take its maximum.
        needs_confidence: whether the stop rule reads the confidence; otherwise it gets nan.
        name: name of the drafter, and `source` of its drafts.
    """

    def __init__(
        self,
        module: DraftModule,
        output: OutputHead,
        *,
        sample: bool = True,
        needs_confidence: bool = True,
        name: str = HEAD,
    ) -> None:
        self.module, self.output = module, output
        self.sample, self.needs_confidence, self.max_depth = sample, needs_confidence, module.max_depth
        self._name = name
        self.slots: dict[int, _Slots] = {}  # by key of the row

    @property
    def name(self) -> str:
        """Name of the drafter, and `source` of its drafts."""
        return self._name

    @property
    def needs(self) -> Needs:
        """The layers that the head reads."""
        return Needs(hidden=self.module.layers)

    def begin(self, row: Row, prompt: Output) -> None:
        """Keep the hidden states of the prompt; slot i needs token i + 1."""
        found = [prompt.hidden[layer] for layer in self.module.layers]
        self.slots[row.key] = _Slots(self.module.begin(), [found], list(row.ids[1:]))

    def observe(self, row: Row, draft: Draft, verdict: Verdict, target: Output) -> None:
        """Keep the hidden states of the accepted tokens, whoever drafted them."""
        super().observe(row, draft, verdict, target)
        slots = self.slots[row.key]
        at = [0, *(node + 1 for node in verdict.path)]
        slots.features.append([target.hidden[layer][:, at] for layer in self.module.layers])
        slots.tokens += [*(draft.tokens[node] for node in verdict.path), verdict.token]

    def end(self, row: Row) -> None:
        """Forget the row."""
        self.slots.pop(row.key, None)

    def can_draft(self, row: Row) -> bool:
        """Whether it was told of all accepted tokens of the row."""
        slots = self.slots.get(row.key)
        return slots is not None and slots.n_read + len(slots.tokens) == len(row.ids) - 1

    def propose(self, rows: Sequence[Row], *, cache: ClockCache) -> list[Draft]:
        """A chain for each row: depth 0 reads the hidden states of the accepted tokens, later ones the head's own."""
        chains = self.begin_chains(rows)
        text_rows = self.output.text_rows([row.ids for row in rows]) if any(chains.active) else None
        while any(chains.active):
            hidden = {
                b: self._next(self.slots[row.key], chains.last[b], chains.step)
                for b, (row, on) in enumerate(zip(rows, chains.active, strict=True))
                if on
            }
            unused_1D = next(iter(hidden.values()))  # of the stopped rows
            hidden_BD = torch.cat([hidden.get(b, unused_1D) for b in range(len(rows))])
            self.grow(chains, self.output.logits(hidden_BD, text_rows))
        return chains.drafts

    def _next(self, slots: _Slots, token: int, depth: int) -> Tensor:
        if depth:
            return self.module.step(slots.state, self.output.embed([token])[0], depth)
        features = [torch.cat(parts, 1) for parts in zip(*slots.features, strict=True)]
        hidden_1D = self.module.extend(slots.state, features, self.output.embed(slots.tokens))
        slots.n_read += len(slots.tokens)
        slots.features, slots.tokens = [], []
        return hidden_1D


def build_head_draft(plan: DraftPlan, decoder: Decoder, *, sample: bool, needs_confidence: bool) -> HeadDraft:
    """The drafter of a plan with a trained head, in the plan's precision and with its trimmed output head.

    Raises:
        InputError: if the head does not fit the target, or the precision has no kernel here.
    """
    assert plan.trained is not None
    module = module_of(plan.trained, decoder)
    if plan.precision != "same":
        for path, linear in list(module.named_modules()):
            if type(linear) is nn.Linear:
                module.set_submodule(path, round_linear(linear, plan.precision))
    elif can_pack(module):
        pack(module)
    own = {name: tensor for name, tensor in plan.trained.weights.items() if name in OWN}
    output = OutputHead(decoder, plan.head, plan.precision, own)
    return HeadDraft(module, output, sample=sample, needs_confidence=needs_confidence, name=plan.trained.kind)
