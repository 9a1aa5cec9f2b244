"""Arms of an evaluation: ways to decode the same prompts; one clock times them all."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList
from transformers.generation.configuration_utils import GenerationMode
from transformers.generation.streamers import BaseStreamer

from selfspec.drafters.chain import NoDraft
from selfspec.engine.approximate import Lenient
from selfspec.engine.decode import Criterion, Ending, speculate
from selfspec.engine.sampling import Sampling
from selfspec.engine.trace import DecodeResult, Finish
from selfspec.errors import InputError, unknown_name
from selfspec.measure.stopwatch import Stopwatch
from selfspec.models.decoder import Decoder
from selfspec.skipping.skip_set import SkipSet
from selfspec.speculator import Speculator
from selfspec.stopping import Fixed

PLAIN, GENERATE = "plain", "generate"
_SAME_TOKENS = {  # settings of `generate` that change its speed alone
    *("prompt_lookup_num_tokens", "max_matching_ngram_size", "num_assistant_tokens", "num_assistant_tokens_schedule"),
    *("assistant_early_exit", "assistant_confidence_threshold", "use_cache", "prefill_chunk_size"),
    *("compile_config", "disable_compile", "max_cache_len"),
}


class Arm(Protocol):
    """Decodes one batch of prompts after another."""

    name: str
    skip: SkipSet | None
    stop: str | None

    @property
    def is_lossless(self) -> bool:
        """Whether its greedy output equals that of plain decoding."""
        ...

    @property
    def about(self) -> dict[str, Any]:
        """The settings of the arm for provenance: `skip`, `stop`, and the parts of its draft."""
        ...

    def __call__(self, prompts: Sequence[list[int]], *, first_row: int = 0) -> list[DecodeResult]:
        """The output for each prompt; prompts are decoded together and draw from the streams from `first_row` on."""
        ...


@dataclass(slots=True)
class PlainArm:
    """The baseline: this engine without drafts."""

    decoder: Decoder
    ending: Ending
    sampling: Sampling
    stopwatch: Stopwatch
    name: str = PLAIN
    skip: SkipSet | None = None
    stop: str | None = None
    is_lossless: ClassVar[bool] = True

    @property
    def about(self) -> dict[str, Any]:
        """No draft and no stop rule."""
        return {"skip": None, "stop": None}

    def __call__(self, prompts: Sequence[list[int]], *, first_row: int = 0) -> list[DecodeResult]:
        """Decode the prompts without drafts; one result for each."""
        return speculate(
            self.decoder,
            prompts,
            drafter=NoDraft(),
            stops=[Fixed(1).begin() for _ in prompts],
            ending=self.ending,
            sampling=self.sampling,
            first_row=first_row,
            stopwatch=self.stopwatch,
        )


@dataclass(slots=True)
class DraftArm:
    """A skip set with a stop rule, which may carry its state from prompt to prompt.

    Row i of a batch continues the state of row i of the batch before, or of its last row if that batch has fewer rows.
    With a lenient verifier its output is not the model's own, and its name says so.
    """

    decoder: Decoder
    ending: Ending
    sampling: Sampling
    stopwatch: Stopwatch
    name: str
    skip: SkipSet | None
    stop: str | None
    speculator: Speculator
    verifier: Lenient | None = None

    @property
    def is_lossless(self) -> bool:
        """Whether its outputs are the model's own: with the exact verifier."""
        return self.verifier is None

    @property
    def about(self) -> dict[str, Any]:
        """The draft's settings.

        `memory`: tokens that prompt lookup searches in addition to the row's own; `extra_bytes`: of the tensors that
        the draft holds besides the model's.
        """
        spec = self.speculator.spec
        memory = None if spec.plan.memory is None or not spec.lookup else len(spec.plan.memory)
        draft = None if spec.lookup == "only" else str(spec.plan)
        own: dict[str, Any] = {"drafter": dict(spec.drafter)} if spec.drafter else {}
        own |= {"tree": spec.tree.to_dict()} if spec.tree else {}
        own |= {"approximate": str(self.verifier)} if self.verifier else {}
        control = self.speculator.control
        own |= {"controller": control.policy.to_dict()} if control else {}
        return {
            "skip": None if self.skip is None else str(self.skip),
            "stop": self.stop,
            "draft": draft,
            "lookup": spec.lookup,
            "memory": memory,
            "extra_bytes": 0 if spec.lookup == "only" else self.decoder.extra_bytes(spec.plan),
            **own,
        }

    def __call__(self, prompts: Sequence[list[int]], *, first_row: int = 0) -> list[DecodeResult]:
        """Decode the prompts with drafts, and keep the state of the stop rule; one result for each."""
        states = self.speculator.begin(len(prompts))
        results = speculate(
            self.decoder,
            prompts,
            drafter=self.speculator.drafter,
            stops=states,
            ending=self.ending,
            sampling=self.sampling,
            first_row=first_row,
            stopwatch=self.stopwatch,
            verifier=self.verifier,
            control=self.speculator.control,
        )
        self.speculator.keep(states)
        return results


@dataclass(slots=True)
class GenerateArm:
    """`generate` of transformers on the same model, with the settings of the run and further settings of its own.

    With `prompt_lookup_num_tokens` its first forward reads the prompt and verifies a draft at once. The tokens accepted
    there cost no decoding time, which favours this arm by at most that many tokens a prompt. Its end-to-end speed has
    no such advantage.
    """

    decoder: Decoder
    ending: Ending
    sampling: Sampling
    stopwatch: Stopwatch
    name: str = GENERATE
    skip: SkipSet | None = None
    stop: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_lossless(self) -> bool:
        """See `Arm`: without a setting of its own that may choose other tokens."""
        return self.settings.keys() <= _SAME_TOKENS

    @property
    def about(self) -> dict[str, Any]:
        """The further settings of `generate`."""
        return {"skip": None, "stop": None, "generate": dict(self.settings)}

    def __call__(self, prompts: Sequence[list[int]], *, first_row: int = 0) -> list[DecodeResult]:
        """Decode the prompts as one batch, padded on the left; each result has an equal share of its seconds."""
        model: Any = self.decoder.model
        eos_ids = sorted(self.decoder.eos_ids if self.ending.eos_ids is None else self.ending.eos_ids)
        config = GenerationConfig(
            max_new_tokens=self.ending.max_new_tokens,
            eos_token_id=eos_ids or None,
            pad_token_id=eos_ids[0] if eos_ids else 0,
            **_generate_settings(self.sampling),
            **self.settings,
        )
        first = _FirstToken(self.stopwatch.now)
        if self.sampling.do_sample:
            torch.manual_seed(self.sampling.seed + first_row)
        longest = max(len(ids) for ids in prompts)
        pad = config.pad_token_id
        padded = torch.tensor([[pad] * (longest - len(ids)) + ids for ids in prompts], device=self.decoder.device)
        mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts], device=padded.device)
        began = self.stopwatch.now()
        with _own_settings_only(model), self._told():
            output = model.generate(
                padded,
                attention_mask=mask,
                generation_config=config,
                # A streamer takes one row only, so the prefill seconds of a batch stay unknown.
                streamer=first if len(prompts) == 1 else None,
                stopping_criteria=_criteria(self.ending, longest),
            )
        share = (self.stopwatch.now() - began) / len(prompts)
        prefill_s = first.at - began if first.at is not None else math.nan
        rows = zip(prompts, output[:, longest:].tolist(), strict=True)
        return [_result(ids, row, eos_ids, self.ending.criterion, prefill_s, share) for ids, row in rows]

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Raises transformers' error about a setting of a wrong kind as an InputError."""
        try:
            yield
        except TypeError as error:
            if not self.settings:
                raise
            raise InputError(f"arms.{self.name}.generate={dict(self.settings)}: transformers says: {error}") from None


@contextmanager
def _own_settings_only(model: Any) -> Iterator[None]:
    """A context in which `generate` takes no default from the model's generation config; plain decoding takes none."""
    of_model = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = of_model


def generation(name: str, asked: Mapping[str, Any], *, batch: int) -> dict[str, Any]:
    """The checked settings of `generate` for the arm `name`.

    Raises:
        InputError: if transformers does not know a setting, the run sets it for all arms, or `generate` takes no batch
            of that size with it.
    """
    known = sorted(key for key in vars(GenerationConfig()) if not key.startswith("_"))
    ours = {
        "max_length",
        "max_new_tokens",
        "eos_token_id",
        "pad_token_id",
        *_generate_settings(Sampling(do_sample=True)),
    }
    for key in asked:
        if key not in known:
            raise unknown_name(f"setting of generate (arms.{name})", key, known)
        if key in ours:
            raise InputError(f"arms.{name}.generate sets {key}, which is the run's for all arms; set it there")
    try:
        mode = GenerationConfig(**asked).get_generation_mode()
    except (TypeError, ValueError) as error:
        raise InputError(f"arms.{name}.generate={dict(asked)}: {' '.join(str(error).split())}") from None
    if batch > 1 and mode == GenerationMode.ASSISTED_GENERATION:
        raise InputError(f"arms.{name}: transformers' {mode.value} takes one prompt at a time; use batch=1")
    return dict(asked)


def _result(
    prompt: list[int],
    tokens: list[int],
    eos_ids: list[int],
    criterion: Criterion | None,
    prefill_s: float,
    total_s: float,
) -> DecodeResult:
    finish: Finish = "length"
    for n, token in enumerate(tokens, start=1):
        if token in eos_ids or (criterion is not None and criterion([*prompt, *tokens[:n]])):
            tokens, finish = tokens[:n], "eos" if token in eos_ids else "stop"
            break
    return DecodeResult(tokens, [], prefill_s, total_s, finish)


def _criteria(ending: Ending, n_prompt: int) -> StoppingCriteriaList | None:
    if ending.criterion is None:
        return None
    criterion, n_seen = ending.criterion, n_prompt

    class Criterion(StoppingCriteria):  # type: ignore[misc]
        def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
            nonlocal n_seen
            # A call may follow several new tokens, and each of them may be the end.
            ends = range(n_seen + 1, input_ids.shape[1] + 1)
            n_seen = input_ids.shape[1]
            is_over = [any(criterion(row[:end]) for end in ends) for row in input_ids.tolist()]
            return torch.tensor(is_over, device=input_ids.device)

    return StoppingCriteriaList([Criterion()])


class _FirstToken(BaseStreamer):  # type: ignore[misc]
    """Records the time of the first new token: the end of the prefill."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.now, self.calls = now, 0
        self.at: float | None = None

    def put(self, value: Any) -> None:
        self.calls += 1
        if self.calls == 2:  # the first call passes the prompt
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
