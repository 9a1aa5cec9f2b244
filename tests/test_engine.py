"""The engine on one small model: how sequences end, who is told, and that sampling follows the target exactly."""

# K drafted, V vocabulary

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import torch
from scipy.stats import chi2
from torch import Tensor
from transformers import PreTrainedModel

from selfspec import verify
from selfspec.cache import ClockCache
from selfspec.decode import Ending, Kind, autoregress, speculate
from selfspec.draft import Drafter, DraftRow, ModelDraft, Proposal
from selfspec.errors import InputError
from selfspec.model import Decoder
from selfspec.sampling import Chooser, Sampling
from selfspec.skip import SkipSet
from selfspec.stop import Fixed
from selfspec.trace import DecodeResult
from selfspec.verify import judge_sampled
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
class Scripted:
    """Proposes what it is told, whatever the model thinks: each round takes the next script."""

    scripts: list[list[int]]
    rows: list[DraftRow] = field(default_factory=list)

    def propose(self, rows: Sequence[DraftRow], *, cache: ClockCache) -> list[Proposal]:
        self.rows.extend(rows)
        script = self.scripts.pop(0) if self.scripts else []
        return [Proposal(script[: row.limit]) for row in rows]


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

    class Spy:
        def propose(self, rows: Sequence[DraftRow], *, cache: ClockCache) -> list[Proposal]:
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

    class Spy:
        def propose(self, rows: Sequence[DraftRow], *, cache: ClockCache) -> list[Proposal]:
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


# Exactness of sampling

Rule = tuple[str, Callable[..., Any]]


def accept_by_half(token: int, draft_V: Tensor | None, target_V: Tensor) -> float:
    """Wrong: certain above half the draft's probability, impossible below."""
    return float(target_V[token] / (1.0 if draft_V is None else draft_V[token]) > 0.5)


def accept_always(token: int, draft_V: Tensor | None, target_V: Tensor) -> float:
    """Wrong: the draft's own distribution."""
    return 1.0


def no_residual(token: int, draft_V: Tensor | None, target_V: Tensor) -> Tensor:
    """Wrong: what the draft over-serves is served again."""
    return target_V


WRONG: list[Rule] = [
    ("acceptance_probability", accept_by_half),
    ("acceptance_probability", accept_always),
    ("residual", no_residual),
]
wrong_rules = pytest.mark.parametrize("rule", WRONG, ids=lambda rule: rule[1].__name__)


def distributions(seed: int, n_vocab: int) -> tuple[Tensor, Tensor]:
    """A draft's and a target's, alike but not equal, each with tokens that the other may never say."""
    rng = torch.Generator().manual_seed(seed)
    logits_2V = torch.randn(2, n_vocab, generator=rng, dtype=torch.float64)
    logits_2V += 1.5 * torch.randn(1, n_vocab, generator=rng, dtype=torch.float64)
    if seed % 2:
        logits_2V[0, seed % n_vocab] = logits_2V[1, (seed + 1) % n_vocab] = -torch.inf
    draft_V, target_V = logits_2V.softmax(-1)
    return draft_V, target_V


def committed(draft_V: Tensor, target_V: Tensor, *, drawn: bool) -> Tensor:
    """The distribution of the token that one drafted token leads to, by the project's own two functions."""
    total_V = torch.zeros_like(target_V)
    for token in range(len(target_V)):
        said = float(draft_V[token])
        if said == 0:
            continue
        known_V = draft_V if drawn else None
        accepted = verify.acceptance_probability(token, known_V, target_V)
        total_V[token] += said * accepted
        if accepted < 1:
            total_V += said * (1 - accepted) * verify.residual(token, known_V, target_V)
    return total_V


def chi_square(observed: Sequence[float], expected: Sequence[float]) -> tuple[float, float]:
    """The statistic, and what it exceeds once in a thousand times; cells of fewer than 5 expected are one cell."""
    small = [i for i, e in enumerate(expected) if e < 5]
    large = [i for i, e in enumerate(expected) if e >= 5]
    cells = [(observed[i], expected[i]) for i in large]
    if small:
        cells.append((sum(observed[i] for i in small), sum(expected[i] for i in small)))
    if cells[-1][1] == 0:
        assert cells.pop()[0] == 0, "an impossible token was committed"
    return sum((o - e) ** 2 / e for o, e in cells), float(chi2.isf(1e-3, len(cells) - 1))


def judged(seed: int, *, drawn: bool, n_tokens: int) -> tuple[list[int], Tensor]:
    """How often each of `n_tokens` committed by `judge_sampled` was which, and the target's distribution."""
    draft_V, target_V = distributions(seed, 8)
    n_drafted = 8
    drafts_V = [draft_V] * n_drafted if drawn else None
    drafted_tokens = draft_V.expand(n_tokens, -1).multinomial(
        n_drafted, replacement=True, generator=torch.Generator().manual_seed(seed)
    )
    target_rng = torch.Generator().manual_seed(seed + 1)
    tokens: list[int] = []
    # The tokens of a round are drawn one after the other, so rounds laid end to end are one sequence of target draws.
    for drafted in drafted_tokens.tolist():
        verdict = judge_sampled(drafted, drafts_V, lambda i: target_V, target_rng)
        tokens += [*drafted[: verdict.n_accepted], verdict.token]
        if len(tokens) >= n_tokens:
            break
    tally = Counter(tokens[:n_tokens])
    return [tally[token] for token in range(8)], target_V


@pytest.mark.parametrize("drawn", [True, False], ids=["drawn", "point mass"])
def test_committed_tokens_have_exactly_the_target_distribution(drawn: bool) -> None:
    for seed in range(100):
        draft_V, target_V = distributions(seed, 5)
        assert (committed(draft_V, target_V, drawn=drawn) - target_V).abs().max() < 1e-12


def point(token: int) -> Tensor:
    return torch.eye(8, dtype=torch.float64)[token]


@pytest.mark.parametrize("drawn", [True, False], ids=["drawn", "point mass"])
@pytest.mark.parametrize(
    ("target", "n_accepted"), [([4, 1, 1, 1], 0), ([3, 4, 1, 1], 1), ([3, 5, 4, 1], 2), ([3, 5, 6, 4], 3)]
)
def test_judging_asks_each_position_in_order_and_no_further(drawn: bool, target: list[int], n_accepted: int) -> None:
    drafted, asked = [3, 5, 6], []

    def target_at(i: int) -> Tensor:
        asked.append(i)
        return point(target[i])

    drafts_V = [point(token) for token in drafted] if drawn else None
    verdict = judge_sampled(drafted, drafts_V, target_at, torch.Generator().manual_seed(0))
    assert (verdict.n_accepted, verdict.token) == (n_accepted, 4)
    assert asked == list(range(n_accepted + 1))


def test_equal_distributions_accept_everything() -> None:
    _, target_V = distributions(0, 8)
    assert all(verify.acceptance_probability(token, target_V, target_V) == 1 for token in range(8))


@wrong_rules
@pytest.mark.parametrize("drawn", [True, False], ids=["drawn", "point mass"])
def test_a_wrong_rule_breaks_the_identity(rule: Rule, drawn: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, *rule)
    draft_V, target_V = distributions(0, 8)
    assert (committed(draft_V, target_V, drawn=drawn) - target_V).abs().max() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize(("drawn", "n_tokens"), [(True, 100_000), (False, 20_000)], ids=["drawn", "point mass"])
def test_judged_tokens_pass_a_chi_square(drawn: bool, n_tokens: int) -> None:
    observed, target_V = judged(1, drawn=drawn, n_tokens=n_tokens)
    statistic, critical = chi_square(observed, (target_V * sum(observed)).tolist())
    assert statistic < critical


@wrong_rules
def test_a_wrong_rule_fails_the_chi_square(rule: Rule, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, *rule)
    observed, target_V = judged(0, drawn=True, n_tokens=20_000)
    statistic, critical = chi_square(observed, (target_V * sum(observed)).tolist())
    assert statistic > critical


WARPS = {"temperature": 1.4, "top_k": 6, "top_p": 0.97, "min_p": 0.02, "repetition_penalty": 1.3}


def exact(model: PreTrainedModel, prompt: list[int], n_tokens: int) -> dict[tuple[int, ...], float]:
    """The probability of every continuation, from `generate`'s own processed scores."""
    likely = {(): 1.0}
    for _ in range(n_tokens):
        ids = torch.tensor([[*prompt, *tokens] for tokens in likely])
        output = model.generate(
            ids, max_new_tokens=1, do_sample=True, output_scores=True, return_dict_in_generate=True, **WARPS
        )
        rows = output.scores[0].softmax(-1).tolist()
        likely = {
            (*tokens, token): before * p
            for (tokens, before), row in zip(likely.items(), rows, strict=True)
            for token, p in enumerate(row)
            if p > 0
        }
    return likely


@pytest.mark.slow
@pytest.mark.parametrize("sample", [True, False], ids=["drawn", "point mass"])
def test_sampled_continuations_follow_the_exact_distribution(sample: bool) -> None:
    """Pairs of the tokens that follow the first, which comes from the prompt's forward without any judgement."""
    model = toy("llama", vocab_size=8, hidden_size=16, intermediate_size=32, num_hidden_layers=2)
    decoder = Decoder(model)
    prompt, n_rows = [1, 5, 2], 500  # enough for each of the wrong rules above to fail here, too
    drafter = drafting(decoder, "m0-1", sample=sample)
    sampling = Sampling(do_sample=True, seed=1, **WARPS)
    results = run(decoder, [prompt] * n_rows, drafter, Ending(4), max_draft=2, sampling=sampling)
    assert 0.05 < sum(r.accepted for r in results) / sum(r.drafted for r in results) < 0.9
    continuations = exact(model, prompt, 4)
    for pair in (slice(1, 3), slice(2, 4)):
        expected: Counter[tuple[int, ...]] = Counter()
        for tokens, probability in continuations.items():
            expected[tokens[pair]] += probability  # type: ignore[assignment]
        tally = Counter(tuple(r.tokens[pair]) for r in results)
        assert set(tally) <= set(expected), "a continuation that the warps exclude"
        statistic, critical = chi_square([tally[t] for t in expected], [n_rows * p for p in expected.values()])
        assert statistic < critical
