"""An n-gram model of tokens, interpolated by Witten and Bell: sorted tables that are read by binary search.

A sequence of tokens is looked up by a hash of 64 bits. All tables are integers, so that they stay what they are when
the module around them changes its dtype.
"""

# V vocabulary, L tokens of a history, M candidates, S sequences, ... any leading dimensions

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from selfspec.errors import InputError

NOTHING = -1  # before the first token of a text
_FACTOR = 6364136223846793005  # of the hash, modulo 2**64: the multiplier of Knuth's MMIX
_UNIT = 1e-6  # of the stored log-probabilities


class Ngrams(nn.Module):
    """Probabilities of the next token after the last `order` - 1 tokens.

    p_n(y | c) = (count(c, y) + distinct(c) p_{n-1}(y | shorter c)) / (count(c) + distinct(c)), where distinct(c) is the
    number of tokens that follow c. The shortest context is none, and below it all tokens are equally likely.

    Before `count` all tokens are equally likely.

    Args:
        order: tokens of the longest sequences, 1 to 4.

    Raises:
        InputError: if the order is another one.

    Source: Witten and Bell 1991, doi:10.1109/18.87000, method C, interpolated.
    """

    def __init__(self, order: int) -> None:
        super().__init__()
        if not 1 <= order <= 4:
            raise InputError(f"n-grams of order={order}; the order is 1 to 4")
        self.order = order
        for name in self._tables():
            kind = torch.int64 if name.startswith(("keys", "contexts")) else torch.int32
            setattr(self, name, nn.Buffer(torch.zeros(0, dtype=kind)))

    def count(self, texts: Sequence[Sequence[int]], n_vocab: int) -> None:
        """Replace the tables by those of these texts, whose tokens are of a vocabulary of this size."""
        ids = torch.tensor([token for text in texts for token in text])
        seen = torch.bincount(ids, minlength=n_vocab).double()
        distinct = int((seen > 0).sum())
        self.logs_1 = _ints(((seen + distinct / n_vocab) / (len(ids) + distinct)).log())
        whole = [torch.tensor([NOTHING] * (self.order - 1) + list(text)) for text in texts if len(text)]
        for n in range(2, self.order + 1):
            grams = torch.cat([text[self.order - n :].unfold(0, n, 1) for text in whole])
            keys, place, counts = _unique(_hashed(grams))
            first = torch.zeros_like(keys).scatter_(0, place, torch.arange(len(place)))  # any one of each
            grams = grams[first]
            contexts, place, _ = _unique(_hashed(grams[:, :-1]))
            totals, followers = torch.zeros(2, len(contexts), dtype=torch.float64)
            totals.index_add_(0, place, counts.double())
            followers.index_add_(0, place, torch.ones(len(place), dtype=torch.float64))
            lower = self.log_probs(grams[:, 1:-1], grams[:, -1:], order=n - 1)[:, 0].double().exp()
            found = (counts + followers[place] * lower) / (totals + followers)[place]
            tables = keys, _ints(found.log()), contexts, _ints((followers / (totals + followers)).log())
            for name, table in zip(("keys", "logs", "contexts", "backoffs"), tables, strict=True):
                setattr(self, f"{name}_{n}", table)

    def log_probs(self, history: Tensor, candidates: Tensor, *, order: int | None = None) -> Tensor:
        """Log-probabilities [..., M] of candidates [..., M] after histories [..., L], which end with the newest token.

        A short history has `NOTHING` before it. The leading dimensions are broadcast.
        """
        order = order or self.order
        history = pad(history, (max(0, order - 1 - history.shape[-1]), 0), value=NOTHING)
        single: Tensor = self.logs_1
        alone = single[candidates] * _UNIT if len(single) else torch.zeros(candidates.shape, device=candidates.device)
        found = alone + torch.zeros((*history.shape[:-1], 1), device=candidates.device)
        for n in range(2, order + 1):
            context = _hashed(history[..., history.shape[-1] - n + 1 :])
            keys = context.unsqueeze(-1) * _FACTOR + candidates + 1
            backoff = self._read(f"contexts_{n}", f"backoffs_{n}", context, otherwise=torch.zeros(()))
            found = self._read(f"keys_{n}", f"logs_{n}", keys, otherwise=found + backoff.unsqueeze(-1))
        return found

    def _read(self, keys: str, values: str, wanted: Tensor, *, otherwise: Tensor) -> Tensor:
        """The values of keys, and something else for keys that the table lacks."""
        known: Tensor = getattr(self, keys)
        if not len(known):
            return otherwise.expand(wanted.shape)
        at = torch.searchsorted(known, wanted).clamp_(max=len(known) - 1)
        return torch.where(known[at] == wanted, getattr(self, values)[at].float() * _UNIT, otherwise)

    def _tables(self) -> Iterator[str]:
        yield "logs_1"
        for n in range(2, self.order + 1):
            yield from (f"keys_{n}", f"logs_{n}", f"contexts_{n}", f"backoffs_{n}")

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in self._tables():  # whose sizes depend on the texts
            if prefix + name in state:
                setattr(self, name, torch.empty_like(state[prefix + name]))
        super()._load_from_state_dict(state, prefix, *args)


def _hashed(tokens: Tensor) -> Tensor:
    """Hashes [...] of sequences [..., L]; that of a longer one is its beginning's times `_FACTOR`, plus token + 1."""
    found = torch.zeros(tokens.shape[:-1], dtype=torch.int64, device=tokens.device)
    for column in tokens.unbind(-1):
        found = found * _FACTOR + column + 1
    return found


def _unique(keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each key once, rising; the place of each; how often each occurs."""
    return keys.unique(return_inverse=True, return_counts=True)  # type: ignore[no-any-return, no-untyped-call]


def _ints(logs: Tensor) -> Tensor:
    return (logs / _UNIT).round().int()
