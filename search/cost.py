"""What a draft costs on this machine: measured once, then known for every skip set.

The parts are measured in place, as differences between forwards that leave all of one kind out, so that what a part
costs here is what leaving it out saves. Seconds hold for one model, dtype, device, number of threads and kernel.
"""

# L layers

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from selfspec.model import Decoder, Forward
from selfspec.skip import SkipSet
from selfspec.timing import Stopwatch


@dataclass(frozen=True, slots=True)
class CostTable:
    """Seconds of the parts of a forward.

    Attributes:
        contexts: where attention was measured, in tokens, rising.
        attn_s: of one attention sublayer for one token, at each of `contexts`.
        mlp_s: of one MLP sublayer for one token.
        base_s: of what no skip set leaves out: embedding, norms, head, Python.
        full_s: of one plain token at each of `contexts`.
        verify_s: of the full forward of 1, 2, 3, ... tokens, at the first of `contexts`.
    """

    contexts: tuple[int, ...]
    attn_s: tuple[float, ...]
    mlp_s: float
    base_s: float
    full_s: tuple[float, ...]
    verify_s: tuple[float, ...]

    def draft_s(self, skip: SkipSet, context: int) -> float:
        """Seconds of one drafted token with `skip` left out, after `context` tokens."""
        n_attn, n_mlp = skip.n_layers - len(skip.attn), skip.n_layers - len(skip.mlp)
        return self.base_s + n_attn * self._at(self.attn_s, context) + n_mlp * self.mlp_s

    def plain_s(self, context: int) -> float:
        """Seconds of one plain token after `context` tokens."""
        return self._at(self.full_s, context)

    def verification_s(self, n_tokens: int, context: int) -> float:
        """Seconds of the full forward of `n_tokens` after `context`; beyond what was measured, along the last step."""
        known = self.verify_s
        extra = max(0, n_tokens - len(known))
        step = known[-1] - known[-2] if len(known) > 1 else 0.0
        return known[min(n_tokens, len(known)) - 1] + extra * step + self.plain_s(context) - self.full_s[0]

    def _at(self, values: Sequence[float], context: int) -> float:
        """Along the straight line through the first and the last measured context."""
        if len(values) == 1:
            return values[0]
        slope = (values[-1] - values[0]) / (self.contexts[-1] - self.contexts[0])
        return values[0] + slope * (context - self.contexts[0])

    def as_dict(self) -> dict[str, Any]:
        """For JSON; `read` is its inverse."""
        return asdict(self)

    @classmethod
    def read(cls, path: Path) -> CostTable:
        """The table in a JSON file."""
        body: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        settings: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in body.items()}
        return cls(**settings)


@torch.inference_mode()
def measure(
    decoder: Decoder, *, contexts: Sequence[int], max_tokens: int, repeats: int, stopwatch: Stopwatch
) -> CostTable:
    """Measure the table; takes some `repeats` · (5 · contexts + max_tokens) forwards. The machine must be quiet.

    Args:
        decoder: the model.
        contexts: one or two lengths, rising; two where attention's growth matters.
        max_tokens: the longest verification.
        repeats: of every forward, in turn with the others; the median counts.
        stopwatch: where seconds come from.
    """
    n = decoder.n_layers
    every = frozenset(range(n))
    arms: dict[str, Forward] = {
        "full": decoder.full,
        "no attention": decoder.bind(SkipSet(n, attn=every)),
        "no mlp": decoder.bind(SkipSet(n, mlp=every)),
        "nothing": decoder.bind(SkipSet(n, every, every)),
    }
    timed: dict[int, dict[str, float]] = {}
    for context in contexts:
        calls = {name: _call(decoder, forward, 1, context) for name, forward in arms.items()}
        timed[context] = _medians(calls, repeats, stopwatch)
    sizes = {str(k): _call(decoder, decoder.full, k, contexts[0]) for k in range(1, max_tokens + 1)}
    verify = _medians(sizes, repeats, stopwatch)
    first = timed[contexts[0]]
    return CostTable(
        contexts=tuple(contexts),
        attn_s=tuple((t["full"] - t["no attention"]) / n for t in timed.values()),
        mlp_s=(first["full"] - first["no mlp"]) / n,
        base_s=first["full"] - (first["full"] - first["no attention"]) - (first["full"] - first["no mlp"]),
        full_s=tuple(t["full"] for t in timed.values()),
        verify_s=tuple(verify[str(k)] for k in range(1, max_tokens + 1)),
    )


def _call(decoder: Decoder, forward: Forward, n_tokens: int, context: int) -> Callable[[], None]:
    """A forward of `n_tokens` after `context` tokens, ready to be timed."""
    cache = decoder.new_cache(n_rows=1, capacity=context + n_tokens)
    ids = torch.full((1, max(context, n_tokens)), 5, device=decoder.device)
    decoder.full(ids[:, :context], starts=[0], cache=cache, n_logits=1)

    def call() -> None:
        forward(ids[:, :n_tokens], starts=[context], cache=cache)

    return call


def _medians(calls: dict[str, Callable[[], None]], repeats: int, stopwatch: Stopwatch) -> dict[str, float]:
    """The median seconds of each call, taken in turn, after one turn that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            began = stopwatch.now()
            call()
            if turn:
                seconds[name].append(stopwatch.now() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}
