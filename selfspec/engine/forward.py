"""A forward of the target or of a draft, whose positions, cache and masks follow from the clocks.

The forward of a draft runs a copy of the module tree that shares every parameter (`models.decoder.share`). The skipped
sublayers are resolved once, when the copy is made, and not again for each token.
"""

# B rows, T tokens, S keys, V vocabulary

from __future__ import annotations

from collections.abc import Sequence
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
        """Logits of `ids_BT`, [B, T, V] or [B, n_logits, V]."""
        return self.output(ids_BT, starts=starts, cache=cache, n_logits=n_logits, text_rows=text_rows).logits_BTV

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
        """Logits and hidden states of `ids_BT`; sets the cache's clocks to `starts`."""
        n_new = ids_BT.shape[1]
        cache.set(starts, n_new)
        offsets_T = torch.arange(n_new, device=ids_BT.device)
        if cache.is_uniform:
            positions_BT = (offsets_T + starts[0]).unsqueeze(0)
            mask = None  # the model builds its own mask from the clock
        else:
            positions_BT = torch.tensor(starts, device=ids_BT.device).unsqueeze(1) + offsets_T
            dtype = next(self.module.parameters()).dtype
            mask = attention_mask(self.module.config, positions_BT, n_keys=max(starts) + n_new, dtype=dtype)
            # Padding of a shorter row may lie beyond the context; its results are not used.
            positions_BT = positions_BT.clamp(max=self.context_length - 1)
        return self._run(ids_BT, positions_BT, mask, cache, n_logits, text_rows, hidden)

    def tree(self, ids_BT: Tensor, **where: Any) -> Tensor:
        """The logits of `tree_output`, [B, T, V]."""
        return self.tree_output(ids_BT, **where).logits_BTV

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
        """Logits and hidden states of a tree's tokens; the caller has set the cache's clocks."""
        dtype = next(self.module.parameters()).dtype
        mask = tree_mask(
            self.module.config, positions_BT, seen_BTS=seen_BTS, key_positions_BS=key_positions_BS, dtype=dtype
        )
        positions_BT = positions_BT.clamp(max=self.context_length - 1)
        return self._run(ids_BT, positions_BT, mask, cache, 0, text_rows, hidden)

    def _run(
        self,
        ids_BT: Tensor,
        positions_BT: Tensor,
        mask: Any,
        cache: ClockCache,
        n_logits: int,
        text_rows: TextRows | None,
        hidden: Sequence[int],
    ) -> Output:
        def logits() -> Tensor:
            found: Tensor = self.module(
                input_ids=ids_BT,
                attention_mask=mask,
                position_ids=positions_BT,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=n_logits,
                # Only a model with a trimmed head takes this argument.
                **({} if text_rows is None else {"text_rows": text_rows}),
            ).logits
            return found

        if not hidden:
            return Output(logits())
        layers: Any = self.module.get_submodule(self.layers)
        with caught(self.module, layers, hidden) as states:
            return Output(logits(), states)
