"""Ways to decode, timed in turn: one prompt after another, results written after every turn.

A way takes a prompt and returns its tokens and seconds. The machine's speed changes while it runs, so ratios are taken
within a turn, and their median counts.
"""

from __future__ import annotations

import statistics
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gpu.check import Check
from selfspec.measure import exactness
from selfspec.models.decoder import Decoder

Way = Callable[[list[int]], Any]
"""From a prompt to a `DecodeResult`, or what has its tokens and seconds."""
BASE = "plain by graphs"


def take_turns(
    check: Check,
    section: str,
    ways: Mapping[str, Way],
    prompts: Sequence[list[int]],
    *,
    decoder: Decoder,
    expected: Sequence[list[int]],
    n_turns: int,
) -> None:
    """Time all ways, as many turns as there is time for.

    Args:
        check: where results go.
        section: whose results they are.
        ways: by name; `BASE` is one of them.
        prompts: token ids.
        decoder: of the full model, which judges where outputs differ.
        expected: what every way should decode, for each prompt.
        n_turns: at most.
    """
    able = warm(check, section, ways, prompts)
    rates: dict[str, list[float]] = {name: [] for name in able}
    facts: dict[str, dict[str, Any]] = {}
    longest_s = 0.0
    for turn in range(n_turns):
        if turn and not check.has(1.3 * longest_s):
            break
        began = time.monotonic()
        names = list(able)
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            results = [able[name](ids) for ids in prompts]
            n_tokens = sum(len(r.tokens) - 1 for r in results)
            rates[name].append(n_tokens / sum(r.total_s - r.prefill_s for r in results))
            if turn == 0:
                facts[name] = counts(decoder, prompts, expected, results)
        longest_s = max(longest_s, time.monotonic() - began)
        for name in able:
            keep(check, section, name, rates, facts[name])
        check.keep(section, "turns", turn + 1, f"{turn + 1} of {n_turns}, {time.monotonic() - began:.0f} s the last")


def warm(check: Check, section: str, ways: Mapping[str, Way], prompts: Sequence[list[int]]) -> dict[str, Way]:
    """The ways that can run, after one run of each on every prompt; the reasons of the others are kept."""
    able = {}
    for name, way in ways.items():
        try:
            for ids in prompts:
                way(ids)
            able[name] = way
        except TimeoutError:
            raise
        except Exception as error:  # whatever a peer raises is the finding
            check.keep(section, name, traceback.format_exc(), f"cannot run: {str(error)[:120]}")
    return able


def counts(
    decoder: Decoder, prompts: Sequence[list[int]], expected: Sequence[list[int]], results: Sequence[Any]
) -> dict[str, Any]:
    """How the outputs compare with what is expected, and how many tokens were drafted and accepted."""
    verdicts = Counter(
        exactness.compare(decoder, p, a, r.tokens).verdict for p, a, r in zip(prompts, expected, results, strict=True)
    )
    return {
        "verdicts": dict(verdicts),
        "n_tokens": [len(r.tokens) for r in results],
        "drafted": sum(getattr(r, "drafted", 0) for r in results),
        "accepted": sum(getattr(r, "accepted", 0) for r in results),
    }


def keep(check: Check, section: str, name: str, rates: Mapping[str, Sequence[float]], facts: Mapping[str, Any]) -> None:
    """Write a way's rates and its ratios to the base up to this turn."""
    ratios = [own / base for own, base in zip(rates[name], rates[BASE], strict=True)] if BASE in rates else []
    body = {"tokens_per_s": rates[name], "over_plain_by_graphs": ratios, **facts}
    text = f"{statistics.median(rates[name]):8.1f} tokens/s"
    text += f", {statistics.median(ratios):.2f} x {BASE}" if ratios else ""
    text += f", accepted {facts['accepted'] / facts['drafted']:.2f}" if facts["drafted"] else ""
    check.keep(section, name, body, f"{text}, {facts['verdicts']}", quiet=True)
