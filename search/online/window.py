"""A part of a row's verified text, on which drafts are compared without a copy of its keys and values.

The live cache holds the full model's keys and values of everything before the row's last token. A draft reads the
tokens of the window once more in free slots behind them, where the next forward of the row overwrites what it wrote.
"""

# T tokens of a window, S slots of the cache, V vocabulary

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from search.replay.references import Reference, ReferenceBatch
from selfspec.engine.cache import ClockCache
from selfspec.engine.forward import Forward
from selfspec.engine.protocols import Row
from selfspec.engine.sampling import largest


@dataclass(frozen=True, slots=True)
class Window:
    """Consecutive tokens of a row, each of which a draft is to predict.

    Attributes:
        ids: the row's tokens; the cache holds the keys and values of all but the last.
        first, end: indices of the first token to predict and after the last one; `first` is 1 at least.
        cache: the row's part of the live cache.
    """

    ids: list[int]
    first: int
    end: int
    cache: ClockCache

    @property
    def n_tokens(self) -> int:
        """Number of tokens to predict."""
        return self.end - self.first

    @property
    def context(self) -> int:
        """Mean number of tokens before a predicted one."""
        return (self.first + self.end - 1) // 2


def window_of(
    rows: Sequence[Row], prompts: dict[int, int], cache: ClockCache, *, n_tokens: int, is_first: bool
) -> Window | None:
    """The window of `n_tokens` in the row with the longest answer; None if no answer has more tokens than that.

    Args:
        rows: the rows of the round.
        prompts: length of each row's prompt, by key.
        cache: of these rows.
        n_tokens: tokens to predict.
        is_first: the first tokens of the answer after its very first one; otherwise the newest.
    """
    b = max(range(len(rows)), key=lambda i: len(rows[i].ids) - prompts.get(rows[i].key, len(rows[i].ids)))
    row = rows[b]
    n_prompt = prompts.get(row.key)
    if n_prompt is None or len(row.ids) - n_prompt < n_tokens + 1:
        return None
    _reserve(rows, cache, 2 * n_tokens)  # a replay writes more than one forward
    first = n_prompt + 1 if is_first else len(row.ids) - n_tokens
    return Window(row.ids, first, first + n_tokens, cache.part(b, b + 1))


def _reserve(rows: Sequence[Row], cache: ClockCache, n_new: int) -> None:
    """Let the live cache grow once, since a part that grows copies all of its keys and values each time."""
    cache.set([len(row.ids) - 1 for row in rows], n_new)


@torch.inference_mode()
def count_agreed(forward: Forward, window: Window, *, own_keys: bool) -> int:
    """How many tokens of the window a draft predicts, in one forward.

    Args:
        forward: the draft.
        window: the tokens.
        own_keys: whether it sees its own keys of the window, as SWIFT's matchness does. Otherwise each token sees the
            full model's keys of everything before it, as the first token of a real draft does: the count is then that
            of drafts of one token, without noise.
    """
    ids_1T, where = reading(forward, window, own_keys=own_keys)
    chosen = largest(forward.tree(ids_1T, **where))[0].tolist()
    return sum(c == t for c, t in zip(chosen, window.ids[window.first : window.end], strict=True))


def reading(forward: Forward, window: Window, *, own_keys: bool) -> tuple[Tensor, dict[str, Any]]:
    """The tokens to read again, [1, T], and where they stand, for `Forward.tree`; arguments as in `count_agreed`."""
    n_keys, n, device = len(window.ids) - 1, window.n_tokens, window.cache.device
    ids_1T = torch.tensor([window.ids[window.first - 1 : window.end - 1]], device=device)
    positions_T = torch.arange(window.first - 1, window.end - 1, device=device)
    keys_S = torch.arange(n_keys, device=device)
    before_T = torch.full_like(positions_T, window.first - 1) if own_keys else positions_T
    own_TT = torch.eye(n, dtype=torch.bool, device=device)
    own_TT = own_TT.new_ones(n, n).tril() if own_keys else own_TT
    window.cache.set([n_keys], n)
    return ids_1T, {
        "positions_BT": positions_T[None],
        "seen_BTS": torch.cat([keys_S[None] < before_T[:, None], own_TT], dim=1)[None],
        "key_positions_BS": torch.cat([keys_S, positions_T])[None],
        "cache": window.cache,
        "text_rows": forward.text_rows([window.ids], positions_T[None] + 1),
    }


def as_batch(window: Window, *, max_draft: int) -> ReferenceBatch:
    """The window as a reference for replay; drafts start after each of its tokens.

    Rounds near its end may draft beyond it, as they would if the answer went on.
    """
    at = window.first - 1
    tokens = window.ids[at:]
    reference = Reference(window.ids[:at], tokens, n_max=len(tokens) + max_draft)
    return ReferenceBatch((reference,), window.cache)
