"""A trimmed output head for drafts: it scores only the tokens that a draft is likely to need.

In a small model with a large vocabulary the head takes a quarter of a step. The draft may skip most of its rows, as it
skips sublayers; the target keeps its head, so the output stays the same. Logits keep their full width, so code that
chooses tokens needs no change.

Tokens of a text are likely to occur in it again. A draft therefore also scores all tokens of its text so far: they
include seven to nine in ten of the tokens that a head of 8192 lacks, so a trimmed head accepts as many tokens as a
whole one (LOG).
"""

# B rows, T tokens, N scored tokens, E of these in texts alone, V vocabulary, I hidden size

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from selfspec.errors import InputError
from selfspec.models.packing import PackedLinear, can_pack

UNSCORED = -1e4
"""The logit of a token that is not scored. Its probability is exactly 0 beside scored tokens, and float16 can hold it.

It is finite, so that a token can still be drawn if a constraint forbids every scored one.
"""


@dataclass(frozen=True, slots=True, eq=False)
class TextRows:
    """Tokens of the current texts, which a trimmed head scores besides its own.

    Attributes:
        ids: ids of these tokens, of all texts, [E].
        weight, bias: their rows of the whole head, [E, I] and [E].
        ceilings: upper bounds of the logits, [B, T, V]: infinite for tokens that are scored for the row, `UNSCORED` for
            others. T is 1 if the bounds are the same for all tokens of a row.
    """

    ids: Tensor
    weight: Tensor
    bias: Tensor | None
    ceilings: Tensor


class TrimmedHead(nn.Module):
    """Replaces a linear head in a draft: it gives the logits of the tokens `ids_N`, and `UNSCORED` for the others.

    Its rows are copies, packed for oneDNN if possible; the head itself is not changed.

    Args:
        head: the model's head, dense or packed; its weight may also be the embedding.
        ids_N: ids to score, in rising order.

    Raises:
        InputError: if the head has no dense weight, or `ids_N` are not rising ids of its vocabulary.
    """

    def __init__(self, head: nn.Module, ids_N: Tensor) -> None:
        super().__init__()
        weight_VI, bias_V = head_rows(head)
        # In a tuple, so that these are no parameters of this module. A packed head has rows only in a copy.
        self._whole = weight_VI, bias_V
        self._is_copy = isinstance(head, PackedLinear) and head.shared is None
        # The last arguments and result of `text_rows`: texts grow by few tokens, and most of those occurred before.
        self._last: tuple[list[frozenset[int]], TextRows | None] = [], None
        self.n_vocab = weight_VI.shape[0]
        _check_ids(ids_N, self.n_vocab)
        ids_N = ids_N.to(weight_VI.device)
        self._own = frozenset(ids_N.tolist())
        self.text: TextRows | None = None  # set while a forward with it runs
        self.ids_N: Tensor = nn.Buffer(ids_N, persistent=False)
        # Upper bounds of the logits: infinite for scored tokens.
        ceilings_V = weight_VI.new_full((self.n_vocab,), UNSCORED).index_fill_(0, ids_N, torch.inf)
        self.ceilings_V: Tensor = nn.Buffer(ceilings_V, persistent=False)
        self.rows = _linear(weight_VI[ids_N], None if bias_V is None else bias_V[ids_N])

    @property
    def n_bytes(self) -> int:
        """Bytes that this head takes in addition to the model: copied rows, and their ids and bounds."""
        held = [*self.parameters(), *self.buffers(), *(self._whole[:1] if self._is_copy else ())]
        if isinstance(self.rows, PackedLinear):
            held.append(self.rows.packed)
        return int(sum(t.numel() * t.element_size() for t in held))

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden [..., I] to logits [..., V]."""
        # If accelerate spreads a model over devices, a hook of the head moves its input; this head has no such hook.
        scored: Tensor = self.rows(hidden.to(self.ids_N.device))
        logits = scored.new_full((*scored.shape[:-1], self.n_vocab), UNSCORED).index_copy_(-1, self.ids_N, scored)
        if self.text is not None:
            also = linear(hidden.to(self.ids_N.device), self.text.weight, self.text.bias)
            logits.index_copy_(-1, self.text.ids, also)
        return logits

    def restore(self, logits: Tensor) -> Tensor:
        """The logits [..., V] with `UNSCORED` restored, after the model scaled or capped them.

        Tokens of another row's text become `UNSCORED` as well.
        """
        return torch.minimum(logits, (self.text.ceilings if self.text else self.ceilings_V).to(logits))

    def text_rows(self, texts: Sequence[Sequence[int]], lengths_BT: Tensor | None = None) -> TextRows | None:
        """Head rows of the tokens in `texts` that this head lacks; None if there are none.

        They depend only on the texts.

        Args:
            texts: token ids, one text for each row of a batch.
            lengths_BT: number of tokens of its row's text that each token may use; None: all of them.
        """
        if lengths_BT is not None:
            ids = sorted(frozenset().union(*texts) - self._own)
            # The length from which on a text contains a token.
            since = [{token: n for n, token in reversed([*enumerate(text, start=1)])} for text in texts]
            never = max(map(len, texts)) + 1
            since_BE = torch.tensor([[row.get(token, never) for token in ids] for row in since])
            return self._rows_of(ids, since_BE.unsqueeze(1).to(lengths_BT) <= lengths_BT.unsqueeze(-1))
        held = [frozenset(text) - self._own for text in texts]
        known, rows = self._last
        if held != known:
            ids = sorted(frozenset().union(*held))
            rows = self._rows_of(ids, torch.tensor([[[token in row for token in ids]] for row in held]))
            self._last = held, rows
        return rows

    def _rows_of(self, ids: list[int], is_held_BTE: Tensor) -> TextRows | None:
        if not ids:
            return None
        ids_E = torch.tensor(ids, device=self.ids_N.device)
        ceilings_BTV = self.ceilings_V.repeat(*is_held_BTE.shape[:2], 1)
        ceilings_BTE = torch.where(is_held_BTE.to(ids_E.device), torch.inf, UNSCORED).to(ceilings_BTV)
        ceilings_BTV.index_copy_(-1, ids_E, ceilings_BTE)
        weight_VI, bias_V = self._whole
        return TextRows(ids_E, weight_VI[ids_E], None if bias_V is None else bias_V[ids_E], ceilings_BTV)

    def extra_repr(self) -> str:
        """Number of scored tokens and size of the vocabulary, for `repr`."""
        return f"n_scored={len(self.ids_N)}, n_vocab={self.n_vocab}"


def trimmed(draft: nn.Module, head: Tensor | TrimmedHead) -> nn.Module:
    """`draft` itself, now with a trimmed head; its forward scales and caps only the logits of scored tokens.

    Args:
        draft: a copy of the model, made by `models.decoder.share`; the model is not changed.
        head: ids to score, in rising order; or an existing trimmed head of this model, which several drafts may share.

    Raises:
        InputError: if the model's head cannot be found or trimmed.

    Source: Zhao et al. 2025, FR-Spec (arXiv:2502.14856), where the draft is a trained layer.
    """
    model: Any = draft
    whole = model.get_output_embeddings()
    path = next((name for name, module in draft.named_modules() if module is whole), None)
    if whole is None or not path:
        raise InputError(f"cannot find the output head of a {type(draft).__name__}; leave the draft's head whole")
    own = head if isinstance(head, TrimmedHead) else TrimmedHead(whole, head)
    draft.set_submodule(path, own)
    draft.forward = partial(_restored, draft.forward, own)
    return draft


def _restored(
    forward: Callable[..., Any], head: TrimmedHead, *args: Any, text_rows: TextRows | None = None, **kwargs: Any
) -> Any:
    """The model's forward, followed by `TrimmedHead.restore`: a soft cap or scale may raise unscored logits."""
    head.text = text_rows
    try:
        output = forward(*args, **kwargs)
        output.logits = head.restore(output.logits)
    finally:
        head.text = None
    return output


def head_rows(head: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Weight [V, I] and bias [V] of the head; the weight of a packed head without embedding is a copy.

    Raises:
        InputError: if the head has no dense weight.
    """
    weight = getattr(head, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() != 2 or not weight.is_floating_point() or weight.is_meta:
        raise InputError(
            f"cannot trim an output head of type {type(head).__name__}, which has no dense weight; "
            "leave the draft's head whole"
        )
    bias = getattr(head, "bias", None)
    return weight.detach(), bias.detach() if isinstance(bias, Tensor) else None


def _check_ids(ids_N: Tensor, n_vocab: int) -> None:
    if ids_N.dtype != torch.long or ids_N.dim() != 1 or not len(ids_N):
        raise InputError(
            f"a trimmed head was given ids of shape {list(ids_N.shape)} and {ids_N.dtype}; give one row of int64"
        )
    if bool((ids_N.diff() <= 0).any()) or int(ids_N[0]) < 0 or int(ids_N[-1]) >= n_vocab:
        raise InputError(
            f"a trimmed head was given ids from {int(ids_N.min())} to {int(ids_N.max())}, and the vocabulary has "
            f"0..{n_vocab - 1}; give ids of this model, each once, rising"
        )


def _linear(weight_NI: Tensor, bias_N: Tensor | None) -> nn.Linear | PackedLinear:
    # On the meta device, so that no random weight is drawn before it is replaced.
    linear = nn.Linear(weight_NI.shape[1], weight_NI.shape[0], bias=bias_N is not None, device="meta")
    linear.weight = nn.Parameter(weight_NI, requires_grad=False)
    if bias_N is not None:
        linear.bias = nn.Parameter(bias_N, requires_grad=False)
    return PackedLinear(linear) if can_pack(linear) else linear
