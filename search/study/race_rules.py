"""Which finalists leave a race early, and which results of it are in doubt.

The rules see seconds and tokens of prompts. They know neither models nor drafts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from selfspec.measure.metrics import Timed, speedup, speedup_t_interval, tokens_per_s

MIN_PROMPTS = 8  # before a finalist may leave: fewer say little about how much prompts differ; chosen, not tuned
FALSE_DROP_RATE = 0.05  # of whole races
FAR = 1.25  # raced over predicted speedup, or the reverse; chosen: recorded races were within 1.1 of their predictions
PACE_SPREAD = 0.3  # by how much plain decoding may be faster on one prompt than on another
MIN_TOKENS = 8  # that a prompt's pace is read from; chosen, not tuned


def too_slow(times: Mapping[int, Sequence[Timed]], *, n_finalists: int, n_prompts: int) -> list[int]:
    """The finalists that are slower than the fastest one, by a one-sided test of both on the same prompts.

    The test is made after each prompt from the `MIN_PROMPTS`-th to the last but one, and the fastest finalist is chosen
    by the same seconds. So `FALSE_DROP_RATE` is divided by the number of looks and of ordered pairs: with at most that
    probability a race drops a finalist that is as fast as the one it is compared with.

    Args:
        times: of the finalists that still race, by their number, a prompt each.
        n_finalists: that began.
        n_prompts: of the whole race.

    Source: Bonferroni's inequality over looks and pairs, as in Jennison and Turnbull 2000, Group sequential methods,
    section 2; t intervals of log ratios.
    """
    n_done = min(map(len, times.values()), default=0)
    if not MIN_PROMPTS <= n_done < n_prompts or len(times) < 2:
        return []
    fastest = max(times, key=lambda i: tokens_per_s(times[i]))
    n_tests = (n_prompts - MIN_PROMPTS) * n_finalists * (n_finalists - 1)
    level = 1 - 2 * FALSE_DROP_RATE / n_tests  # two-sided, of which the upper end is looked at
    others = [i for i in times if i != fastest]
    return [i for i in others if speedup_t_interval(times[fastest], times[i], level=level)[1] < 1]


def doubts(plain: Sequence[Timed], method: Sequence[Timed], *, predicted: float | None) -> list[str]:
    """Why a raced speedup may be wrong, a clause each; empty if nothing speaks against it.

    Args:
        plain: of plain decoding, a prompt each.
        method: of the finalist, on the same prompts.
        predicted: its speedup by the measured costs; None if nothing was predicted.
    """
    found = []
    raced = speedup(plain, method)
    if predicted is not None and predicted > 0 and raced > 0 and not 1 / FAR <= raced / predicted <= FAR:
        found.append(f"the race gives {raced / predicted:.2f} times the predicted speedup")
    spread = pace_spread(plain)
    if spread > PACE_SPREAD:
        found.append(f"plain decoding is {100 * spread:.0f} % faster on one prompt than on another")
    return found


def pace_spread(plain: Sequence[Timed]) -> float:
    """By what fraction plain decoding is faster on its fastest prompt than on its slowest; nan below two prompts.

    A prompt of fewer than `MIN_TOKENS` tokens does not count: its pace is that of a few forwards.
    """
    paces = [tokens_per_s([t]) for t in plain if t.tokens >= MIN_TOKENS and t.seconds > 0]
    return max(paces) / min(paces) - 1 if len(paces) > 1 else math.nan
