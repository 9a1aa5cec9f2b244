"""When requests arrive: at random, or as a trace tells."""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfspec.errors import InputError


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request before it is served.

    Attributes:
        at_s: when it arrives, in seconds after the begin.
        n_prompt: tokens of its prompt.
        n_max: largest number of new tokens.
    """

    at_s: float
    n_prompt: int
    n_max: int


def poisson(n: int, *, rate: float | None, seed: int) -> list[float]:
    """Times of `n` requests that arrive at random, in seconds; the first one arrives at 0.

    The gaps of one seed are the same at every rate, in units of the mean gap, so that loads differ in nothing else.

    Args:
        n: number of requests.
        rate: requests for a second on average, above 0; None: all arrive at 0.
        seed: of the gaps.

    Raises:
        InputError: if the rate is not above 0.
    """
    if rate is None:
        return [0.0] * n
    if math.isnan(rate) or rate <= 0:
        raise InputError(f"rate={rate}; requests arrive at a rate above 0 a second (null: all at once)")
    rng, at_s, found = random.Random(seed), 0.0, list[float]()
    for _ in range(n):
        found.append(at_s)
        at_s += rng.expovariate(1.0) / rate
    return found


def read_trace(path: Path) -> list[tuple[float, str]]:
    """Times and prompts of a trace: JSON lines such as `{"at_s": 0.5, "prompt": "..."}`, in the order of their times.

    Raises:
        InputError: if a line cannot be read, or its time is before that of the line above.
    """
    found: list[tuple[float, str]] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"trace={path} cannot be read ({error}); give a file of JSON lines with at_s and prompt"
        ) from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"trace={path}, line {number}"
        at_s, prompt = _fields(line, where)
        if found and at_s < found[-1][0]:
            raise InputError(f"{where}: at_s={at_s} is before {found[-1][0]} of the line above; sort the lines by time")
        found.append((at_s, prompt))
    if not found:
        raise InputError(f'trace={path} holds no request; each line is one: {{"at_s": 0.5, "prompt": "..."}}')
    return found


def _fields(line: str, where: str) -> tuple[float, str]:
    try:
        row: Any = json.loads(line)
        at_s, prompt = row["at_s"], row["prompt"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError(f'{where} is not {{"at_s": seconds, "prompt": text}}; correct it') from None
    is_time = isinstance(at_s, int | float) and not isinstance(at_s, bool) and math.isfinite(at_s) and at_s >= 0
    if not is_time or not isinstance(prompt, str) or not prompt:
        raise InputError(f"{where}: at_s is a number of seconds from 0 on, and prompt a text; it has at_s={at_s!r}")
    return float(at_s), prompt
