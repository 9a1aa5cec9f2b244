"""Sampled tokens have exactly the target's distribution; wrong rules do not pass."""

# K drafted, V vocabulary

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from scipy.stats import chi2
from torch import Tensor
from transformers import PreTrainedModel

from selfspec.engine import verify
from selfspec.engine.decode import Ending
from selfspec.engine.protocols import Draft
from selfspec.engine.sampling import Chooser, Sampling
from selfspec.engine.verify import judge_sampled
from selfspec.models.decoder import Decoder
from tests.test_engine import drafting, run
from tests.toys import toy

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
        verdict = judge_sampled(Draft(drafted, probabilities=drafts_V), lambda node: target_V, target_rng)
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

    def target_at(node: int) -> Tensor:
        asked.append(node)
        return point(target[node + 1])

    drafts_V = [point(token) for token in drafted] if drawn else None
    verdict = judge_sampled(Draft(drafted, probabilities=drafts_V), target_at, torch.Generator().manual_seed(0))
    assert (verdict.n_accepted, verdict.token) == (n_accepted, 4)
    assert asked == list(range(-1, n_accepted))


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


@pytest.mark.parametrize(
    "seed, row, target, draft",
    [
        (0, 0, [267, 228, 647, 822], [979, 640, 292, 38]),
        (0, 1, [741, 523, 130, 120], [117, 778, 102, 571]),
        (1, 0, [354, 220, 872, 622], [428, 25, 45, 25]),
        (-1, 0, [384, 575, 687, 666], [301, 793, 747, 391]),
    ],
)
def test_the_streams_of_a_seed_are_the_recorded_ones(seed: int, row: int, target: list[int], draft: list[int]) -> None:
    # a change here changes every sampled output of every seed: say so in the changelog
    chooser = Chooser(Sampling(do_sample=True, seed=seed), row=row)
    drawn = [torch.randint(1000, (4,), generator=rng).tolist() for rng in (chooser.target_rng, chooser.draft_rng)]
    assert drawn == [target, draft]
