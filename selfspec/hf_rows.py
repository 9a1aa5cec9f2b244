"""One row of a call of `generate`, as its processors and stopping criteria see it.

The engine decodes each row on its own, without padding. Processors and criteria are made for the batch of the call:
some hold one setting for each row, and some count the columns. So each row shows them its whole line, padding in
front, in a batch of that size, and takes its own line of the answer.
"""

# B rows of the call, T tokens, V vocabulary

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteriaList
from transformers.generation import EosTokenCriteria, MaxLengthCriteria, PrefixConstrainedLogitsProcessor

from selfspec.engine.request import Criterion, Ending
from selfspec.engine.sampling import Warp


@dataclass(frozen=True, slots=True)
class RowView:
    """A row of the call.

    Attributes:
        input_ids: the prompts of the call, [B, T], with their padding.
        row: number of the row.
        prompt: the tokens of the row that the model reads.
    """

    input_ids: Tensor
    row: int
    prompt: list[int]

    def batch(self, ids: Sequence[int]) -> Tensor:
        """The row's whole line after `ids` (its prompt without padding, then new tokens), once for each row, [B, T]."""
        new = torch.tensor(ids[len(self.prompt) :], dtype=self.input_ids.dtype, device=self.input_ids.device)
        return torch.cat([self.input_ids[self.row], new]).repeat(len(self.input_ids), 1)


def views(input_ids: Tensor, kept_BT: Tensor | None) -> list[RowView]:
    """The rows of a call; `kept_BT` is true at the tokens that the model reads, None: at all."""
    rows = input_ids if kept_BT is None else [ids[kept] for ids, kept in zip(input_ids, kept_BT, strict=True)]
    return [RowView(input_ids, i, ids.tolist()) for i, ids in enumerate(rows)]


def row_warp(view: RowView, processors: Sequence[Any], eos_ids: frozenset[int]) -> Warp:
    """The processors of the call for one row; scores are in float32, as in `generate`.

    Drafts may run on behind an end token, where `generate` asks nothing; there the scores stay as they are.
    """
    own = LogitsProcessorList([_for_row(processor, view.row) for processor in processors])

    def warp(ids_1T: Tensor, scores_1V: Tensor) -> Tensor:
        ids = ids_1T[0].tolist()
        if not eos_ids.isdisjoint(ids[len(view.prompt) :]):
            return scores_1V
        # the copies let a processor write into its scores
        scores_BV = scores_1V.to(view.input_ids.device, torch.float32).repeat(len(view.input_ids), 1)
        warped_BV: Tensor = own(view.batch(ids), scores_BV)
        return warped_BV[view.row : view.row + 1].to(scores_1V.device)

    return warp


def _for_row(processor: Any, row: int) -> Any:
    """The processor itself; a function of the user that is told row numbers hears that of this row alone."""
    if type(processor) is not PrefixConstrainedLogitsProcessor:
        return processor
    allowed = processor._prefix_allowed_tokens_fn
    return PrefixConstrainedLogitsProcessor(lambda _, ids: allowed(row, ids), num_beams=1)


class Ends:
    """When the rows of a call end, as `generate` decides it.

    With an end token each row ends on its own, and is filled with the pad token. Without one `generate` lets a row go
    on behind its stopping criterion until the last row has met its own.

    Args:
        criteria: the stopping criteria that `generate` has made or taken.
        n_rows: B.
        n_prompt: length of the prompts with their padding.
    """

    def __init__(self, criteria: Sequence[Any], *, n_rows: int, n_prompt: int) -> None:
        # The engine checks length and end tokens itself: a criterion needs a tensor for every token.
        lengths = [c.max_length for c in criteria if type(c) is MaxLengthCriteria]
        ends = [c for c in criteria if type(c) is EosTokenCriteria]
        self.max_new_tokens = max(1, min(lengths) - n_prompt)
        self.eos_ids = frozenset(int(i) for c in ends for i in c.eos_token_id)
        self._others = StoppingCriteriaList(
            [c for c in criteria if type(c) not in (MaxLengthCriteria, EosTokenCriteria)]
        )
        self._wait = not any(hasattr(c, "eos_token_id") for c in criteria)
        self._n_rows = n_rows
        self._met: dict[int, int] = {}  # row -> number of new tokens when it met its criterion

    def of(self, view: RowView) -> Ending:
        """The end conditions of one row."""
        return Ending(self.max_new_tokens, self.eos_ids, self._criterion(view) if self._others else None)

    def cut(self, tokens: list[int]) -> list[int]:
        """The new tokens of a row, without those that it decoded while it waited for the others."""
        return tokens[: max(self._met.values())] if self._met else tokens

    def _criterion(self, view: RowView) -> Criterion:
        def is_met(ids: list[int]) -> bool:
            return bool(self._others(view.batch(ids), None)[view.row])

        def all_have_met(ids: list[int]) -> bool:
            n = len(ids) - len(view.prompt)
            if view.row not in self._met and (n == self.max_new_tokens or is_met(ids)):
                self._met[view.row] = n
            return len(self._met) == self._n_rows and n >= max(self._met.values())

        return all_have_met if self._wait else is_met


def padded(input_ids: Tensor, outputs: Sequence[list[int]], pad_id: int) -> Tensor:
    """The prompts and their outputs as one tensor; shorter outputs are filled with the pad token, [B, T]."""
    longest = max(len(tokens) for tokens in outputs)
    rows = [tokens + [pad_id] * (longest - len(tokens)) for tokens in outputs]
    return torch.cat([input_ids, torch.tensor(rows, device=input_ids.device, dtype=input_ids.dtype)], dim=1)
