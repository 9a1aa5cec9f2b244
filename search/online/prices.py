"""What drafts cost here and now: a few forwards behind a live row, so that a stream needs no profile of the machine."""

# L layers

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch

from search.costs.table import CostTable
from search.online.window import Window
from selfspec.engine.forward import Forward
from selfspec.engine.sampling import largest
from selfspec.measure.stopwatch import Stopwatch
from selfspec.models.decoder import Decoder
from selfspec.skipping.plan import DraftPlan
from selfspec.skipping.skip_set import SkipSet

REPEATS = 2  # calls of each forward, in turn with the others; the faster one counts; chosen, not tuned
SIZES = (1, 4, 8)  # tokens of the verifications that are timed; those between them are interpolated
LEAST = 0.01  # smallest share of a plain token for a draft without any sublayer, and for all sublayers of a kind; a
# floor against noise


@torch.inference_mode()
def measure_prices(
    decoder: Decoder, plan_of: Callable[[SkipSet], DraftPlan], window: Window, stopwatch: Stopwatch
) -> CostTable:
    """A cost table at the window's context, from a dozen forwards.

    The parts are those of drafts that `plan_of` makes, whose head and precision may differ from the model's. Read it
    with skip sets or plain plans of them (`CostTable.draft_s`).

    Args:
        decoder: the model.
        plan_of: the plan of a skip set.
        window: behind its row the forwards write their keys and values.
        stopwatch: measures the seconds.
    """
    n = decoder.n_layers
    every, none = frozenset(range(n)), frozenset[int]()
    drafts = {name: decoder.bind(plan_of(skip)) for name, skip in _corners(n, every, none).items()}
    calls = {f"draft {name}": _call(forward, window, 1) for name, forward in drafts.items()}
    calls |= {f"verify {size}": _call(decoder.full, window, size) for size in SIZES}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(REPEATS):
        for name, call in calls.items():
            began = stopwatch.now()
            call()
            seconds[name].append(stopwatch.now() - began)
    least = {name: min(found) for name, found in seconds.items()}
    plain_s = least["verify 1"]
    attn_s = max(LEAST * plain_s, least["draft whole"] - least["draft without attention"]) / n
    mlp_s = max(LEAST * plain_s, least["draft whole"] - least["draft without MLPs"]) / n
    return CostTable(
        contexts=(len(window.ids),),
        attn_s=(attn_s,),
        mlp_s=mlp_s,
        base_s=max(LEAST * plain_s, least["draft whole"] - n * (attn_s + mlp_s)),
        full_s=(plain_s,),
        verify_s=_between([least[f"verify {size}"] for size in SIZES]),
    )


def expected_speedup(acceptance: float, skip: SkipSet, costs: CostTable, *, max_draft: int) -> tuple[float, int]:
    """Tokens in the seconds of a plain token with the best fixed length of drafts, and that length; (1, 0): no draft.

    Args:
        acceptance: probability that a drafted token is accepted, given that those before it are.
        skip: the draft.
        costs: of `measure_prices`.
        max_draft: longest draft, in tokens.

    Source: Leviathan et al. 2023 (arXiv:2211.17192), theorem 3.8, with a measured cost of verification.
    """
    context = costs.contexts[0]
    plain_s, draft_s = costs.plain_s(context), costs.draft_s(skip, context)
    best, length, expected, chance = 1.0, 0, 1.0, 1.0
    for k in range(1, max_draft + 1):
        chance *= acceptance
        expected += chance
        value = expected * plain_s / (costs.verification_s(k + 1, context) + k * draft_s)
        if value > best:
            best, length = value, k
    return best, length


def _corners(n: int, every: frozenset[int], none: frozenset[int]) -> dict[str, SkipSet]:
    return {
        "whole": SkipSet(n),
        "without attention": SkipSet(n, every, none),
        "without MLPs": SkipSet(n, none, every),
    }


def _call(forward: Forward, window: Window, n_tokens: int) -> Callable[[], object]:
    """A forward of `n_tokens` behind the row, and the choice of tokens."""
    at = len(window.ids) - 1
    ids_1T = torch.tensor([[window.ids[-1]] * n_tokens], device=window.cache.device)
    text_rows = forward.text_rows([window.ids])
    return lambda: largest(forward(ids_1T, starts=[at], cache=window.cache, text_rows=text_rows)).tolist()


def _between(seconds: list[float]) -> tuple[float, ...]:
    """Seconds of 1, 2, 3, ... tokens; a longer verification never costs less."""
    found: list[float] = []
    rising = [max(seconds[: i + 1]) for i in range(len(seconds))]
    for (n, low), (m, high) in pairwise(zip(SIZES, rising, strict=True)):
        found += [low + (high - low) * i / (m - n) for i in range(m - n)]
    return (*found, rising[-1])
