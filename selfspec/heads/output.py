"""The target's embedding and output head, as a draft head uses them: frozen, and trimmed or rounded for speed."""

# B rows, T tokens, D hidden size, V vocabulary

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from selfspec.errors import InputError
from selfspec.heads.trained import EMBEDDING, ROWS
from selfspec.models.decoder import Decoder
from selfspec.skipping.plan import Precision
from selfspec.skipping.rounding import round_linear
from selfspec.skipping.trimmed_head import UNSCORED, TextRows, TrimmedHead, head_rows


class _OwnHead(nn.Module):
    """Rows [N, D] of a head of its own, for the tokens `ids_N`; the other tokens are `UNSCORED`."""

    def __init__(self, rows_ND: Tensor, ids_N: Tensor | None, n_vocab: int, precision: Precision) -> None:
        super().__init__()
        if len(rows_ND) != (n_vocab if ids_N is None else len(ids_N)):
            raise InputError(
                f"this draft brings an output head of {len(rows_ND)} tokens of its own; leave head= and vocabulary= out"
            )
        rows = nn.Linear(rows_ND.shape[1], len(rows_ND), bias=False, device="meta")
        rows.weight = nn.Parameter(rows_ND, requires_grad=False)
        self.rows = rows if precision == "same" else round_linear(rows, precision)
        self.ids_N: Tensor | None = None if ids_N is None else nn.Buffer(ids_N.to(rows_ND.device), persistent=False)
        self.n_vocab = n_vocab

    def forward(self, hidden: Tensor) -> Tensor:
        scored: Tensor = self.rows(hidden)
        if self.ids_N is None:
            return scored
        return scored.new_full((*scored.shape[:-1], self.n_vocab), UNSCORED).index_copy_(-1, self.ids_N, scored)


class OutputHead:
    """Embeds tokens and scores hidden states.

    Args:
        decoder: the target.
        ids_N: tokens to score besides those of the text; None: all.
        precision: precision of the output head.
        own: what a published head has of its own, see `selfspec.heads.trained.OWN`.

    Raises:
        InputError: if the head cannot be trimmed, or own rows are not those of `ids_N`.
    """

    def __init__(
        self,
        decoder: Decoder,
        ids_N: Tensor | None = None,
        precision: Precision = "same",
        own: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.n_vocab = decoder.n_vocab
        own = {name: tensor.to(decoder.device, decoder.dtype) for name, tensor in (own or {}).items()}
        self._embedding = decoder.model.get_input_embeddings()  # type: ignore[operator]
        if EMBEDDING in own:
            self._embedding = nn.Embedding(len(own[EMBEDDING]), own[EMBEDDING].shape[1], _weight=own[EMBEDDING])
        if ROWS in own:
            self._head: nn.Module = _OwnHead(own[ROWS], ids_N, self.n_vocab, precision)
        else:
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
