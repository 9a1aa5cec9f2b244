"""The target's embedding and output head, as a draft head uses them: frozen, and trimmed or rounded for speed."""

# B rows, T tokens, D hidden size, V vocabulary

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from selfspec.models.decoder import Decoder
from selfspec.skipping.plan import Precision
from selfspec.skipping.trimmed_head import TextRows, TrimmedHead, head_rows


class OutputHead:
    """Embeds tokens and scores hidden states.

    Args:
        decoder: the target.
        ids_N: tokens to score besides those of the text; None: all.
        precision: precision of the output head.
    """

    def __init__(self, decoder: Decoder, ids_N: Tensor | None = None, precision: Precision = "same") -> None:
        self.n_vocab = decoder.n_vocab
        self._embedding = decoder.model.get_input_embeddings()  # type: ignore[operator]
        self._head = decoder.output_head(ids_N, precision)
        self._whole: nn.Module = decoder.model.get_output_embeddings()  # type: ignore[operator]

    def embed(self, ids: Sequence[int]) -> Tensor:
        """Embeddings of tokens, [1, T, D]."""
        found: Tensor = self._embedding(torch.tensor([list(ids)], device=self._embedding.weight.device))
        return found

    def embed_ids(self, ids: Tensor) -> Tensor:
        """Embeddings of token ids [...], [..., D]."""
        found: Tensor = self._embedding(ids)
        return found

    def rows_of(self, ids: Tensor) -> Tensor:
        """Rows of the target's whole output head for token ids [...], [..., D]."""
        return self._rows[ids]

    @cached_property
    def _rows(self) -> Tensor:
        return head_rows(self._whole)[0]

    def text_rows(self, texts: Sequence[Sequence[int]]) -> TextRows | None:
        """Further rows that a trimmed head scores; see `TrimmedHead.text_rows`."""
        return self._head.text_rows(texts) if isinstance(self._head, TrimmedHead) else None

    def logits(self, hidden_BTD: Tensor, text_rows: TextRows | None = None) -> Tensor:
        """Logits [B, T, V]; `text_rows` is of the same B rows."""
        if not isinstance(self._head, TrimmedHead):
            logits: Tensor = self._head(hidden_BTD)
            return logits
        self._head.text = text_rows
        try:
            logits = self._head(hidden_BTD)
            # one row has no other row's tokens to hide
            return logits if len(hidden_BTD) == 1 else self._head.restore(logits)
        finally:
            self._head.text = None
