"""What every controller promises. A new one inherits this class and says how it is made."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import fields, replace
from itertools import pairwise
from typing import Any

import pytest
import yaml

from selfspec.control import Controller, ControlState, Judged, Proposal, Standing, StepCosts
from selfspec.control.allotment import allot, goodput

COSTS = StepCosts((1.0, 0.05, 0.03, 0.03, 0.0), (0.1, 0.05))  # a plain step of one row takes 1.11
DEAR = StepCosts((1.0, 0.05, 0.03, 5.0, 0.0), (0.5, 0.5))
LONGEST = 20


def survivals(rates: Sequence[float], n: int = LONGEST) -> list[float]:
    """The probabilities that the first 1, 2, ... tokens are accepted; the last rate holds for all later positions."""
    found, alive = [], 1.0
    for position in range(n):
        alive *= rates[min(position, len(rates) - 1)]
        found.append(alive)
    return found


def steps(
    policy: Controller,
    rates: Sequence[Sequence[float]],
    costs: StepCosts,
    n_steps: int,
    *,
    seed: int = 0,
    room: int = 20,
) -> list[list[int]]:
    """The lengths of each step of requests with a planted acceptance by position."""
    rng, state, found = random.Random(seed), policy.begin(costs), []
    for _ in range(n_steps):
        lengths = state.limits([Standing(b, 100, room, "draft") for b in range(len(rates))])
        found.append(lengths)
        judged = []
        for b, length in enumerate(lengths):
            n = 0
            while n < length and rng.random() < rates[b][min(n, len(rates[b]) - 1)]:
                n += 1
            judged.append(Judged(b, "draft", length, n, length))
        state.observe(judged)
    return found


def share_of_oracle(lengths: Sequence[list[int]], rates: Sequence[Sequence[float]], costs: StepCosts) -> float:
    """Tokens for the seconds of these steps, over those of the best lengths."""
    batch, alive = costs.of_batch(len(rates), 100, LONGEST), [survivals(row) for row in rates]
    best = goodput(alive, batch, allot(alive, batch)[0])
    tokens = sum(goodput(alive, batch, step) * batch.seconds(step) for step in lengths)
    return tokens / sum(batch.seconds(step) for step in lengths) / best


class ControllerContract:
    """Inherit, name the subclass Test..., and implement `make`."""

    nearness: float = 0.98
    """Share of the oracle's goodput that it reaches on a stationary request within 200 steps."""

    def make(self) -> Controller:
        """The controller with its settings."""
        raise NotImplementedError

    def calm(self) -> Controller:
        """The controller without what it tries out on purpose."""
        policy: Any = self.make()
        return replace(policy, explore=0.0) if "explore" in {f.name for f in fields(policy)} else policy

    @pytest.mark.parametrize("room", [0, 1, 3, 30])
    def test_no_length_exceeds_its_limit_or_the_room(self, room: int) -> None:
        policy = self.make()
        for lengths in steps(policy, [[0.9], [0.2], [1.0]], COSTS, 60, room=room):
            assert all(0 <= length <= min(policy.max_draft, room) for length in lengths)

    def test_nothing_is_kept_beyond_what_was_drafted(self) -> None:
        state = self.make().begin(COSTS)
        rows = [Standing(b, 100, 9, "draft") for b in range(3)]
        for _ in range(40):
            state.limits(rows)
            drafts = [Proposal("lookup", 5), Proposal("draft", 4, can_cut=False), Proposal("", 0)]
            kept = state.keeps(rows, drafts)
            assert 0 <= kept[0] <= 5 and kept[1:] == [4, 0]
            state.observe(
                [Judged(0, "lookup", kept[0], 0, kept[0]), Judged(1, "draft", 4, 4, 4), Judged(2, "", 0, 0, 0)]
            )

    @pytest.mark.parametrize("n_rows", [1, 8])
    def test_nothing_is_drafted_where_verifying_is_dear(self, n_rows: int) -> None:
        if not self.make().reads_costs:
            pytest.skip("costs play no part in it")
        rates = [[0.9]] * n_rows
        found = steps(self.make(), rates, DEAR, 400)
        assert allot([survivals(row) for row in rates], DEAR.of_batch(n_rows, 100, LONGEST))[0] == [0] * n_rows
        assert share_of_oracle(found[100:], rates, DEAR) >= 0.99  # what is tried out costs at most a hundredth

    @pytest.mark.parametrize("rates", [[[0.8]], [[0.8]] * 8, [[0.0]] * 8], ids=["one", "eight", "hopeless"])
    def test_it_comes_near_the_oracle_within_200_steps(self, rates: list[list[float]]) -> None:
        found = steps(self.make(), rates, COSTS, 300)
        assert share_of_oracle(found[200:], rates, COSTS) >= self.nearness

    @pytest.mark.parametrize("rate", [0.19, 0.5, 0.66, 0.8, 0.85])
    def test_it_does_not_flip_at_the_pivot(self, rate: float) -> None:
        # two lengths are as good as each other near these rates
        for seed in range(2):
            found = steps(self.calm(), [[rate]], COSTS, 300, seed=seed)[100:]
            assert sum(a != b for a, b in pairwise(found)) <= 10

    def test_a_state_is_fresh_and_rows_join_and_leave(self) -> None:
        policy = self.make()
        before = repr(policy)
        first = steps(policy, [[0.7], [0.2]], COSTS, 50)
        assert steps(policy, [[0.7], [0.2]], COSTS, 50) == first and repr(policy) == before
        state = policy.begin(COSTS)
        for key in range(30):
            rows = [Standing(k, 50 + k, 9, "draft") for k in (key, key + 1, key + 2)]
            lengths = state.limits(rows)
            assert len(lengths) == 3
            state.observe([Judged(r.key, "draft", n, n // 2, n) for r, n in zip(rows, lengths, strict=True)])
            state.end(key)
        assert len(repr(state)) < 3 * len(repr(_used(policy, 3)))  # nothing is left of who left

    def test_it_is_written_in_plain_values_and_read_back(self) -> None:
        policy = self.make()
        written = policy.to_dict()
        for body in (written, json.loads(json.dumps(written)), yaml.safe_load(yaml.safe_dump(written))):
            found = Controller.from_dict(body)
            assert found == policy and hash(found) == hash(policy) and found.to_dict() == written


def _used(policy: Controller, n_rows: int) -> ControlState:
    state = policy.begin(COSTS)
    for _ in range(30):
        lengths = state.limits([Standing(k, 50, 9, "draft") for k in range(n_rows)])
        state.observe([Judged(k, "draft", n, n // 2, n) for k, n in enumerate(lengths)])
    return state
