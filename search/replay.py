"""Score a draft without verifying: compare what it drafts with what the full model is known to say.

Each calibration prompt is decoded once by the full model; its tokens and its keys and values are kept. In greedy mode
the accepted prefix of a draft is by definition the prefix that equals these tokens, so a skip set is scored by drafting
alone, all prompts in one batch, and the counts are those of the real decoder to the integer.
"""

# B rows, H key/value heads, S tokens, D head dimension

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from selfspec.cache import ClockCache
from selfspec.decode import Ending, autoregress
from selfspec.draft import Drafter, DraftRow
from selfspec.model import Decoder
from selfspec.sampling import Chooser, Sampling
from selfspec.stop import StopPolicy, StopState
from selfspec.trace import Round
from selfspec.verify import judge_greedy


@dataclass(frozen=True, slots=True)
class Reference:
    """What the full model says after one prompt, and its keys and values of both.

    Attributes:
        prompt, tokens: token ids; the last token ends the sequence.
        keys, values: one tensor [H, S, D] a layer, S = all tokens but the last.
    """

    prompt: list[int]
    tokens: list[int]
    keys: list[Tensor]
    values: list[Tensor]


@torch.inference_mode()
def refer(decoder: Decoder, prompts: Sequence[Sequence[int]], *, ending: Ending) -> list[Reference]:
    """Decode each prompt greedily with the full model, and keep what replaying needs."""
    found = []
    for prompt in prompts:
        (result,) = autoregress(decoder, [prompt], ending=ending)
        ids = [*prompt, *result.tokens][:-1]
        # One forward over the whole text gives all keys and values at once.
        cache = decoder.new_cache(n_rows=1, capacity=len(ids))
        decoder.full(torch.tensor([ids], device=decoder.device), starts=[0], cache=cache, n_logits=1)
        keys, values = [layer.keys[0] for layer in cache.layers], [layer.values[0] for layer in cache.layers]
        found.append(Reference(list(prompt), result.tokens, keys, values))
    return found


@dataclass(slots=True)
class _Row:
    reference: Reference
    position: int  # tokens of the reference that are committed
    stop: StopState
    rounds: list[Round]

    @property
    def ids(self) -> list[int]:
        return self.reference.prompt + self.reference.tokens[: self.position]

    @property
    def n_left(self) -> int:
        return len(self.reference.tokens) - self.position


@torch.inference_mode()
def replay(
    decoder: Decoder, references: Sequence[Reference], *, drafter: Drafter, stop: StopPolicy, max_new_tokens: int
) -> list[list[Round]]:
    """The rounds that `speculate` would make of each prompt, without seconds.

    Args:
        decoder: the model of the references.
        references: what `refer` kept.
        drafter: the draft to be scored.
        stop: its stop rule; every prompt begins afresh.
        max_new_tokens: as when the references were made: it limits a draft near the end.
    """
    rows = [_Row(reference, 1, stop.begin(), []) for reference in references]
    live = [row for row in rows if row.n_left]
    cache = _stacked(decoder, [row.reference for row in live]) if live else None
    chooser = Chooser(Sampling())
    while live:
        assert cache is not None
        limits = [max_new_tokens - row.position - 1 for row in live]
        drafting = [DraftRow(row.ids, n, row.stop, chooser) for row, n in zip(live, limits, strict=True)]
        proposals = drafter.propose(drafting, cache=cache)
        for row, proposal in zip(live, proposals, strict=True):
            known = row.reference.tokens[row.position :]
            # Past the end of the reference nothing is compared: what was drafted there is never committed.
            target = known + [-1] * (len(proposal.tokens) + 1 - len(known))
            n_drafted, n_accepted = len(proposal.tokens), judge_greedy(proposal.tokens, target).n_accepted
            n_committed = min(n_accepted + 1, len(known))
            row.rounds.append(Round(n_drafted, n_accepted, n_committed, 0.0, 0.0, None, tuple(proposal.confidences)))
            row.stop.observe(n_drafted, n_accepted)
            row.position += n_committed
        _restore(cache, live, max(len(p.tokens) for p in proposals))
        going = [i for i, row in enumerate(live) if row.n_left]
        if going:
            cache.keep(going)
        live = [live[i] for i in going]
    return [row.rounds for row in rows]


def _stacked(decoder: Decoder, references: Sequence[Reference]) -> ClockCache:
    """A cache that holds every reference's keys and values."""
    longest = max(r.keys[0].shape[1] for r in references)
    cache = decoder.new_cache(n_rows=len(references), capacity=longest)
    for i, layer in enumerate(cache.layers):
        first = references[0]
        layer.lazy_initialization(
            first.keys[i].new_zeros(len(references), first.keys[i].shape[0], 0, first.keys[i].shape[2]),
            first.values[i].new_zeros(len(references), first.values[i].shape[0], 0, first.values[i].shape[2]),
        )
        for row, reference in enumerate(references):
            layer.keys[row, :, : reference.keys[i].shape[1]] = reference.keys[i]
            layer.values[row, :, : reference.values[i].shape[1]] = reference.values[i]
    return cache


def _restore(cache: ClockCache, live: Sequence[_Row], n_drafted: int) -> None:
    """Put the full model's keys and values back where the draft wrote its own: what verification does."""
    for b, row in enumerate(live):
        first = len(row.reference.prompt)
        # The draft wrote from the last committed token on, before this round moved `position`.
        start = first + row.position - row.rounds[-1].committed - 1
        end = min(start + n_drafted + 1, row.reference.keys[0].shape[1])
        for i, layer in enumerate(cache.layers):
            layer.keys[b, :, start:end] = row.reference.keys[i][:, start:end]
            layer.values[b, :, start:end] = row.reference.values[i][:, start:end]
