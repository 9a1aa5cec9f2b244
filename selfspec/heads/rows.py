"""What a head is told of the rows: it reads the hidden states of their accepted tokens, of all rows together.

`ReadsTarget` is what every drafter of a head passes on to it.
"""

# B rows, T tokens, N slots or drafted tokens of all rows, D hidden size

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from selfspec.engine.protocols import BaseDrafter, Draft, Needs, Output, Row, Verdict
from selfspec.heads.modules import DraftModule
from selfspec.heads.output import OutputHead


@dataclass(slots=True)
class _Known:
    """State of a row, and what the head has not read yet: hidden states [1, T, D] by layer, and the next tokens."""

    state: Any
    features: list[list[Tensor]]
    tokens: list[int]
    n_read: int = 0


class HeadRows:
    """The rows of a batch as a head sees them.

    Args:
        module: the head.
        output: embedding and output head of the target.
    """

    def __init__(self, module: DraftModule, output: OutputHead) -> None:
        self.module, self.output = module, output
        self.known: dict[int, _Known] = {}  # by key of the row

    def begin(self, row: Row, prompt: Output) -> None:
        """Read the prompt but for its last slot, which the first draft reads; slot i needs token i + 1.

        So the time that a head needs for a prompt is part of the prefill.
        """
        found = [prompt.hidden[layer] for layer in self.module.layers]
        state, tokens = self.module.begin(), list(row.ids[1:])
        if n_before := len(tokens) - 1:
            embeds_1ND = self.output.embed(tokens[:-1])
            self.module.extend([state], [h[:, :-1] for h in found], embeds_1ND, [n_before])
        self.known[row.key] = _Known(state, [[h[:, -1:] for h in found]], tokens[-1:], n_before)

    def observe(self, row: Row, draft: Draft, verdict: Verdict, target: Output) -> None:
        """Keep the hidden states of the accepted tokens, whoever drafted them."""
        known = self.known[row.key]
        at = [0, *(node + 1 for node in verdict.path)]
        known.features.append([target.hidden[layer][:, at] for layer in self.module.layers])
        known.tokens += [*(draft.tokens[node] for node in verdict.path), verdict.token]

    def end(self, row: Row) -> None:
        """Forget the row."""
        self.known.pop(row.key, None)

    def knows(self, row: Row) -> bool:
        """Whether it was told of all accepted tokens of the row."""
        known = self.known.get(row.key)
        return known is not None and known.n_read + len(known.tokens) == len(row.ids) - 1

    def read(self, rows: Sequence[Row]) -> Tensor:
        """Read what was accepted since the last draft: the output of depth 0, [B, D]."""
        known = [self.known[row.key] for row in rows]
        features = [torch.cat(parts, 1) for parts in zip(*(part for k in known for part in k.features), strict=True)]
        embeds_1ND = self.output.embed([token for k in known for token in k.tokens])
        lengths = [len(k.tokens) for k in known]
        hidden_BD = self.module.extend([k.state for k in known], features, embeds_1ND, lengths)
        for k in known:
            k.n_read += len(k.tokens)
            k.features, k.tokens = [], []
        return hidden_BD

    def step(
        self, rows: Sequence[Row], parents: Sequence[Sequence[int]], tokens: Sequence[Sequence[int]], depth: int
    ) -> Tensor:
        """Read drafted tokens of one depth, see `DraftModule.step`; [N, D]."""
        embeds_ND = self.output.embed([token for row in tokens for token in row])[0]
        return self.module.step([self.known[row.key].state for row in rows], parents, embeds_ND, depth)


class ReadsTarget(BaseDrafter):
    """Tells a head of the rows; the class beside it in the bases, if any, is told first.

    Attributes:
        module: the head.
        output: output head and embedding of the target, as the draft uses them.
        rows: what the head knows of the rows.
    """

    module: DraftModule
    output: OutputHead
    rows: HeadRows

    def __init__(self, module: DraftModule, output: OutputHead, name: str) -> None:
        self.module, self.output, self.rows = module, output, HeadRows(module, output)
        self.max_depth = module.max_depth
        self._name = name

    @property
    def name(self) -> str:
        """Name of the drafter, and `source` of its drafts."""
        return self._name

    @property
    def needs(self) -> Needs:
        """The layers that the head reads."""
        return Needs(hidden=self.module.layers)

    def begin(self, row: Row, prompt: Output) -> None:
        """Keep the hidden states of the prompt."""
        super().begin(row, prompt)
        self.rows.begin(row, prompt)

    def observe(self, row: Row, draft: Draft, verdict: Verdict, target: Output) -> None:
        """Keep the hidden states of the accepted tokens, whoever drafted them."""
        super().observe(row, draft, verdict, target)
        self.rows.observe(row, draft, verdict, target)

    def end(self, row: Row) -> None:
        """Forget the row."""
        super().end(row)
        self.rows.end(row)

    def can_draft(self, row: Row) -> bool:
        """Whether it was told of all accepted tokens of the row."""
        return self.rows.knows(row)
