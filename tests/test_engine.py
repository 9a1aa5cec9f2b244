"""The engine on one small model: how sequences end, who is told what, and which random stream is drawn from."""

# K drafted, V vocabulary

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from selfspec.drafters.chain import ModelDraft
from selfspec.engine.cache import ClockCache
from selfspec.engine.decode import Ending, Kind, autoregress, speculate
from selfspec.engine.protocols import BaseDrafter, Draft, Drafter, Row
from selfspec.engine.sampling import Chooser, Sampling
from selfspec.engine.trace import DecodeResult
from selfspec.errors import InputError
from selfspec.models.decoder import Decoder
from selfspec.skipping.skip_set import SkipSet
from selfspec.stopping import Fixed
from tests.contracts.architecture import LONG, ROUNDING, SHORT, counts, without
from tests.toys import toy

NOTHING, SOME, ALL = "none", "m2", "a0-2 m0-2"  # drafts that are always, sometimes and hardly ever right
SAMPLING = Sampling(do_sample=True, temperature=1.5, top_k=20, repetition_penalty=1.2, seed=3)


@cache
def decoder_of(family: str = "llama", **overrides: Any) -> Decoder:
    return Decoder(toy(family, **overrides))


def drafting(decoder: Decoder, skip: str, **settings: Any) -> ModelDraft:
    return ModelDraft(decoder.bind(SkipSet.parse(skip, decoder.n_layers)), **settings)


def run(
    decoder: Decoder,
    prompts: Sequence[list[int]],
    drafter: Drafter,
    ending: Ending,
    *,
    max_draft: int = 4,
    **settings: Any,
) -> list[DecodeResult]:
    stops = [Fixed(max_draft).begin() for _ in prompts]
    return speculate(decoder, prompts, drafter=drafter, stops=stops, ending=ending, **settings)


@pytest.fixture(scope="module")
def reference() -> list[int]:
    """What the model says after the long prompt, plainly decoded."""
    return autoregress(decoder_of(), [LONG], ending=Ending(24))[0].tokens


# Endings


@pytest.mark.parametrize("skip", [NOTHING, SOME, ALL])
@pytest.mark.parametrize("sampling", [None, SAMPLING], ids=["greedy", "sampled"])
@pytest.mark.parametrize("n_new", [1, 2, 3, 17])
def test_every_token_is_the_first_or_was_committed_in_a_round(skip: str, sampling: Sampling | None, n_new: int) -> None:
    decoder = decoder_of()
    for result in run(decoder, [SHORT, LONG], drafting(decoder, skip), Ending(n_new), sampling=sampling):
        assert len(result.tokens) == n_new == 1 + sum(r.committed for r in result.rounds)
        assert result.finish == "length"
        assert all(1 <= r.committed <= r.accepted + 1 <= r.drafted + 1 for r in result.rounds)


def test_one_token_needs_no_round(reference: list[int]) -> None:
    decoder = decoder_of()
    result = run(decoder, [LONG], drafting(decoder, NOTHING), Ending(1))[0]
    assert (result.tokens, result.rounds, result.finish) == (reference[:1], [], "length")


@pytest.mark.parametrize("n_new", range(2, 9))
def test_no_draft_is_longer_than_what_is_left(reference: list[int], n_new: int) -> None:
    decoder = decoder_of()
    result = run(decoder, [LONG], drafting(decoder, NOTHING), Ending(n_new), max_draft=5)[0]
    assert result.tokens == reference[:n_new]
    left = n_new - 1
    for r in result.rounds:
        assert r.drafted == min(5, left - 1)
        left -= r.committed
    assert left == 0


@pytest.mark.parametrize("at", range(1, 8))
def test_end_token_inside_an_accepted_draft_ends_there(reference: list[int], at: int) -> None:
    decoder = decoder_of()
    eos = reference[at]
    first = reference.index(eos)
    unused = next(token for token in range(64) if token not in reference)
    ending = Ending(24, eos_ids=frozenset({unused, eos}))
    result = run(decoder, [LONG], drafting(decoder, NOTHING), ending)[0]
    assert (result.tokens, result.finish) == (reference[: first + 1], "eos")
    assert len(result.tokens) == 1 + sum(r.committed for r in result.rounds)


def test_the_end_tokens_of_the_model_are_used_unless_others_are_given(reference: list[int]) -> None:
    eos = reference[5]
    decoder = Decoder(toy("llama", eos_token_id=[eos]))
    drafter = drafting(decoder, SOME)
    assert run(decoder, [LONG], drafter, Ending(24))[0].tokens == reference[: reference.index(eos) + 1]
    assert run(decoder, [LONG], drafter, Ending(24, eos_ids=frozenset()))[0].tokens == reference


def test_end_token_as_the_first_token(reference: list[int]) -> None:
    decoder = decoder_of()
    ending = Ending(24, eos_ids=frozenset(reference[:1]))
    result = run(decoder, [LONG], drafting(decoder, SOME), ending)[0]
    assert (result.tokens, result.rounds, result.finish) == (reference[:1], [], "eos")


def test_rows_that_end_early_leave_the_others_alone(reference: list[int]) -> None:
    decoder = decoder_of()
    other = autoregress(decoder, [SHORT], ending=Ending(12))[0].tokens
    for eos in (reference[0], other[6]):
        ending = Ending(12, eos_ids=frozenset({eos}))
        prompts = [SHORT, LONG, SHORT[1:]]
        alone = [run(decoder, [ids], drafting(decoder, SOME), ending)[0] for ids in prompts]
        together = run(decoder, prompts, drafting(decoder, SOME), ending)
        assert [(r.tokens, r.finish, counts(r)) for r in together] == [(r.tokens, r.finish, counts(r)) for r in alone]
    everything = Ending(24, eos_ids=frozenset(range(64)))
    assert [len(r.tokens) for r in run(decoder, prompts, drafting(decoder, SOME), everything)] == [1, 1, 1]


@pytest.mark.parametrize("skip", [NOTHING, SOME])
@pytest.mark.parametrize("n_new", [1, 2, 4, 9])
def test_criterion_ends_inside_a_draft_and_sees_prompt_and_output(reference: list[int], skip: str, n_new: int) -> None:
    seen = []

    def long_enough(ids: list[int]) -> bool:
        seen.append(list(ids))
        return len(ids) == len(LONG) + n_new

    decoder = decoder_of()
    result = run(decoder, [LONG], drafting(decoder, skip), Ending(24, criterion=long_enough))[0]
    assert (result.tokens, result.finish) == (reference[:n_new], "stop")
    assert seen == [LONG + reference[:n] for n in range(1, n_new + 1)]


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])  # rotary, and tables of positions that end at the context
def test_output_ends_where_the_context_ends(family: str) -> None:
    context = len(LONG) + 3
    decoder = decoder_of(family, max_position_embeddings=context)
    prompts = [LONG, SHORT, [*LONG, 1, 2], LONG[1:]]  # the third has room for one token
    alone = [run(decoder, [ids], drafting(decoder, SOME), Ending(99))[0] for ids in prompts]
    assert [len(ids) + len(r.tokens) for ids, r in zip(prompts, alone, strict=True)] == [context] * 4
    assert all(r.finish == "length" for r in alone)
    together = run(decoder, prompts, drafting(decoder, SOME), Ending(99))
    assert [(r.tokens, counts(r)) for r in together] == [(r.tokens, counts(r)) for r in alone]


@pytest.mark.parametrize("ids", [[1] * 22, [1] * 23, []], ids=["full", "over", "empty"])
def test_prompt_without_room_or_without_tokens_is_refused(ids: list[int]) -> None:
    decoder = decoder_of(max_position_embeddings=22)
    with pytest.raises(InputError, match=f"prompt 1 has {len(ids)} tokens, and the model's context holds 22"):
        run(decoder, [SHORT, ids], drafting(decoder, NOTHING), Ending(4))


def test_no_new_tokens_is_refused() -> None:
    with pytest.raises(InputError, match="at least 1"):
        Ending(0)


def test_no_prompts_give_no_results() -> None:
    assert run(decoder_of(), [], drafting(decoder_of(), SOME), Ending(4)) == []


# Drafts


@dataclass
class Scripted(BaseDrafter):
    """Proposes what it is told, whatever the model thinks: each round takes the next script."""

    scripts: list[list[int]]
    rows: list[Row] = field(default_factory=list)

    def propose(self, rows: Sequence[Row], *, cache: ClockCache) -> list[Draft]:
        self.rows.extend(rows)
        script = self.scripts.pop(0) if self.scripts else []
        return [Draft(script[: row.limit]) for row in rows]


def test_rounds_without_a_draft_go_on(reference: list[int]) -> None:
    wrong = [(token + 1) % 64 for token in reference]
    scripts = [[], reference[2:5], [], [wrong[7]], [], [reference[9], wrong[10]]]
    result = run(decoder_of(), [LONG], Scripted(scripts), Ending(24))[0]
    assert result.tokens == reference
    expected = [(0, 0, 1), (3, 3, 4), (0, 0, 1), (1, 0, 1), (0, 0, 1), (2, 1, 2)]
    assert counts(result)[:6] == expected


def test_drafter_sees_all_tokens_and_the_right_limit(reference: list[int]) -> None:
    drafter = Scripted([reference[1:4], reference[5:7]])
    seen: list[tuple[list[int], int]] = []

    class Spy(BaseDrafter):
        def propose(self, rows: Sequence[Row], *, cache: ClockCache) -> list[Draft]:
            seen.append((list(rows[0].ids), rows[0].limit))
            return drafter.propose(rows, cache=cache)

    run(decoder_of(), [LONG], Spy(), Ending(9))
    assert seen == [(LONG + reference[:n], 9 - n - 1) for n in (1, 5, 8)]


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "falcon-grouped", "gptj", "mistral-window"])
@torch.inference_mode()
def test_skipping_layer_zero_does_not_shift_positions(family: str) -> None:
    decoder = decoder_of(family)
    skip = SkipSet.parse("a0", decoder.n_layers)
    ids_BT = torch.tensor([LONG])
    model = decoder.model
    assert isinstance(model, PreTrainedModel)
    expected_BTV = without(model, skip)(ids_BT).logits
    draft, kv = decoder.bind(skip), decoder.new_cache(n_rows=1, capacity=len(LONG))
    rows = [draft(ids_BT[:, t : t + 1], starts=[t], cache=kv) for t in range(len(LONG))]
    assert (torch.cat(rows, dim=1) - expected_BTV).abs().max() < ROUNDING


@pytest.mark.parametrize("skip", [NOTHING, SOME])
@pytest.mark.parametrize("prompts", [[LONG], [SHORT, LONG, SHORT[2:]]], ids=["alone", "batch"])
def test_listener_hears_exactly_the_tokens_and_what_they_are(skip: str, prompts: list[list[int]]) -> None:
    heard: list[list[tuple[list[int], list[Kind]]]] = [[] for _ in prompts]

    def listen(row: int, tokens: list[int], kinds: list[Kind]) -> None:
        heard[row].append((list(tokens), list(kinds)))

    decoder = decoder_of()
    eos = autoregress(decoder, [prompts[0]], ending=Ending(24))[0].tokens[14]
    ending = Ending(24, eos_ids=frozenset({eos}))
    for calls, result in zip(
        heard, run(decoder, prompts, drafting(decoder, skip), ending, listener=listen), strict=True
    ):
        assert [token for tokens, _ in calls for token in tokens] == result.tokens
        (first, _), *rounds = calls
        assert first == result.tokens[:1]
        for (tokens, kinds), r in zip(rounds, result.rounds, strict=True):
            last = "bonus" if r.accepted == r.drafted else "correction"
            assert len(tokens) == r.committed
            assert kinds == [*["accepted"] * r.accepted, last][: r.committed]


# Random streams


def test_a_seed_gives_the_same_tokens_and_another_seed_gives_others() -> None:
    decoder = decoder_of()

    def tokens(seed: int) -> list[int]:
        sampling = Sampling(do_sample=True, temperature=1.5, seed=seed)
        return run(decoder, [LONG], drafting(decoder, SOME), Ending(16), sampling=sampling)[0].tokens

    assert tokens(0) == tokens(0)
    assert len({tuple(tokens(seed)) for seed in range(4)}) == 4


def test_a_row_draws_the_same_whatever_stands_beside_it() -> None:
    decoder = decoder_of()
    drafter = drafting(decoder, SOME)
    three = run(decoder, [LONG, SHORT, LONG[2:]], drafter, Ending(16), sampling=SAMPLING)
    two = run(decoder, [LONG, SHORT], drafter, Ending(16), sampling=SAMPLING)
    one = run(decoder, [LONG], drafter, Ending(16), sampling=SAMPLING)
    assert [r.tokens for r in three[:2]] == [r.tokens for r in two]
    assert three[0].tokens == one[0].tokens
    assert [counts(r) for r in three[:2]] == [counts(r) for r in two]


def test_equal_prompts_in_a_batch_get_different_tokens() -> None:
    results = run(decoder_of(), [LONG] * 4, drafting(decoder_of(), SOME), Ending(16), sampling=SAMPLING)
    assert len({tuple(r.tokens) for r in results}) == 4


def test_no_two_streams_begin_alike() -> None:
    choosers = [Chooser(Sampling(do_sample=True, seed=seed), row=row) for seed in range(12) for row in range(12)]
    streams = [rng for chooser in choosers for rng in (chooser.target_rng, chooser.draft_rng)]
    assert len({tuple(torch.rand(3, generator=rng).tolist()) for rng in streams}) == len(streams)


@pytest.mark.parametrize("sample", [True, False], ids=["drawn", "point mass"])
@pytest.mark.parametrize("skip", [NOTHING, SOME])
def test_drafting_and_judging_draw_from_streams_of_their_own(skip: str, sample: bool) -> None:
    inner = drafting(decoder_of(), skip, sample=sample)
    target_states, draft_states = [], []

    class Spy(BaseDrafter):
        def propose(self, rows: Sequence[Row], *, cache: ClockCache) -> list[Draft]:
            chooser = rows[0].chooser
            before = chooser.target_rng.get_state(), chooser.draft_rng.get_state()
            proposals = inner.propose(rows, cache=cache)
            target_states.append((before[0], chooser.target_rng.get_state()))
            draft_states.append((before[1], chooser.draft_rng.get_state()))
            return proposals

    run(decoder_of(), [LONG], Spy(), Ending(16), sampling=SAMPLING)
    assert all(torch.equal(before, after) for before, after in target_states)
    assert all(torch.equal(after, before) for (_, after), (before, _) in itertools.pairwise(draft_states))
    if not sample:
        assert torch.equal(draft_states[0][0], draft_states[-1][1])


@pytest.mark.parametrize("penalty", [1.0, 1.4])
def test_greedy_with_a_penalty_equals_generate(penalty: float) -> None:
    decoder = decoder_of()
    settings = {"do_sample": False, "max_new_tokens": 16, "repetition_penalty": penalty}
    theirs = decoder.model.generate(torch.tensor([LONG]), **settings)[0, len(LONG) :].tolist()  # type: ignore[operator]
    for skip in (NOTHING, SOME, ALL):
        sampling = Sampling(repetition_penalty=penalty)
        result = run(decoder, [LONG], drafting(decoder, skip), Ending(16), sampling=sampling)[0]
        assert result.tokens == theirs, f"skip={skip}"
        assert skip != NOTHING or result.accepted == result.drafted > 0


@pytest.mark.parametrize("do_sample", [False, True], ids=["greedy", "sampled"])
def test_warps_are_given_every_token_so_far_by_draft_and_target_alike(do_sample: bool) -> None:
    def of_other_parity(ids_1T: Tensor, logits_1V: Tensor) -> Tensor:
        """Odd and even tokens in turn, and never one that was said before."""
        is_banned_V = torch.arange(64) % 2 == ids_1T.shape[1] % 2
        return logits_1V.masked_fill(is_banned_V, -torch.inf).index_fill(1, ids_1T[0, len(SHORT) :], -torch.inf)

    decoder = decoder_of()
    sampling = Sampling(do_sample=do_sample, warps=(of_other_parity,))
    plain = autoregress(decoder, [SHORT], ending=Ending(24), sampling=sampling)[0]
    for skip in (NOTHING, SOME, ALL):
        result = run(decoder, [SHORT], drafting(decoder, skip), Ending(24), sampling=sampling)[0]
        assert [(i + token) % 2 for i, token in enumerate(result.tokens)] == [(len(SHORT) + 1) % 2] * 24
        assert len(set(result.tokens)) == 24
        assert do_sample or result.tokens == plain.tokens, f"skip={skip}"
        assert skip != NOTHING or result.accepted == result.drafted > 0


def test_sampled_draft_that_skips_nothing_is_accepted_whole() -> None:
    for result in run(decoder_of(), [LONG, SHORT], drafting(decoder_of(), NOTHING), Ending(24), sampling=SAMPLING):
        assert result.accepted == result.drafted > 0
