"""Arms of an evaluation: ways to decode the same prompt, timed by the same clock."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from selfspec.decode import Ending, autoregress, speculate
from selfspec.draft import Drafter
from selfspec.model import Decoder
from selfspec.sampling import Sampling
from selfspec.skip import SkipSet
from selfspec.stop import StopPolicy, StopState
from selfspec.timing import Stopwatch
from selfspec.trace import DecodeResult, Finish

PLAIN, GENERATE = "plain", "generate"


class Arm(Protocol):
    """Decodes one batch of prompts after another."""

    name: str
    skip: SkipSet | None
    stop: str | None

    def __call__(self, prompts: Sequence[list[int]], *, first_row: int = 0) -> list[DecodeResult]:
        """The output for each prompt; they are decoded together, and draw from the streams from `first_row` on."""
        ...


@dataclass(slots=True)
class PlainArm:
    """The baseline: this engine, drafting nothing."""

    decoder: Decoder
    ending: Ending
    sampling: Sampling
    stopwatch: Stopwatch
    name: str = PLAIN
    skip: SkipSet | None = None
    stop: str | None = None

    def __call__(self, prompts: Sequence[list[int]], *, first_row: int = 0) -> list[DecodeResult]:
        """See `Arm`."""
        return autoregress(
            self.decoder,
            prompts,
            ending=self.ending,
            sampling=self.sampling,
            first_row=first_row,
            stopwatch=self.stopwatch,
        )


@dataclass(slots=True)
class DraftArm:
    """A skip set with a stop rule; the rule's state goes from prompt to prompt if the rule says so."""

    name: str
    decoder: Decoder
    ending: Ending
    sampling: Sampling
    stopwatch: Stopwatch
    skip: SkipSet | None
    stop: str | None
    policy: StopPolicy
    drafter: Drafter
    state: StopState | None = None

    def __call__(self, prompts: Sequence[list[int]], *, first_row: int = 0) -> list[DecodeResult]:
        """See `Arm`."""
        states = [self.policy.begin(self.state) for _ in prompts]
        results = speculate(
            self.decoder,
            prompts,
            drafter=self.drafter,
            stops=states,
            ending=self.ending,
            sampling=self.sampling,
            first_row=first_row,
            stopwatch=self.stopwatch,
        )
        self.state = states[-1]
        return results


@dataclass(slots=True)
class GenerateArm:
    """transformers' own `generate`, on the same model and with the same settings."""

    decoder: Decoder
    ending: Ending
    sampling: Sampling
    stopwatch: Stopwatch
    name: str = GENERATE
    skip: SkipSet | None = None
    stop: str | None = None

    def __call__(self, prompts: Sequence[list[int]], *, first_row: int = 0) -> list[DecodeResult]:
        """See `Arm`. A batch is padded on the left; its seconds are shared equally among its rows."""
        model: Any = self.decoder.model
        eos_ids = sorted(self.decoder.eos_ids if self.ending.eos_ids is None else self.ending.eos_ids)
        config = GenerationConfig(
            max_new_tokens=self.ending.max_new_tokens,
            eos_token_id=eos_ids or None,
            pad_token_id=eos_ids[0] if eos_ids else 0,
            **_generate_settings(self.sampling),
        )
        first = _FirstToken(self.stopwatch.now)
        if self.sampling.do_sample:
            torch.manual_seed(self.sampling.seed + first_row)
        longest = max(len(ids) for ids in prompts)
        pad = config.pad_token_id
        padded = torch.tensor([[pad] * (longest - len(ids)) + ids for ids in prompts], device=self.decoder.device)
        mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts], device=padded.device)
        began = self.stopwatch.now()
        output = model.generate(
            padded,
            attention_mask=mask,
            generation_config=config,
            # A streamer takes one row only; what the prefill of a batch took stays unknown.
            streamer=first if len(prompts) == 1 else None,
            stopping_criteria=_criteria(self.ending),
        )
        share = (self.stopwatch.now() - began) / len(prompts)
        prefill_s = first.at - began if first.at is not None else math.nan
        return [_result(row, eos_ids, prefill_s, share) for row in output[:, longest:].tolist()]


def _result(tokens: list[int], eos_ids: list[int], prefill_s: float, total_s: float) -> DecodeResult:
    end = next((i + 1 for i, token in enumerate(tokens) if token in eos_ids), None)
    finish: Finish = "length" if end is None else "eos"
    return DecodeResult(tokens[:end], [], prefill_s, total_s, finish)


def _criteria(ending: Ending) -> StoppingCriteriaList | None:
    if ending.criterion is None:
        return None
    criterion = ending.criterion

    class Criterion(StoppingCriteria):  # type: ignore[misc]
        def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
            return torch.tensor([criterion(row) for row in input_ids.tolist()], device=input_ids.device)

    return StoppingCriteriaList([Criterion()])


class _FirstToken(BaseStreamer):  # type: ignore[misc]
    """Notes when the first new token came: the end of the prefill."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.now, self.calls = now, 0
        self.at: float | None = None

    def put(self, value: Any) -> None:
        self.calls += 1
        if self.calls == 2:  # the first call hands over the prompt
            self.at = self.now()

    def end(self) -> None:
        pass


def _generate_settings(sampling: Sampling) -> dict[str, Any]:
    settings: dict[str, Any] = {"do_sample": sampling.do_sample, "repetition_penalty": sampling.repetition_penalty}
    if sampling.do_sample:
        settings |= {
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "min_p": sampling.min_p or None,
        }
    return settings
