"""A first divergence is a near-tie where rounding can explain it, and a mismatch anywhere else."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import Tensor

from selfspec.exactness import compare
from selfspec.model import Decoder


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
def test_a_gap_is_judged_by_what_four_roundings_of_the_largest_logit_change(gap: float, expected: str) -> None:
    assert verdict([20.0, 20.0 - gap, 1.0]) == expected
    assert verdict([20.0 - gap, 20.0, 1.0]) == expected


def test_where_the_best_token_is_unsure_a_large_negative_logit_tells_how_much_is_summed() -> None:
    """The first seen: SmolLM2-135M after 672 tokens, 8.31 and 8.00 by one forward, the other way about by another."""
    assert verdict([8.3125, 8.0, -24.625]) == "near_tie"
    assert verdict([8.3125, 8.0, -1.0]) == "mismatch"


def test_in_float32_such_gaps_are_mismatches() -> None:
    assert verdict([8.3125, 8.0, -24.625], torch.float32) == "mismatch"
    assert verdict([20.0, 19.9999, 1.0], torch.float32) == "mismatch"


def test_equal_outputs_are_identical_and_one_that_merely_ends_sooner_is_a_mismatch() -> None:
    decoder = cast(Decoder, Saying([1.0, 1.0], torch.bfloat16))
    assert compare(decoder, [7], [5, 0, 3], [5, 0, 3]).verdict == "identical"
    assert compare(decoder, [7], [5, 0, 3], [5, 0]).verdict == "mismatch"
