"""Calls to time: a forward of the model, a drafted token, the output head, a round. It knows no table."""

from __future__ import annotations

from collections.abc import Callable

import torch

from selfspec.drafters.build import build_drafter
from selfspec.drafters.spec import DraftSpec
from selfspec.engine.protocols import Row
from selfspec.engine.sampling import Chooser, Sampling, largest
from selfspec.models.decoder import Decoder
from selfspec.skipping.plan import DraftPlan
from selfspec.skipping.skip_set import SkipSet
from selfspec.stopping import Threshold


class Place:
    """The place after a text of `context` tokens, with one cache for all calls there: they write the same slots.

    Args:
        decoder: the model.
        context: number of tokens before the timed ones.
        room: number of tokens of the longest call.
        n_rows: rows of the cache, all with this text; more than one serve `plain` and `reading` alone.

    Attributes:
        ids: the text.
    """

    def __init__(self, decoder: Decoder, context: int, room: int, n_rows: int = 1) -> None:
        self._decoder, self._context, self._n_rows = decoder, context, n_rows
        # every third token is a new one
        self.ids = [(-1 - i // 3) % int(decoder.config.vocab_size) for i in range(context)]
        self._cache = decoder.new_cache(n_rows=n_rows, capacity=context + room)
        ids_BT = torch.tensor([self.ids] * n_rows, device=decoder.device)
        decoder.full(ids_BT, starts=[0] * n_rows, cache=self._cache, n_logits=1)

    def plain(self, n_tokens: int = 1) -> Callable[[], None]:
        """A call of the full forward of `n_tokens` in each row, and of the choice of tokens."""
        ids_BT = torch.full((self._n_rows, n_tokens), 5, device=self._decoder.device)
        starts = [self._context] * self._n_rows

        def call() -> None:
            largest(self._decoder.full(ids_BT, starts=starts, cache=self._cache)).tolist()

        return call

    def reading(self, n_tokens: int) -> Callable[[], None]:
        """A call that reads `n_tokens` of a prompt in each row, and chooses the token after them."""
        ids_BT = torch.full((self._n_rows, n_tokens), 5, device=self._decoder.device)
        starts = [self._context] * self._n_rows

        def call() -> None:
            largest(self._decoder.full(ids_BT, starts=starts, cache=self._cache, n_logits=1)).tolist()

        return call

    def drafting(self, draft: SkipSet | DraftPlan) -> Callable[[], None]:
        """A call that drafts one token."""
        plan = draft if isinstance(draft, DraftPlan) else DraftPlan.from_skip_set(draft)
        spec = DraftSpec(plan, always(1))
        drafter = build_drafter(spec, self._decoder)
        row = Row(0, [*self.ids, 5], 1, spec.stop.begin(), Chooser(Sampling()))

        def call() -> None:
            drafter.propose([row], cache=self._cache)

        return call


def always(n_tokens: int) -> Threshold:
    """A rule that always drafts this number of tokens, and reads confidences like a threshold rule."""
    return Threshold(n_tokens, 0.0)


def calling_head(decoder: Decoder) -> Callable[[], None]:
    """A call of the output head on one token."""
    head = decoder.model.get_output_embeddings()  # type: ignore[operator]
    hidden_11D = torch.zeros(1, 1, int(decoder.config.hidden_size), dtype=decoder.dtype, device=decoder.device)
    return lambda: head(hidden_11D)
