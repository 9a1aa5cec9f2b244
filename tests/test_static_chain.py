"""Recorded forwards and chains give what the plain ones give, on a tape that fails where a graph would."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch

from selfspec.drafters.chain import ModelDraft
from selfspec.engine.decode import Ending, autoregress, speculate
from selfspec.engine.sampling import Sampling
from selfspec.engine.trace import DecodeResult
from selfspec.models.decoder import Decoder
from selfspec.recorded.graphed import GraphedDecoder
from selfspec.skipping.bridges import Bridge
from selfspec.skipping.plan import DraftPlan
from selfspec.skipping.skip_set import SkipSet
from selfspec.stopping import Fixed, Heuristic, StopPolicy, Threshold
from tests.contracts.architecture import LONG, MIDDLE, SHORT, counts
from tests.toys import VOCAB, toy

FAMILIES = [
    ("llama", "sdpa"),
    ("llama", "grouped_sdpa"),
    ("mistral-window", "sdpa"),
    ("gemma3", "eager"),
    ("qwen2", "eager"),
    ("gpt2", "sdpa"),
]
RAGGED = [SHORT, LONG, MIDDLE]
RULES: dict[str, StopPolicy] = {
    "fixed": Fixed(4),
    "growing": Heuristic(6, start=2, up=2, down=1, carry_over=False),
    "threshold": Threshold(9, threshold=0.1),
}


@cache
def decoders(family: str = "llama", attention: str = "sdpa") -> tuple[Decoder, GraphedDecoder]:
    decoder = Decoder(toy(family, attention))
    return decoder, GraphedDecoder(decoder)


def plans(decoder: Decoder) -> dict[str, SkipSet | DraftPlan]:
    n, width = decoder.n_layers, int(decoder.config.hidden_size)
    skip = SkipSet.parse("a1 m0,2", n)
    rng = torch.Generator().manual_seed(1)
    bridge = Bridge(torch.randn(width, generator=rng) / 9, (torch.randn(width, width, generator=rng) / 9,))
    head = torch.arange(0, VOCAB, 3)
    return {
        "none": SkipSet(n),
        "some": skip,
        "first": SkipSet.parse("a0 m0", n),
        "bridges": DraftPlan(skip, {("attn", 1): bridge}, kind="linear"),
        "head": DraftPlan(skip, head=head),
    }


def run(
    decoder: Decoder, prompts: Sequence[list[int]], drafter: Any, rule: StopPolicy, n_new: int = 14, **settings: Any
) -> list[DecodeResult]:
    stops = [rule.begin() for _ in prompts]
    return speculate(decoder, prompts, drafter=drafter, stops=stops, ending=Ending(n_new), **settings)


def told(results: list[DecodeResult]) -> list[Any]:
    return [(r.tokens, r.finish, counts(r)) for r in results]


@pytest.mark.parametrize(("family", "attention"), FAMILIES)
@pytest.mark.parametrize(
    "prompts", [pytest.param([LONG], id="one", marks=pytest.mark.slow), pytest.param(RAGGED, id="ragged")]
)
def test_a_chain_drafts_what_the_model_draft_drafts(family: str, attention: str, prompts: list[list[int]]) -> None:
    decoder, graphed = decoders(family, attention)
    for plan in plans(decoder).values():
        for rule in RULES.values():
            settings = {"needs_confidence": rule.needs_confidence}
            expected = run(decoder, prompts, ModelDraft(decoder.bind(plan), **settings), rule)
            found = run(graphed, prompts, graphed.drafter(plan, **settings), rule)
            assert told(found) == told(expected), str(plan)
            for a, b in zip(found, expected, strict=True):
                sure = [c for r in a.rounds for c in r.confidences]
                assert sure == pytest.approx([c for r in b.rounds for c in r.confidences], abs=1e-5)


@pytest.mark.parametrize(("family", "attention"), FAMILIES)
def test_token_by_token_and_plain_decoding_are_the_same_by_recordings(family: str, attention: str) -> None:
    decoder, graphed = decoders(family, attention)
    expected = [autoregress(decoder, [p], ending=Ending(20))[0].tokens for p in RAGGED]
    assert [r.tokens for r in autoregress(graphed, RAGGED, ending=Ending(20))] == expected
    assert [r.tokens for r in graphed.autoregress(RAGGED, ending=Ending(20))] == expected
    drafter = ModelDraft(graphed.bind(SkipSet.parse("m1", decoder.n_layers)))
    assert [r.tokens for r in run(graphed, RAGGED, drafter, Fixed(3), 20)] == expected


def test_sampling_is_the_same_by_recordings() -> None:
    decoder, graphed = decoders()
    sampling = Sampling(do_sample=True, temperature=1.5, top_k=20, seed=3)
    skip = SkipSet.parse("m2", decoder.n_layers)
    expected = run(decoder, RAGGED, ModelDraft(decoder.bind(skip)), Fixed(3), sampling=sampling)
    found = run(graphed, RAGGED, graphed.drafter(skip), Fixed(3), sampling=sampling)
    assert told(found) == told(expected)


@pytest.mark.parametrize("at", range(4))
def test_plain_streams_end_where_plain_decoding_ends(at: int) -> None:
    decoder, graphed = decoders()
    tokens = autoregress(decoder, [LONG], ending=Ending(24))[0].tokens
    ending = Ending(24, eos_ids=frozenset({tokens[5 * at]}))
    (expected,) = autoregress(decoder, [LONG], ending=ending)
    (found,) = graphed.autoregress([LONG], ending=ending)
    assert (found.tokens, found.finish, len(found.rounds)) == (expected.tokens, expected.finish, len(expected.rounds))
    stop = Ending(24, criterion=lambda ids: len(ids) == len(LONG) + 3 * at + 1)
    (found,) = graphed.autoregress([LONG], ending=stop)
    assert (found.tokens, found.finish) == (tokens[: 3 * at + 1], "stop")


def test_output_ends_where_the_context_ends() -> None:
    for family in ("llama", "gpt2"):
        decoder, graphed = decoders(family, "sdpa")
        prompt = (LONG * 10)[:120]
        (expected,) = autoregress(decoder, [prompt], ending=Ending(50))
        (found,) = graphed.autoregress([prompt], ending=Ending(50))
        assert found.tokens == expected.tokens
        drafter = graphed.drafter(SkipSet.parse("m1", decoder.n_layers), needs_confidence=False)
        assert run(graphed, [prompt], drafter, Fixed(7), 50)[0].tokens == expected.tokens


def test_a_draft_that_overflows_leaves_no_trace() -> None:
    decoder, graphed = decoders()
    expected = autoregress(decoder, [LONG], ending=Ending(12))[0].tokens
    skip = SkipSet.parse("a1", decoder.n_layers)
    bridge = Bridge(torch.full((int(decoder.config.hidden_size),), torch.nan, dtype=torch.float64))
    drafter = graphed.drafter(DraftPlan(skip, {("attn", 1): bridge}, kind="mean"), needs_confidence=False)
    assert run(graphed, [LONG], drafter, Fixed(5), 12)[0].tokens == expected
