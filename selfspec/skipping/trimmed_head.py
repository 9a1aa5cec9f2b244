"""A draft's own output head: it scores only the tokens that a draft is likely to need.

In a small model with a large vocabulary the head is a quarter of a step. The draft may leave most of its rows out, as
it may leave out sublayers: the target keeps its head, so the output stays as it is. Logits keep their full width, and
nobody who chooses from them need know.

What a text holds it is likely to hold again, so a draft scores the tokens of its text as well, from prompt to present:
of the tokens that a head of 8192 lacks, seven to nine in ten are there, and an acceptance of a whole head is had at the
price of a trimmed one (LOG).
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
"""The logit of a token that is not scored: a probability of exactly 0 beside any that is, and a float16 holds it.

It is finite, for a constraint may forbid every scored token, and then something must be left to draw.
"""


@dataclass(frozen=True, slots=True, eq=False)
class TextRows:
    """What a trimmed head scores beside its own tokens: those that the texts at hand hold.

    Attributes:
        ids: the tokens, of all texts, [E].
        weight, bias: their rows of the whole head, [E, I] and [E].
        ceilings: what no logit may exceed, [B, T, V]; nothing holds those back that a row's own text holds. T is 1
            where that is the same for all tokens.
    """

    ids: Tensor
    weight: Tensor
    bias: Tensor | None
    ceilings: Tensor


class TrimmedHead(nn.Module):
    """Stands for a linear head in a draft: the head's own logits of the tokens `ids_N`, and `UNSCORED` for the others.

    Its rows are copies, laid out for oneDNN where that is possible; the head itself is not changed.

    Args:
        head: the model's, dense or packed; its weight may also be the embedding.
        ids_N: the tokens to score, rising.

    Raises:
        InputError: if the head has no rows to choose from, or `ids_N` are not rising ids of its vocabulary.
    """

    def __init__(self, head: nn.Module, ids_N: Tensor) -> None:
        super().__init__()
        weight_VI, bias_V = _rows(head)
        # In a tuple, where no module looks for its parameters. A packed head has rows only in a copy.
        self._whole = weight_VI, bias_V
        self._is_copy = isinstance(head, PackedLinear) and head.shared is None
        # The last result of a pure function, by what it was asked: texts grow by few tokens, most of them known.
        self._last: tuple[list[frozenset[int]], TextRows | None] = [], None
        self.n_vocab = weight_VI.shape[0]
        _check_ids(ids_N, self.n_vocab)
        ids_N = ids_N.to(weight_VI.device)
        self._own = frozenset(ids_N.tolist())
        self.text: TextRows | None = None  # while a forward with it runs
        self.ids_N: Tensor = nn.Buffer(ids_N, persistent=False)
        # What no logit may exceed: nothing holds a scored one back.
        ceilings_V = weight_VI.new_full((self.n_vocab,), UNSCORED).index_fill_(0, ids_N, torch.inf)
        self.ceilings_V: Tensor = nn.Buffer(ceilings_V, persistent=False)
        self.rows = _linear(weight_VI[ids_N], None if bias_V is None else bias_V[ids_N])

    @property
    def n_bytes(self) -> int:
        """Bytes that a draft of this head takes beside the model: copied rows, and where they belong."""
        held = [*self.parameters(), *self.buffers(), *(self._whole[:1] if self._is_copy else ())]
        if isinstance(self.rows, PackedLinear):
            held.append(self.rows.packed)
        return int(sum(t.numel() * t.element_size() for t in held))

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden [..., I] to logits [..., V]."""
        # Where accelerate spreads a model over devices, the head's hook moved its input; that hook is not copied.
        scored: Tensor = self.rows(hidden.to(self.ids_N.device))
        logits = scored.new_full((*scored.shape[:-1], self.n_vocab), UNSCORED).index_copy_(-1, self.ids_N, scored)
        if self.text is not None:
            also = linear(hidden.to(self.ids_N.device), self.text.weight, self.text.bias)
            logits.index_copy_(-1, self.text.ids, also)
        return logits

    def restore(self, logits: Tensor) -> Tensor:
        """The logits [..., V] with `UNSCORED` again where the model scaled or capped what it took for a score.

        So is what belongs to another row's text.
        """
        return torch.minimum(logits, (self.text.ceilings if self.text else self.ceilings_V).to(logits))

    def text_rows(self, texts: Sequence[Sequence[int]], lengths_BT: Tensor | None = None) -> TextRows | None:
        """The rows of what `texts` hold beside this head's own tokens; None where they hold nothing else.

        They depend on the texts alone.

        Args:
            texts: token ids, a text for each row of a batch.
            lengths_BT: how much of its row's text each token may know; None: all of it.
        """
        if lengths_BT is not None:
            ids = sorted(frozenset().union(*texts) - self._own)
            # The length from which on a text holds a token.
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
        """What is scored, of what."""
        return f"n_scored={len(self.ids_N)}, n_vocab={self.n_vocab}"


def trimmed(draft: nn.Module, head: Tensor | TrimmedHead) -> nn.Module:
    """`draft` itself, which now scores only some tokens; what its forward does to logits is done to these alone.

    Args:
        draft: a copy of the model, made by `model.share`; the model is not changed.
        head: the ids to score, rising; or a head of this model made before, which any number of drafts can share.

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
    """The model's own forward, after which no soft cap or scale has brought an unscored token near the others."""
    head.text = text_rows
    try:
        output = forward(*args, **kwargs)
        output.logits = head.restore(output.logits)
    finally:
        head.text = None
    return output


def _rows(head: nn.Module) -> tuple[Tensor, Tensor | None]:
    """The head's weight [V, I] (of a packed head that is not the embedding a copy) and bias [V]."""
    weight = getattr(head, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() != 2 or not weight.is_floating_point() or weight.is_meta:
        raise InputError(
            f"cannot trim an output head of type {type(head).__name__}, which has no dense weight at hand; "
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
    # On no device at first: nothing is drawn for a weight that is replaced at once.
    linear = nn.Linear(weight_NI.shape[1], weight_NI.shape[0], bias=bias_N is not None, device="meta")
    linear.weight = nn.Parameter(weight_NI, requires_grad=False)
    if bias_N is not None:
        linear.bias = nn.Parameter(bias_N, requires_grad=False)
    return PackedLinear(linear) if can_pack(linear) else linear
