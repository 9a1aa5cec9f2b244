"""One resolved forward, of the target or of a draft: positions, cache and masks are given by the clocks.

A draft's forward runs a copy of the module tree that shares every parameter (`model.share`), so that no token asks
again what is left out.
"""

# B rows, T tokens, S keys, V vocabulary

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from selfspec.engine.cache import ClockCache
from selfspec.engine.hidden_states import caught
from selfspec.engine.masks import attention_mask, tree_mask
from selfspec.engine.protocols import Output
from selfspec.skipping.trimmed_head import TextRows, TrimmedHead


class Forward(Protocol):
    """One resolved draft or target: no membership test per token."""

    @property
    def module(self) -> nn.Module:
        """The model, or the draft that shares its parameters."""
        ...

    def __call__(
        self,
        ids_BT: Tensor,
        *,
        starts: Sequence[int],
        cache: ClockCache,
        n_logits: int = 0,
        text_rows: TextRows | None = None,
    ) -> Tensor:
        """Logits of `ids_BT`, whose rows begin at the positions `starts`.

        Sets the cache's clocks to `starts` and writes the new keys and values there.

        Args:
            ids_BT: the tokens.
            starts: a position for each row.
            cache: of keys and values.
            n_logits: of how many of the last tokens; 0: of all.
            text_rows: what a trimmed head scores as well, see `text_rows` below.

        Returns:
            [B, T, V], or [B, n_logits, V].
        """
        ...

    def output(
        self,
        ids_BT: Tensor,
        *,
        starts: Sequence[int],
        cache: ClockCache,
        n_logits: int = 0,
        text_rows: TextRows | None = None,
        hidden: Sequence[int] = (),
    ) -> Output:
        """The same, with the hidden states of all tokens behind the layers `hidden`; -1: what enters the head."""
        ...

    def tree_output(
        self,
        ids_BT: Tensor,
        *,
        positions_BT: Tensor,
        seen_BTS: Tensor,
        key_positions_BS: Tensor,
        cache: ClockCache,
        text_rows: TextRows | None = None,
        hidden: Sequence[int] = (),
    ) -> Output:
        """The output for tokens that may stand at any positions, several of them at one.

        Their keys and values go where the caller has set the cache's clocks.

        Args:
            ids_BT: the tokens.
            positions_BT: of the tokens.
            seen_BTS: which keys each token sees, itself and those written with it included.
            key_positions_BS: the position of each key.
            cache: its clocks are set by the caller.
            text_rows: what a trimmed head scores as well, see `text_rows`.
            hidden: layers whose output is wanted.

        Raises:
            InputError: if the model takes no explicit mask (`mask.check_trees`).
        """
        ...

    def tree(self, ids_BT: Tensor, **where: Any) -> Tensor:
        """The logits of `tree_output`, [B, T, V]."""
        ...

    def text_rows(self, texts: Sequence[Sequence[int]], lengths_BT: Tensor | None = None) -> TextRows | None:
        """What a trimmed head scores beside its own tokens where the rows' texts are these; None: nothing.

        See `TrimmedHead.text_rows` for `lengths_BT`.
        """
        ...


@dataclass(frozen=True, slots=True)
class BoundForward:
    """The forward of a transformers model whose positions, cache and masks are given by the clocks.

    Attributes:
        module: the model, or a draft that shares its parameters.
        context_length: the longest sequence, in tokens.
        head: the module's own, if it is trimmed.
        layers: where the module has its layers.
    """

    module: nn.Module
    context_length: int
    head: TrimmedHead | None = None
    layers: str = ""

    def text_rows(self, texts: Sequence[Sequence[int]], lengths_BT: Tensor | None = None) -> TextRows | None:
        """See `Forward`."""
        return None if self.head is None else self.head.text_rows(texts, lengths_BT)

    def __call__(
        self,
        ids_BT: Tensor,
        *,
        starts: Sequence[int],
        cache: ClockCache,
        n_logits: int = 0,
        text_rows: TextRows | None = None,
    ) -> Tensor:
        """See `Forward`."""
        placed = self._placed(ids_BT, starts, cache, n_logits, text_rows)
        logits_BTV: Tensor = self.module(input_ids=ids_BT, **placed).logits
        return logits_BTV

    def output(
        self,
        ids_BT: Tensor,
        *,
        starts: Sequence[int],
        cache: ClockCache,
        n_logits: int = 0,
        text_rows: TextRows | None = None,
        hidden: Sequence[int] = (),
    ) -> Output:
        """See `Forward`."""
        placed = self._placed(ids_BT, starts, cache, n_logits, text_rows)
        with self._caught(hidden) as states:
            return Output(self.module(input_ids=ids_BT, **placed).logits, states)

    def tree(self, ids_BT: Tensor, **where: Any) -> Tensor:
        """The logits of `tree_output`, [B, T, V]."""
        logits_BTV: Tensor = self.module(input_ids=ids_BT, **self._placed_in_tree(**where)).logits
        return logits_BTV

    def tree_output(
        self,
        ids_BT: Tensor,
        *,
        positions_BT: Tensor,
        seen_BTS: Tensor,
        key_positions_BS: Tensor,
        cache: ClockCache,
        text_rows: TextRows | None = None,
        hidden: Sequence[int] = (),
    ) -> Output:
        """See `Forward`."""
        placed = self._placed_in_tree(positions_BT, seen_BTS, key_positions_BS, cache, text_rows)
        with self._caught(hidden) as states:
            return Output(self.module(input_ids=ids_BT, **placed).logits, states)

    def _placed(
        self, ids_BT: Tensor, starts: Sequence[int], cache: ClockCache, n_logits: int, text_rows: TextRows | None
    ) -> dict[str, Any]:
        """The module's other arguments where each row follows its own text."""
        n_new = ids_BT.shape[1]
        cache.set(starts, n_new)
        offsets_T = torch.arange(n_new, device=ids_BT.device)
        if cache.is_uniform:
            positions_BT = (offsets_T + starts[0]).unsqueeze(0)
            mask = None  # the model builds its own from the clock
        else:
            positions_BT = torch.tensor(starts, device=ids_BT.device).unsqueeze(1) + offsets_T
            dtype = next(self.module.parameters()).dtype
            mask = attention_mask(self.module.config, positions_BT, n_keys=max(starts) + n_new, dtype=dtype)
            # Padding behind a row that ends sooner may lie beyond the context; what it computes is dead.
            positions_BT = positions_BT.clamp(max=self.context_length - 1)
        return _arguments(positions_BT, mask, cache, n_logits, text_rows)

    def _placed_in_tree(
        self,
        positions_BT: Tensor,
        seen_BTS: Tensor,
        key_positions_BS: Tensor,
        cache: ClockCache,
        text_rows: TextRows | None = None,
    ) -> dict[str, Any]:
        """The module's other arguments where tokens stand anywhere; see `tree_output`."""
        dtype = next(self.module.parameters()).dtype
        mask = tree_mask(
            self.module.config, positions_BT, seen_BTS=seen_BTS, key_positions_BS=key_positions_BS, dtype=dtype
        )
        return _arguments(positions_BT.clamp(max=self.context_length - 1), mask, cache, 0, text_rows)

    def _caught(self, hidden: Sequence[int]) -> AbstractContextManager[dict[int, Tensor]]:
        """While it lasts, the module's forward leaves these hidden states in the dictionary."""
        if not hidden:
            return nullcontext({})
        layers: Any = self.module.get_submodule(self.layers)
        return caught(self.module, layers, hidden)


def _arguments(
    positions_BT: Tensor, mask: Any, cache: ClockCache, n_logits: int, text_rows: TextRows | None
) -> dict[str, Any]:
    return {
        "attention_mask": mask,
        "position_ids": positions_BT,
        "past_key_values": cache,
        "use_cache": True,
        "logits_to_keep": n_logits,
        # Only the forward of a trimmed head takes this.
        **({} if text_rows is None else {"text_rows": text_rows}),
    }
