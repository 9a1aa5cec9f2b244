"""Shapes of trees: what is expanded, what is kept, and Sequoia's optimum."""

from __future__ import annotations

import itertools

import pytest

from selfspec.drafters.tree_shapes import BestFirst, ExpandRerank, Node, Static, TreeShape, comb, sequoia, shape_from
from selfspec.engine.protocols import ROOT
from selfspec.errors import InputError

SHAPES: list[TreeShape] = [
    BestFirst(8, 4, 3, 0.3, 0.05, ((0.0, 0.1), (0.5, 0.4), (1.0, 0.95))),
    ExpandRerank(4, 3, 12),
    comb((3, 2, 1)),
    Static(((0,), (1,), (0, 0), (1, 0))),
]


def nodes(*entries: tuple[int, float]) -> list[Node]:
    """From (parent, chance given the parent)."""
    found: list[Node] = []
    for parent, chance in entries:
        above = found[parent] if parent != ROOT else Node(ROOT, 0, (), 1.0)
        rank = sum(n.parent == parent for n in found)
        found.append(Node(parent, above.depth + 1, (*above.ranks, rank), above.path_probability * chance))
    return found


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: type(s).__name__)
def test_a_shape_can_be_written_and_read(shape: TreeShape) -> None:
    assert shape_from(shape.to_dict()) == shape


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: type(s).__name__)
def test_with_a_node_its_parent_is_kept(shape: TreeShape) -> None:
    tree = nodes((ROOT, 0.6), (ROOT, 0.3), (0, 0.5), (0, 0.4), (1, 0.9), (2, 0.9), (4, 1.0))
    for rate in (1.0, 2.0):
        kept = shape.keeps(tree, rate=rate)
        assert kept == sorted(kept) and all(tree[i].parent in (ROOT, *kept) for i in kept)


def test_a_node_is_verified_iff_its_path_probability_exceeds_its_price() -> None:
    shape = BestFirst(max_nodes=9, max_depth=4, n_children=3, draft_cost=0.2, verify_cost=0.06)
    tree = nodes((ROOT, 0.9), (ROOT, 0.08), (ROOT, 0.02), (0, 0.5), (0, 0.1))
    assert shape.keeps(tree, rate=1.0) == [0, 1, 3, 4]
    assert shape.keeps(tree, rate=1.4) == [0, 3, 4]
    assert shape.keeps(tree, rate=1.6) == [0, 3]
    assert shape.keeps(nodes((ROOT, 0.01)), rate=2.0) == [0], "the draft of the first node is paid for"
    assert shape.expands(tree, [0, 1, 2], rate=1.0) == [0, 1]
    assert shape.expands(nodes((ROOT, 0.2)), [0], rate=1.0) == []
    assert shape.expands(nodes((ROOT, 0.27)), [0], rate=1.0) == [0]


def test_a_calibrated_confidence_is_read_between_its_knots() -> None:
    shape = SHAPES[0]
    assert [shape.acceptance(c) for c in (0.0, 0.25, 0.5, 0.75, 1.0)] == pytest.approx([0.1, 0.25, 0.4, 0.675, 0.95])


def test_the_likeliest_are_expanded_and_kept() -> None:
    shape = ExpandRerank(width=2, max_depth=2, max_nodes=3)
    tree = nodes((ROOT, 0.5), (ROOT, 0.3), (ROOT, 0.2), (0, 0.9), (0, 0.1))
    assert shape.expands(tree, [0, 1, 2], rate=1.0) == [0, 1]
    assert shape.expands(tree, [3, 4], rate=1.0) == []
    assert shape.keeps(tree, rate=1.0) == [0, 1, 3]


def test_a_comb_is_a_chain_with_siblings() -> None:
    shape = comb((3, 1, 2))
    assert shape.paths == ((0,), (1,), (2,), (0, 0), (0, 0, 0), (0, 0, 1))
    assert (shape.max_depth, shape.n_children) == (3, 3)


def expected_tokens(paths: tuple[tuple[int, ...], ...], acceptances: list[float]) -> float:
    total = 1.0
    for path in paths:
        chance = 1.0
        for rank in path:
            chance *= acceptances[rank]
        total += chance
    return total


@pytest.mark.parametrize("draft_cost", [0.0, 0.1, 0.4])
@pytest.mark.parametrize("step", [0.0, 0.06, 0.3])
def test_sequoias_tree_is_the_best_of_all(draft_cost: float, step: float) -> None:
    acceptances, n = [0.6, 0.15, 0.1], 6
    verify = [1 + step * i for i in range(n)]
    every: set[tuple[tuple[int, ...], ...]] = set()
    grown: set[tuple[tuple[int, ...], ...]] = {()}
    for _ in range(n - 1):
        grown = {
            tuple(sorted({*tree, (*parent, rank)}))
            for tree in grown
            for parent in ((), *tree)
            for rank in range(3)
            if (*parent, rank) not in tree and (rank == 0 or (*parent, rank - 1) in tree)
        }
        every |= grown

    def rate(tree: tuple[tuple[int, ...], ...]) -> float:
        cost = max(map(len, tree)) * draft_cost + verify[len(tree)]
        return expected_tokens(tree, acceptances) / cost

    found = sequoia(acceptances, draft_cost=draft_cost, verify_s=verify, max_depth=5)
    assert rate(found.paths) == pytest.approx(max(map(rate, every)))


@pytest.mark.parametrize(
    ("paths", "lacks"), [([[0, 0]], r"\[0, 0\] without \[0\]"), ([[1]], r"\[1\] without \[0\]"), ([], "is empty")]
)
def test_a_tree_that_hangs_in_the_air_is_refused(paths: list[list[int]], lacks: str) -> None:
    with pytest.raises(InputError, match=lacks):
        shape_from({"name": "static", "paths": paths})


def test_bad_settings_are_one_line() -> None:
    for body, message in (
        ({"name": "best_frist"}, "did you mean 'best_first'"),
        ({"name": "static"}, "cannot be made of"),
        ({"name": "expand_rerank", "width": 0, "max_depth": 1, "max_nodes": 1}, "tree.width=0"),
    ):
        with pytest.raises(InputError, match=message):
            shape_from(body)
    assert len(list(itertools.combinations(SHAPES, 2))) == 6
