"""Do the costs of a trained head hold? Seconds that its table predicts for real rounds, beside the measured ones.

    python scripts/check_head_costs.py RUN [--n 8] [--tokens 96] [KEY=VALUE ...]

RUN is the folder of a training; KEY=VALUE are settings of `selfspec evaluate` (model, data, threads, ...). The head
drafts without lookup: 1, 3 and 5 tokens a round, and by its own stop rule. Each prompt is decoded plainly and with each
rule in turn. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from experiments.builders import build, build_costs
from experiments.config.composing import composing, configuration
from search.costs.table import CostTable
from search.replay.objectives import Replayed, cost_of, expected_speedup
from search.replay.references import Reference
from selfspec.drafters.build import build_drafter
from selfspec.drafters.spec import DraftSpec
from selfspec.drafters.spec_files import load_spec
from selfspec.engine.decode import Ending, autoregress, speculate
from selfspec.engine.trace import DecodeResult
from selfspec.measure.metrics import Timed, speedup, speedup_interval
from selfspec.measure.stopwatch import Stopwatch
from selfspec.models.decoder import Decoder
from selfspec.stopping import Fixed


def main() -> None:
    """Decode, and print a line for each rule."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--n", type=int, default=8, help="prompts")
    parser.add_argument("--tokens", type=int, default=96, help="of an answer")
    args, settings = parser.parse_known_args()
    logging.basicConfig(level=logging.WARNING)
    with composing():
        cfg = configuration("evaluate", settings)
        loaded = build.model(cfg)
        prompts = build.prompts(cfg, loaded, "evaluation", n=args.n + 1, seed=cfg.seed, max_new_tokens=args.tokens)
        own = replace(load_spec(str(args.run), loaded.decoder, loaded.facts), lookup=None)
        plan = replace(own.plan, memory=None)
        table = build_costs.head_costs(cfg, loaded, plan, build_costs.costs(cfg, loaded)[0])
    specs = {f"{k} a round": DraftSpec(plan, Fixed(k)) for k in (1, 3, 5)} | {"its own": replace(own, plan=plan)}
    context = table.contexts[0]
    print(
        f"plain token {1000 * table.plain_s(context):.2f} ms, drafted token "
        f"{1000 * table.draft_s(plan, context):.2f} ms, besides {1000 * table.overhead_s:.2f} ms a round"
    )
    _compare(loaded.decoder, [p.ids for p in prompts], specs, table, args.tokens)


def _compare(
    decoder: Decoder, prompts: Sequence[list[int]], specs: dict[str, DraftSpec], table: CostTable, n_tokens: int
) -> None:
    """Decode all prompts with all specs in turn; the first prompt warms up."""
    watch, ending = Stopwatch(decoder.device), Ending(n_tokens)
    drafters = {name: build_drafter(spec, decoder) for name, spec in specs.items()}
    plain: list[Timed] = []
    times: dict[str, list[Timed]] = {name: [] for name in specs}
    said: dict[str, list[Replayed]] = {name: [] for name in specs}
    whole: dict[str, list[DecodeResult]] = {name: [] for name in specs}
    for i, ids in enumerate(prompts):
        (one,) = autoregress(decoder, [ids], ending=ending, stopwatch=watch)
        if i:
            plain.append(_timed(one))
        for name, spec in specs.items():
            (result,) = speculate(
                decoder, [ids], drafter=drafters[name], stops=[spec.stop.begin()], ending=ending, stopwatch=watch
            )
            if i:
                times[name].append(_timed(result))
                whole[name].append(result)
                reference = Reference(ids, result.tokens, n_tokens)
                said[name].append(cost_of(result.rounds, reference, spec.plan, table))
    for name in specs:
        low, high = speedup_interval(plain, times[name])
        found, expected = speedup(plain, times[name]), expected_speedup(said[name])
        n_rounds = sum(len(r.rounds) for r in whole[name])
        drafting = sum(r.draft_s for result in whole[name] for r in result.rounds) / n_rounds
        verifying = sum(r.verify_s for result in whole[name] for r in result.rounds) / n_rounds
        print(
            f"{name}: predicted {expected:.3f}, measured {found:.3f} [{low:.3f}, {high:.3f}], ratio "
            f"{found / expected:.3f}; a round drafts {1000 * drafting:.2f} ms and verifies {1000 * verifying:.2f} ms, "
            f"predicted {1000 * sum(p.draft_s for p in said[name]) / n_rounds:.2f}, and for the rest "
            f"{1000 * sum(p.verify_s for p in said[name]) / n_rounds:.2f}"
        )


def _timed(result: DecodeResult) -> Timed:
    return Timed(result.total_s - result.prefill_s, len(result.tokens) - 1)


if __name__ == "__main__":
    main()
