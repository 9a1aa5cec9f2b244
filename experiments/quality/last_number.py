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

_MINUS = "[-\u2212\u2013]"  # hyphen, minus, and the dash that some models write for it
_CURRENCY = "$€£¥"
_THOUSANDS = ",\u00a0\u2009\u202f"  # comma and the blanks that do not end a number
_TEX = (("{,}", ","), ("\\!", ""), ("\\,", ""), ("\\$", "$"))
_FRACTION = re.compile(r"\\[dt]?frac\s*\{(\d+)\}\s*\{(\d+)\}")
_BOXED = re.compile(r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}")


def _number(sign: str, thousands: str) -> re.Pattern[str]:
    digits = rf"\d+(?:[{thousands}]\d{{3}}(?!\d))*(?:\.\d+)?|\.\d+"
    return re.compile(rf"(?P<sign>{sign})(?P<digits>{digits})(?:/(?P<divisor>0*[1-9]\d*)(?![\d./]))?")


_ANYWHERE = _number(rf"(?:(?<![\w)]){_MINUS}[{_CURRENCY}]?)?", _THOUSANDS)  # the minus of 5-3 is no sign
_FIRST = _number(rf"[\s*_(\[`{_CURRENCY}]*(?:{_MINUS}[\s{_CURRENCY}]*)?", _THOUSANDS + " ")
_GOES_ON = re.compile(rf"\s*(?:{_MINUS}|[+*/×÷^])\s*[\d(]")


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
    _, mark, rest = _without_tex(reference).rpartition(MARK)
    found = _result(rest)
    found = _last(rest) if found is None else found
    if not mark or found is None:
        raise InputError(
            f"the reference {reference[-40:]!r} has no number after {MARK}, so it is not GSM8K; "
            "set data.metric=null or give references as GSM8K writes them"
        )
    return found


def final_number(text: str) -> Decimal | None:
    """The number that an answer ends with; None if it holds no number.

    It is the number behind the last `####` that is followed by a number or an equation, else the one in the last
    `\\boxed{}`, else the last number of the text.
    """
    text = _without_tex(cut(text, STOPS))
    for rest in reversed(text.split(MARK)[1:]):
        if (found := _result(rest)) is not None:
            return found
    for boxed in reversed(_BOXED.findall(text)):
        found = _result(boxed)
        if (found := _last(boxed) if found is None else found) is not None:
            return found
    return _last(text)


def _result(rest: str) -> Decimal | None:
    """The number that a line begins with, or the result of its equation: 7 in `7 apples`, `3 + 4 = 7` and `x = 7`."""
    line, *_ = rest.lstrip().split("\n")
    *sides, end = line.split("=")
    for side in sides:
        if (found := _FIRST.match(side)) and not _GOES_ON.search(side, found.end()):
            return _value(found)
    found = _FIRST.match(end)
    return _value(found) if found and not _GOES_ON.match(end, found.end()) else None


def _last(text: str) -> Decimal | None:
    *_, found = [None, *_ANYWHERE.finditer(text)]
    return None if found is None else _value(found)


def _value(found: re.Match[str]) -> Decimal:
    value = Decimal(re.sub(rf"[{_THOUSANDS} ]", "", found["digits"])) / Decimal(found["divisor"] or 1)
    return -value if re.search(_MINUS, found["sign"]) else value


def _without_tex(text: str) -> str:
    """The text with numbers of TeX as plain text writes them."""
    for written, plain in _TEX:
        text = text.replace(written, plain)
    return _FRACTION.sub(r"\1/\2", text)
