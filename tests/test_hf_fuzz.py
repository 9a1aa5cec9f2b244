"""The door against `generate`, at random: settings, processors, criteria, paddings, ends and drafts of any kind.

`case(seed)` is a call; `difference(seed)` says how the answer of the door differs. A call that `generate` refuses is no
case.
"""

from __future__ import annotations

import logging
import random
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel, StoppingCriteria, WatermarkingConfig

from selfspec import DraftSpec, Fixed, SkipSet, Static, Threshold, as_custom_generate, hf_rows
from selfspec.errors import PromptError
from selfspec.skipping.plan import DraftPlan
from tests.toys import VOCAB, toy

FAMILIES = (
    "llama",
    "llama",
    "mistral-window",
    "gpt2",
    "gemma3",
    "falcon-grouped",
)  # eager float64: nan for padded rows
N_IN_EVERY_RUN, N_SLOW = 300, 10_000
NEAR = 1e-4  # `generate` chooses in float32: two scores as near as this are a tie


class Shift(LogitsProcessor):
    """Depends on length, last token and number of rows; writes into its scores."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        for row in range(len(scores)):
            scores[row, int(input_ids[row, -1]) :: 7] += 2.0 + input_ids.shape[1] % 3
        return scores


class RowBias(LogitsProcessor):
    """Made for the rows of its call, as some of transformers' own."""

    def __init__(self, n_rows: int) -> None:
        self.bias = torch.randn(n_rows, VOCAB, generator=torch.Generator().manual_seed(n_rows))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores + 2 * self.bias


class RowLengths(StoppingCriteria):
    """Ends each row at a length of its own, padding counted."""

    def __init__(self, first: int) -> None:
        self.first = first

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return torch.tensor([input_ids.shape[1] >= self.first + 2 * i for i in range(len(input_ids))])


class OneOf(StoppingCriteria):
    """Ends a row whose last token is a multiple."""

    def __init__(self, of: int) -> None:
        self.of = of

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return input_ids[:, -1] % self.of == 0


@dataclass
class Case:
    """A call of `generate`, and the draft that the door gets."""

    family: str
    ids: Tensor
    draft: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)


@cache
def model(family: str) -> PreTrainedModel:
    return toy(family, "sdpa")


DRAFTS: tuple[dict[str, Any], ...] = (
    {"draft": "none", "stop": Fixed(4)},
    {"draft": "a1 m2", "stop": Fixed(3)},
    {"draft": "a1", "stop": Threshold(8, 0.3), "lookup": True},
    {"draft": DraftSpec(DraftPlan(SkipSet.parse("a0-2 m0-2", 3)), Fixed(1), lookup="only")},
    {"draft": DraftSpec(DraftPlan(SkipSet.parse("m1", 3)), Fixed(3), tree=Static(((0,), (1,), (0, 0))))},
)


def pick(rng: random.Random, most: int = VOCAB) -> int:
    return rng.randrange(most)


def some(rng: random.Random, most: int) -> list[int]:
    return rng.sample(range(VOCAB), rng.randint(1, most))


def case(seed: int) -> Case:
    """A call; half of all settings are left out."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    n_rows, n_prompt = rng.choice((1, 1, 2, 3)), rng.randint(1, 14)
    ids = torch.randint(1, VOCAB - 1, (n_rows, n_prompt))
    settings: dict[str, Any] = {"do_sample": False}
    pad = VOCAB - 1
    padding = rng.choice(("none", "mask", "inferred"))
    mask = torch.ones_like(ids)
    if padding != "none":
        for row in range(n_rows):
            mask[row, : rng.randrange(n_prompt)] = 0
        ids = ids.masked_fill(mask == 0, pad)
        settings["pad_token_id"] = pad
    if padding == "mask":
        settings["attention_mask"] = mask
    eos = rng.choice((None, pick(rng), some(rng, 3), some(rng, 8)))
    if eos is not None:
        settings["eos_token_id"] = eos
    n_new = rng.randint(1, 12)
    settings |= rng.choice(({"max_new_tokens": n_new}, {"max_length": n_prompt + n_new}))
    possible: dict[str, Any] = {
        "repetition_penalty": rng.uniform(0.7, 2.5),
        "no_repeat_ngram_size": rng.randint(1, 3),
        "encoder_repetition_penalty": rng.uniform(0.7, 2.5),
        "encoder_no_repeat_ngram_size": rng.randint(1, 3),
        "bad_words_ids": [some(rng, 2) for _ in range(3)],
        "min_length": n_prompt + pick(rng, 10),
        "min_new_tokens": pick(rng, 10),
        "forced_bos_token_id": pick(rng),
        "forced_eos_token_id": pick(rng),
        "suppress_tokens": some(rng, 20),
        "begin_suppress_tokens": some(rng, 20),
        "sequence_bias": [[some(rng, 2), rng.uniform(-5, 5)] for _ in range(3)],
        "renormalize_logits": True,
        "remove_invalid_values": True,
        "watermarking_config": WatermarkingConfig(bias=3.0, context_width=1),
        "exponential_decay_length_penalty": (pick(rng, 6), rng.uniform(1.0, 1.6)),
        "prefix_allowed_tokens_fn": allowed_by_row(pick(rng)),
        "logits_processor": rng.choice(([Shift()], [RowBias(n_rows)], [Shift(), RowBias(n_rows)])),
        "stopping_criteria": rng.choice(
            ([RowLengths(n_prompt + 2)], [OneOf(rng.randint(2, 9))], [RowLengths(n_prompt + 6), OneOf(7)])
        ),
        "use_cache": False,
        "cache_implementation": "static",
        "return_dict_in_generate": True,
        # of one token that is left, so that samples are no matter of chance
        "do_sample": True,
    }
    wanted = rng.choice((0.0, 0.1, 0.25))
    settings |= {name: value for name, value in possible.items() if rng.random() < wanted}
    if eos is None:
        settings.pop("exponential_decay_length_penalty", None)  # `generate` needs an end token for it
    if settings["do_sample"]:
        settings |= {"top_k": 1, "temperature": rng.uniform(0.3, 2), "top_p": rng.uniform(0.1, 1)}
        settings |= rng.choice(({}, {"min_p": 0.1}, {"num_return_sequences": 2}))
    return Case(rng.choice(FAMILIES), ids, rng.choice(DRAFTS), settings)


def allowed_by_row(step: int) -> Any:
    """A constraint that goes by row, as a grammar for each would."""

    def allowed(row: int, ids: Tensor) -> list[int]:
        return [(row * 11 + int(ids[-1]) * step + k) % VOCAB for k in range(5)]

    return allowed


def answer(asked: Case, **how: Any) -> Tensor:
    """The sequences of `generate`, of the door if `custom_generate` is given."""
    torch.manual_seed(0)
    found: Any = model(asked.family).generate(asked.ids, **asked.settings, **how)
    return found if isinstance(found, Tensor) else found.sequences  # type: ignore[no-any-return]


def difference(seed: int) -> str | None:
    """None if the door gives what `generate` gives; `no case` if that refuses; `tie`, or what else is different."""
    asked = case(seed)
    try:
        expected = answer(asked)
    except (ValueError, TypeError, RuntimeError, IndexError):
        return "no case"
    try:
        found = answer(asked, custom_generate=as_custom_generate(**asked.draft))
    except Exception as error:
        if isinstance(error, PromptError) and any(bool(step.isnan().any()) for step in scores(asked)):
            return "no case"  # of nan `generate` makes some token
        return f"{seed}: {type(error).__name__} {error}; {asked}"
    if torch.equal(found, expected):
        return None
    return "tie" if is_tie(asked, found, expected) else f"{seed}: {found.tolist()} is not {expected.tolist()}; {asked}"


def scores(asked: Case) -> tuple[Tensor, ...]:
    """What `generate` chooses from at each step, [B, V]."""
    wanted = {**asked.settings, "return_dict_in_generate": True, "output_scores": True}
    torch.manual_seed(0)
    found: Any = model(asked.family).generate(asked.ids, **wanted)
    return found.scores  # type: ignore[no-any-return]


def is_tie(asked: Case, found: Tensor, expected: Tensor) -> bool:
    """Whether the first different tokens have equal scores in `generate`, in any row."""
    n = min(found.shape[1], expected.shape[1])
    row, at = (found[:, :n] != expected[:, :n]).nonzero().tolist()[0] if n else (0, 0)
    pair = scores(asked)[at - asked.ids.shape[1]][row, [int(found[row, at]), int(expected[row, at])]]
    return bool((pair[0] - pair[1]).abs() < NEAR)


def differences(seeds: Iterable[int]) -> Iterator[str]:
    """The differences of many calls, without those that `generate` refuses."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield from (found for found in map(difference, seeds) if found is not None)


def test_any_call_of_the_door_gives_what_generate_gives() -> None:
    found = list(differences(range(N_IN_EVERY_RUN)))
    assert [line for line in found if line not in ("no case", "tie")] == []
    assert len(found) < N_IN_EVERY_RUN / 10, "most calls must be calls"


@pytest.mark.slow
def test_ten_thousand_calls_of_the_door_give_what_generate_gives() -> None:
    found = list(differences(range(N_IN_EVERY_RUN, N_IN_EVERY_RUN + N_SLOW)))
    assert [line for line in found if line not in ("no case", "tie")] == []


@pytest.mark.parametrize("part", ["batch", "padding"])
def test_a_door_that_forgets_a_part_of_a_row_is_caught(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = hf_rows.RowView.batch

    def broken(view: hf_rows.RowView, ids: list[int]) -> Tensor:
        lines = whole(view, ids)
        n_padding = view.input_ids.shape[1] - len(view.prompt)
        return lines[:1] if part == "batch" else lines[:, n_padding:]

    monkeypatch.setattr(hf_rows.RowView, "batch", broken)
    assert any(line not in ("no case", "tie") for line in differences(range(60)))
