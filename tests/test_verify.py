"""Verdicts on trees and blocks: exactly the target's distribution, and the target's own path when greedy."""

# V vocabulary

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from torch import Tensor

from selfspec.engine import verify
from selfspec.engine.approximate import AmongBest, Lenient, Near
from selfspec.engine.protocols import ROOT, Draft, Row
from selfspec.engine.sampling import Chooser, Sampling
from selfspec.engine.verify import judge_block, judge_greedy, judge_sampled
from selfspec.errors import InputError
from tests.test_sampling import chi_square, distributions

N_VOCAB = 4


def every_outcome(
    judge: Callable[[], tuple[tuple[int, ...], int]], monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[float, tuple[int, ...], int]]:
    """(probability, accepted path, token) of all that a judge may decide, by following both sides of each chance."""
    decided: list[bool] = []
    weights: list[float] = []

    class Chance:
        """What `torch.rand` gives here: compared with a probability, it takes the next decision."""

        def __init__(self, at: int) -> None:
            self.at = at

        def __lt__(self, probability: float) -> bool:
            if self.at == len(decided):
                decided.append(True)
            taken = decided[self.at]
            weights.append(probability if taken else 1 - probability)
            return taken

    n_asked = itertools.count()
    drawn: list[Tensor] = []
    monkeypatch.setattr(
        verify, "float", lambda value: value if isinstance(value, Chance) else float(value), raising=False
    )
    monkeypatch.setattr(torch, "rand", lambda *a, **k: Chance(next(n_asked)))
    monkeypatch.setattr(verify, "draw", lambda values_V, rng: drawn.append(values_V) or 0)
    while True:
        n_asked, weights[:], drawn[:] = itertools.count(), [], []
        path, _ = judge()
        total = float(torch.tensor(weights, dtype=torch.float64).prod()) if weights else 1.0
        for token, chance in enumerate(drawn[-1].tolist()):
            yield total * chance, path, token
        while decided and not decided[-1]:
            decided.pop()
        if not decided:
            return
        decided[-1] = False


def targets(seed: int) -> Callable[[Sequence[int]], Tensor]:
    """A target's distribution [V] after any path of tokens."""

    def after(path: Sequence[int]) -> Tensor:
        _, target_V = distributions(seed + 7 * len(path) + sum(3 ** (i + 1) * t for i, t in enumerate(path)), N_VOCAB)
        return target_V

    return after


def first_tokens(
    draft: Draft,
    judge: Callable[..., verify.Verdict],
    after: Callable[[Sequence[int]], Tensor],
    depth: int,
    monkeypatch: pytest.MonkeyPatch,
) -> Counter[tuple[int, ...]]:
    """The distribution of the first `depth` tokens that a draft leads to, the target's own where it says fewer."""
    found: Counter[tuple[int, ...]] = Counter()

    def judged() -> tuple[tuple[int, ...], int]:
        verdict = judge(draft, lambda node: after(draft.path(node)), None)
        return tuple(draft.tokens[node] for node in verdict.path), verdict.token

    for chance, path, token in every_outcome(judged, monkeypatch):
        for rest, more in continued((*path, token)[:depth], after, depth):
            found[rest] += chance * more
    return found


def continued(
    tokens: tuple[int, ...], after: Callable[[Sequence[int]], Tensor], depth: int
) -> Iterator[tuple[tuple[int, ...], float]]:
    """Every way in which the target goes on to `depth` tokens, with its probability."""
    if len(tokens) == depth:
        yield tokens, 1.0
        return
    for token, chance in enumerate(after(tokens).tolist()):
        for rest, more in continued((*tokens, token), after, depth):
            yield rest, chance * more


def drafted_from(q_V: Tensor, n: int) -> Iterator[tuple[float, list[int]]]:
    """Every order of `n` tokens that may be drawn from q without replacement, with its probability."""
    for tokens in itertools.permutations(range(len(q_V)), n):
        chance, left = 1.0, 1.0
        for token in tokens:
            chance, left = chance * float(q_V[token]) / left if left > 0 else 0.0, left - float(q_V[token])
        if chance > 0:
            yield chance, list(tokens)


def assert_exact(found: Counter[tuple[int, ...]], after: Callable[[Sequence[int]], Tensor], depth: int) -> None:
    expected = dict(continued((), after, depth))
    assert max(abs(found[tokens] - chance) for tokens, chance in expected.items()) < 1e-12
    assert sum(found.values()) == pytest.approx(1)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("n_siblings", [1, 2, 3, 4])
def test_drawn_siblings_give_exactly_the_targets_distribution(
    seed: int, n_siblings: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    q_V, _ = distributions(seed, N_VOCAB)
    after, total = targets(seed), Counter[tuple[int, ...]]()
    for chance, tokens in drafted_from(q_V, min(n_siblings, int((q_V > 0).sum()))):
        draft = Draft(tokens, [ROOT] * len(tokens), probabilities=[q_V] * len(tokens))
        for path, more in first_tokens(draft, judge_sampled, after, 1, monkeypatch).items():
            total[path] += chance * more
    assert_exact(total, after, 1)


@pytest.mark.parametrize("seed", range(4))
def test_a_drawn_tree_of_two_levels_gives_exactly_the_targets_distribution(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    (q_V, _), (r_V, _) = distributions(seed, N_VOCAB), distributions(seed + 50, N_VOCAB)
    after, total = targets(seed), Counter[tuple[int, ...]]()
    for chance, roots in drafted_from(q_V, 2):
        for more, below in drafted_from(r_V, 2):
            draft = Draft([*roots, *below], [ROOT, ROOT, 0, 0], probabilities=[q_V, q_V, r_V, r_V])
            for path, rest in first_tokens(draft, judge_sampled, after, 3, monkeypatch).items():
                total[path] += chance * more * rest
    assert_exact(total, after, 3)


TREES = {
    "chain": ([2, 0, 1], None),
    "siblings": ([2, 0, 1], [ROOT, ROOT, ROOT]),
    "every token": ([3, 2, 0, 1], [ROOT] * 4),
    "tree": ([2, 3, 1, 0, 2], [ROOT, 0, ROOT, 0, 2]),
}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
def test_point_masses_give_exactly_the_targets_distribution(
    seed: int, tree: tuple[list[int], list[int] | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    after = targets(seed)
    draft = Draft(*tree)
    assert_exact(first_tokens(draft, judge_sampled, after, 3, monkeypatch), after, 3)


def drafting(seed: int) -> Callable[[Sequence[int]], Tensor]:
    """A draft's distribution after any path."""
    return targets(seed + 1000)


def chains(seed: int, lengths: Callable[[Sequence[int]], bool], most: int) -> Iterator[tuple[float, list[int]]]:
    """Every chain that may be drawn; `lengths` says after which tokens drafting stops."""
    after = drafting(seed)

    def longer(tokens: list[int], chance: float) -> Iterator[tuple[float, list[int]]]:
        if len(tokens) == most or (tokens and lengths(tokens)):
            yield chance, tokens
            return
        for token, more in enumerate(after(tokens).tolist()):
            if more > 0:
                yield from longer([*tokens, token], chance * more)

    return longer([], 1.0)


STOPS: dict[str, Callable[[Sequence[int]], bool]] = {
    "never": lambda tokens: False,
    "after an even token": lambda tokens: tokens[-1] % 2 == 0,
}


@pytest.mark.parametrize("judge", [judge_sampled, judge_block])
@pytest.mark.parametrize("stop", STOPS.values(), ids=STOPS)
@pytest.mark.parametrize("seed", range(4))
def test_drawn_chains_give_the_targets_distribution_however_they_end(
    judge: Callable[..., verify.Verdict],
    stop: Callable[[Sequence[int]], bool],
    seed: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    after, q, total = targets(seed), drafting(seed), Counter[tuple[int, ...]]()
    for chance, tokens in chains(seed, stop, 2):
        draft = Draft(tokens, probabilities=[q(tokens[:i]) for i in range(len(tokens))])
        for path, more in first_tokens(draft, judge, after, 3, monkeypatch).items():
            total[path] += chance * more
    assert_exact(total, after, 3)


@pytest.mark.parametrize("seed", range(4))
def test_a_block_of_point_masses_gives_exactly_the_targets_distribution(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    after = targets(seed)
    assert_exact(first_tokens(Draft([2, 0, 1]), judge_block, after, 4, monkeypatch), after, 4)


def test_a_block_accepts_more_than_token_by_token() -> None:
    rngs = [torch.Generator().manual_seed(seed) for seed in range(3)]
    accepted = Counter[str]()
    for seed in range(400):
        q, after = drafting(seed % 7), targets(seed % 7)
        tokens: list[int] = []
        for _ in range(4):
            tokens.append(int(torch.multinomial(q(tokens), 1, generator=rngs[0])))
        draft = Draft(tokens, probabilities=[q(tokens[:i]) for i in range(4)])
        known = {node: after(draft.path(node)) for node in range(ROOT, 4)}
        accepted["token"] += judge_sampled(draft, known.__getitem__, rngs[1]).n_accepted
        accepted["block"] += judge_block(draft, known.__getitem__, rngs[2]).n_accepted
    assert accepted["block"] > 1.03 * accepted["token"]


def test_real_streams_give_the_targets_distribution() -> None:
    """Drawn by torch, not enumerated: counts of the token that four siblings lead to."""
    q_V, p_V = distributions(3, 8)
    draft_rng, rng = torch.Generator().manual_seed(0), torch.Generator().manual_seed(1)
    tally: Counter[int] = Counter()
    n = 6000
    for tokens in q_V.expand(n, -1).multinomial(4, replacement=False, generator=draft_rng).tolist():
        draft = Draft(tokens, [ROOT] * 4, probabilities=[q_V] * 4)
        verdict = judge_sampled(draft, lambda node: p_V, rng)
        tally[draft.tokens[verdict.path[0]] if verdict.path else verdict.token] += 1
    statistic, limit = chi_square([tally[t] for t in range(8)], (n * p_V).tolist())
    assert statistic < limit


def test_the_greedy_path_is_the_targets_own_in_any_tree() -> None:
    rng = random.Random(0)
    for _ in range(300):
        n = rng.randrange(0, 9)
        parents = [rng.randrange(-1, i) for i in range(n)]
        draft = Draft([rng.randrange(3) for _ in range(n)], parents)
        says = [rng.randrange(3) for _ in range(n + 1)]
        verdict = judge_greedy(draft, says)
        node = ROOT
        for accepted in verdict.path:
            assert parents[accepted] == node and draft.tokens[accepted] == says[node + 1]
            node = accepted
        assert verdict.token == says[node + 1]
        assert all(draft.tokens[child] != verdict.token for child in draft.children(node))
        assert verdict.kind(draft) == ("correction" if draft.children(node) else "bonus")


@pytest.mark.parametrize(
    ("verifier", "path", "token"),
    [
        (AmongBest(2), [1, 3], 0),  # token 1 is second after the root; after it token 3 is the choice itself
        (AmongBest(3), [1, 3], 0),
        (Near(0.4), [], 2),  # token 1 is 0.5 below token 2
        (Near(0.6), [1, 3], 0),
    ],
    ids=str,
)
def test_approximate_acceptance_lets_likely_tokens_stand(verifier: Lenient, path: list[int], token: int) -> None:
    #               after the root            0 (token 0)          1 (token 1)            2 (token 0)        3 (token 3)
    logits = [[-3.0, 1.5, 2.0, -9.0], [9.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 5.0], [9.0, 0, 0, 0], [4.0, 0.0, 0.0, 3.9]]
    draft = Draft([0, 1, 0, 3], [ROOT, ROOT, 1, 1])
    row = Row(0, [1, 2], 9, None, Chooser(Sampling(), row=0))  # type: ignore[arg-type]  # the rule is not asked
    (verdict,) = verifier.judge([row], [draft], torch.tensor([logits]))
    assert (verdict.path, verdict.token) == (path, token)


def test_approximate_acceptance_refuses_to_sample() -> None:
    row = Row(0, [1, 2], 9, None, Chooser(Sampling(do_sample=True), row=0))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="greedy"):
        Near(1.0).judge([row], [Draft()], torch.zeros(1, 1, 4))
    for impossible in (lambda: AmongBest(1), lambda: Near(0.0)):
        with pytest.raises(InputError, match="exact"):
            impossible()
