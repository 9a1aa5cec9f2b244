"""A ladder of drafts before the search of skip sets: each part stays only if it pays, and resuming changes nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pytest

from search.constraints import Constraints
from search.dimensions import dimensions
from search.ladder import MIN_GAIN, Ladder, Rung, best_settings
from search.objective import Score, ShouldContinue
from search.point import Point, Value, settings_text
from search.samplers.local import Greedy
from search.samplers.quadratic import Quadratic
from search.space import Space
from search.study.loop import Found, run_search
from search.study.study import SearchStudy
from selfspec.errors import InputError
from selfspec.records import run_files
from selfspec.skipping.skip_set import SkipSet
from tests.commands import command
from tests.scripted import JOURNAL, N_LAYERS, ROWS, planted, rows_of, score, ticking, tpe

DIMENSIONS = dimensions({"lookup": [None, "front", "only"], "memory": [0, 8192], "precision": ["same", "int8", "int4"]})
SPACE = Space(N_LAYERS, dimensions=DIMENSIONS)
PARTS: tuple[Mapping[str, Value], ...] = (
    {"lookup": "only"},
    {"memory": 8192},
    {"lookup": "front", "precision": "int8"},
    {"lookup": "front", "precision": "int4"},
)
LADDER = Ladder(SPACE, PARTS)
ALONE = {None: 1.0, "only": 1.2, "front": 1.1}
ROUNDED = {"same": 0.0, "int8": 0.05, "int4": 0.6}


def value(point: Point) -> float:
    """Lookup pays, a memory does not, int8 less than lookup alone; the best skip set depends on the precision."""
    s = point.settings
    base = ALONE[s["lookup"]] - (0.1 if s["memory"] else 0.0)  # type: ignore[index]
    if s["lookup"] == "only":
        return base
    sign = 1 if s["precision"] == "int4" else -1
    return base + ROUNDED[str(s["precision"])] + sign * planted(point.skip)


@dataclass
class Valued:
    """Scores points by a function; a RuntimeError of it is a failed trial."""

    of: Callable[[Point], float] = value
    name: str = "valued"
    unit: str = "points"

    def __call__(self, draft: Point | SkipSet, *, should_continue: ShouldContinue | None = None) -> Score:
        return score(self.of(Point.from_draft(draft)))


@pytest.fixture(autouse=True, scope="module")
def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def searched(folder: Path, n_trials: int, *, of: Callable[[Point], float] = value, sampler: Any = Quadratic) -> Found:
    study = SearchStudy(SPACE, sampler, seed=0, identity={"objective": "valued"}, journal=folder / JOURNAL)
    settings = {"starts": (), "ladder": LADDER, "stopwatch": ticking(), "seed": 0, "rows_path": folder / ROWS}
    return run_search(SPACE, Valued(of), study, n_trials=n_trials, **settings)  # type: ignore[arg-type]


def climbed(of: Callable[[Point], float | None]) -> list[str]:
    values: dict[Point, float | None] = {}
    while (point := LADDER.climb(values)[1]) is not None:
        values[point] = of(point)
    return [str(rung) for rung in LADDER.climb(values)[0]]


def test_each_part_is_added_to_the_best_below_and_stays_if_it_pays() -> None:
    assert climbed(value) == [
        "nothing skipped: 1.000",
        "lookup=only: 1.200",
        "memory=8192: 1.100, left out",
        "lookup=front precision=int8: 1.150, left out",
        "lookup=front precision=int4: 1.700",
    ]


def test_a_gain_that_costs_more_than_it_gives_is_left_out() -> None:
    tiny = {0: 1.0, 8192: 1.0 + (MIN_GAIN - 1) / 2}
    assert climbed(lambda point: tiny[point.settings["memory"]])[2].endswith("left out")  # type: ignore[index]


def test_a_ladder_skips_what_the_space_demands() -> None:
    space = Space(N_LAYERS, Constraints(n_skipped=2), DIMENSIONS)
    values: dict[Point, float | None] = {}
    while (point := Ladder(space, PARTS).climb(values)[1]) is not None:
        values[point] = value(point)
    assert len(values) == 5 and {len(point.skip) for point in values} == {2}


def test_a_part_that_cannot_be_scored_is_left_out() -> None:
    assert climbed(lambda point: None if point.settings["memory"] else value(point))[2] == (
        "memory=8192: cannot be scored, left out"
    )


def test_a_part_that_changes_nothing_is_no_rung() -> None:
    values: dict[Point, float | None] = {SPACE.point(SkipSet(N_LAYERS)): 1.0}
    rungs, point = Ladder(SPACE, ({"memory": 0},)).climb(values)
    assert len(rungs) == 1 and point is None


class TestRaced:
    """Of the parts, `lookup=only` is replaced by the last one, and memory is made to pay here."""

    @staticmethod
    def rungs() -> list[Rung]:
        values: dict[Point, float | None] = {}
        while (point := LADDER.climb(values)[1]) is not None:
            values[point] = value(point) + (0.2 if point.settings.get("memory") else 0.0)
        return LADDER.climb(values)[0]

    def test_a_part_is_raced_against_the_same_without_it(self) -> None:
        rivals = LADDER.without_each(self.rungs())
        assert {i: dict(p.settings) for i, p in rivals.items()} == {
            2: {"lookup": "front", "memory": 0, "precision": "int4"},
            4: {"lookup": "only", "memory": 8192, "precision": "same"},
        }

    @pytest.mark.parametrize(("without", "taken_back"), [(1.2, []), (1.6, ["memory=8192"])])
    def test_a_part_that_loses_the_race_is_taken_back(self, without: float, taken_back: list[str]) -> None:
        rungs = self.rungs()
        top, (no_memory, alone) = LADDER.top(rungs), LADDER.without_each(rungs).values()
        speedups = {top: 1.5, no_memory: without, alone: 1.25}
        raced = LADDER.raced(rungs, speedups, max(speedups, key=lambda p: speedups[p]))
        assert [r.raced for r in raced] == [None, None, 1.5 / without, None, 1.2]
        assert [settings_text(r.added) for r in raced if rungs[raced.index(r)].stays and not r.stays] == taken_back


@pytest.mark.parametrize("part", [{"head": 3}, {"precision": "int2"}])
def test_a_part_that_is_no_value_of_the_space_is_refused(part: dict[str, Value]) -> None:
    with pytest.raises(InputError, match="ladder"):
        Ladder(SPACE, (part,))


@pytest.mark.parametrize("sampler", [Quadratic, Greedy])
def test_skip_sets_are_searched_with_the_parts_that_stayed(tmp_path: Path, sampler: Any) -> None:
    found = searched(tmp_path, 60, sampler=sampler)
    best = max(planted(SkipSet.from_bits([i >> b & 1 for b in range(2 * N_LAYERS)])) for i in range(256))
    assert found.point.settings == {"lookup": "front", "memory": 0, "precision": "int4"}
    assert found.value == pytest.approx(1.7 + best)
    rows = rows_of(tmp_path)
    assert [row["skip"] for row in rows[:5]] == ["none"] * 5
    assert all(row["settings"] == found.point.settings for row in rows[5:])


def test_where_lookup_alone_is_best_its_best_rival_is_searched_with() -> None:
    values: dict[Point, float | None] = {}
    while (point := LADDER.climb(values)[1]) is not None:
        values[point] = 9.0 if point.settings["lookup"] == "only" else value(point)
    assert best_settings(LADDER.climb(values)[0])["precision"] == "int4"


def test_a_searcher_of_all_dimensions_goes_on_from_the_ladder(tmp_path: Path) -> None:
    found = searched(tmp_path, 40, sampler=tpe)
    assert found.value >= 1.7
    assert len({str(row["settings"]) for row in rows_of(tmp_path)[5:]}) > 1


@pytest.mark.parametrize("stopped", [1, 3, 5, 8])
def test_an_interrupted_ladder_goes_on_as_if_it_had_not_been(tmp_path: Path, stopped: int) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    searched(tmp_path / "whole", 20)
    searched(tmp_path / "parts", stopped)
    searched(tmp_path / "parts", 20)
    assert rows_of(tmp_path / "parts") == rows_of(tmp_path / "whole")


def test_draft_auto_says_what_each_part_gave_and_races_its_controls(toy: list[str], tmp_path: Path) -> None:
    words = (f"paths.outputs={tmp_path}", "draft=auto", "searcher.n_trials=8", "stop=threshold", "prune=null")
    small = ("objective.n_prompts=1", "objective.max_new_tokens=6", "finals.n_prompts=1", "finals.race=1")
    costs = ("costs.contexts=[16]", "costs.max_tokens=4", "costs.repeats=1", "calibration.max_new_tokens=6")
    ran = command("search", *toy, *words, *small, *costs)
    assert ran.status == 0, ran.err
    assert "parts, in x plain decoding: nothing skipped: " in ran.out
    summary = json.loads((ran.run / run_files.SUMMARY).read_text())
    assert [rung["added"] for rung in summary["ladder"]][:2] == [{}, {"lookup": "only"}]
    assert all(f": {rung['raced']:.2f}x" in ran.out for rung in summary["ladder"] if rung["raced"])
    raced = run_files.read_rows(ran.run / run_files.FINALS)
    settings = summary["winner"]["settings"]
    assert any(row["skip"] == "none" and row["settings"]["lookup"] == "only" for row in raced)
    assert any(row["skip"] == "none" and row["settings"] == settings for row in raced)
    evaluated = command("evaluate", *toy, f"paths.outputs={tmp_path}", f"skip={ran.run}", "stop=searched", "n=1")
    assert evaluated.status == 0, evaluated.err
