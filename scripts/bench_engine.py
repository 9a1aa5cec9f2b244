"""How fast is the engine, beside the library it runs on? Ratios, interleaved, medians with their range.

Usage: python scripts/bench_engine.py [--model CONF] [--repeats 7] [--tokens 64] [--dtypes bfloat16,float32]

Run it on a machine that does nothing else; the load is printed with the table. Five questions:

1. plain decoding, ours over `model.generate` (tokens per second)
2. rounds with nothing skipped: round time over the sum of its model forwards (the engine's own overhead)
3. `speculate` over transformers' assisted generation, whose assistant shares the weights and skips the same sublayers
4. rounds of a tree of eight nodes over rounds of a chain of eight
5. peak memory of `speculate` over plain decoding
and the throughput of plain decoding and `speculate` for 1, 4 and 8 prompts at once.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from experiments.config.registry_source import RegistrySource
from selfspec.data.mini import Mini
from selfspec.data.prompts import encode
from selfspec.drafters.chain import ModelDraft
from selfspec.engine.cache import ClockCache
from selfspec.engine.decode import Ending, autoregress, speculate
from selfspec.engine.protocols import BaseDrafter, Draft, Row
from selfspec.engine.trace import DecodeResult
from selfspec.models.decoder import Decoder
from selfspec.models.load import Loaded, load
from selfspec.models.locate import locate
from selfspec.records.provenance import load_average
from selfspec.skipping.skip_set import SkipSet
from selfspec.stopping import Fixed

N_DRAFT = 4
SKIP = "a13,22 m20"
TREE = (-1, -1, 0, 0, 1, 2, 2, 5)  # eight nodes on four levels
N_NODES = len(TREE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="a file of conf/model")
    parser.add_argument("--path", help="a local folder instead")
    parser.add_argument("--skip", default=SKIP)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtypes", default="bfloat16,float32")
    parser.add_argument("--peak", choices=["plain", "speculate"], help="decode once and print the peak memory in MB")
    asked = parser.parse_args()
    if asked.peak:
        print(peak_mb(asked))
        return
    print(f"load before {load_average()}, {asked.threads} threads, {asked.repeats} repeats of {asked.tokens} tokens")
    print("| dtype | what | median | min..max | conditions |\n| --- | --- | --- | --- | --- |")
    for dtype in asked.dtypes.split(","):
        bench(asked, dtype)
    print(f"load after {load_average()}")


def bench(asked: argparse.Namespace, dtype: str) -> None:
    packed, plain = (read(asked, dtype, packed=p) for p in (True, False))
    decoder, n_tokens = packed.decoder, asked.tokens
    prompts = [
        p.ids
        for p in encode(
            packed.tokenizer, Mini().examples("evaluation"), chat=True, context_length=2048, max_new_tokens=n_tokens
        )
    ]
    ids = prompts[4]  # a question: about 90 tokens
    skip = SkipSet.parse(asked.skip, decoder.n_layers)
    draft, nothing = (
        ModelDraft(decoder.bind(skip), needs_confidence=False),
        ModelDraft(decoder.full, needs_confidence=False),
    )

    def row(what: str, values: Sequence[float], conditions: str) -> None:
        low, high = min(values), max(values)
        print(
            f"| {dtype} | {what} | {statistics.median(values):.2f} | {low:.2f}..{high:.2f} | {conditions} |", flush=True
        )

    forced = Ending(n_tokens, frozenset())
    ours = turns(
        asked.repeats,
        lambda: rate(autoregress(decoder, [ids], ending=forced)),
        lambda: generate_rate(plain.decoder.model, ids, n_tokens),
        lambda: rate(spec(decoder, draft, [ids], forced)),
        lambda: generate_rate(plain.decoder.model, ids, n_tokens, assistant=assistant(plain, skip)),
        lambda: overhead(decoder, nothing, ids, forced),
    )
    a, g, s, h, o = ours
    row("plain tokens/s", a, f"batch 1, prompt of {len(ids)} tokens")
    row("generate tokens/s", g, "the same")
    row("plain / generate", [x / y for x, y in zip(a, g, strict=True)], "pairs of the same turn")
    row("round / its forwards", o, f"nothing skipped, fixed {N_DRAFT}")
    trees, chains = turns(asked.repeats, lambda: round_ms(decoder, TREE, ids), lambda: round_ms(decoder, None, ids))
    row("tree / chain of 8 nodes", [x / y for x, y in zip(trees, chains, strict=True)], "rounds of made-up nodes")
    row("speculate / plain", [x / y for x, y in zip(s, a, strict=True)], f"skip={skip}, fixed {N_DRAFT}")
    row("speculate / assisted", [x / y for x, y in zip(s, h, strict=True)], "assistant: shared weights, same sublayers")
    peaks = turns(3, lambda: peak_of_child("plain", dtype), lambda: peak_of_child("speculate", dtype))
    row("peak memory, plain, MB above the model", peaks[0], "whole process, a fresh one each time")
    row("peak memory, speculate, MB above the model", peaks[1], "the same")
    for n in (1, 4, 8):
        both = turns(
            3,
            lambda n=n: rate(autoregress(decoder, prompts[:n], ending=forced)),
            lambda n=n: rate(spec(decoder, draft, prompts[:n], forced)),
        )
        row(f"plain tokens/s, {n} at once", both[0], "prompts of mixed length")
        row(f"speculate tokens/s, {n} at once", both[1], "the same")


def peak_mb(asked: argparse.Namespace) -> float:
    """Peak resident memory while decoding once, above what the loaded model takes; Linux alone can forget a peak."""
    loaded = read(asked, asked.dtypes, packed=True)
    decoder, ids, ending = loaded.decoder, list(range(100, 228)), Ending(asked.tokens, frozenset())
    skip = SkipSet.parse(asked.skip, decoder.n_layers)
    draft = ModelDraft(decoder.bind(skip), needs_confidence=False)
    autoregress(decoder, [ids], ending=Ending(2))  # buffers that every decode needs, of torch and of oneDNN
    before = memory_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    if asked.peak == "plain":
        autoregress(decoder, [ids], ending=ending)
    else:
        spec(decoder, draft, [ids], ending)
    return memory_mb("VmHWM") - before


def memory_mb(field: str) -> float:
    """A field of /proc/self/status in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def peak_of_child(what: str, dtype: str) -> float:
    words = [sys.executable, __file__, *sys.argv[1:], "--peak", what, "--dtypes", dtype]
    return float(subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def read(asked: argparse.Namespace, dtype: str, *, packed: bool) -> Loaded:
    settings: Any = OmegaConf.load(Path(__file__).parents[1] / "conf" / "model" / f"{asked.model}.yaml")
    registry = RegistrySource(**settings.registry) if settings.get("registry") else None
    located = locate(settings.hub_id, path=asked.path, registry=registry)
    return load(located, dtype=dtype, device="cpu", threads=asked.threads, pack=packed)


def turns(repeats: int, *arms: Callable[[], float]) -> list[list[float]]:
    """Each arm's value in each turn, after one turn that is not counted."""
    found: list[list[float]] = [[] for _ in arms]
    for turn in range(repeats + 1):
        for arm, values in zip(arms, found, strict=True):
            value = arm()
            if turn:
                values.append(value)
    return found


def rate(results: list[DecodeResult]) -> float:
    """Tokens per second without prefill, over all rows."""
    return sum(len(r.tokens) - 1 for r in results) / sum(r.total_s - r.prefill_s for r in results)


def spec(decoder: Decoder, draft: ModelDraft, prompts: list[list[int]], ending: Ending) -> list[DecodeResult]:
    stops = [Fixed(N_DRAFT).begin() for _ in prompts]
    return speculate(decoder, prompts, drafter=draft, stops=stops, ending=ending)


def generate_rate(model: Any, ids: list[int], n_tokens: int, assistant: Any = None) -> float:
    """Tokens per second of `generate` without prefill: the time of n tokens less that of one."""
    prompt = torch.tensor([ids])
    extra = {} if assistant is None else {"assistant_model": assistant}

    def seconds(n: int) -> float:
        began = time.perf_counter()
        model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            min_new_tokens=n,
            max_new_tokens=n,
            **extra,
        )
        return time.perf_counter() - began

    return (n_tokens - 1) / (seconds(n_tokens) - seconds(1))


def assistant(loaded: Loaded, skip: SkipSet) -> Any:
    """The same weights with the same sublayers left out, as transformers takes an assistant."""
    model: Any = loaded.decoder.bind(skip).module  # type: ignore[attr-defined]
    model.generation_config = loaded.decoder.model.generation_config.__class__(  # type: ignore[union-attr, operator]
        num_assistant_tokens=N_DRAFT,
        num_assistant_tokens_schedule="constant",
        assistant_confidence_threshold=0.0,
        eos_token_id=None,
    )
    return model


def overhead(decoder: Decoder, nothing: ModelDraft, ids: list[int], ending: Ending) -> float:
    """Seconds of all rounds over the seconds spent inside the model in them."""
    with inside(decoder) as seconds:
        (result,) = spec(decoder, nothing, [ids], ending)
    # The prefill's forward is the first one; it is not of the rounds.
    return (result.total_s - result.prefill_s) / sum(seconds[1:])


@contextmanager
def inside(decoder: Decoder) -> Iterator[list[float]]:
    """The seconds of each forward of the model's own module."""
    seconds: list[float] = []
    module = decoder.full.module
    before = module.register_forward_pre_hook(lambda *_: seconds.append(-time.perf_counter()))

    def close(*_: Any) -> None:
        seconds[-1] += time.perf_counter()

    after = module.register_forward_hook(close)
    try:
        yield seconds
    finally:
        before.remove()
        after.remove()


@dataclass(frozen=True)
class Shaped(BaseDrafter):
    """Drafts made-up tokens in one shape; rounds of it are verification and nothing else."""

    parents: tuple[int, ...] | None

    def propose(self, rows: Sequence[Row], *, cache: ClockCache) -> list[Draft]:
        """See `Drafter`: nothing near the end, where a chain does not fit."""
        tokens = list(range(100, 100 + N_NODES))
        parents = None if self.parents is None else list(self.parents)
        return [Draft(tokens, parents) if row.limit >= N_NODES else Draft() for row in rows]


def round_ms(decoder: Decoder, parents: tuple[int, ...] | None, ids: list[int]) -> float:
    """Milliseconds of a round that verifies eight made-up nodes: a chain, or a tree with these parents."""
    stops, ending = [Fixed(N_NODES).begin()], Ending(48, frozenset())
    (result,) = speculate(decoder, [ids], drafter=Shaped(parents), stops=stops, ending=ending)
    return 1e3 * (result.total_s - result.prefill_s) / len(result.rounds)


if __name__ == "__main__":
    main()
