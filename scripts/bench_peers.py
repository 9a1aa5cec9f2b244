"""How fast is this engine beside transformers' own ways to speculate? One model, the same prompts, the same tokens.

Usage: python scripts/bench_peers.py [--model CONF] [--layers 20-24] [--exit 25] [--prompts 4] [--tokens 48]

Peers: `generate`, its prompt lookup, its assisted generation with early exit, and its assisted generation with an
assistant that shares the weights and lacks layers. The last two can only leave out whole layers, so this engine gets
skip sets of whole layers: `--layers`, and all from `--exit` on. Every one drafts the same number of tokens a round, is
called on the same loaded model and decodes exactly `--tokens` tokens; the arms take turns, prompt by prompt.
Seconds are from the prompt to the last token, since `generate` does not tell its prefill.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

sys.path.insert(0, str(Path(__file__).parent))
from shortened import shorter

from experiments.config.registry_source import RegistrySource
from experiments.results.tables import markdown_table
from selfspec.data.mini import Mini
from selfspec.data.prompts import encode
from selfspec.data.task import select
from selfspec.drafters.chain import Drafter, ModelDraft
from selfspec.drafters.lookup import LookupDraft
from selfspec.engine.decode import Ending, autoregress, speculate
from selfspec.measure.exactness import compare
from selfspec.models.decoder import Decoder, share
from selfspec.models.load import load
from selfspec.models.locate import locate
from selfspec.records.provenance import load_average
from selfspec.skipping.skip_set import SkipSet
from selfspec.stopping import Fixed

Way = Callable[[list[int]], list[int]]
"""From a prompt to its new tokens."""

N_DRAFT = 4  # tokens a round, for every way; chosen, not tuned


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="a file of conf/model")
    parser.add_argument("--path", help="a local folder instead")
    parser.add_argument("--layers", default="20-24", help="whole layers to leave out")
    parser.add_argument("--exit", type=int, default=25, help="layers in front of the early exit")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    settings: Any = OmegaConf.load(Path(__file__).parents[1] / "conf" / "model" / f"{asked.model}.yaml")
    registry = RegistrySource(**settings.registry) if settings.get("registry") else None
    located = locate(settings.hub_id, path=asked.path, registry=registry)
    loaded = load(located, dtype=asked.dtype, device="cpu", threads=asked.threads)
    decoder = loaded.decoder
    prompts = encode(
        loaded.tokenizer,
        select(Mini().examples("evaluation"), n=asked.prompts, seed=0),
        chat=bool(loaded.tokenizer.chat_template),
        context_length=decoder.context_length,
        max_new_tokens=asked.tokens,
    )
    skip = SkipSet.parse(f"a{asked.layers} m{asked.layers}", decoder.n_layers)
    ways = peers(decoder, skip=skip, n_exit=asked.exit, n_tokens=asked.tokens)
    facts = loaded.facts
    print(
        f"{asked.model}, {facts['dtype']}, {facts['n_packed']} packed layers, {asked.threads} threads, {len(prompts)} "
        f"prompts of {min(len(p.ids) for p in prompts)} to {max(len(p.ids) for p in prompts)} tokens, {asked.tokens} "
        f"tokens each, {asked.repeats} repeats; load before {load_average()}"
    )
    print(bench(decoder, ways, [p.ids for p in prompts], repeats=asked.repeats))
    print(f"load after {load_average()}")


def peers(decoder: Decoder, *, skip: SkipSet, n_exit: int, n_tokens: int) -> dict[str, Way]:
    """The ways to decode, transformers' `generate` first; `skip` holds whole layers."""
    model: Any = share(decoder.model)
    model.config = copy.deepcopy(model.config)  # early exit changes it for a while
    model.base_model.config = model.config
    # No end-of-sequence token: everyone decodes n_tokens; and drafts as many tokens a round, however sure it is.
    settings = {
        "eos_token_id": None,
        "pad_token_id": 0,
        "do_sample": False,
        "max_new_tokens": n_tokens,
        "num_assistant_tokens": N_DRAFT,
        "num_assistant_tokens_schedule": "constant",
        "assistant_confidence_threshold": 0.0,
    }
    model.generation_config = type(decoder.model.generation_config)(**settings)  # type: ignore[operator]
    assistant = shorter(decoder, skip)
    assistant.generation_config = copy.deepcopy(model.generation_config)
    early = SkipSet.parse(f"a{n_exit}-{decoder.n_layers - 1} m{n_exit}-{decoder.n_layers - 1}", decoder.n_layers)
    ending = Ending(n_tokens, frozenset())

    def generate(**more: Any) -> Way:
        def way(ids: list[int]) -> list[int]:
            prompt = torch.tensor([ids])
            output = model.generate(prompt, attention_mask=torch.ones_like(prompt), **more)
            return [int(i) for i in output[0, len(ids) :]]

        return way

    def ours(drafter: Drafter) -> Way:
        return lambda ids: (
            speculate(decoder, [ids], drafter=drafter, stops=[Fixed(N_DRAFT).begin()], ending=ending)[0].tokens
        )

    def skipping(left_out: SkipSet) -> Way:
        return ours(ModelDraft(decoder.bind(left_out), needs_confidence=False))

    return {
        "transformers: generate": generate(),
        "transformers: prompt lookup": generate(prompt_lookup_num_tokens=N_DRAFT),
        f"transformers: early exit at {n_exit}": generate(assistant_early_exit=n_exit),
        f"transformers: assistant without {skip}": generate(assistant_model=assistant),
        "selfspec: plain": lambda ids: autoregress(decoder, [ids], ending=ending)[0].tokens,
        "selfspec: prompt lookup": ours(LookupDraft()),
        f"selfspec: skip={early}": skipping(early),
        f"selfspec: skip={skip}": skipping(skip),
    }


def bench(decoder: Decoder, ways: Mapping[str, Way], prompts: Sequence[list[int]], *, repeats: int) -> str:
    """A table with a line for each way: tokens per second, ratio to the first way, outputs equal to the first's."""
    failed = {name: reason for name, way in ways.items() if (reason := try_out(way, prompts[0]))}
    able = {name: way for name, way in ways.items() if name not in failed}
    seconds = {name: [0.0] * repeats for name in able}
    outputs: dict[str, list[list[int]]] = {name: [] for name in able}
    for repeat in range(repeats):
        for i, prompt in enumerate(prompts):
            names = list(able)
            first = (repeat * len(prompts) + i) % len(names)
            for name in names[first:] + names[:first]:
                began = time.perf_counter()
                tokens = able[name](prompt)
                seconds[name][repeat] += time.perf_counter() - began
                if repeat == 0:
                    outputs[name].append(tokens)
    baseline = next(iter(ways))
    body = []
    for name in ways:
        if name in failed:
            body.append([name, "cannot run", "", "", failed[name]])
            continue
        n_tokens = sum(map(len, outputs[name]))
        rates = [n_tokens / s for s in seconds[name]]
        ratios = [b / s for b, s in zip(seconds[baseline], seconds[name], strict=True)]
        verdicts = Counter(
            compare(decoder, ids, expected, tokens).verdict
            for ids, expected, tokens in zip(prompts, outputs[baseline], outputs[name], strict=True)
        )
        ties = f", {verdicts['near_tie']} near ties" if verdicts["near_tie"] else ""
        lossy = f", {verdicts['mismatch']} mismatches" if verdicts["mismatch"] else ""
        body.append(
            [
                name,
                f"{statistics.median(rates):.1f}",
                f"{statistics.median(ratios):.2f}",
                f"{min(ratios):.2f}..{max(ratios):.2f}",
                f"{verdicts['identical']}/{len(prompts)} identical{ties}{lossy}",
            ]
        )
    return markdown_table(["way", "tokens/s", "over generate", "min..max", f"outputs ({len(prompts)} prompts)"], body)


def try_out(way: Way, prompt: list[int]) -> str:
    """Why a way cannot run, in one line; empty if it can. Also its warm-up."""
    try:
        way(prompt)
    except Exception as error:  # whatever a peer may raise is the finding
        return " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return ""


if __name__ == "__main__":
    main()
