"""What `selfspec search` tries without being told: every part, but for what the run settles or cannot have."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.builders.build_ladder import possible
from experiments.builders.build_search import Asked, asked
from experiments.builders.build_trained import Trained, with_trained
from experiments.config.composing import composing, configuration
from search.draft_of_point import Drafts
from search.ladder import Ladder, best_settings
from search.space import Space
from selfspec.drafters.spec import DraftSpec
from selfspec.drafters.tree_shapes import Static
from selfspec.heads.trained import TrainedHead
from selfspec.skipping.plan import DraftPlan
from selfspec.skipping.skip_set import SkipSet
from selfspec.stopping import Fixed

ALL = [
    {"lookup": "only"},
    {"memory": 8192},
    {"lookup": "front", "precision": "int8"},
    {"lookup": "front", "precision": "int4"},
    {"head": 8192},
]


def search(*words: str) -> Asked:
    with composing():
        return asked(configuration("search", words))


def names(found: Asked) -> set[str]:
    return {d.name for d in found.dimensions}


def test_the_default_tries_every_part_and_then_linear_maps() -> None:
    found = search()
    assert (list(found.ladder), found.drafts.kind) == (ALL, "linear")
    assert names(found) == {"lookup", "memory", "precision", "head"}


@pytest.mark.parametrize(
    ("word", "left"),
    [
        ("precision=int4", [ALL[0], ALL[1], {"lookup": "front"}, ALL[4]]),
        ("lookup=front", [ALL[1], {"precision": "int8"}, {"precision": "int4"}, ALL[4]]),
        ("head=trimmed", ALL[:4]),
        ("memory=99", [ALL[0], ALL[2], ALL[3], ALL[4]]),
        ("draft=linear", []),
        ("recipe=paper", []),
    ],
)
def test_what_the_run_settles_is_not_tried(word: str, left: list[Any]) -> None:
    found = search(word)
    assert list(found.ladder) == left
    assert names(found) == {name for part in left for name in part}
    Ladder(Space(2, dimensions=found.dimensions), found.ladder)  # its parts are values of the space


def test_the_papers_recipe_skips_sublayers_alone() -> None:
    with composing():
        paper, plain = (configuration("search", [word]) for word in ("recipe=paper", "draft=skip"))
    assert (paper.draft, paper.starts, paper.space, paper.ladder) == (plain.draft, ["nothing"], None, [])
    assert (paper.lookup, paper.memory, paper.precision, paper.head.n) == (None, None, "same", None)


def test_what_no_device_can_do_is_not_tried() -> None:
    found, drafts = search(), Drafts(Fixed(2))
    dims, parts = possible(found.dimensions, found.ladder, drafts=drafts, device=torch.device("mps"))
    assert parts == [ALL[0], ALL[1], ALL[4]]
    assert [d.domain.extremes for d in dims if d.name == "precision"] == [("same",)]


def test_lookup_alone_is_not_tried_where_drafts_are_trees() -> None:
    found, drafts = search(), Drafts(Fixed(2), tree=Static(((0,), (1,))))
    dims, parts = possible(found.dimensions, found.ladder, drafts=drafts, device=torch.device("cpu"))
    assert parts == ALL[1:]
    assert [d.domain.extremes for d in dims if d.name == "lookup"] == [(None, "front")]
    assert [d.when for d in dims if d.name == "memory"] == [{"lookup": ("front",)}]


def test_a_trained_draft_is_the_last_part_and_stands_in_for_the_layers() -> None:
    found, n_layers = search(), 2
    spec = DraftSpec(DraftPlan(SkipSet.from_bits([True] * 4), trained=TrainedHead("eagle")), Fixed(3))
    trained = Trained("RUN", Path("train/RUN"), spec, frozenset())
    drafts, dims, parts = with_trained(trained, found.drafts, found.dimensions, found.ladder)
    assert parts == [*ALL, {"lookup": "front", "trained": "RUN"}]
    ladder, values = Ladder(Space(n_layers, dimensions=dims), parts), {}
    while (point := ladder.climb(values)[1]) is not None:
        values[point] = len(values) + 1.0  # each part pays
    rungs = ladder.climb(values)[0]
    top = ladder.top(rungs)
    assert top.settings == {"lookup": "front", "memory": 8192, "trained": "RUN"}
    layers = {"lookup": "front", "memory": 8192, "precision": "int4", "head": 8192, "trained": None}
    assert [p.settings for p in ladder.without_each(rungs).values()][-1] == layers
    assert best_settings(rungs) == layers  # what skip sets are searched with
    drafts = replace(drafts, memories={8192: torch.arange(3)})
    assert drafts(top).plan == replace(spec.plan, memory=torch.arange(3)) and drafts(top).lookup == "front"
