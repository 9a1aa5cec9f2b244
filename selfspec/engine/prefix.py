"""The beginning that prompts share, such as worked examples: its keys and values are computed once.

A prompt is then read in two forwards instead of one. That changes nothing in exact arithmetic, and in 16 bits as little
as reading a draft in one forward does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from selfspec.engine.cache import ClockCache
from selfspec.models.decoder import Decoder

LEAST = 32  # tokens of a beginning that is worth a forward of its own; chosen, not tuned


@dataclass(frozen=True, slots=True)
class Prefix:
    """Token ids, and the full model's keys and values of them."""

    ids: list[int]
    cache: ClockCache

    @property
    def n_tokens(self) -> int:
        """Number of its tokens."""
        return len(self.ids)

    def begins(self, ids: Sequence[int]) -> bool:
        """Whether these ids begin with it, and go on."""
        return len(ids) > self.n_tokens and list(ids[: self.n_tokens]) == self.ids


@torch.inference_mode()
def shared_prefix(decoder: Decoder, prompts: Sequence[Sequence[int]]) -> Prefix | None:
    """The longest beginning of all prompts; None for a single prompt, or if it is shorter than `LEAST`.

    At least the last token of each prompt is left.
    """
    if len(prompts) < 2:
        return None
    first, last = (
        min(map(list, prompts)),
        max(map(list, prompts)),
    )  # in the order of dictionaries, where those between share what these do
    room = min(map(len, prompts)) - 1
    n = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), room)
    ids = list(first[: min(n, room)])
    if len(ids) < LEAST:
        return None
    cache = decoder.new_cache(n_rows=1, capacity=len(ids))
    decoder.full(torch.tensor([ids], device=decoder.device), starts=[0], cache=cache, n_logits=1)
    return Prefix(ids, cache)


def text_cache(decoder: Decoder, ids: Sequence[int], prefix: Prefix | None, *, capacity: int) -> tuple[ClockCache, int]:
    """A cache for a text of one row, and the number of its first tokens whose keys and values are there already."""
    if prefix is None or not prefix.begins(ids):
        return decoder.new_cache(n_rows=1, capacity=capacity), 0
    return prefix.cache.copied(capacity), prefix.n_tokens
