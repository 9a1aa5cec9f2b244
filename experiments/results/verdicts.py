"""Sentences on what pays: skipping layers, or a trained head, from the arms of evaluate runs.

This module knows the rows of arms and must not know files or models.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from experiments.results.tables import ArmRow, number


@dataclass(frozen=True, slots=True)
class _Words:
    """What the sentence on a kind of arms calls it."""

    what: str  # pays, or does not
    loses: str  # the same where it does not
    adds: str  # what is not shown to add to drafting
    arms: str
    others: str  # what the arms of other kinds are


SKIPPING = _Words("Skipping", "Plain skipping", "skipping", "skipping arms", "skips nothing")
TRAINED = _Words("A trained draft", "A trained draft", "the trained head", "trained arms", "has no trained head")


def verdict_sentences(rows: Sequence[ArmRow]) -> list[str]:
    """One sentence on whether skipping pays, and one on whether a trained head does.

    There is one for each model, data and conditions that have such arms.
    """
    groups: dict[tuple[object, ...], list[ArmRow]] = {}
    for row in rows:
        groups.setdefault((row.model, row.data, row.conditions), []).append(row)
    found = []
    for group in groups.values():
        found += [verdict_sentence(group)] if any(row.skips for row in group) else []
        found += [verdict_sentence(group, of_trained=True)] if any(row.is_trained for row in group) else []
    return found


def verdict_sentence(rows: Sequence[ArmRow], *, of_trained: bool = False) -> str:
    """A sentence on whether skipping pays, from the fastest skipping arm of one model, data and conditions.

    The sentence names an equally fast arm without skipping, such as prompt lookup alone, because then skipping does not
    pay. The interval of the fastest arm does not correct for its selection, so the sentence states the number of arms.

    Args:
        rows: arms of one model, data and conditions.
        of_trained: the sentence is on trained heads instead.
    """
    words = TRAINED if of_trained else SKIPPING
    where = f"{rows[0].model} with {rows[0].data}"
    timed = [row for row in rows if row.is_judged and not row.is_approximate and not math.isnan(row.speedup)]

    def is_meant(row: ArmRow) -> bool:
        return row.is_trained if of_trained else row.skips

    speeds = [row for row in timed if is_meant(row)]
    if not speeds:
        pays = f"{words.what[0].lower()}{words.what[1:]} pays"
        return f"Whether {pays} on {where} is open: no prompt was timed and compared ({_on(rows[0])})."
    best = max(speeds, key=lambda row: row.speedup)
    speed = f"{best.speedup:.2f}x [{number(best.low, 2)}, {number(best.high, 2)}]"
    rivals = [row for row in timed if not is_meant(row) and not row.is_baseline]
    rival = max(rivals, key=lambda row: row.speedup, default=None)
    if best.low > 1 and rival is not None and rival.speedup >= best.low:
        finding = (
            f"Drafting pays on {where}, {words.adds} is not shown to add to it: {best.arm} decodes {speed} as fast as "
            "plain"
        )
    elif best.low > 1:
        finding = f"{words.what} pays on {where}: {best.arm} decodes {speed} as fast as plain decoding"
    elif best.high < 1:
        finding = f"{words.loses} does not pay on {where}: the best arm {best.arm} runs at {speed}"
    else:
        finding = f"On {where} no difference could be shown: the best arm {best.arm} runs at {speed}"
    end = "."
    if best.high < 1:
        end = "; plain decoding is faster"
        end += "." if math.isnan(best.draft_cost) else f": {_price(best)}."
    arms = f"fastest of {len(speeds)} {words.arms}, " if len(speeds) > 1 else ""
    same = f"{best.n_identical}/{best.n} outputs identical, {_count(best.n_near_ties, 'near tie')}"
    if best.n_not_compared:
        same = "sampled outputs, not compared"
    same += "" if best.is_finished else ", unfinished run"
    lossy = f" But {best.n_mismatches} of its outputs do not match plain decoding's." if best.n_mismatches else ""
    without = ""
    if rival and rival.speedup > 1:
        without = f" {rival.arm}, which {words.others}, runs at {rival.speedup:.2f}x."
    return f"{finding} ({arms}{_on(best)}, {same}){end}{without}{lossy}"


def _price(row: ArmRow) -> str:
    cost, accepted = number(row.draft_cost, 2), number(row.acceptance, 2)
    return f"a drafted token takes {cost} of a plain one's time, and {accepted} of them are accepted"


def _on(row: ArmRow) -> str:
    is_cpu = row.device.startswith("cpu") and row.threads.isdigit()
    threads = f" with {_count(int(row.threads), 'thread')}" if is_cpu else ""
    return f"{row.dtype} on {row.device}{threads}"


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"
