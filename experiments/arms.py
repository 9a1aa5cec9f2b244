"""Arms of an evaluation: ways to decode the same prompt, timed by the same clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from selfspec.decode import Ending, autoregress, speculate
from selfspec.draft import ModelDraft
from selfspec.model import Decoder
from selfspec.sampling import Sampling
from selfspec.skip import SkipSet
from selfspec.stop import StopPolicy, StopState
from selfspec.timing import Stopwatch
from selfspec.trace import DecodeResult, Finish

PLAIN, GENERATE = "plain", "generate"


class Arm(Protocol):
    """Decodes one prompt after another."""

    name: str
    skip: SkipSet | None
    stop: str | None

    def __call__(self, ids: list[int]) -> DecodeResult:
        """The output for one prompt."""
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

    def __call__(self, ids: list[int]) -> DecodeResult:
        """See `Arm`."""
        (result,) = autoregress(
            self.decoder, [ids], ending=self.ending, sampling=self.sampling, stopwatch=self.stopwatch
        )
        return result


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
    drafter: ModelDraft
    state: StopState | None = None

    def __call__(self, ids: list[int]) -> DecodeResult:
        """See `Arm`."""
        self.state = self.policy.begin(self.state)
        (result,) = speculate(
            self.decoder,
            [ids],
            drafter=self.drafter,
            stops=[self.state],
            ending=self.ending,
            sampling=self.sampling,
            stopwatch=self.stopwatch,
        )
        return result


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

    def __call__(self, ids: list[int]) -> DecodeResult:
        """See `Arm`."""
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
            torch.manual_seed(self.sampling.seed)
        prompt = torch.tensor([ids], device=self.decoder.device)
        began = self.stopwatch.now()
        output = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), generation_config=config, streamer=first
        )
        total_s = self.stopwatch.now() - began
        tokens = output[0, len(ids) :].tolist()
        finish: Finish = "eos" if tokens and tokens[-1] in eos_ids else "length"
        return DecodeResult(tokens, [], (first.at or began) - began, total_s, finish)


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
