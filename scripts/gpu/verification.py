"""What do more tokens cost in one forward, and what does a round cost beside its launches?"""

from __future__ import annotations

import statistics
from dataclasses import asdict
from typing import Any

import torch

from gpu.check import Check
from gpu.models import decoders, prompts_of, skip_sets, small_model, spec
from search.costs import device
from selfspec.measure.stopwatch import device_seconds
from selfspec.recorded.graphed import GraphedDecoder
from selfspec.skipping.skip_set import SkipSet


def verification(check: Check) -> None:
    """v(n)/v(1): the full forward of n tokens, by graphs and eagerly, and a round over the sum of its launches."""
    toy = check.is_toy
    decoder, graphed = decoders(small_model(check, torch.float64 if toy else torch.bfloat16))
    sizes = [1, 2, 4] if toy else [1, 2, 4, 8, 16, 32, 64]
    contexts, rows = ([16], [1, 2]) if toy else ([128, 1024], [1, 8])
    for name, one in (("graphs", graphed), ("eager", decoder)):
        n_repeats = 2 if toy else 20 if name == "graphs" else 7
        costs = device.forward_costs(one, rows=rows, tokens=sizes, contexts=contexts, repeats=n_repeats)
        check.keep("verification", f"seconds, {name}", [asdict(c) for c in costs])
        for r in rows:
            for c in contexts:
                found = {x.n_tokens: x.seconds for x in costs if (x.n_rows, x.context) == (r, c)}
                ratios = "  ".join(f"{n}: {found[n] / found[1]:.2f}" for n in sizes[1:])
                text = f"{found[1] * 1e3:.3f} ms; {ratios}"
                check.keep("verification", f"{name}, {r} rows, {c} before", found, text)
    ids = prompts_of(check, decoder, 2)[1]
    for name, skip in skip_sets(decoder.n_layers).items():
        ratio = round_over_launches(graphed, skip, ids, 24 if toy else 96)
        check.keep("verification", f"round / sum of its launches, {name}", ratio, f"{ratio['ratio']:.3f}")


def round_over_launches(graphed: GraphedDecoder, skip: SkipSet, ids: list[int], n_new: int) -> dict[str, float]:
    """Wall seconds of whole rounds over the device's seconds of the replays in them, the median of the rounds."""
    drafter = graphed.drafter(skip, needs_confidence=False)
    spec(graphed, drafter, [ids], n_new)  # records what there is to record
    recorder = graphed.stage.recorder
    play, replays, seconds = recorder.play, [], {}

    def timed(key: Any, make: Any, inputs: Any) -> Any:
        replays.append(key)
        found = play(key, make, inputs)
        if key not in seconds:
            copies = tuple(t.clone() for t in found)
            replay = recorder.replay_last
            seconds[key] = statistics.median(device_seconds(replay, device=graphed.device, repeats=12)[2:])
            for t, copy in zip(found, copies, strict=True):
                t.copy_(copy)
        return found

    recorder.play = timed
    try:
        spec(graphed, drafter, [ids], n_new)
    finally:
        recorder.play = play
    (result,) = spec(graphed, drafter, [ids], n_new)
    # Both runs decode the same, so the second's rounds consist of the first's replays: a chain and a verification each.
    chain = [seconds[k] for k in replays[0::2]]
    verify = [seconds[k] for k in replays[1::2]]
    rounds = [r.draft_s + r.verify_s for r in result.rounds]
    n = min(len(rounds), len(chain), len(verify))
    launches = [chain[i] + verify[i] for i in range(n)]
    ratio = statistics.median([rounds[i] / launches[i] for i in range(n)])
    return {"ratio": ratio, "round_s": statistics.median(rounds), "launches_s": statistics.median(launches)}
