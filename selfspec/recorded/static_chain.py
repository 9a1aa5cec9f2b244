"""A chain of drafted tokens in one recording: the device chooses each token and feeds it to the next step.

The host passes the last token of each row, and reads the drafted tokens and their confidences once. A stop rule of
fixed length is evaluated before the chain. A rule that reads the confidence is evaluated after each piece: the chain is
drafted in pieces of 1, 2, 4 and 8 tokens, until every row's rule has stopped. Tokens after a stop are dropped, so the
proposals equal those of `ModelDraft` token for token.
"""

# B rows, T tokens, K drafted, V vocabulary

from __future__ import annotations

import itertools
import math
import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

from selfspec.drafters.chain import ModelDraft
from selfspec.engine.cache import ClockCache
from selfspec.engine.protocols import BaseDrafter, Draft, Output, Row, Verdict
from selfspec.recorded.recording import Program
from selfspec.recorded.static_cache import StaticCache, bucket, key_bucket
from selfspec.recorded.static_forward import (
    PaddedTexts,
    StaticForward,
    buffers_like,
    logits_of,
    padded,
    padded_starts,
    watching,
)
from selfspec.skipping.trimmed_head import TextRows

CHAINS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16)  # lengths of recorded chains
PIECES = (1, 2, 4, 8)  # lengths of pieces if the rule reads the confidence; the last one repeats
_numbers = itertools.count()


class StaticChain(BaseDrafter):
    """A drafter of greedy chains with a static forward.

    For rows that sample or have logits processors it drafts token by token, like `ModelDraft`.

    Args:
        forward: the draft.
        sample: as in `ModelDraft`.
        needs_confidence: whether the stop rule reads the confidence; otherwise it gets nan.
    """

    def __init__(self, forward: StaticForward, *, sample: bool = True, needs_confidence: bool = True) -> None:
        self.forward, self.needs_confidence = forward, needs_confidence
        self._by_token = ModelDraft(forward, sample=sample, needs_confidence=needs_confidence)
        self._number = ("chain", next(_numbers))
        weakref.finalize(self, forward.stage.recorder.forget, self._number)

    @property
    def name(self) -> str:
        """Name of the same drafter without recordings."""
        return self._by_token.name

    def observe(self, row: Row, draft: Draft, verdict: Verdict, target: Output) -> None:
        """Pass the verdict to the stop rule, like `ModelDraft`."""
        self._by_token.observe(row, draft, verdict, target)

    @torch.inference_mode()
    def propose(self, rows: Sequence[Row], *, cache: ClockCache) -> list[Draft]:
        """The drafts of `ModelDraft`, from a recording if no row samples."""
        longest = max(row.limit for row in rows)
        begins = [row.limit > 0 and row.stop.begins() for row in rows]
        if not any(begins):
            return [Draft(source=self.name) for _ in rows]
        room = max(len(row.ids) for row in rows) + longest
        is_greedy = all(row.chooser.is_plain_greedy for row in rows)
        static = self.forward.caches_for(cache, n_tokens=room) if is_greedy else None
        if static is None:
            return self._by_token.propose(rows, cache=cache)
        text_rows = self.forward.text_rows([row.ids for row in rows])
        if not self.needs_confidence:
            return self._fixed(rows, begins, static, text_rows)
        return self._in_pieces(rows, begins, static, text_rows)

    def _fixed(
        self, rows: Sequence[Row], begins: Sequence[bool], static: StaticCache, text_rows: TextRows | None
    ) -> list[Draft]:
        """Chains for rules that determine the length of each row's chain in advance."""
        lengths = [_length(row) if on else 0 for row, on in zip(rows, begins, strict=True)]
        tokens, _ = self._draft(rows, [row.ids[-1] for row in rows], 0, max(lengths), static, text_rows)
        return [Draft(chain[:n], source=self.name, n_forwards=n) for chain, n in zip(tokens, lengths, strict=True)]

    def _in_pieces(
        self, rows: Sequence[Row], begins: Sequence[bool], static: StaticCache, text_rows: TextRows | None
    ) -> list[Draft]:
        """Chains for rules that read the confidence; they are evaluated after each piece, token by token."""
        drafts = [Draft(source=self.name) for _ in rows]
        active = list(begins)
        last = [row.ids[-1] for row in rows]
        sizes = itertools.chain(PIECES, itertools.repeat(PIECES[-1]))
        n_drafted = 0
        while any(active):
            left = max(row.limit - n_drafted for row, on in zip(rows, active, strict=True) if on)
            size = min(next(sizes), left)
            tokens, confidences = self._draft(rows, last, n_drafted, size, static, text_rows)
            for step, b in itertools.product(range(size), range(len(rows))):
                if active[b]:
                    n, sure = n_drafted + step + 1, confidences[b][step]
                    drafts[b].tokens.append(tokens[b][step])
                    drafts[b].confidences = [*drafts[b].confidences, sure]
                    drafts[b].n_forwards += 1
                    active[b] = n < rows[b].limit and rows[b].stop.more(n, sure)
            last = [chain[size - 1] for chain in tokens]
            n_drafted += size
        return drafts

    def _draft(
        self,
        rows: Sequence[Row],
        last: Sequence[int],
        n_before: int,
        n: int,
        static: StaticCache,
        text_rows: TextRows | None,
    ) -> tuple[list[list[int]], list[list[float]]]:
        """`n` tokens for each row after `last`, which is `n_before` tokens behind the row's end; their confidences."""
        starts = [len(row.ids) - 1 + n_before for row in rows]
        found_3BK = self.play(torch.tensor(last).unsqueeze(1), starts, n, static, text_rows)
        tokens, confidences, is_number = found_3BK[:, : len(rows), :n].tolist()
        if not all(itertools.chain.from_iterable(is_number)):
            self._wipe(static, starts, found_3BK.shape[-1])
        return [[int(t) for t in chain] for chain in tokens], confidences

    def play(
        self,
        ids_B1: Tensor,
        starts: Sequence[int],
        n: int,
        static: StaticCache,
        text_rows: TextRows | None = None,
    ) -> Tensor:
        """[3, B, K] with K at least `n`: tokens, confidences (or nan), and whether the largest logit is finite.

        The result is valid until the next play of any recording.
        """
        n_drafted = bucket(n, CHAINS)
        n_keys = min(key_bucket(max(starts) + n_drafted), static.capacity)
        texts = PaddedTexts.from_rows(text_rows, static.n_rows)
        key = (self._number, self.forward.number, id(static), n_drafted, n_keys, texts.shape)
        inputs = {
            "ids_BT": padded(ids_B1, static.n_rows, 1),
            "starts_B": padded_starts(starts, static.n_rows),
            **texts.tensors,
        }
        bound, needs_confidence = self.forward.recorded, self.needs_confidence

        def make() -> Program:
            buffers = buffers_like(inputs, static)

            def body() -> tuple[Tensor, ...]:
                ids_B1, starts_B, text = buffers["ids_BT"], buffers["starts_B"], texts.rows(buffers)
                steps = []
                for step in range(n_drafted):
                    logits_BTV = logits_of(
                        bound, ids_B1, starts_B + step, static, n_keys=n_keys, n_logits=1, text_rows=text
                    )
                    best_3B, ids_B1 = _best(logits_BTV[:, -1], needs_confidence)
                    steps.append(best_3B)
                return (torch.stack(steps, -1),)

            return Program(buffers, body, watching(bound, static))

        return self.forward.stage.recorder.play(key, make, inputs)[0]

    def _wipe(self, static: StaticCache, starts: Sequence[int], n: int) -> None:
        """Zero the keys and values of a draft that overflowed: masked keys must be finite, since 0 · nan is nan."""
        for layer in static.layers:
            for row, start in enumerate(starts):
                layer.keys[row, :, start : start + n] = 0
                layer.values[row, :, start : start + n] = 0


def _best(logits_BV: Tensor, needs_confidence: bool) -> tuple[Tensor, Tensor]:
    """([3, B] as in `StaticChain.play`, the tokens [B, 1])."""
    highest_B, tokens_B = logits_BV.max(-1)
    if needs_confidence:
        wide_BV = logits_BV if logits_BV.dtype == torch.float64 else logits_BV.float()
        sure_B = wide_BV.softmax(-1).gather(-1, tokens_B.unsqueeze(-1)).squeeze(-1).double()
    else:
        sure_B = torch.full_like(highest_B, torch.nan, dtype=torch.float64)
    is_number_B = torch.isfinite(highest_B).double()
    return torch.stack([tokens_B.double(), sure_B, is_number_B]), tokens_B.unsqueeze(1)


def _length(row: Row) -> int:
    """Number of tokens that the rule allows the row to draft."""
    n = 1
    while n < row.limit and row.stop.more(n, math.nan):
        n += 1
    return n
