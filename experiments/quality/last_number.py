"""GSM8K: whether the last number of an answer is right.

Source: Cobbe et al. 2021 (arXiv:2110.14168); their solutions end in `#### NUMBER`.
"""

from __future__ import annotations

import re
from decimal import Decimal

from experiments.quality.cut import cut
from selfspec.errors import InputError

MARK = "####"
STOPS = ("\nQuestion:", "\nQ:")  # a raw answer goes on with a next question that the model invents
_NUMBER = re.compile(r"-?(?:\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)")


def is_right(text: str, reference: str) -> bool:
    """Whether the answer's final number equals the reference's: 1,000 equals 1000.00, and $18 equals 18.

    Args:
        text: the decoded answer; text after the first of `STOPS` does not count.
        reference: a solution with its number after `####`.

    Raises:
        InputError: if the reference has no number after `####`.
    """
    return final_number(text) == wanted(reference)


def wanted(reference: str) -> Decimal:
    """The number after the last `####`.

    Raises:
        InputError: if there is no such number.
    """
    _, mark, rest = reference.rpartition(MARK)
    found = _NUMBER.search(rest)
    if not mark or found is None:
        raise InputError(
            f"the reference {reference[-40:]!r} has no number after {MARK}, so it is not GSM8K; "
            "set data.metric=null or give references as GSM8K writes them"
        )
    return _value(found.group())


def final_number(text: str) -> Decimal | None:
    """The number after the first `####`, or else the last number of the answer; None if it holds no number."""
    reasoning, mark, rest = cut(text, STOPS).partition(MARK)
    found = _NUMBER.findall(rest)[:1] if mark else _NUMBER.findall(reasoning)[-1:]
    return _value(found[0]) if found else None


def _value(number: str) -> Decimal:
    return Decimal(number.replace(",", ""))
