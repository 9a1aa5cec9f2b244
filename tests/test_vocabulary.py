"""The tokens of a trimmed head: the frequent ones, and those that are certain to matter."""

from __future__ import annotations

import itertools
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import pytest
import torch

from search.draft_of_point import Drafts, heads
from search.fitting.continuations import Text
from search.fitting.vocabulary import most_useful
from search.point import Point
from selfspec.errors import InputError
from selfspec.models.decoder import Decoder
from selfspec.skipping.skip_set import SkipSet
from selfspec.stopping import Fixed
from tests.toys import toy

ANSWERS = [[7, 3, 7, 9], [3, 7, 5]]  # 7 three times, 3 twice, 5 and 9 once
PROMPTS = [[11, 12, 11, 7], [13, 12, 12]]  # 12 three times, 11 twice, 13 once


def chosen(n: int, **settings: Any) -> list[int]:
    return most_useful(ANSWERS, n, **({"n_vocab": 20} | settings)).tolist()


@pytest.mark.parametrize(("n", "expected"), [(1, [7]), (2, [3, 7]), (3, [3, 5, 7]), (4, [3, 5, 7, 9])])
def test_frequent_tokens_come_first_and_ties_go_to_the_lower_id(n: int, expected: list[int]) -> None:
    assert chosen(n, prompts=PROMPTS) == expected


def test_what_is_always_scored_comes_before_what_is_frequent() -> None:
    assert chosen(3, always={19, 0}) == [0, 7, 19]
    assert chosen(2, always=[19, 0]) == [0, 19]


@pytest.mark.parametrize(
    ("n", "expected"),
    [(5, [3, 5, 7, 9, 12]), (7, [3, 5, 7, 9, 11, 12, 13]), (9, [0, 1, 3, 5, 7, 9, 11, 12, 13])],
)
def test_prompts_and_then_low_ids_fill_up_where_answers_are_short(n: int, expected: list[int]) -> None:
    assert chosen(n, prompts=PROMPTS) == expected


def test_the_whole_vocabulary_is_every_id_once_and_rising() -> None:
    ids_N = most_useful(ANSWERS, 20, n_vocab=20, prompts=PROMPTS, always=[4])
    assert torch.equal(ids_N, torch.arange(20))
    assert ids_N.dtype == torch.long


@pytest.mark.parametrize(
    ("n", "settings", "message"),
    [
        (0, {}, "a head of 0 tokens"),
        (21, {}, "the vocabulary has 20"),
        (2, {"always": [1, 2, 3]}, "the 3 that are always scored"),
        (5, {"prompts": [[20]]}, "token 20 is not of this vocabulary"),
        (5, {"always": [-1]}, "token -1 is not of this vocabulary"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(n: int, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as refusal:
        chosen(n, **settings)
    assert "\n" not in str(refusal.value)


def test_no_other_choice_covers_more() -> None:
    def covered(ids: Collection[int]) -> int:
        return sum(token in ids for answer in ANSWERS for token in answer)

    best = covered(set(most_useful(ANSWERS, 2, n_vocab=20).tolist()))
    assert best == max(covered(pair) for pair in itertools.combinations(range(20), 2))


def test_drafts_of_other_heads_differ_in_nothing_else() -> None:
    decoder = Decoder(toy("llama"))
    texts = [Text([1, 2, 3], [4, 5, 4, 6])]
    sizes = [8, 4, 8, 10**6, 10**7]
    made = Drafts(Fixed(3), head=8, heads=heads(decoder, texts, sizes), other_heads=sizes[1:])
    nothing = Point(SkipSet(3))
    first, *others = made.variants(nothing)
    assert first is made
    scored = [v(nothing).plan.head for v in made.variants(nothing)]
    assert [len(head) for head in scored if head is not None] == [8, 4, decoder.config.vocab_size]
    assert all(replace(other, head=8) == made for other in others)
    assert set(made.heads[4].tolist()) < set(made.heads[8].tolist())
    assert made.variants(Point(SkipSet(3), {"head": 4})) == [made], "a search of heads has tried them already"
