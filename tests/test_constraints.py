"""Constraints: what is projected is allowed, is the nearest that is, and stays itself."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable
from typing import Any

import pytest

from search.constraints import Constraints
from search.space import Space
from selfspec.errors import InputError
from selfspec.skipping.skip_set import SkipSet

Measure = Callable[[SkipSet], float]


def parts(base: float, of_attn: float, of_mlp: float) -> Measure:
    """What is left of a whole of 1 if each sublayer of a kind is the same part of it."""

    def measure(skip: SkipSet) -> float:
        kept_attn, kept_mlp = skip.n_layers - len(skip.attn), skip.n_layers - len(skip.mlp)
        whole = base + skip.n_layers * (of_attn + of_mlp)
        return (base + kept_attn * of_attn + kept_mlp * of_mlp) / whole

    return measure


def uneven(skip: SkipSet) -> float:
    """Deeper sublayers are larger, so that no two save the same."""
    sizes = [1 + 0.3 * i for i in range(2 * skip.n_layers)]
    return sum(size for size, bit in zip(sizes, skip.bits(), strict=True) if not bit) / sum(sizes)


COST, MEMORY = parts(2, 1, 3), parts(1, 2, 1)


def every_set(n_layers: int) -> list[SkipSet]:
    return [SkipSet.from_bits(bits) for bits in itertools.product((False, True), repeat=2 * n_layers)]


def obeys(skip: SkipSet, settings: dict[str, Any]) -> bool:
    """The constraints, told another way."""
    c: Callable[..., Any] = settings.get
    n, total = len(skip), 2 * skip.n_layers
    low, high = c("min_skipped", 0), c("max_skipped", total)
    kept = set(range(c("keep_first", 0))) | set(range(skip.n_layers - c("keep_last", 0), skip.n_layers))
    return (
        n == c("n_skipped", n)
        and n >= (low * total if isinstance(low, float) else low)
        and n <= (high * total if isinstance(high, float) else high)
        and not kept & (skip.attn | skip.mlp)
        and not (c("only") == "attention" and skip.mlp)
        and not (c("only") == "mlp" and skip.attn)
        and not (c("whole_layers") and skip.attn != skip.mlp)
        and ("max_cost" not in settings or c("cost")(skip) <= c("max_cost"))
        and ("max_memory" not in settings or c("memory")(skip) <= c("max_memory"))
    )


def distance(a: SkipSet, b: SkipSet) -> int:
    return len(a.attn ^ b.attn) + len(a.mlp ^ b.mlp)


def random_settings(rng: random.Random, n_layers: int) -> dict[str, Any]:
    """Some constraints, each as likely as not; they may contradict each other."""
    total = 2 * n_layers
    offered: dict[str, Any] = {
        "n_skipped": rng.randint(0, total),
        "min_skipped": rng.choice([1, 2, 0.25]),
        "max_skipped": rng.choice([2, 4, 0.5, 1.0]),
        "keep_first": rng.randint(0, 1),
        "keep_last": rng.randint(0, 1),
        "only": rng.choice(["attention", "mlp"]),
        "max_cost": rng.uniform(0.2, 0.9),
        "max_memory": rng.uniform(0.2, 0.9),
        "whole_layers": True,
        "importance": tuple(rng.random() for _ in range(total)),
    }
    chosen = {name: value for name, value in offered.items() if rng.random() < 0.3}
    if "whole_layers" in chosen:
        chosen.pop("only", None)
    return chosen | {"cost": rng.choice([COST, uneven]), "memory": MEMORY}


def cases(n: int, n_layers: int) -> list[tuple[dict[str, Any], Space, list[SkipSet]]]:
    """`n` random settings that allow something to search for, with all that they allow."""
    rng = random.Random(0)
    found: list[tuple[dict[str, Any], Space, list[SkipSet]]] = []
    while len(found) < n:
        settings = random_settings(rng, n_layers)
        try:
            space = Space(n_layers, Constraints(**settings))
        except InputError:
            continue
        found.append((settings, space, [skip for skip in every_set(n_layers) if obeys(skip, settings)]))
    return found


class TestProjection:
    CASES = cases(60, 3)

    def test_what_is_allowed_stays_itself_and_all_else_becomes_allowed(self) -> None:
        for settings, space, allowed in self.CASES:
            for skip in every_set(space.n_layers):
                projected = space.project(skip)
                assert projected in allowed, f"{settings}: {skip} -> {projected}"
                assert (projected == skip) == (skip in allowed), f"{settings}: {skip} -> {projected}"
                assert space.constraints.allows(skip) == (skip in allowed), f"{settings}: {skip}"
                assert space.project(projected) == projected, f"{settings}: {skip} -> {projected}"

    def test_without_caps_nothing_allowed_is_nearer(self) -> None:
        capless = [case for case in self.CASES if not {"max_cost", "max_memory"} & case[0].keys()]
        assert len(capless) > 10
        for settings, space, allowed in capless:
            for skip in every_set(space.n_layers):
                nearest = min(distance(skip, other) for other in allowed)
                projected = space.project(skip)
                assert distance(skip, projected) == nearest, f"{settings}: {skip} -> {projected}"

    def test_a_cap_on_parts_of_two_sizes_changes_as_few_sublayers_as_can_be(self) -> None:
        for cap in (0.3, 0.5, 0.8):
            space = Space(4, Constraints(max_cost=cap, cost=COST))
            allowed = [skip for skip in every_set(4) if COST(skip) <= cap]
            for skip in every_set(4):
                assert distance(skip, space.project(skip)) == min(distance(skip, other) for other in allowed), str(skip)

    def test_an_exact_number_under_a_cap_is_reached_by_exchange(self) -> None:
        space = Space(4, Constraints(n_skipped=4, max_cost=0.5, cost=COST))
        projected = space.project(SkipSet.parse("a0-3", 4))
        assert len(projected) == 4 and COST(projected) <= 0.5, str(projected)

    @pytest.mark.parametrize("n_layers", [1, 2, 3, 30])
    def test_no_constraints_allow_everything(self, n_layers: int) -> None:
        space, rng = Space(n_layers), random.Random(0)
        for _ in range(20):
            skip = SkipSet.from_bits([rng.random() < 0.5 for _ in range(2 * n_layers)])
            assert space.project(skip) is skip

    def test_of_half_skipped_layers_half_become_whole(self) -> None:
        space = Space(10, Constraints(whole_layers=True))
        projected = space.project(SkipSet.parse("a0-9 m4", 10))
        assert projected.attn == projected.mlp and 4 in projected.attn
        assert len(projected) == 10, str(projected)

    def test_the_least_important_are_skipped_and_the_most_important_given_back(self) -> None:
        importance = (9.0, 1.0, 8.0, 2.0, 7.0, 3.0, 6.0, 4.0)
        assert str(Space(4, Constraints(n_skipped=3, importance=importance)).project(SkipSet(4))) == "m0-2"
        everything = SkipSet.parse("a0-3 m0-3", 4)
        assert str(Space(4, Constraints(max_skipped=5, importance=importance)).project(everything)) == "a3 m0-3"

    @pytest.mark.parametrize("n_skipped", [6, 15, 20, 30, 45])
    def test_without_importance_neither_end_nor_kind_is_favoured(self, n_skipped: int) -> None:
        for skip in (SkipSet(30), SkipSet.parse("a0-29 m0-29", 30)):
            projected = Space(30, Constraints(n_skipped=n_skipped)).project(skip)
            thirds = [sum(i // 10 == third for s in (projected.attn, projected.mlp) for i in s) for third in range(3)]
            assert all(abs(third - n_skipped / 3) < 2 for third in thirds), f"{projected}: {thirds}"
            assert abs(len(projected.attn) - len(projected.mlp)) <= 3, str(projected)

    def test_a_fraction_is_of_all_sublayers_whatever_is_kept(self) -> None:
        projected = Space(10, Constraints(max_skipped=0.5, keep_first=2)).project(SkipSet.parse("a0-9 m0-9", 10))
        assert len(projected) == 10 and min(projected.attn | projected.mlp) >= 2, str(projected)

    def test_eighty_uneven_layers_take_a_moment(self) -> None:
        space = Space(80, Constraints(n_skipped=80, max_cost=0.45, cost=uneven))
        assert uneven(space.project(SkipSet.parse("a0-79", 80))) <= 0.45


class TestRefusal:
    def test_just_what_leaves_nothing_to_search_is_refused(self) -> None:
        rng, n_refused = random.Random(1), 0
        for _ in range(150):
            settings = random_settings(rng, 3)
            is_searchable = any(len(skip) and obeys(skip, settings) for skip in every_set(3))
            try:
                Space(3, Constraints(**settings))
            except InputError as error:
                n_refused += 1
                assert not is_searchable, f"{settings}: {error}"
                assert "\n" not in str(error)
            else:
                assert is_searchable, settings
        assert 10 < n_refused < 140

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            (
                {"n_skipped": 5, "keep_first": 2, "keep_last": 2},
                "5 or more skipped sublayers, but leave at most 0 of 8",
            ),
            ({"keep_first": 3, "keep_last": 3}, "leave at most 0 of 8"),
            ({"max_skipped": 0}, "1 or more skipped sublayers, but leave at most 0 of 8"),
            ({"min_skipped": 5, "max_skipped": 0.5}, "5 or more skipped sublayers, but leave at most 4 of 8"),
            ({"n_skipped": 3, "whole_layers": True}, "4 or more skipped sublayers, but leave at most 2 of 8"),
            ({"only": "attention", "whole_layers": True}, "both kinds together, but only=attention"),
            ({"only": "norms"}, "only=norms; give attention, mlp or null"),
            ({"max_skipped": 1.5}, "max_skipped=1.5; give a whole number of sublayers, or a fraction"),
            ({"min_skipped": -1}, "min_skipped=-1"),
            ({"keep_last": -1}, "keep_last=-1; give 0 or more"),
            ({"max_cost": 0.5}, "max_cost=0.5, but there are no costs of skip sets"),
            ({"max_memory": 0.0, "memory": MEMORY}, "max_memory=0.0; give a fraction above 0"),
            ({"max_cost": 0.2, "cost": COST, "only": "mlp"}, r"max_cost=0.2, where skipping 4 .* leaves 0.333"),
            ({"importance": (1.0, 2.0)}, "2 importances for 8 sublayers"),
        ],
    )
    def test_says_what_was_asked_and_what_is_true(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(InputError) as caught:
            Space(4, Constraints(**settings))
        assert re.search(message, str(caught.value)) and "\n" not in str(caught.value)
