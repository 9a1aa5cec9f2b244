"""Is it exact? Streams, chains, trees and batches by graphs against plain eager decoding, token for token."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch

from gpu.check import Check
from gpu.models import decoders, prompts_of, skip_sets, small_model, spec
from selfspec.engine.decode import Ending, autoregress
from selfspec.measure import exactness
from selfspec.recorded.graphed import GraphedDecoder


def lossless(check: Check) -> None:
    """In float32 with TF32 off, where greedy outputs are equal or wrong; a toy runs in float64."""
    dtype = torch.float64 if check.is_toy else torch.float32
    decoder, graphed = decoders(small_model(check, dtype))
    n_new, n = (12, 3) if check.is_toy else (64, 8)
    prompts = prompts_of(check, decoder, n)
    ending = Ending(n_new, frozenset())
    expected = [autoregress(decoder, [p], ending=ending)[0].tokens for p in prompts]
    text = f"{n} prompts x {n_new} tokens, {dtype}"
    check.keep("lossless", "baseline", text, text)

    def judge(name: str, found: list[list[int]]) -> None:
        verdicts = Counter(
            exactness.compare(decoder, p, a, b).verdict for p, a, b in zip(prompts, expected, found, strict=True)
        )
        check.keep("lossless", name, dict(verdicts), str(dict(verdicts)))

    judge("plain by graphs", [r.tokens for r in graphed.autoregress(prompts, ending=ending)])
    sets = skip_sets(decoder.n_layers)
    for name, skip in sets.items():
        drafter = graphed.drafter(skip, needs_confidence=False)
        judge(f"chain, {name}", [spec(graphed, drafter, [p], n_new)[0].tokens for p in prompts])
        draft = graphed.bind(skip)
        judge(f"tree, {name}", [tree_decode(graphed, draft, p, n_new) for p in prompts])
    ragged = graphed.drafter(list(sets.values())[1], needs_confidence=True)
    judge("a ragged batch of all prompts", [r.tokens for r in spec(graphed, ragged, prompts, n_new)])
    check.keep("lossless", "recordings", graphed.stage.recorder.n_recorded)


@torch.inference_mode()
def tree_decode(decoder: GraphedDecoder, draft: Any, prompt: list[int], n_new: int) -> list[int]:
    """Greedy decoding that verifies a tree a round: a drafted chain of three, and the second choice beside its first.

    Nodes: 0 the last token, 1 to 3 the chain, 4 the second choice. The numbers below are these nodes.
    """
    device = decoder.device
    cache = decoder.new_cache(n_rows=1, capacity=len(prompt) + n_new + 8)
    logits = decoder.full(torch.tensor([prompt], device=device), starts=[0], cache=cache, n_logits=1)
    ids = [*prompt, int(logits[0, -1].argmax())]
    while len(ids) < len(prompt) + n_new:
        at = len(ids) - 1
        chain: list[int] = []
        second = 0
        for step in range(3):
            token = torch.tensor([[[ids[-1], *chain][step]]], device=device)
            best = draft(token, starts=[at + step], cache=cache, n_logits=1)[0, -1].topk(2).indices.tolist()
            second = best[1] if step == 0 else second
            chain.append(best[0])
        tokens = [ids[-1], *chain, second]
        cache.set([at], len(tokens))
        found = verify_tree(decoder, tokens, at, cache)
        path, node = [], 0
        while True:
            token_id = found[node]
            path.append(token_id)
            if node == 0 and token_id == second and second != chain[0]:
                # Its key lies at another slot than a chain's would: written once more, in its place.
                decoder.full(torch.tensor([[second]], device=device), starts=[at + 1], cache=cache, n_logits=1)
                node = 4
            elif node < 3 and token_id == chain[node]:
                node += 1
            else:
                break
        ids += path
    return ids[len(prompt) : len(prompt) + n_new]


def verify_tree(decoder: GraphedDecoder, tokens: list[int], at: int, cache: Any) -> list[int]:
    """The full model's choice after each node of the tree, whose root is at position `at`."""
    device = decoder.device
    positions = [at, at + 1, at + 2, at + 3, at + 1]
    seen = torch.zeros(1, 5, at + len(tokens), dtype=torch.bool, device=device)
    seen[:, :, : at + 1] = True
    for i in range(1, 4):
        seen[0, i, at + 1 : at + 1 + i] = True
    seen[0, 4, at + 4] = True
    logits = decoder.full.tree(
        torch.tensor([tokens], device=device),
        positions_BT=torch.tensor([positions], device=device),
        seen_BTS=seen,
        key_positions_BS=torch.tensor([[*range(at), *positions]], device=device),
        cache=cache,
    )
    choices: list[int] = logits[0].argmax(-1).tolist()
    return choices
