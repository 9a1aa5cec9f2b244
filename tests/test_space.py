"""A search over more than skip sets: every dimension is searched, and without dimensions nothing is as it was not."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.samplers import BaseSampler

from search.constraints import Constraints
from search.dimensions import Choice, Dimension, Range, active, dimensions
from search.draft_of_point import Drafts, check_dimensions
from search.objective import Score, ShouldContinue
from search.point import Point, Value
from search.samplers import optuna_samplers
from search.samplers.quadratic import Quadratic
from search.space import Space
from search.study.loop import Found, run_search, top
from search.study.study import Encoding, SearchStudy
from selfspec.drafters.spec import DraftSpec
from selfspec.drafters.tree_shapes import ExpandRerank
from selfspec.errors import DrafterError, InputError
from selfspec.skipping.skip_set import SkipSet
from selfspec.stopping import Fixed, Heuristic, Threshold
from tests.scripted import JOURNAL, N_LAYERS, ROWS, Scripted, planted, rows_of, score, ticking, tpe

STARTS = (SkipSet(N_LAYERS), SkipSet.parse("a1-2 m1-2", N_LAYERS))
MIXED = dimensions(
    {
        "precision": ["same", "int8", "int4"],
        "lookup": [None, "front"],
        "memory": {"values": [0, 8192], "when": {"lookup": "front"}},
        "stop.max_draft": {"low": 1, "high": 12},
        "stop.threshold": {"low": 0.3, "high": 0.95},
    }
)
SPACE = Space(N_LAYERS, dimensions=MIXED)
CONSTRAINED = Constraints(min_skipped=2, max_skipped=4, keep_last=1)


@pytest.fixture(autouse=True, scope="module")
def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def mixed(point: Point) -> float:
    """Best at int4, with lookup and its memory, with drafts of 7 at a threshold of 0.6."""
    s = point.settings
    value = planted(point.skip) + {"same": 0.0, "int8": 0.5, "int4": 1.0}[str(s["precision"])]
    if s["lookup"] == "front":
        value += 0.2 + (1.0 if s["memory"] else -0.5)
    n, threshold = s["stop.max_draft"], s["stop.threshold"]
    assert isinstance(n, int) and isinstance(threshold, float)
    return value - abs(n - 7) / 6 - 2 * abs(threshold - 0.6)


gp = partial(optuna_samplers.gp, n_startup_trials=4)
nsga2 = partial(optuna_samplers.nsga2, population_size=6, mutation_prob=None)
SAMPLERS: dict[str, tuple[Callable[[int], BaseSampler], Encoding]] = {
    "tpe": (tpe, "bits"),
    "gp": (gp, "bits"),
    "nsga2": (nsga2, "bits"),
    "random": (optuna_samplers.random, "bits"),
    "cmaes": (optuna_samplers.cmaes, "floats"),
    "quadratic": (Quadratic, "bits"),
}

# Recorded from the search of skip sets alone, before there were other dimensions.
RECORDED = {
    "tpe": (
        "a3 m1,3|a0-2 m0-2|a0-2 m0-2|a0,2-3 m0,2|a0,2-3 m0,2|a0-3 m0,3|a0-1,3 m0,3|a0-3 m3|a0-2 m3|a0-2 m3|a0-3 m2-3|"
        "a0-3|a0-3|a1-3|a0-3 m1|a0,2-3|a0-1,3|a0-3"
    ),
    # after these, what the process proposes depends on how the processor rounds
    "gp": "a3 m1,3|a0-2 m0-2|a0-2 m0,2|a0-2 m0,2-3|a0-3 m0,2",
    "quadratic": (
        "a2-3 m1-3|a1-2 m0-1|a0-2 m1-2|a0-2 m1-3|a0-1 m1-2|a0-2 m2|a0-2 m2-3|a0-2|a0-3|a0-3 m3|a0-2 m3|a0-3 m2|"
        "a0-3 m2-3|a0-1,3|a0-1,3 m3|a0-3 m1|a0-1,3 m2|a0-1"
    ),
    "cmaes": (
        "a0,3 m3|a0-2 m1,3|m0,3|a0 m3|a0-2 m2|a1,3 m1-3|a0,2 m1-3|a1,3 m0-3|a0,3 m0-1|a3 m0-3|a0-3 m2-3|a1-2 m1-3|"
        "a0,2 m0|a0-2 m0,2|a1-2 m2-3|m0|a0-2 m2-3|a0-1 m1"
    ),
    "nsga2": (
        "a3 m1,3|a0-2 m0-2|a2-3 m3|a0-1 m0,2|a1-3 m2-3|a0,2 m0,2-3|a1-3 m0,2|a0,2 m0,2|a0-2 m2|a0-1 m1-2|"
        "a1-2 m0,2-3|a1 m0|a0-1 m0,2|a0-2 m2|a0-1,3 m1-3|a0-1 m1-2|a0 m1-2|a0-1,3 m2"
    ),
}
RECORDED_CONSTRAINED = (
    "a0 m1|a0-2 m2|a0-2 m2|a0-2|a0-2|a0-2 m0|a1-2|a0,2|a0-2 m1|a0-2|a0-1|a0-2|a0-2|a0-2 m1|a0-2|a0,2|a2 m2|a1 m0"
)


def go_on(study: SearchStudy, n_trials: int, value: Callable[[Point], float]) -> None:
    while (number := len(study.trials)) < n_trials:
        start = SkipSet(N_LAYERS) if number == 0 else STARTS[min(number, 1)]
        proposal = study.start(study.space.project(start)) if number < 2 else study.ask()
        study.tell(proposal, score(value(proposal.point)))


@pytest.mark.parametrize("name", RECORDED)
def test_without_dimensions_a_search_proposes_what_it_always_did(name: str) -> None:
    make, encoding = SAMPLERS[name]
    expected = RECORDED[name].split("|")
    study = SearchStudy(Space(N_LAYERS), make, seed=0, encoding=encoding)
    go_on(study, 2 + len(expected), lambda point: planted(point.skip))
    assert [t.user_attrs["skip"] for t in study.trials[2:]] == expected


def test_without_dimensions_constraints_project_as_they_always_did() -> None:
    expected = RECORDED_CONSTRAINED.split("|")
    study = SearchStudy(Space(N_LAYERS, CONSTRAINED), tpe, seed=0)
    go_on(study, 2 + len(expected), lambda point: planted(point.skip))
    assert [t.user_attrs["skip"] for t in study.trials[2:]] == expected


class TestDimensions:
    @pytest.mark.parametrize(
        ("body", "piece"),
        [
            ({"head": 3}, "space.head=3"),
            ({"head": {"low": 1}}, "space.head="),
            ({"head": {"low": 1, "high": 2, "step": 1}}, "space.head="),
            ({"head": []}, "one value or more"),
            ({"head": ["full", "full"]}, "each once"),
            ({"head": [[1], [2]]}, "plain ones"),
            ({"x": {"low": 3, "high": 2}}, "space.x: low=3"),
            ({"x": {"low": 0, "high": 2, "log": True}}, "log=True"),
            ({"x": {"low": "a", "high": 2}}, "space.x"),
            ({"x": {"values": [1, 2], "default": 3}}, "the default 3"),
            ({"x": {"values": [1, 2], "when": {"y": 3}}}, "'y'"),
            ({"x": [1], "y": {"values": [1], "when": {"x": 2}}}, "x is never 2"),
            ({"x": {"values": [1], "when": {"y": 1}}, "y": {"values": [1], "when": {"x": 1}}}, "depend on each other"),
        ],
    )
    def test_what_is_no_dimension_is_refused_in_one_line(self, body: dict[str, Any], piece: str) -> None:
        with pytest.raises(InputError, match=piece) as refusal:
            dimensions(body)
        assert "\n" not in str(refusal.value)

    def test_groups_may_be_nested_and_conditions_come_first(self) -> None:
        body = {"memory": {"values": [0, 8], "when": {"lookup": ["front"]}}, "lookup": [None, "front"]}
        found = dimensions(body | {"stop": {"max_draft": {"low": 1, "high": 3}}})
        assert [d.name for d in found] == ["lookup", "stop.max_draft", "memory"]
        values: dict[str, Value] = {"lookup": None, "stop.max_draft": 2, "memory": 8}
        assert active(found, values) == {"lookup": None, "stop.max_draft": 2}

    def test_a_range_begins_at_the_runs_own_setting_if_it_holds_it(self) -> None:
        body = {"stop.max_draft": {"low": 2, "high": 9}, "stop.threshold": {"low": 0.5, "high": 0.9}}
        found = dimensions(body, own={"stop.max_draft": 5, "stop.threshold": 0.2})
        assert [d.default for d in found] == [5, 0.5]

    @pytest.mark.parametrize(
        "domain",
        [
            Choice(("a", None, 3)),
            Range(1, 12),
            Range(0.3, 0.95),
            Range(1, 1000, log=True),
            Range(1e-3, 1.0, log=True),
            Range(4, 4),
        ],
        ids=str,
    )
    def test_every_value_has_its_place(self, domain: Choice | Range) -> None:
        values = [domain.at(i / 200) for i in range(201)]
        assert all(domain.holds(v) for v in values)
        assert {domain.at(0.0), domain.at(1.0)} >= set(domain.extremes[:1] + domain.extremes[-1:])
        for value in values:
            place, again = domain.place(value), domain.at(domain.place(value))
            assert 0 <= place <= 1
            assert again == (pytest.approx(value) if isinstance(value, float) else value)

    def test_a_domain_holds_what_is_of_its_kind_alone(self) -> None:
        assert not Choice((1, 2)).holds(True) and not Range(0, 3).holds(1.0) and not Range(0, 3).holds(True)
        assert Range(0.0, 3.0).holds(1)


class TestPoint:
    def test_is_written_as_its_skip_set_and_its_settings(self) -> None:
        skip = SkipSet.parse("a3,0 m1", N_LAYERS)
        assert str(Point(skip)) == str(skip)
        settings: dict[str, Value] = {"head": 2048, "lookup": None, "stop.threshold": 0.123456, "x": True}
        assert str(Point(skip, settings)) == "a0,3 m1; head=2048 lookup=null stop.threshold=0.1235 x=true"

    def test_is_equal_by_what_it_holds(self) -> None:
        a, b = Point(STARTS[0], {"x": 1, "y": 2}), Point(STARTS[0], {"y": 2, "x": 1})
        assert a == b and hash(a) == hash(b) and a != Point(STARTS[0], {"x": 1})
        assert Point.from_draft(a) is a and Point.from_draft(STARTS[0]) == Point(STARTS[0])


class TestSearch:
    @pytest.mark.parametrize("seed", [0, 1])
    def test_tpe_finds_the_planted_mixture(self, seed: int) -> None:
        study = SearchStudy(SPACE, partial(optuna_samplers.tpe, n_startup_trials=10), seed=seed)
        go_on(study, 120, mixed)
        (best, value), *_ = top(study, 1)
        assert (best.settings["precision"], best.settings["lookup"], best.settings["memory"]) == ("int4", "front", 8192)
        most = planted(SkipSet.parse("a0-3", N_LAYERS)) + 2.2
        assert value > most - 0.45, best

    @pytest.mark.parametrize("name", SAMPLERS)
    def test_an_interrupted_search_goes_on_as_the_uninterrupted_one(self, name: str, tmp_path: Path) -> None:
        make, encoding = SAMPLERS[name]

        def study(journal: Path | None = None) -> SearchStudy:
            return SearchStudy(SPACE, make, seed=3, encoding=encoding, journal=journal)

        n, k = (8, 6) if name == "gp" else (14, 9)  # which is slow
        whole, stopped = study(), study(tmp_path / JOURNAL)
        go_on(whole, n, mixed)
        go_on(stopped, k, mixed)
        stopped.ask()  # proposed, and killed before it was told
        resumed = study(tmp_path / JOURNAL)
        go_on(resumed, n, mixed)
        assert [resumed.point(t) for t in resumed.trials] == [whole.point(t) for t in whole.trials]

    @pytest.mark.parametrize("name", SAMPLERS)
    def test_what_is_told_is_what_was_run(self, name: str, tmp_path: Path) -> None:
        make, encoding = SAMPLERS[name]
        study = SearchStudy(SPACE, make, seed=0, encoding=encoding, journal=tmp_path / JOURNAL)
        ran = []
        for number in range(7 if name == "gp" else 10):
            proposal = study.start(STARTS[number]) if number < 2 else study.ask()
            study.tell(proposal, score(mixed(proposal.point)))
            ran.append(proposal.point)
        again = SearchStudy(SPACE, make, seed=0, encoding=encoding, journal=tmp_path / JOURNAL)
        for trials in (study.trials, again.trials):
            assert [study.point(t) for t in trials] == ran
            for trial, point in zip(trials, ran, strict=True):
                assert ("memory" in point.settings) == (point.settings["lookup"] == "front")
                for d in MIXED:  # what the sampler learns from: of what is not searched, the default
                    told = trial.params[d.name]
                    meant = d.domain.at(told) if encoding == "floats" else told
                    expected = point.settings.get(d.name, d.default)
                    assert meant == (pytest.approx(expected) if isinstance(expected, float) else expected), d.name
        assert len({tuple(p.settings.items()) for p in ran}) > 1 or name == "quadratic"

    def test_a_searcher_of_skip_sets_leaves_the_others_at_their_defaults(self) -> None:
        study = SearchStudy(SPACE, Quadratic, seed=0)
        go_on(study, 20, mixed)
        alone = SearchStudy(Space(N_LAYERS), Quadratic, seed=0)
        go_on(alone, 20, lambda point: mixed(SPACE.point(point.skip)))
        points = [study.point(t) for t in study.trials]
        assert {tuple(p.settings.items()) for p in points} == {tuple(SPACE.point(STARTS[0]).settings.items())}
        assert [p.skip for p in points] == [alone.point(t).skip for t in alone.trials]

    def test_constraints_hold_with_dimensions_and_may_depend_on_them(self) -> None:
        tight = Constraints(n_skipped=3)
        space = Space(
            N_LAYERS,
            Constraints(n_skipped=1),
            MIXED,
            lambda settings: tight if settings["precision"] == "int4" else Constraints(n_skipped=1),
        )
        study = SearchStudy(space, tpe, seed=0)
        for _ in range(20):
            proposal = study.ask()
            study.tell(proposal, score(mixed(proposal.point)))
            assert len(proposal.skip) == (3 if proposal.point.settings["precision"] == "int4" else 1)

    def test_another_space_is_refused(self, tmp_path: Path) -> None:
        first = SearchStudy(SPACE, tpe, seed=0, journal=tmp_path / JOURNAL)
        go_on(first, 1, mixed)
        with pytest.raises(InputError, match="space"):
            SearchStudy(Space(N_LAYERS, dimensions=MIXED[:2]), tpe, seed=0, journal=tmp_path / JOURNAL)


class Mixed:
    """Scores points by `mixed`, and remembers which."""

    name, unit = "planted", "points"

    def __init__(self, fails: Callable[[Point], bool] = lambda point: False) -> None:
        self.calls: list[Point] = []
        self._fails = fails

    def __call__(self, draft: Point | SkipSet, *, should_continue: ShouldContinue | None = None) -> Score:
        point = Point.from_draft(draft)
        self.calls.append(point)
        if self._fails(point):
            raise DrafterError(f"tests.Own proposed token 999 of a vocabulary of 9, drafting {point}")
        return score(mixed(point))


class TestLoop:
    def searched(self, folder: Path, n_trials: int, objective: Mixed, space: Space = SPACE, **changes: Any) -> Found:
        study = SearchStudy(space, changes.pop("sampler", tpe), seed=0, journal=folder / JOURNAL)
        settings: dict[str, Any] = {"starts": STARTS, "seed": 0, "rows_path": folder / ROWS, "stopwatch": ticking()}
        return run_search(space, objective, study, n_trials=n_trials, **settings | changes)

    def test_rows_and_results_say_which_point(self, tmp_path: Path) -> None:
        objective = Mixed()
        found = self.searched(tmp_path, 25, objective)
        rows = rows_of(tmp_path)
        assert [Point.from_row(row, N_LAYERS) for row in rows if not row["reason"]] == objective.calls
        assert found.point == Point.from_row(rows[found.number], N_LAYERS) and found.value == mixed(found.point)
        assert found.nothing_value == mixed(SPACE.point(SkipSet(N_LAYERS)))
        assert len(set(objective.calls)) == len(objective.calls), "a point is scored once"
        assert len({p.skip for p in objective.calls}) < len(objective.calls), "no skip set came twice: no proof"

    def test_rows_of_a_search_of_skip_sets_are_as_they_were(self, tmp_path: Path) -> None:
        study = SearchStudy(Space(N_LAYERS), tpe, seed=0)
        settings: dict[str, Any] = {"starts": STARTS, "seed": 0, "rows_path": tmp_path / ROWS, "stopwatch": ticking()}
        run_search(Space(N_LAYERS), Scripted(), study, n_trials=4, **settings)
        assert all("settings" not in row for row in rows_of(tmp_path))

    def test_a_search_that_was_cut_off_goes_on(self, tmp_path: Path) -> None:
        whole, cut = tmp_path / "whole", tmp_path / "cut"
        for folder in (whole, cut):
            folder.mkdir()
        self.searched(whole, 16, Mixed())
        self.searched(cut, 7, Mixed())
        self.searched(cut, 16, Mixed())
        assert rows_of(cut) == rows_of(whole)

    def test_a_drafters_fault_fails_its_trial_and_the_search_goes_on(self, tmp_path: Path) -> None:
        found = self.searched(tmp_path, 20, Mixed(lambda p: p.settings["precision"] == "int8"))
        rows = rows_of(tmp_path)
        failed = [row for row in rows if row["state"] == "failed"]
        assert failed and all(row["settings"]["precision"] == "int8" for row in failed)
        assert all("token 999" in row["reason"] for row in failed)
        assert len(rows) == 20 and found.point.settings["precision"] != "int8"


class TestDrafts:
    drafts = Drafts(
        Threshold(8, 0.6),
        heads={4: torch.arange(4)},
        memories={8: torch.arange(8)},
        drafter={"_target_": "a.B", "width": 1},
    )

    def spec(self, **settings: Value) -> DraftSpec:
        return self.drafts(Point(STARTS[1], {k.replace("__", "."): v for k, v in settings.items()}))

    def test_what_is_no_dimension_is_the_runs_own(self) -> None:
        assert self.spec() == DraftSpec(self.drafts.outline(STARTS[1]), Threshold(8, 0.6), drafter=self.drafts.drafter)

    def test_each_dimension_changes_its_own_part(self) -> None:
        assert self.spec(stop__max_draft=3, stop__threshold=0.4).stop == Threshold(3, 0.4)
        both = Point(STARTS[1], {"head": 4, "precision": "int4"})
        assert self.drafts(both).plan == self.drafts.outline(both) and self.drafts(both).plan.precision == "int4"
        head = self.spec(head=4).plan.head
        assert head is not None and len(head) == 4 and self.spec(head="full").plan.head is None
        assert (self.spec(lookup="front").lookup, self.spec(lookup=None).lookup) == ("front", None)
        assert self.spec(memory=0).plan.memory is None and self.spec(memory=8).plan.memory is self.drafts.memories[8]
        assert self.spec(drafter__width=5).drafter == {"_target_": "a.B", "width": 5}

    def test_a_tree_has_its_settings_searched(self) -> None:
        drafts = Drafts(Fixed(3), tree=ExpandRerank(width=2, max_depth=3, max_nodes=6))
        check_dimensions(drafts, dimensions({"tree": {"width": {"low": 1, "high": 4}}}))
        assert drafts(Point(STARTS[1], {"tree.width": 4})).tree == ExpandRerank(4, 3, 6)

    @pytest.mark.parametrize(
        ("name", "values", "piece"),
        [
            ("hed", [1], "did you mean 'head'"),
            ("head", [5], "head=5"),
            ("precision", ["int3"], "precision=int3"),
            ("draft", ["lowrank"], "draft.rank"),
            ("draft", ["liner"], "draft=liner"),
            ("lookup", ["sometimes"], "lookup=sometimes"),
            ("memory", [9], "memory=9"),
            ("stop.length", [9], "stop.length is not a setting of Threshold"),
            ("stop.max_draft", [0], "max_draft=0"),
            ("stop.threshold", [0.5, 2.0], "threshold=2.0"),
            ("tree.width", [2], "no tree"),
        ],
    )
    def test_what_cannot_be_is_refused_before_the_search(self, name: str, values: list[Any], piece: str) -> None:
        with pytest.raises(InputError, match=piece) as refusal:
            check_dimensions(self.drafts, [Dimension(name, Choice(tuple(values)), values[0])])
        assert f"space.{name}" in str(refusal.value) and "\n" not in str(refusal.value)

    def test_what_is_made_beforehand_has_no_range(self) -> None:
        with pytest.raises(InputError, match="list of values"):
            check_dimensions(self.drafts, [Dimension("head", Range(1, 9), 1)])

    def test_values_that_cannot_be_together_fail_the_trial_alone(self) -> None:
        drafts = Drafts(Heuristic(8, 5, 2, 1, False))
        body = {"stop.max_draft": {"low": 5, "high": 9}, "stop.start": {"low": 1, "high": 8}}
        check_dimensions(drafts, dimensions(body))
        with pytest.raises(RuntimeError, match="start=8"):
            drafts(Point(STARTS[0], {"stop.max_draft": 5, "stop.start": 8}))
        assert drafts(STARTS[0]).stop == drafts.stop
