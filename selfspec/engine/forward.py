"""A forward of the target or of a draft, whose positions, cache and masks follow from the clocks.

The forward of a draft runs a copy of the module tree that shares every parameter (`models.decoder.share`). The skipped
sublayers are resolved once, when the copy is made, and not again for each token.
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
    """Runs the target, or one draft of it."""

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
        """Logits of `ids_BT`; row b begins at position `starts[b]`.

        Sets the cache's clocks to `starts` and writes the new keys and values there.

        Args:
            ids_BT: token ids.
            starts: a position for each row.
            cache: keys and values.
            n_logits: number of last tokens to give logits for; 0: all tokens.
            text_rows: further tokens that a trimmed head scores, from the method `text_rows`.

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
        """The same logits, with the hidden states of all tokens after the layers `hidden`; -1: input of the head."""
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
        """Output for tokens at arbitrary positions; several tokens may share a position.

        Keys and values are written at the cache's clocks, which the caller sets.

        Args:
            ids_BT: token ids.
            positions_BT: position of each token.
            seen_BTS: keys that each token attends to, its own and those of this forward included.
            key_positions_BS: position of each key.
            cache: keys and values, with the clocks set by the caller.
            text_rows: further tokens that a trimmed head scores, from the method `text_rows`.
            hidden: layers whose output to return.

        Raises:
            InputError: if the model takes no explicit mask (`masks.check_trees`).
        """
        ...

    def tree(self, ids_BT: Tensor, **where: Any) -> Tensor:
        """The logits of `tree_output`, [B, T, V]."""
        ...

    def text_rows(self, texts: Sequence[Sequence[int]], lengths_BT: Tensor | None = None) -> TextRows | None:
        """Tokens of `texts` that a trimmed head scores besides its own; None for a whole head or if there are none.

        See `TrimmedHead.text_rows` for `lengths_BT`.
        """
        ...


@dataclass(frozen=True, slots=True)
class BoundForward:
    """Forward of a transformers model; the clocks of the cache give positions and masks.

    Attributes:
        module: the model, or a draft that shares its parameters.
        context_length: length of the longest sequence, in tokens.
        head: head of the module, if it is trimmed.
        layers: path of the module's list of layers.
    """

    module: nn.Module
    context_length: int
    head: TrimmedHead | None = None
    layers: str = ""

    def text_rows(self, texts: Sequence[Sequence[int]], lengths_BT: Tensor | None = None) -> TextRows | None:
        """Tokens of `texts` that the trimmed head scores besides its own; None without one."""
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
        """The logits after the last `n_logits` tokens of each row, or after all of them."""
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
        """The same logits, and the hidden states of some layers."""
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
        """The logits and hidden states of the nodes of trees."""
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
