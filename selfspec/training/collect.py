"""Fill a store: the model continues prompts, and what it computes on the way is kept.

Continuations are greedy or drawn at given temperatures, several a prompt, decoded in batches. They are the model's own:
a head that is trained on them learns what the model says, not what people wrote.
"""

# T tokens, A answer tokens, V vocabulary, K likeliest tokens

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from selfspec.drafters.chain import NoDraft
from selfspec.engine.decode import Ending, speculate
from selfspec.engine.protocols import Draft, Needs, Output, Row, Verdict
from selfspec.engine.sampling import Sampling
from selfspec.errors import InputError
from selfspec.models.decoder import Decoder
from selfspec.stopping import Fixed
from selfspec.training.store import Store, StoredText

Told = Callable[[int], None]  # called with the number of answer tokens that were added


@dataclass(frozen=True, slots=True)
class Collecting:
    """Settings of a collection.

    Attributes:
        layers: layers whose hidden states are kept; -1: the input of the output head.
        temperatures: of the samples of a prompt, in turn; 0: greedy.
        samples: continuations of each prompt.
        max_new_tokens: length of a continuation.
        batch: prompts that are decoded at once, and texts of a shard.
        top_k: likeliest next tokens that are kept.
        seed: seed of the drawn continuations.

    Raises:
        InputError: if a number is impossible, or a prompt would be continued greedily twice.
    """

    layers: tuple[int, ...] = (-1,)
    temperatures: tuple[float, ...] = (0.0, 0.8)
    samples: int = 2
    max_new_tokens: int = 128
    batch: int = 8
    top_k: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.samples, self.max_new_tokens, self.batch, self.top_k) < 1 or not self.temperatures:
            raise InputError(
                f"samples={self.samples}, max_new_tokens={self.max_new_tokens}, batch={self.batch}, "
                f"top_k={self.top_k}, {len(self.temperatures)} temperatures: each is at least 1"
            )
        if min(self.temperatures) < 0:
            raise InputError(f"temperatures={list(self.temperatures)}; they are 0 (greedy) or above")
        n_greedy = [self.temperatures[i % len(self.temperatures)] for i in range(self.samples)].count(0)
        if n_greedy > 1:
            raise InputError(
                f"samples={self.samples} at temperatures={list(self.temperatures)} continue a prompt greedily "
                f"{n_greedy} times, each time alike; give more temperatures above 0"
            )


def collect(
    decoder: Decoder, store: Store, prompts: Sequence[Sequence[int]], how: Collecting, told: Told | None = None
) -> None:
    """Write the shards that the store lacks.

    The order is one pass over all prompts for each sample, so an incomplete store holds each prompt about as often.

    Args:
        decoder: the model.
        store: the store of these prompts and settings.
        prompts: token ids.
        how: settings.
        told: called after each shard.
    """
    number = 0
    for sample in range(how.samples):
        temperature = how.temperatures[sample % len(how.temperatures)]
        for first in range(0, len(prompts), how.batch):
            if not store.has(number):
                row = sample * len(prompts) + first
                texts = _texts(decoder, prompts[first : first + how.batch], temperature, how, first_row=row)
                store.write(number, texts)
                if told is not None:
                    told(sum(len(t.ids) - t.n_prompt for t in texts))
            number += 1


def _texts(
    decoder: Decoder, prompts: Sequence[Sequence[int]], temperature: float, how: Collecting, *, first_row: int
) -> list[StoredText]:
    sampling = Sampling(do_sample=True, temperature=temperature, seed=how.seed) if temperature else None
    recorder = _Recorder(how)
    # the last token of a text is dropped: nothing was computed after it
    results = speculate(
        decoder,
        prompts,
        drafter=recorder,
        stops=[Fixed(1).begin() for _ in prompts],
        ending=Ending(how.max_new_tokens + 1),
        sampling=sampling,
        first_row=first_row,
    )
    found = iter(recorder.records.values())
    return [
        # a text of one token ends before it can be recorded
        next(found).text(p, r.tokens, how) if len(r.tokens) > 1 else read_text(decoder, p, [], how)
        for p, r in zip(prompts, results, strict=True)
    ]


@dataclass(slots=True)
class _Record:
    """Of a text, piece by piece: hidden states of each layer, likeliest next tokens and their log-probabilities."""

    hidden: list[list[Tensor]] = field(default_factory=list)
    top: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def add(self, output: Output, how: Collecting) -> None:
        """Add what one forward of one row computed: the states of what it read, and what comes after its last token."""
        self.hidden.append([output.hidden[layer][0].cpu() for layer in how.layers])
        self.top.append(_likeliest(output.logits_BTV[0, -1:], how))

    def text(self, prompt: Sequence[int], tokens: Sequence[int], how: Collecting) -> StoredText:
        """The text as far as something was computed after each of its tokens."""
        ids = torch.tensor([*prompt, *tokens[: len(self.top) - 1]])
        hidden = dict(zip(how.layers, map(torch.cat, zip(*self.hidden, strict=True)), strict=True))
        top_ids, top_logprobs = map(torch.cat, zip(*self.top, strict=True))
        return StoredText(ids, len(prompt), hidden, top_ids, top_logprobs)


class _Recorder(NoDraft):
    """Drafts nothing, and keeps what the target computes."""

    def __init__(self, how: Collecting) -> None:
        self.how = how
        self.records: dict[int, _Record] = {}  # by key of the row, in the order of the prompts

    @property
    def needs(self) -> Needs:
        """The layers that are kept."""
        return Needs(hidden=self.how.layers)

    def begin(self, row: Row, prompt: Output) -> None:
        """Keep the prompt's states and what comes after it."""
        self.records[row.key] = record = _Record()
        record.add(prompt, self.how)

    def observe(self, row: Row, draft: Draft, verdict: Verdict, target: Output) -> None:
        """Keep the state at the newest token and what comes after it."""
        self.records[row.key].add(target, self.how)


def _likeliest(logits_TV: Tensor, how: Collecting) -> tuple[Tensor, Tensor]:
    top = logits_TV.float().log_softmax(-1).topk(how.top_k)
    return top.indices.cpu(), top.values.cpu()


@torch.inference_mode()
def read_text(decoder: Decoder, prompt: Sequence[int], tokens: Sequence[int], how: Collecting) -> StoredText:
    """What is recorded of a text, by one forward over a prompt and its continuation."""
    ids = torch.tensor([*prompt, *tokens])
    cache = decoder.new_cache(n_rows=1, capacity=len(ids))
    output = decoder.full.output(
        ids.unsqueeze(0).to(decoder.device), starts=[0], cache=cache, n_logits=len(tokens) + 1, hidden=how.layers
    )
    hidden = {layer: h[0].cpu() for layer, h in output.hidden.items()}
    return StoredText(ids, len(prompt), hidden, *_likeliest(output.logits_BTV[0], how))
