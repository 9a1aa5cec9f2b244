"""transformers' `generate` as a way to decode: plain, assisted, by prompt lookup, with a static cache and compiled.

It has no end-of-sequence token, as the engine's ways beside it have none, so that all decode the same tokens. Asked for
`min_new_tokens` instead, `generate` excludes that token from the choice and decodes another text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from shortened import shorter
from transformers import StoppingCriteria, StoppingCriteriaList

from gpu.models import N_DRAFT
from gpu.turns import Way
from selfspec.measure.stopwatch import Stopwatch
from selfspec.models.decoder import Decoder
from selfspec.skipping.skip_set import SkipSet


@dataclass(frozen=True, slots=True)
class Generated:
    """The tokens of one call of `generate`, and its seconds."""

    tokens: list[int]
    prefill_s: float
    total_s: float


class StopAtLength(StoppingCriteria):
    """Stops once the text has so many tokens."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __call__(self, ids: torch.Tensor, scores: Any, **more: Any) -> torch.Tensor:
        return torch.full((ids.shape[0],), ids.shape[1] >= self.n, device=ids.device, dtype=torch.bool)


def never_ending(model: Any) -> Any:
    """The model, whose `generate` is greedy and has no end-of-sequence token."""
    model.generation_config = type(model.generation_config)(eos_token_id=None, pad_token_id=0, do_sample=False)
    return model


def generate(model: Any, n_new: int, **more: Any) -> Way:
    """`generate` of `n_new` tokens; its prefill is the time of the first tokens, less their share of the others' time.

    Both calls ask for as many tokens, since a static cache takes its length from that; the first is stopped early.
    """

    def way(ids: list[int]) -> Generated:
        prompt = torch.tensor([ids], device=model.device)
        watch = Stopwatch(model.device)

        def run(n: int) -> tuple[list[int], float]:
            stop = StoppingCriteriaList([StopAtLength(len(ids) + n)])
            begin = watch.now()
            with torch.inference_mode():
                output = model.generate(
                    prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=n_new, stopping_criteria=stop, **more
                )
            return output[0, len(ids) :].tolist(), watch.now() - begin

        first, first_s = run(1)
        tokens, total_s = run(n_new)
        each_s = max(1e-9, total_s - first_s) / max(1, len(tokens) - len(first))
        return Generated(tokens, first_s - each_s * (len(first) - 1), total_s)

    return way


def assisted(model: Any, skip: SkipSet, n_new: int) -> Way:
    """`generate` with an assistant that shares the weights and lacks whole layers, `N_DRAFT` tokens a round."""
    assistant = shorter(Decoder(model), skip)
    assistant.generation_config = type(model.generation_config)(
        num_assistant_tokens=N_DRAFT,
        num_assistant_tokens_schedule="constant",
        assistant_confidence_threshold=0.0,
        eos_token_id=None,
        pad_token_id=0,
    )
    return generate(model, n_new, assistant_model=assistant)
