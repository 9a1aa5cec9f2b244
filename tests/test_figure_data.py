"""The numbers of each figure, and that matplotlib and plotly draw the same ones."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

go = pytest.importorskip("plotly.graph_objects", reason="needs selfspec[dashboard]")

from experiments.charts import comparing, evaluating, searching  # noqa: E402
from experiments.results import figure_data, figures  # noqa: E402
from search.importance import Importance  # noqa: E402
from selfspec.skipping.skip_set import SkipSet  # noqa: E402
from tests.test_figures_search import N_LAYERS, ROWS, line  # noqa: E402

Row = dict[str, Any]


def answer(prompt: str, rounds: list[tuple[int, int]], thresholds: list[float | None]) -> Row:
    drafted, accepted = (list(counts) for counts in zip(*rounds, strict=True))
    more = {"round_drafted": drafted, "round_accepted": accepted, "round_threshold": thresholds}
    return {"arm": "draft", "prompt_id": prompt, "error": None, **more}


ANSWERS = [
    answer("p", [(3, 3), (3, 1), (0, 0)], [0.5, 0.6, None]),
    answer("q", [(2, 0), (1, 1)], [0.4, 0.5]),
]


def trace(figure: Any, name: str) -> list[tuple[float, float]]:
    """The points of the trace of that name."""
    (found,) = (t for t in figure.data if t.name == name)
    return [(float(x), float(y)) for x, y in zip(found.x, found.y, strict=True)]


@pytest.mark.parametrize("spent", ["evaluations", "seconds"])
def test_the_progress_of_a_search_is_one_curve_in_both(spent: figure_data.Spent) -> None:
    best = figure_data.progress(ROWS, spent).best
    axes = figures.best_so_far(ROWS, objective="acceptance").axes[figures.AXES.index(spent)]
    chart = searching.best_so_far(ROWS[::-1], objective="acceptance", spent=spent)  # rows in any order
    assert best == line(axes, "best so far") == trace(chart, "best so far")
    assert [y for _, y in best] == [1.0, 1.0, 1.0, 1.2, 1.2, 1.2, 1.3]


def test_trials_of_several_workers_count_in_the_order_in_which_they_ended() -> None:
    late, early = ROWS[0] | {"elapsed_s": 9.0}, ROWS[3] | {"elapsed_s": 4.0}
    assert figure_data.progress([late, early], "seconds").best == [(4.0, 1.2), (9.0, 1.2)]


def test_the_trade_off_has_one_front_and_one_best_in_both() -> None:
    data = figure_data.trade_off(ROWS)
    axes, chart = (
        figures.pareto(ROWS, objective="acceptance").axes[0],
        searching.trade_off(ROWS, objective="acceptance"),
    )
    front = [(t["draft_cost"], t["acceptance"]) for t in data.front]
    assert front == line(axes, "best acceptance at that cost") == trace(chart, "Pareto front")
    assert data.best is not None and data.best["number"] == 6
    assert line(axes, "best value") == trace(chart, "best value") == [(0.7, 0.7)]


def test_the_importance_map_has_the_same_cells_in_both() -> None:
    importance = Importance.from_rows(ROWS, N_LAYERS)
    cells = figures.importance_map(importance, objective="acceptance").axes[0].images[0].get_array()
    (chart,) = searching.importance(ROWS, n_layers=N_LAYERS, objective="acceptance").data
    expected = figure_data.importance_map(importance).changes
    np.testing.assert_array_equal(np.ma.filled(np.ma.asarray(cells), math.nan), expected)
    np.testing.assert_array_equal(np.array(chart.z, dtype=float), expected)
    np.testing.assert_allclose(expected, [[-0.6, 0.2, 0.1], [math.nan] * 3])


def test_the_skip_map_marks_the_same_sublayers_in_both() -> None:
    sets = {"deep": SkipSet.parse("a0,3 m1", 4), "flat": SkipSet.parse("a1", 2)}
    deep, flat = figure_data.skip_map(sets)
    assert deep.is_skipped == {"attention": [True, False, False, True], "MLP": [False, True, False, False]}
    assert flat.counts == "1 attention, 0 MLP of 2"
    heat = comparing.skip_map(sets).data[0]
    assert [list(row) for row in heat.z] == [
        [1, 0, 0, 1],
        [0, 2, 0, 0],
        [None] * 4,
        [0, 1, None, None],
        [0, 0, None, None],
    ]
    axes = figures.skip_map(sets).axes[0]
    n_cells = [len(cells.get_paths()) for cells in axes.collections]
    assert n_cells == [2, 2, 3, 1, 1, 1, 2, 0]  # kept and skipped, attention then MLP, of either set


def test_a_position_counts_the_tokens_that_were_judged() -> None:
    found = figure_data.positions(ANSWERS)
    assert [(p.number, p.drafted, p.judged, p.accepted) for p in found] == [(1, 4, 4, 3), (2, 3, 2, 1), (3, 2, 1, 1)]
    chart = evaluating.position_acceptance(ANSWERS)
    assert trace(chart, "draft") == [(p.number, p.acceptance) for p in found] == [(1, 3 / 4), (2, 1 / 2), (3, 1.0)]


def test_the_course_of_a_threshold_has_gaps_where_the_rule_has_none() -> None:
    course = figure_data.course(ANSWERS)
    assert course.thresholds == [0.5, 0.6, None, 0.4, 0.5]
    assert course.acceptance == pytest.approx([1, 4 / 6, 4 / 6, 4 / 8, 5 / 9]) and course.prompt_ends == [3]
    (chart,) = evaluating.thresholds(ANSWERS).data
    assert list(chart.y) == course.thresholds


def test_only_what_was_predicted_and_measured_is_a_prediction() -> None:
    row = {"label": "a", "data": "mini", "predicted": 1.2, "speedup": 1.1, "low": None, "high": math.nan}
    (found,) = figure_data.predictions([row, row | {"predicted": None}, row | {"speedup": None}])
    assert (found.predicted, found.measured, found.low, found.high) == (1.2, 1.1, 1.1, 1.1)


def test_an_objective_is_read_out_as_its_unit() -> None:
    assert figure_data.unit("tokens_per_s") == figure_data.unit("tokens_per_second") == "tokens per second"
