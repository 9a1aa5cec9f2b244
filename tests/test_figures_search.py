"""Pictures of a search: what they show is in the rows, and rows that lack something do not stop them."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection, PolyCollection
from matplotlib.figure import Figure

from experiments.results import figures
from search.importance import Importance
from search.pareto import front

Row = dict[str, Any]

N_LAYERS = 3


def trial(number: int, skip: str, value: float | None, *, state: str = "complete", **more: Any) -> Row:
    counts: dict[str, float | None] = {
        "accepted": 8,
        "drafted": 10,
        "n_rounds": 4,
        "acceptance": 0.8,
        "draft_cost": 0.6,
    }
    if value is None:
        state, counts = "failed", dict.fromkeys(counts)
    times = {"elapsed_s": 2.0 * number + 1}
    return {
        "number": number,
        "origin": "searcher",
        "skip": skip,
        "value": value,
        "state": state,
        **counts,
        **times,
        **more,
    }


ROWS = [
    trial(0, "none", 1.0, acceptance=1.0, draft_cost=1.0),
    trial(1, "a0", 0.4, acceptance=0.3, draft_cost=0.9),
    trial(2, "m0", None),
    trial(3, "a1", 1.2, acceptance=0.9, draft_cost=0.9),
    trial(4, "m1", 0.9, state="pruned"),
    trial(5, "a2", 1.1, acceptance=0.8, draft_cost=0.9),
    trial(6, "a1-2", 1.3, acceptance=0.7, draft_cost=0.7),
]


def without(rows: list[Row], *names: str) -> list[Row]:
    """As an older version wrote them."""
    return [{k: v for k, v in row.items() if k not in names} for row in rows]


def line(axes: Axes, label: str) -> list[tuple[float, float]]:
    """The points of the line of that label; none if there is no such line."""
    lines = [line for line in axes.lines if line.get_label() == label]
    return [(float(x), float(y)) for ln in lines for x, y in zip(*map(np.asarray, ln.get_data()), strict=True)]


PICTURES: dict[str, Callable[[list[Row]], Figure]] = {
    "importance_map": lambda rows: figures.importance_map(
        Importance.from_rows(rows, N_LAYERS), objective="expected_speedup"
    ),
    "best_so_far": lambda rows: figures.best_so_far(rows, objective="tokens_per_second"),
    "pareto": lambda rows: figures.pareto(rows, objective="expected_speedup"),
    "race_evaluations": lambda rows: figures.race_curves({"tpe": [rows, rows]}, x="evaluations", objective="value"),
    "race_seconds": lambda rows: figures.race_curves({"tpe": [rows], "gp": [rows[:2]]}, x="seconds", objective="value"),
}
CASES = {
    "one": ROWS[:1],
    "none complete but the first": [ROWS[0], trial(1, "a1", None), trial(2, "a2", 0.5, state="pruned")],
    "equal values": [trial(i, skip, 1.0) for i, skip in enumerate(("none", "a1", "m1"))],
    "an older version's": without(ROWS, "draft_cost", "elapsed_s"),
}


@pytest.mark.usefixtures("rendered")
@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.filterwarnings("error")
def test_every_picture_is_saved_as_png_and_svg(name: str, tmp_path: Path) -> None:
    png, svg = figures.save(PICTURES[name](ROWS), tmp_path / name)
    assert png.read_bytes().startswith(b"\x89PNG")
    assert ElementTree.parse(svg).getroot().tag.endswith("svg")


@pytest.mark.parametrize("rows", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.filterwarnings("error")
def test_every_picture_is_drawn_of_whatever_rows_there_are(name: str, rows: list[Row]) -> None:
    PICTURES[name](rows).canvas.draw()


@pytest.mark.parametrize("name", ["best_so_far", "pareto", "race_evaluations", "race_seconds"])
@pytest.mark.parametrize("rows", [[], [trial(0, "none", None)]], ids=["no row", "a failure alone"])
@pytest.mark.filterwarnings("error")
def test_a_search_without_a_value_has_pictures_without_points(name: str, rows: list[Row]) -> None:
    PICTURES[name](rows).canvas.draw()


class TestImportanceMap:
    def test_each_cell_is_the_change_from_skipping_nothing(self) -> None:
        axes = PICTURES["importance_map"](ROWS).axes[0]
        cells: np.ndarray = np.ma.filled(np.ma.asarray(axes.images[0].get_array()), math.nan)
        np.testing.assert_allclose(cells, [[-0.6, 0.2, 0.1], [math.nan] * 3])

    def test_marks_what_helps_and_what_has_no_value(self) -> None:
        axes = PICTURES["importance_map"](ROWS).axes[0]
        assert line(axes, "better than skipping nothing") == [(1, 0), (2, 0)]
        assert line(axes, "no value") == [(0, 1), (1, 1), (2, 1)]  # failed, pruned, and never tried

    def test_white_is_no_change(self) -> None:
        image = PICTURES["importance_map"](ROWS).axes[0].images[0]
        assert image.norm(np.zeros(1)) == [0.5]
        np.testing.assert_allclose(image.cmap(0.5), (1, 1, 1, 1), atol=0.01)


class TestBestSoFar:
    def test_the_best_never_falls_and_only_complete_trials_raise_it(self) -> None:
        evaluations, seconds = PICTURES["best_so_far"](ROWS).axes
        values = [1.0, 1.0, 1.0, 1.2, 1.2, 1.2, 1.3]
        assert line(evaluations, "best so far") == list(zip(range(1, 8), values, strict=True))
        assert line(seconds, "best so far") == list(zip(range(1, 14, 2), values, strict=True))

    def test_marks_what_failed_and_what_was_pruned(self) -> None:
        for axes, failed, pruned in zip(PICTURES["best_so_far"](ROWS).axes, (3, 5), (5, 9), strict=True):
            assert [x for x, _ in line(axes, "failed (no value)")] == [failed]
            assert [x for x, _ in line(axes, "pruned (no value)")] == [pruned]

    def test_rows_that_do_not_tell_when_they_ended_are_still_evaluations(self) -> None:
        evaluations, seconds = PICTURES["best_so_far"](without(ROWS, "elapsed_s")).axes
        assert line(evaluations, "best so far") and not line(seconds, "best so far")


class TestPareto:
    def test_shows_every_measured_trial_the_front_and_the_best(self) -> None:
        axes = PICTURES["pareto"](ROWS).axes[0]
        (dots,) = [c for c in axes.collections if isinstance(c, PathCollection)]
        assert len(np.asarray(dots.get_offsets())) == 5
        expected = [(r["draft_cost"], r["acceptance"]) for r in front(ROWS)]
        assert line(axes, "best acceptance at that cost") == expected == [(0.7, 0.7), (0.9, 0.9), (1.0, 1.0)]
        assert line(axes, "best value") == [(0.7, 0.7)]
        assert line(axes, "skip nothing") == [(1.0, 1.0)]


class TestRaceCurves:
    RUNS = (
        [trial(0, "none", 1.0), trial(1, "a0", 3.0), trial(2, "a1", 2.0)],
        [trial(0, "a2", None), trial(1, "none", 1.0), trial(2, "a1", 2.0), trial(3, "a0", 9.0)],
    )

    def test_is_the_mean_over_seeds_and_ends_with_the_shortest(self) -> None:
        axes = figures.race_curves({"tpe": self.RUNS}, x="evaluations", objective="value").axes[0]
        assert line(axes, "tpe (2 seeds)") == [(2, 2.0), (3, 2.5)]

    def test_the_band_is_the_range_of_the_seeds(self) -> None:
        axes = figures.race_curves({"tpe": self.RUNS}, x="evaluations", objective="value").axes[0]
        (band,) = [c for c in axes.collections if isinstance(c, PolyCollection)]
        heights = np.asarray(band.get_paths()[0].vertices)[:, 1]
        assert (heights.min(), heights.max()) == (1.0, 3.0)

    def test_seeds_are_compared_at_equal_seconds(self) -> None:
        slow = [row | {"elapsed_s": 2 * row["elapsed_s"]} for row in self.RUNS[0]]
        axes = figures.race_curves({"tpe": [self.RUNS[0], slow]}, x="seconds", objective="value").axes[0]
        assert line(axes, "tpe (2 seeds)") == [(2, 1.0), (3, 2.0), (5, 2.0)]

    def test_searchers_differ_in_more_than_colour(self) -> None:
        races = {f"s{i}": [ROWS] for i in range(20)}
        lines = figures.race_curves(races, x="evaluations", objective="value").axes[0].lines
        assert len({(ln.get_color(), ln.get_linestyle()) for ln in lines}) == 20
        assert all(a.get_linestyle() != b.get_linestyle() for a, b in pairwise(lines))

    def test_trials_of_several_workers_count_in_the_order_in_which_they_ended(self) -> None:
        rows = [trial(0, "a0", 3.0, elapsed_s=9.0), trial(1, "none", 1.0, elapsed_s=4.0)]
        axes = figures.race_curves({"tpe": [rows]}, x="seconds", objective="value").axes[0]
        assert line(axes, "tpe (1 seed)") == [(4, 1.0), (9, 3.0)]
