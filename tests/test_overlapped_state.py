"""The state machine of overlapped decoding and its arithmetic, without a model."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest
import torch
from torch import Tensor

from selfspec.engine.protocols import Row
from selfspec.engine.sampling import Chooser, Sampling
from selfspec.overlapped import arithmetic
from selfspec.overlapped.arithmetic import Seconds
from selfspec.overlapped.state import Drafted, Outcome, advance, judge, mode
from selfspec.stopping import Fixed

V = 5


def row_of(sampling: Sampling | None = None, *, row: int = 0, ids: tuple[int, ...] = (1, 2)) -> Row:
    return Row(0, list(ids), 9, Fixed(1).begin(), Chooser(sampling or Sampling(), row=row))


def logits(*choices: int) -> Tensor:
    """Logits whose largest entries are these tokens, [T, V]."""
    return torch.nn.functional.one_hot(torch.tensor(choices), V).double()


def drafted(*tokens: int) -> list[Drafted]:
    return [Drafted(token) for token in tokens]


def tokens(pending: tuple[Drafted, ...]) -> list[int]:
    return [each.token for each in pending]


def test_pre_verify_tests_the_first_token_of_the_block() -> None:
    block = drafted(3, 4, 1)
    outcome = judge(row_of(), [], logits(3), lambda: block[0])
    committed, pending = advance([], block, outcome)
    assert (committed, tokens(pending), mode(pending)) == ([3], [4, 1], "post-verify")


def test_post_verify_tests_pending_tokens_and_one_of_the_block() -> None:
    block = drafted(2, 2)
    outcome = judge(row_of(), drafted(4, 1), logits(4, 1, 2), lambda: block[0])
    committed, pending = advance(drafted(4, 1), block, outcome)
    assert (committed, tokens(pending)) == ([4, 1, 2], [2])


def test_a_rejected_pending_token_is_corrected_without_the_block() -> None:
    outcome = judge(row_of(), drafted(4, 1, 1), logits(4, 3, 0, 0), lambda: pytest.fail("the block is thrown away"))
    committed, pending = advance(drafted(4, 1, 1), [], outcome)
    assert (committed, pending, outcome.n_tested) == ([4, 3], (), 2)


def test_a_rejected_block_is_corrected() -> None:
    outcome = judge(row_of(), drafted(4), logits(4, 0), lambda: Drafted(2))
    assert advance(drafted(4), drafted(2, 2), outcome) == ([4, 0], ()) and outcome.n_tested == 2


def test_without_a_drafter_the_last_logits_give_a_bonus() -> None:
    outcome = judge(row_of(), drafted(4), logits(4, 3), lambda: None)
    assert outcome == Outcome(1, 1, 3) and advance(drafted(4), [], outcome) == ([4, 3], ())


@pytest.mark.parametrize("seed", range(20))
def test_any_drafts_of_any_length_leave_the_tokens_of_plain_decoding(seed: int) -> None:
    chance = random.Random(seed)
    wanted = [chance.randrange(V) for _ in range(60)]
    row = row_of(ids=(0,))
    pending: tuple[Drafted, ...] = ()
    while len(row.ids) <= 40:
        done = len(row.ids) - 1
        here = wanted[done + len(pending) :]
        block = [Drafted(t if chance.random() < 0.8 else (t + 1) % V) for t in here[: chance.randrange(5)]]
        outcome = judge(
            row, pending, logits(*wanted[done : done + len(pending) + 1]), lambda b=block: b[0] if b else None
        )
        committed, pending = advance(pending, block, outcome)
        row.ids += committed
    assert row.ids[1:] == wanted[: len(row.ids) - 1]


def test_tokens_that_were_not_drawn_leave_the_sample_of_plain_decoding() -> None:
    how = Sampling(do_sample=True, seed=3)
    logits_TV = torch.randn(3, V, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for n in range(50):
        plain, row = row_of(how, row=n), row_of(how, row=n)
        draws = [int(torch.multinomial(p, 1, generator=plain.chooser.target_rng)) for p in logits_TV.softmax(-1)]
        outcome = judge(row, drafted(1, 2), logits_TV, lambda: Drafted(4))
        committed, _ = advance(drafted(1, 2), drafted(4), outcome)
        assert committed == draws[: len(committed)]


@pytest.mark.parametrize("is_drawn", [True, False])
def test_the_first_token_of_a_round_has_the_targets_distribution(is_drawn: bool) -> None:
    # chi-square with 4 degrees of freedom: 23.5 is passed with probability 1e-4; the seeds are fixed
    n = 4000
    target_V = torch.tensor([0.1, 0.3, 0.05, 0.35, 0.2], dtype=torch.float64)
    draft_V = torch.tensor([0.3, 0.1, 0.3, 0.2, 0.1], dtype=torch.float64)
    row, rng, found = row_of(Sampling(do_sample=True, seed=1)), torch.Generator().manual_seed(9), Counter[int]()
    for _ in range(n):
        token = int(torch.multinomial(draft_V, 1, generator=rng))
        block = [Drafted(token, draft_V if is_drawn else None)]
        outcome = judge(row, [], target_V.log().unsqueeze(0), lambda b=block: b[0])
        committed, _ = advance([], block, outcome)
        found[committed[0]] += 1
    chi_square = sum((found[v] - n * float(p)) ** 2 / (n * float(p)) for v, p in enumerate(target_V))
    assert chi_square < 23.5


def test_three_tokens_over_two_rounds_have_the_targets_joint_distribution() -> None:
    # target and draft are tables of the last token; blocks of 2 are drawn from the streams of their positions
    n, v, rng = 1500, 3, torch.Generator().manual_seed(4)
    target_VV = torch.rand(v, v, generator=rng, dtype=torch.float64).softmax(-1)
    draft_VV = (3 * torch.rand(v, v, generator=rng, dtype=torch.float64)).softmax(-1)
    found = Counter[tuple[int, ...]]()
    for seed in range(n):
        row, pending = row_of(Sampling(do_sample=True, seed=seed), ids=(0,)), tuple[Drafted, ...]()
        while len(row.ids) < 4:
            text, block = [*row.ids, *tokens(pending)], list[Drafted]()
            for _ in range(2):
                row.chooser.seek_draft(len(text))
                draft_V = draft_VV[text[-1]]
                text.append(int(torch.multinomial(draft_V, 1, generator=row.chooser.draft_rng)))
                block.append(Drafted(text[-1], draft_V))
            read = [row.ids[-1], *tokens(pending)]
            outcome = judge(row, pending, target_VV[read].log(), lambda b=block: b[0])
            committed, pending = advance(pending, block, outcome)
            row.ids += committed
        found[tuple(row.ids[1:4])] += 1
    chi_square = 0.0
    for a, b, c in itertools.product(range(v), repeat=3):
        wanted = n * float(target_VV[0, a] * target_VV[a, b] * target_VV[b, c])
        chi_square += (found[a, b, c] - wanted) ** 2 / wanted
    assert chi_square < 61.7  # 26 degrees of freedom: passed with probability 1e-4; the seeds are fixed


@pytest.mark.parametrize(("alpha", "overlapped", "in_turn"), [(0.8, 2.12, 1.68), (0.9, 2.765, 2.05), (0.6, 1.48, 1.15)])
def test_speedups_are_those_of_the_closed_form(alpha: float, overlapped: float, in_turn: float) -> None:
    seconds = Seconds(plain=1, verify=1, draft=0.25)
    assert arithmetic.overlapped_speedup(alpha, 4, seconds) == pytest.approx(overlapped, abs=0.005)
    assert arithmetic.in_turn_speedup(alpha, seconds, 4) == pytest.approx(in_turn, abs=0.005)
    assert arithmetic.overlapped_speedup(alpha, 4, seconds, r=0.5) == pytest.approx(overlapped / 2, abs=0.005)
    need = arithmetic.break_even(alpha, 4, seconds)
    assert need * arithmetic.overlapped_speedup(alpha, 4, seconds) == arithmetic.in_turn_speedup(alpha, seconds)


@pytest.mark.parametrize(("alpha", "gamma"), [(0.7, 4), (0.9, 3), (0.5, 1), (1.0, 4)])
def test_tokens_a_round_are_those_that_the_state_machine_commits(alpha: float, gamma: int) -> None:
    chance, n_rounds, n_committed = random.Random(5), 20_000, 0
    pending: tuple[Drafted, ...] = ()
    block = drafted(*[1] * gamma)
    for _ in range(n_rounds):
        n_tested = len(pending) + 1
        n_accepted = next((i for i in range(n_tested) if chance.random() >= alpha), n_tested)
        outcome = Outcome(min(n_tested, n_accepted + 1), n_accepted, None if n_accepted == n_tested else 0)
        committed, pending = advance(pending, block, outcome)
        n_committed += len(committed)
    assert n_committed / n_rounds == pytest.approx(arithmetic.tokens_per_round(alpha, gamma), rel=0.02)


@pytest.mark.parametrize(("verify_s", "draft_s", "gamma"), [(0.04, 0.01, 4), (0.04, 0.1, 2), (1.0, 0.01, 12)])
def test_a_balanced_block_takes_as_long_as_a_verification(verify_s: float, draft_s: float, gamma: int) -> None:
    assert arithmetic.balanced_gamma(verify_s, draft_s, most=12) == gamma
