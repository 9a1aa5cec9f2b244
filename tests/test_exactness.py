"""A first divergence is a near-tie where rounding can explain it, and a mismatch anywhere else."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import Tensor

from selfspec.measure.exactness import compare
from selfspec.models.decoder import Decoder


class Saying:
    """A decoder whose next token has these logits, whatever it reads."""

    device = torch.device("cpu")

    def __init__(self, logits_V: list[float], dtype: torch.dtype) -> None:
        self.logits_V, self.dtype = torch.tensor(logits_V, dtype=dtype), dtype

    def new_cache(self, **_: int) -> None:
        return None

    def full(self, ids_BT: Tensor, **_: Any) -> Tensor:
        return self.logits_V.expand(1, ids_BT.shape[1], -1)


def verdict(logits_V: list[float], dtype: torch.dtype = torch.bfloat16) -> str:
    """Of an output that takes token 1 where the baseline takes token 0."""
    decoder = cast(Decoder, Saying(logits_V, dtype))
    return compare(decoder, [7, 7], [5, 0, 3], [5, 1, 2]).verdict


# An eps is 2^-7 in bfloat16.
@pytest.mark.parametrize(("gap", "expected"), [(0.5, "near_tie"), (0.75, "mismatch")])
def test_a_gap_is_judged_by_four_roundings_of_the_largest_logit(gap: float, expected: str) -> None:
    assert verdict([20.0, 20.0 - gap, 1.0]) == expected
    assert verdict([20.0 - gap, 20.0, 1.0]) == expected


def test_a_large_negative_logit_widens_the_tolerance_of_a_gap() -> None:
    """The first seen: SmolLM2-135M after 672 tokens, 8.31 and 8.00 by one forward, the other way about by another."""
    assert verdict([8.3125, 8.0, -24.625]) == "near_tie"
    assert verdict([8.3125, 8.0, -1.0]) == "mismatch"


def test_in_float32_such_gaps_are_mismatches() -> None:
    assert verdict([8.3125, 8.0, -24.625], torch.float32) == "mismatch"
    assert verdict([20.0, 19.9999, 1.0], torch.float32) == "mismatch"


class Rounding(Saying):
    """One whose logits are those of `alone` where it reads one token, and notes how many it read."""

    def __init__(self, logits_V: list[float], alone_V: list[float]) -> None:
        super().__init__(logits_V, torch.bfloat16)
        self.alone_V, self.read = torch.tensor(alone_V, dtype=torch.bfloat16), list[tuple[int, list[int]]]()

    def full(self, ids_BT: Tensor, **more: Any) -> Tensor:
        self.read.append((more["starts"][0], ids_BT[0].tolist()))
        return self.alone_V.expand(1, 1, -1) if ids_BT.shape[1] == 1 else super().full(ids_BT)


def test_a_mismatch_is_judged_again_as_the_baseline_was_decoded() -> None:
    """The first seen: SmolLM2-135M after 745 tokens, 1.0 apart by one forward, 0.625 one by one, level in rounds."""
    decoder = Rounding([28.75, 27.75, 1.0], [28.625, 28.0, 1.0])
    found = compare(cast(Decoder, decoder), [7, 7], [5, 0, 3], [5, 1, 2])
    assert (found.verdict, found.gap) == ("near_tie", 0.625)
    assert decoder.read == [(0, [7, 7, 5]), (0, [7, 7]), (2, [5])]
    wrong = Rounding([28.75, 27.75, 1.0], [28.75, 27.75, 1.0])
    assert compare(cast(Decoder, wrong), [7, 7], [5, 0, 3], [5, 1, 2]).verdict == "mismatch"
    certain = Rounding([28.75, 28.0, 1.0], [28.625, 20.0, 1.0])
    assert compare(cast(Decoder, certain), [7, 7], [5, 0, 3], [5, 1, 2]).verdict == "near_tie"
    assert len(certain.read) == 1


class Routed(Saying):
    """One that reads the text of a verification of three tokens, after four, by another expert than all other ways."""

    def __init__(self, logits_V: list[float], three_V: list[float]) -> None:
        super().__init__(logits_V, torch.bfloat16)
        self.three_V = torch.tensor(three_V, dtype=torch.bfloat16)

    def full(self, ids_BT: Tensor, **more: Any) -> Tensor:
        is_it = more["starts"] == [4] and ids_BT.shape[1] == 3
        return self.three_V.expand(1, 3, -1) if is_it else super().full(ids_BT)


@pytest.mark.parametrize(
    ("three_V", "expected"),
    [([3.0, 4.0, 1.0], "near_tie"), ([4.0, 3.5, 1.0], "mismatch"), ([3.0, 4.0, 9.0], "mismatch")],
)
def test_tokens_that_the_model_prefers_by_turns_are_a_near_tie(three_V: list[float], expected: str) -> None:
    """The first seen: a toy of Mixtral, 0.53 apart with a tolerance of 0.16, and the other way about in rounds."""
    decoder = cast(Decoder, Routed([4.0, 3.0, 1.0], three_V))
    assert compare(decoder, [7, 7, 7, 7, 7], [5, 6, 0, 3], [5, 6, 1, 2]).verdict == expected


def test_equal_outputs_are_identical_and_a_shorter_one_is_a_mismatch() -> None:
    decoder = cast(Decoder, Saying([1.0, 1.0], torch.bfloat16))
    assert compare(decoder, [7], [5, 0, 3], [5, 0, 3]).verdict == "identical"
    assert compare(decoder, [7], [5, 0, 3], [5, 0]).verdict == "mismatch"
