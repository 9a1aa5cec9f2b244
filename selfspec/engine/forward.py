"""One resolved forward, of the target or of a draft: positions, cache and masks are given by the clocks.

A draft's forward runs a copy of the module tree that shares every parameter (`model.share`), so that no token asks
again what is left out.
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
        """See `Forward`."""
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
        """See `Forward`."""
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
                # Only the forward of a trimmed head takes this.
                **({} if text_rows is None else {"text_rows": text_rows}),
            ).logits
            return found

        if not hidden:
            return Output(logits())
        layers: Any = self.module.get_submodule(self.layers)
        with caught(self.module, layers, hidden) as states:
            return Output(logits(), states)
