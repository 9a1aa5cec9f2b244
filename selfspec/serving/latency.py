"""What a simulation tells of a load: latencies, rates, and how far was drafted."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from selfspec.measure.metrics import ratio
from selfspec.serving.loop import Serving


@dataclass(frozen=True, slots=True)
class Load:
    """A load and how it was served; seconds.

    Attributes:
        n_requests: number of requests.
        latency_s: mean from arrival to last token; also its median and its 99th percentile.
        first_token_s: mean from arrival to first token; also its 99th percentile.
        tokens_per_s: tokens of outputs over the seconds from the first arrival to the last token (goodput).
        verified_per_s: tokens that the target read in steps, over the same seconds (throughput of the target).
        requests_per_s: finished requests over the same seconds.
        n_switches: steps whose longest draft differs from that of the step before.
        mean_rows: requests in a step, on average over the seconds of steps.
        mean_draft: tokens of the longest draft of a step, on average over steps.
    """

    n_requests: int
    latency_s: float
    latency_p50_s: float
    latency_p99_s: float
    first_token_s: float
    first_token_p99_s: float
    tokens_per_s: float
    verified_per_s: float
    requests_per_s: float
    n_switches: int
    mean_rows: float
    mean_draft: float


def load_of(serving: Serving, n_tokens: int) -> Load:
    """The figures of a simulation.

    Args:
        serving: what was done.
        n_tokens: tokens of all outputs.
    """
    requests, steps = serving.requests, [step for *_, step in serving.steps]
    latencies = [r.end_s - r.at_s for r in requests]
    firsts = [r.first_s - r.at_s for r in requests]
    span_s = max(r.end_s for r in requests) - min(r.at_s for r in requests)
    lengths = [step.longest for step in steps]
    return Load(
        n_requests=len(requests),
        latency_s=sum(latencies) / len(latencies),
        latency_p50_s=percentile(latencies, 0.5),
        latency_p99_s=percentile(latencies, 0.99),
        first_token_s=sum(firsts) / len(firsts),
        first_token_p99_s=percentile(firsts, 0.99),
        tokens_per_s=ratio(n_tokens, span_s),
        verified_per_s=ratio(sum(step.verified for step in steps), span_s),
        requests_per_s=ratio(len(requests), span_s),
        n_switches=sum(a != b for a, b in pairwise(lengths)),
        mean_rows=ratio(sum(s * step.n_rows for _, s, _, step in serving.steps), sum(s for _, s, *_ in serving.steps)),
        mean_draft=ratio(sum(lengths), len(lengths)),
    )


def percentile(values: Sequence[float], fraction: float) -> float:
    """The smallest value that at least this fraction of the values does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(fraction * len(ordered)) - 1)]


def switching(serving: Serving, n_parts: int) -> list[dict[str, float]]:
    """The trace of a simulation in parts of equal time: rows, waiting requests, and the longest draft of steps.

    Args:
        serving: what was done.
        n_parts: number of parts; parts without a step are left out.

    Returns:
        For each part its begin in seconds, and means over its steps; `longest` is the most frequent longest draft.
    """
    if not serving.steps:
        return []
    first, last = serving.steps[0][0], serving.steps[-1][0]
    width = (last - first) / n_parts or 1.0
    found: list[dict[str, float]] = []
    for part in range(n_parts):
        inside = [s for s in serving.steps if min(n_parts - 1, int((s[0] - first) / width)) == part]
        if inside:
            often = Counter(step.longest for *_, step in inside).most_common(1)[0][0]
            found.append(
                {
                    "at_s": first + part * width,
                    "rows": sum(step.n_rows for *_, step in inside) / len(inside),
                    "waiting": sum(n for _, _, n, _ in inside) / len(inside),
                    "mean_draft": sum(step.longest for *_, step in inside) / len(inside),
                    "longest": float(often),
                }
            )
    return found
