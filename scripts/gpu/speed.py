"""How fast is it? transformers' ways and ours, in bfloat16, in turn.

`speed` has what runs at once. `compiled` has what is compiled first: it comes last, since compiling may take long.
"""

from __future__ import annotations

import time
import traceback
from typing import Any

import torch

from gpu import peers
from gpu.check import Check, limit
from gpu.models import N_DRAFT, decoders, prompts_of, skip_sets, small_model, spec
from gpu.turns import BASE, Way, take_turns
from selfspec.drafters.chain import Drafter
from selfspec.drafters.lookup import LookupDraft
from selfspec.engine.decode import Ending, autoregress
from selfspec.models.decoder import Decoder
from selfspec.recorded.graphed import GraphedDecoder

COMPILE_S = 90.0  # at most for `generate`; it took 35 s on an H100
FUSE_S = 40.0  # at most for the engine's pieces; they took 12 s


class Case:
    """The model twice, its decoders and the prompts that both sections use."""

    def __init__(self, check: Check) -> None:
        dtype = torch.float64 if check.is_toy else torch.bfloat16
        self.model: Any = small_model(check, dtype)
        self.stock: Any = peers.never_ending(small_model(check, dtype))
        self.decoder, self.graphed = decoders(self.model)
        self.n_new, self.n_turns = (10, 2) if check.is_toy else (64, 5)
        self.prompts = of_one_length(prompts_of(check, self.decoder, 2))
        self.ending = Ending(self.n_new, frozenset())
        self.expected = [autoregress(self.decoder, [p], ending=self.ending)[0].tokens for p in self.prompts]

    def plain(self, on: GraphedDecoder) -> Way:
        return lambda ids: on.autoregress([ids], ending=self.ending)[0]

    def drafting(self, on: GraphedDecoder, drafter: Drafter) -> Way:
        return lambda ids: spec(on, drafter, [ids], self.n_new)[0]

    def take_turns(self, check: Check, section: str, ways: dict[str, Way]) -> None:
        take_turns(
            check, section, ways, self.prompts, decoder=self.decoder, expected=self.expected, n_turns=self.n_turns
        )


def speed(check: Check) -> None:
    """Whatever needs no compiler."""
    case = Case(check)
    stock, graphed, n_new = case.stock, case.graphed, case.n_new
    sets = skip_sets(case.decoder.n_layers)
    name, whole_layers = list(sets.items())[-1]
    ways: dict[str, Way] = {
        BASE: case.plain(graphed),
        "generate, eager": peers.generate(stock, n_new),
        "plain, eager": lambda ids: autoregress(case.decoder, [ids], ending=case.ending)[0],
        "plain by graphs, a token at a time": lambda ids: autoregress(graphed, [ids], ending=case.ending)[0],
        "prompt lookup by graphs": case.drafting(graphed, LookupDraft()),
        "generate, prompt lookup": peers.generate(stock, n_new, prompt_lookup_num_tokens=N_DRAFT),
        f"generate, assisted, {name}": peers.assisted(stock, whole_layers, n_new),
    }
    for text, skip in sets.items():
        drafter = graphed.drafter(skip, needs_confidence=False)
        ways[f"draft by graphs, {text}"] = case.drafting(graphed, drafter)
    case.take_turns(check, "speed", ways)


def compiled(check: Check) -> None:
    """`generate` with a static cache, whose forward transformers compiles, and ours with its pieces compiled."""
    case = Case(check)
    ways: dict[str, Way] = {
        BASE: case.plain(case.graphed),
        "generate, eager": peers.generate(case.stock, case.n_new),
    }
    if check.device.type != "cuda":
        check.keep("compiled", "generate, static cache + compile", None, "not tried: no CUDA device")
        return case.take_turns(check, "compiled", ways)
    static = peers.generate(case.stock, case.n_new, cache_implementation="static")
    if compiles(check, "generate, static cache + compile", COMPILE_S, lambda: [static(p) for p in case.prompts]):
        ways["generate, static cache + compile"] = static
    fused = GraphedDecoder(Decoder(case.model), compile_pieces=True)
    plain = case.plain(fused)
    if compiles(check, "plain by graphs, compiled", FUSE_S, lambda: plain(case.prompts[0])):
        ways["plain by graphs, compiled"] = plain
        for name, skip in list(skip_sets(case.decoder.n_layers).items())[:2]:
            drafter = fused.drafter(skip, needs_confidence=False)
            ways[f"draft by graphs, compiled, {name}"] = case.drafting(fused, drafter)
    case.take_turns(check, "compiled", ways)


def compiles(check: Check, name: str, at_most_s: float, call: Any) -> bool:
    """Whether the call, which compiles, ends in time; how long it took, or why it did not, is kept."""
    began = time.monotonic()
    try:
        with limit(max(1.0, min(at_most_s, check.left_s - 15))):
            call()
    except Exception as error:  # a compiler may raise anything, and the other ways do not depend on it
        check.keep("compiled", name, traceback.format_exc(), f"given up: {error!r}"[:200])
        return False
    check.keep("compiled", f"{name}: seconds to compile", time.monotonic() - began)
    return True


def of_one_length(prompts: list[list[int]]) -> list[list[int]]:
    """Cut in the middle to the shortest: a compiled `generate` would compile anew for every length."""
    n = min(map(len, prompts))
    head = min(4, n // 2)
    return [[*ids[:head], *ids[len(ids) - n + head :]] for ids in prompts]
