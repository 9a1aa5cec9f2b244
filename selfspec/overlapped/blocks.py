"""Drafts blocks of tokens behind a text whose end may be unverified: the drafter's side of overlapped decoding.

Keys and values of verified tokens are the target's: they are copied from a cache that the target alone writes. Those of
later tokens are the draft's own and private. It knows nothing of processes; the source may lie in shared memory.
"""

# C capacity, D hidden size, V vocabulary

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from selfspec.engine.cache import ClockCache
from selfspec.engine.protocols import Draft, Drafter, Output, Row, Verdict
from selfspec.engine.tree import check_drafts
from selfspec.errors import InputError
from selfspec.heads.drafter import HeadDraft
from selfspec.models.decoder import Decoder
from selfspec.overlapped.state import Drafted
from selfspec.stopping import Fixed

ENDLESS = Fixed(2**31)  # the length of a block is the verifier's decision


class BlockDrafter:
    """Drafts blocks for one row at a time, with any drafter of chains.

    Args:
        drafter: drafts token by token; its stop rule is not read.
        decoder: the target, whose sublayers it may share.

    Raises:
        InputError: if the drafter needs hidden states and cannot go on behind tokens that have none.
    """

    def __init__(self, drafter: Drafter, decoder: Decoder) -> None:
        if drafter.needs.hidden and not isinstance(drafter, HeadDraft):
            raise InputError(
                f"{drafter.name} drafts from hidden states of verified tokens alone, so it cannot draft behind others; "
                "overlapped decoding takes skip sets, chains of heads, small models and drafters without hidden states"
            )
        self.drafter, self._decoder = drafter, decoder
        self._row: Row | None = None
        self._n_copied = 0

    @torch.inference_mode()
    def open(self, row: Row, source: ClockCache, hidden: Mapping[int, Tensor]) -> None:
        """Begin a row.

        Args:
            row: the row, after its first new token was committed; this object changes its ids and its stop rule.
            source: keys and values of the target, valid for every token before the last committed one.
            hidden: buffers [1, C, D] of the hidden states that the drafter needs, valid for the same tokens.
        """
        self.close()
        self._row, self._source, self._hidden = row, source, hidden
        row.stop = ENDLESS.begin()
        self._cache = self._decoder.new_cache(n_rows=1, capacity=source.capacity)
        self._n_copied = 0
        self.drafter.begin(row, self._output(0, len(row.ids) - 1))

    def close(self) -> None:
        """Forget the row."""
        if self._row is not None:
            self.drafter.end(self._row)
            self._row = None

    @torch.inference_mode()
    def draft(self, ids: Sequence[int], pending: Sequence[int], n: int) -> Iterator[Drafted]:
        """Up to `n` tokens behind `ids` and `pending`, one by one as they are drafted.

        The caller may leave the block at any token. A token is drawn from the stream of its position, so it depends on
        the text before it alone.

        Args:
            ids: the committed tokens, which continue those of the last call.
            pending: drafted tokens behind them that are not verified.
            n: at most so many tokens.

        Raises:
            InputError: if the drafter proposes a tree.
            DrafterError: if its draft is invalid.
        """
        row = self._row
        assert row is not None, "open a row first"
        self._catch_up(row, ids)
        if isinstance(self.drafter, HeadDraft):
            row.limit = len(pending) + n
            for chain in self.drafter.grown(row, pending):
                yield _last(chain)
            return
        row.ids, row.limit = [*ids, *pending], 1
        try:
            for _ in range(n):
                row.chooser.seek_draft(len(row.ids))
                found = self.drafter.propose([row], cache=self._cache)
                check_drafts(found, [row], n_vocab=self._decoder.n_vocab, by=self.drafter.name)
                if found[0].parents is not None:
                    raise InputError(f"{self.drafter.name} drafts trees; at the same time as verifying, draft a chain")
                if not found[0].tokens:
                    return
                yield _last(found[0])
                row.ids.append(found[0].tokens[-1])
        finally:
            row.ids = list(ids)

    def _catch_up(self, row: Row, ids: Sequence[int]) -> None:
        """Take the target's keys, values and hidden states of the tokens that were committed since the last block."""
        known, n_true = len(row.ids), len(ids) - 1
        if getattr(self.drafter, "reads_cache", True):
            self._copy(n_true)
        row.ids = list(ids)
        added = row.ids[known:]
        if added:
            draft = Draft(tokens=added[:-1], source=self.drafter.name)
            verdict = Verdict(list(range(len(added) - 1)), added[-1])
            self.drafter.observe(row, draft, verdict, self._output(known - 1, n_true))

    def _copy(self, end: int) -> None:
        """Copy the target's keys and values up to a position; the draft never writes before it."""
        part = slice(self._n_copied, end)
        for own, true in zip(self._cache.layers, self._source.layers, strict=True):
            if not true.is_initialized:
                continue
            if not own.is_initialized:
                n_more = self._cache.capacity - true.keys.shape[2]  # the private one may have grown
                like = (torch.nn.functional.pad(t, (0, 0, 0, n_more)) for t in (true.keys, true.values))
                own.restore(*(torch.zeros_like(t) for t in like), true.keys.device)
            own.keys[:, :, part] = true.keys[:, :, part]
            own.values[:, :, part] = true.values[:, :, part]
        self._n_copied = end

    def _output(self, begin: int, end: int) -> Output:
        """Hidden states of the positions from `begin` to `end`; logits are the verifier's, and not known here."""
        nothing_BTV = torch.empty(1, 0, self._decoder.n_vocab)
        return Output(nothing_BTV, {layer: buffer[:, begin:end].clone() for layer, buffer in self._hidden.items()})


def _last(chain: Draft) -> Drafted:
    """The last token of a chain, with the distribution that it was drawn from."""
    return Drafted(chain.tokens[-1], chain.probabilities[-1] if chain.probabilities else None)
