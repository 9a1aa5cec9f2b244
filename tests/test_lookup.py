"""Prompt lookup proposes what followed before, and whatever it proposes, the output is the target's own."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from selfspec.drafters.lookup import BETWEEN, LookupDraft, Memory, joined
from selfspec.engine.cache import ClockCache
from selfspec.engine.decode import Ending, autoregress
from selfspec.engine.protocols import BaseDrafter, Draft, Row
from selfspec.engine.sampling import Chooser, Sampling
from selfspec.errors import InputError
from selfspec.models.decoder import Decoder
from selfspec.stopping import Fixed
from tests.contracts.architecture import LONG, MIDDLE, SHORT, counts
from tests.test_engine import SAMPLING, SOME, decoder_of, drafting, run
from tests.test_sampling import WARPS, chi_square, committed, distributions, exact, point
from tests.toys import toy

ENDING = Ending(20)
REPEATING = [*SHORT, 1, 2, *SHORT, 3, *SHORT]  # what came after it was said twice, differently
families = pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
samplings = pytest.mark.parametrize("sampling", [None, SAMPLING], ids=["greedy", "sampled"])


def by_definition(ids: list[int], n_tokens: int, max_ngram: int, min_ngram: int, agreed: int = 0) -> list[int]:
    """The same by looking everywhere, one token at a time."""
    for n in range(max_ngram, min_ngram - 1, -1):
        for start in range(len(ids) - n - 1, -1, -1):
            if ids[start : start + n] == ids[len(ids) - n :]:
                text = list(ids)
                for i in range(min(n_tokens, 2 * n)):
                    text.append(text[start + n + i])
                return text[len(ids) :]
    places = [i + 1 for i in range(len(ids) - 1) if ids[i] == ids[-1]][-2:]
    n = 0
    while (
        len(places) == 2
        and n < min(n_tokens, agreed, len(ids) - places[1])
        and ids[places[0] + n] == ids[places[1] + n]
    ):
        n += 1
    return ids[places[1] :][:n] if n else []


def following(ids: list[int], *, n_tokens: int, max_ngram: int, min_ngram: int, agreed: int = 0) -> list[int]:
    return LookupDraft(max_ngram=max_ngram, min_ngram=min_ngram, agreed=agreed).following(ids, n_tokens)


def row(ids: list[int], limit: int, sampling: Sampling | None = None) -> Row:
    return Row(0, ids, limit, Fixed(1).begin(), Chooser(sampling or Sampling()))


def no_cache() -> ClockCache:
    return ClockCache(0, n_rows=1, capacity=0)


class Recorded(BaseDrafter):
    """Proposes token 9 as often as it may, and remembers the limits it was given."""

    def __init__(self) -> None:
        self.limits: list[list[int]] = []

    def propose(self, rows: Sequence[Row], *, cache: ClockCache) -> list[Draft]:
        self.limits.append([r.limit for r in rows])
        return [Draft([9] * r.limit, confidences=[0.5] * r.limit) for r in rows]


# What is found


# Few tokens, so that there is much to find; of ids whose bytes look alike when read across two of them.
@pytest.mark.parametrize("tokens", [(0, 1), (0, 1, 256, 65536), (0, 257, 16777216), tuple(range(8))])
def test_the_longest_end_counts_and_then_the_most_recent(tokens: tuple[int, ...]) -> None:
    rng = random.Random(0)
    for _ in range(500):
        ids = rng.choices(tokens, k=rng.randrange(1, 24))
        shortest = rng.randrange(1, 4)
        longest, n_tokens = shortest + rng.randrange(3), rng.randrange(1, 6)
        agreed = rng.randrange(4)
        found = following(ids, n_tokens=n_tokens, max_ngram=longest, min_ngram=shortest, agreed=agreed)
        assert found == by_definition(ids, n_tokens, longest, shortest, agreed), (
            f"{ids=} {longest=} {shortest=} {agreed=}"
        )


def test_a_repeated_text_is_proposed_as_it_was() -> None:
    text = LONG
    for n in range(3, len(text)):
        ids = [*text, *text[:n]]
        assert following(ids, n_tokens=4, max_ngram=3, min_ngram=3) == [*text, *text][n : n + 4]


@pytest.mark.parametrize("period", [1, 2, 3])
def test_a_text_that_repeats_every_few_tokens_goes_on_repeating(period: int) -> None:
    loop = [5, 6, 7][:period] * 12
    drafter = LookupDraft(max_ngram=3, min_ngram=1, per_match=10)
    assert drafter.following([1, *loop[: 3 * period]], 10) == loop[:10]


@pytest.mark.parametrize("n", range(2, 9))
def test_the_longer_the_match_the_more_is_proposed_and_from_a_memory_less(n: int) -> None:
    end, after = list(range(10, 10 + n)), list(range(50, 70))
    copied = LookupDraft().following([*end, *after, *end], 30)
    assert copied == after[: min(2 * min(n, 6), 10)]
    remembered = LookupDraft(memory=Memory(joined([[*end, *after]]))).following([1, *end], 30)
    assert remembered == after[: min(n, 6)]
    assert LookupDraft(per_match=1).following([*end, *after, *end], 30) == after[: min(n, 6)]


@pytest.mark.parametrize(
    ("ids", "proposed"),
    [
        ([5, 1, 2, 3, 5, 1, 2, 4, 8, 5], [1, 2]),  # behind both places, as far as they agree
        ([5, 1, 2, 3, 4, 5, 1, 2, 3, 4, 8, 5], [1, 2, 3]),  # no more than `agreed`
        ([5, 1, 2, 5, 2, 1, 8, 5], []),  # they do not
        ([5, 1, 2, 8, 5], []),  # there is one only
    ],
)
def test_a_single_token_counts_where_its_last_two_places_agree(ids: list[int], proposed: list[int]) -> None:
    assert LookupDraft().following(ids, 9) == proposed
    assert LookupDraft(agreed=0).following(ids, 9) == []
    if proposed:
        assert LookupDraft().following(ids, 1) == proposed[:1]


@pytest.mark.parametrize("ids", [[4], [4, 4], [4, 5], list(range(30))])
def test_nothing_is_found_where_nothing_repeats(ids: list[int]) -> None:
    assert following(ids, n_tokens=4, max_ngram=3, min_ngram=2) == []


@pytest.mark.parametrize("limit", range(6))
def test_no_proposal_is_longer_than_its_limit_or_its_setting(limit: int) -> None:
    (proposal,) = LookupDraft(max_tokens=3).propose([row(REPEATING, limit)], cache=no_cache())
    assert proposal.tokens == [3, *SHORT][: min(limit, 3)]


# In a memory


def in_memory(texts: list[list[int]], ids: list[int], n_tokens: int, max_ngram: int, min_ngram: int) -> list[int]:
    """The same by looking everywhere: the longest end, then the row's own text, then the last place that goes on."""
    for n in range(min(max_ngram, len(ids) - 1), min_ngram - 1, -1):
        if own := by_definition(ids, n_tokens, n, n):
            return own
        places = [(t, i) for t in texts for i in range(len(t) - n) if t[i : i + n] == ids[len(ids) - n :]]
        if places:
            text, at = places[-1]
            return text[at + n :][: min(n_tokens, n)]
    return []


@pytest.mark.parametrize("tokens", [(0, 1, 2), (0, 257, 16777216), tuple(range(4))])
def test_the_longest_match_counts_and_no_proposal_leaves_its_text(tokens: tuple[int, ...]) -> None:
    rng = random.Random(1)
    n_found = 0
    for _ in range(500):
        texts = [rng.choices(tokens, k=rng.randrange(6)) for _ in range(rng.randrange(4))]
        ids = rng.choices(tokens, k=rng.randrange(1, 12))
        n_tokens = rng.randrange(1, 6)
        drafter = LookupDraft(max_ngram=3, min_ngram=2, agreed=0, memory=Memory(joined(texts)))
        found = drafter.following(ids, n_tokens)
        assert found == in_memory(texts, ids, n_tokens, 3, 2), f"{ids=} {texts=}"
        assert BETWEEN not in found
        n_found += found != following(ids, n_tokens=n_tokens, max_ngram=3, min_ngram=2)
    assert n_found > 20, "the memory was hardly ever asked: this test proves little"


@pytest.mark.parametrize("n_right", range(7))
def test_a_memory_is_asked_while_a_fifth_of_its_proposals_are_right(n_right: int) -> None:
    n_most = 5 * (n_right + 1)
    places = [[3 * i, 3 * i + 1, 3 * i + 2] for i in range(20)]
    memory = Memory(joined(places))
    # The last tokens are what the memory knows: the earlier ones are further off than it matters.
    text = [(*p[:2], p[2] if i >= 20 - n_right else 99) for i, p in enumerate(places)]
    for n_matches in range(n_right, 17):
        ids = [98, *(token for triple in text[20 - n_matches :] for token in triple)]
        found = LookupDraft(memory=memory).following([*ids, 0, 1], 9)
        assert found == ([2] if n_matches <= min(n_most, 16) else []), f"{n_matches=}"


def test_what_a_memory_knew_long_ago_does_not_count() -> None:
    memory = Memory(joined([[3 * i, 3 * i + 1, 3 * i + 2] for i in range(20)]))
    wrong = [token for i in range(1, 17) for token in (3 * i, 3 * i + 1, 99)]
    between = list(range(100, 150))
    assert LookupDraft(memory=memory).following([*wrong, 0, 1], 9) == []
    assert LookupDraft(memory=memory).following([98, *range(51, 60), *wrong, 0, 1], 9) == []  # right before
    assert LookupDraft(memory=memory).following([*wrong, *between, 0, 1], 9) == [2]


@families
@samplings
def test_with_a_memory_of_anything_the_output_is_the_target_s_own(family: str, sampling: Sampling | None) -> None:
    decoder, prompts = decoder_of(family), [SHORT, REPEATING, LONG, MIDDLE]
    plain = [autoregress(decoder, [ids], ending=ENDING)[0].tokens for ids in prompts]
    known = Memory(joined([ids + tokens for ids, tokens in zip(prompts, plain, strict=True)]))
    noise = Memory(joined([random.Random(0).choices(range(64), k=2000)]))
    for memory in (known, noise):
        drafter = LookupDraft(drafting(decoder, SOME), min_ngram=1, memory=memory)
        together = run(decoder, prompts, drafter, ENDING, sampling=sampling)
        for i, ids in enumerate(prompts):
            alone = run(decoder, [ids], drafter, ENDING, sampling=sampling, first_row=i)[0]
            assert (together[i].tokens, counts(together[i])) == (alone.tokens, counts(alone))
        if sampling is None:
            assert [r.tokens for r in together] == plain
    if sampling is None:
        results = run(decoder, prompts, LookupDraft(memory=known), ENDING)
        assert sum(r.accepted for r in results) > sum(len(r.tokens) for r in results) / 2, "nothing was remembered"


# Beside another drafter


def test_rows_with_a_match_may_propose_nothing_to_the_other_drafter() -> None:
    inner = Recorded()
    rows = [row(REPEATING, 2), row(LONG, 3), row(REPEATING, 0), row(SHORT, 1)]
    proposals = LookupDraft(inner).propose(rows, cache=no_cache())
    assert inner.limits == [[0, 3, 0, 1]]
    assert [p.tokens for p in proposals] == [[3, SHORT[0]], [9, 9, 9], [], [9]]
    assert [len(p.confidences) for p in proposals] == [0, 3, 0, 1]
    assert [r.limit for r in rows] == [2, 3, 0, 1], "the rows themselves were changed"


def test_the_other_drafter_rests_where_every_row_has_a_match() -> None:
    inner = Recorded()
    LookupDraft(inner).propose([row(REPEATING, 2), row([1, 2, 1, 2], 2)], cache=no_cache())
    assert inner.limits == []


def test_what_is_looked_up_is_a_point_mass_when_the_target_samples() -> None:
    (proposal,) = LookupDraft().propose([row(REPEATING, 2, SAMPLING)], cache=no_cache())
    assert proposal.tokens and proposal.probabilities is None


# Lossless


@families
@samplings
@pytest.mark.parametrize("min_ngram", [1, 2])
def test_alone_it_says_what_the_target_says_or_draws_as_it_draws(
    family: str, sampling: Sampling | None, min_ngram: int
) -> None:
    decoder, prompts = decoder_of(family), [SHORT, REPEATING, LONG, MIDDLE]
    together = run(decoder, prompts, LookupDraft(min_ngram=min_ngram), ENDING, sampling=sampling)
    assert sum(r.drafted for r in together) > 0
    for i, ids in enumerate(prompts):
        alone = run(decoder, [ids], LookupDraft(min_ngram=min_ngram), ENDING, sampling=sampling, first_row=i)[0]
        assert (together[i].tokens, counts(together[i])) == (alone.tokens, counts(alone))
        if sampling is None:
            assert alone.tokens == autoregress(decoder, [ids], ending=ENDING)[0].tokens


@families
@samplings
@pytest.mark.parametrize("skip", [SOME, "a1 m0-2"])
def test_in_front_of_a_model_draft_no_row_disturbs_another(family: str, sampling: Sampling | None, skip: str) -> None:
    decoder, prompts = decoder_of(family), [SHORT, REPEATING, LONG, MIDDLE]
    drafter = LookupDraft(drafting(decoder, skip))
    together = run(decoder, prompts, drafter, ENDING, sampling=sampling)
    for i, ids in enumerate(prompts):
        alone = run(decoder, [ids], drafter, ENDING, sampling=sampling, first_row=i)[0]
        assert (together[i].tokens, counts(together[i])) == (alone.tokens, counts(alone)), f"{skip=}"
        if sampling is None:
            assert alone.tokens == autoregress(decoder, [ids], ending=ENDING)[0].tokens, f"{skip=}"


def test_an_answer_that_copies_the_prompt_is_accepted_whole() -> None:
    def as_before(ids_1T: Tensor, logits_1V: Tensor) -> Tensor:
        return logits_1V.index_fill(1, ids_1T[0, -len(LONG)], torch.inf)

    drafter, sampling = LookupDraft(max_tokens=9, per_match=5), Sampling(warps=(as_before,))
    (result,) = run(decoder_of(), [LONG], drafter, Ending(51), sampling=sampling)
    assert result.tokens == (LONG * 3)[:51]
    # The prompt's forward gives one token and a round without a match another: two are enough to look for. From then on
    # a round adds 9 tokens and a bonus; the last one has room for 8.
    assert counts(result) == [(0, 0, 1), *[(9, 9, 10)] * 4, (8, 8, 9)]


@pytest.mark.parametrize("family", ["llama", "gpt2"])  # rotary, and a table of positions that ends at the context
def test_output_ends_where_the_context_ends(family: str) -> None:
    context = len(REPEATING) + 4
    decoder = decoder_of(family, max_position_embeddings=context)
    results = run(decoder, [REPEATING, SHORT], LookupDraft(drafting(decoder, SOME), min_ngram=1), Ending(99))
    assert [len(ids) + len(r.tokens) for ids, r in zip([REPEATING, SHORT], results, strict=True)] == [context] * 2


def test_a_point_mass_on_any_token_leaves_the_target_distribution_as_it_is() -> None:
    for seed in range(20):
        _, target_V = distributions(seed, 8)
        for token in range(8):
            assert (committed(point(token), target_V, drawn=False) - target_V).abs().max() < 1e-12


@pytest.mark.slow
def test_sampled_continuations_follow_the_exact_distribution() -> None:
    decoder = Decoder(toy("llama", vocab_size=8, hidden_size=16, intermediate_size=32, num_hidden_layers=2))
    prompt, n_rows = [1, 5, 2, 1, 5, 2, 6, 7, 1, 5], 500
    drafter = LookupDraft(drafting(decoder, "m0-1"), max_tokens=2, min_ngram=1)
    sampling = Sampling(do_sample=True, seed=1, **WARPS)
    results = run(decoder, [prompt] * n_rows, drafter, Ending(3), sampling=sampling)
    assert 0.05 < sum(r.accepted for r in results) / sum(r.drafted for r in results) < 0.9
    expected: Counter[tuple[int, ...]] = Counter()
    for tokens, probability in exact(decoder.model, prompt, 3).items():  # type: ignore[arg-type]
        expected[tokens[1:3]] += probability  # type: ignore[assignment]
    tally = Counter(tuple(r.tokens[1:3]) for r in results)
    assert set(tally) <= set(expected), "a continuation that the warps exclude"
    statistic, critical = chi_square([tally[t] for t in expected], [n_rows * p for p in expected.values()])
    assert statistic < critical


@pytest.mark.parametrize(
    "settings",
    [
        {"max_tokens": 0},
        {"min_ngram": 0},
        {"max_ngram": 1, "min_ngram": 2},
        {"per_match": 0},
        {"per_memory_match": 0},
        {"agreed": -1},
    ],
)
def test_lengths_that_leave_nothing_are_refused_in_one_line(settings: dict[str, int]) -> None:
    with pytest.raises(InputError, match="at least 1") as refusal:
        LookupDraft(**settings)
    assert "\n" not in str(refusal.value)
