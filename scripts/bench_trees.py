"""Which shape of a draft pays at which cost of verification? Chains and trees of one draft, on the same prompts.

    python scripts/bench_trees.py [--curve NAME=1,1.1,1.15,...] [--draft-cost 0.45] [--max-draft 6] [KEY=VALUE ...]

KEY=VALUE are settings of `selfspec evaluate` (model, data, skip, n, ...). A curve says what the full forward of 1, 2,
3, ... tokens costs in plain tokens; beyond its end the last step goes on. Acceptance by rank and confidence is measured
on calibration prompts, the shapes are replayed on evaluation prompts. No clock is read: the counts are exact, and the
speedups are what these costs make of them. Rows go to a file as they come; what is there is not replayed again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module

from experiments.builders import build
from search.replay.references import ReferenceBatch, decode_references
from search.replay.rule_tuner import calibration
from search.replay.simulator import simulate
from selfspec.drafters.chain import ModelDraft
from selfspec.drafters.lookup import LookupDraft
from selfspec.drafters.merged import MergedDraft
from selfspec.drafters.tree_drafter import TreeDraft
from selfspec.drafters.tree_shapes import BestFirst, ExpandRerank, comb, sequoia
from selfspec.engine.decode import Ending
from selfspec.engine.protocols import ROOT, BaseDrafter, Draft, Drafter, Output, Row, Verdict
from selfspec.measure.metrics import ratio
from selfspec.records.run_files import append_row, read_rows
from selfspec.stopping import Fixed, StopPolicy, Threshold

RANKS = 5  # siblings whose acceptance is measured; chosen, not tuned


@dataclass
class Watched(BaseDrafter):
    """Another drafter; notes what its drafts read, and how sure it was of each judged node and whether it was right."""

    inner: Drafter
    name: str = "watched"

    def __post_init__(self) -> None:
        self.n_read = 0  # nodes that the draft's forwards read
        self.judged: list[tuple[float, bool, int]] = []  # (confidence, right, rank)

    def begin(self, row: Row, prompt: Output) -> None:
        """See `Drafter`."""
        self.inner.begin(row, prompt)

    def propose(self, rows: Sequence[Row], *, cache: Any) -> list[Draft]:
        """See `Drafter`."""
        return self.inner.propose(rows, cache=cache)

    def observe(self, row: Row, draft: Draft, verdict: Verdict, target: Output) -> None:
        """See `Drafter`."""
        if draft.n_forwards:
            self.n_read += len({ROOT, *(draft.parents or range(len(draft.tokens) - 1))})
        if draft.confidences:
            for node in (ROOT, *verdict.path):
                for rank, child in enumerate(draft.children(node)):
                    self.judged.append((draft.confidences[child], child in verdict.path, rank))
        self.inner.observe(row, draft, verdict, target)

    def end(self, row: Row) -> None:
        """See `Drafter`."""
        self.inner.end(row)


@dataclass(frozen=True)
class Counts:
    """Of all rounds: tokens committed, rounds, forwards of the draft, nodes they read, and sizes of verifications."""

    tokens: int
    rounds: int
    forwards: int
    read: int
    sizes: dict[int, int]

    def speedup(self, curve: Sequence[float], draft_cost: float) -> float:
        """Plain tokens over what the rounds cost; a node more in a draft's forward costs its part of a verified one."""
        step = verify(curve, 2) - 1
        draft = draft_cost * (self.forwards + step * max(0, self.read - self.forwards))
        return ratio(self.tokens, draft + sum(n * verify(curve, size) for size, n in self.sizes.items()))


def verify(curve: Sequence[float], n: int) -> float:
    """The cost of a forward of n tokens."""
    step = curve[-1] - curve[-2] if len(curve) > 1 else 0.0
    return curve[min(n, len(curve)) - 1] + max(0, n - len(curve)) * step


def main() -> None:
    """Measure acceptance, replay every shape, print the table."""
    args, words = _arguments()
    with initialize_config_module("conf", version_base="1.3"):
        cfg = compose("evaluate", overrides=words)
    loaded = build.model(cfg)
    decoder, ending = loaded.decoder, Ending(cfg.max_new_tokens)
    plan = replace(build.plan(str(cfg.skip), loaded), precision=args.precision)
    forward = decoder.bind(plan)

    def batches(part: Any) -> list[ReferenceBatch]:
        found = build.prompts(cfg, loaded, part, n=cfg.n, seed=cfg.seed, max_new_tokens=cfg.max_new_tokens)
        return decode_references(decoder, [p.ids for p in found], ending=ending, batch_starts=args.batch_starts)

    def counted(make: Callable[[], Drafter], stop: StopPolicy, on: Sequence[ReferenceBatch]) -> tuple[Counts, Watched]:
        watched = Watched(make())
        rounds = [r for batch in on for rs in simulate(decoder, watched, batch, stop)[0] for r in rs]
        sizes: dict[int, int] = {}
        for r in rounds:
            sizes[r.drafted + 1] = sizes.get(r.drafted + 1, 0) + 1
        forwards = sum(r.n_forwards for r in rounds)
        return Counts(sum(r.committed for r in rounds), len(rounds), forwards, watched.n_read, sizes), watched

    rows_path = Path(args.file)
    known = {row["shape"]: row for row in read_rows(rows_path)} if rows_path.exists() else {}
    always = Fixed(args.max_draft)
    if "acceptance" not in known:
        _, seen = counted(lambda: TreeDraft(forward, comb((RANKS,) * args.max_draft)), always, batches("calibration"))
        by_rank = [[right for _, right, rank in seen.judged if rank == r] for r in range(RANKS)]
        known["acceptance"] = {
            "shape": "acceptance",
            "by_rank": [ratio(sum(rights), len(rights)) for rights in by_rank],
            "knots": calibration([(c, right) for c, right, _ in seen.judged]),
        }
        append_row(rows_path, known["acceptance"])
    ranks = known["acceptance"]["by_rank"]
    knots = tuple((float(x), float(y)) for x, y in known["acceptance"]["knots"])
    evaluation = batches("evaluation")

    def shapes(name: str, curve: Sequence[float]) -> Iterator[tuple[str, Callable[[], Drafter], StopPolicy]]:
        c, step, longest = args.draft_cost, max(1e-4, verify(curve, 5) / 4 - verify(curve, 1) / 4), args.max_draft
        best = BestFirst(args.max_nodes, longest, RANKS, c, step, knots)
        static = sequoia(ranks, draft_cost=c, verify_s=[verify(curve, n + 1) for n in range(24)], max_depth=longest)
        for k in (2, 4, longest):
            yield f"chain of {k}", lambda k=k: ModelDraft(forward), Fixed(k)
        for t in (0.3, 0.5, 0.7):
            yield f"chain to {longest}, threshold {t}", lambda: ModelDraft(forward), Threshold(longest, t)
        one = BestFirst(args.max_nodes, longest, 1, c, step, knots)
        yield f"chain while a node pays ({name})", lambda: TreeDraft(forward, one), always
        yield f"best first ({name})", lambda: TreeDraft(forward, best), always
        plain = replace(best, calibration=((0.0, 0.0), (1.0, 1.0)))
        yield f"best first, confidences as they are ({name})", lambda: TreeDraft(forward, plain), always
        yield f"Sequoia, {len(static.paths)} nodes ({name})", lambda: TreeDraft(forward, static), always
        yield "EAGLE-2, 4 x 4 / 12", lambda: TreeDraft(forward, ExpandRerank(4, 4, 12)), always
        yield "EAGLE-2, 10 x 6 / 60", lambda: TreeDraft(forward, ExpandRerank(10, 6, 60)), always
        yield "comb 3 2 2 1", lambda: TreeDraft(forward, comb((3, 2, 2, 1))), always
        yield f"lookup, else best first ({name})", lambda: LookupDraft(TreeDraft(forward, best)), always
        yield f"lookup beside best first ({name})", lambda: MergedDraft(LookupDraft(), TreeDraft(forward, best)), always

    print(f"acceptance by rank: {', '.join(f'{a:.3f}' for a in ranks)}; draft {plan}, c {args.draft_cost}")
    for name, curve in args.curves.items():
        print(f"\n{name}: v = {', '.join(f'{v:.2f}' for v in curve)}")
        print(f"{'shape':45} {'tokens/round':>12} {'nodes/round':>12} {'speedup':>8}  {'rounds':>6}")
        for shape, make, stop in shapes(name, curve):
            if shape not in known:
                counts, _ = counted(make, stop, evaluation)
                known[shape] = {"shape": shape, **vars(counts)}
                append_row(rows_path, known[shape])
            row = known[shape]
            sizes = {int(k): n for k, n in row["sizes"].items()}
            counts = Counts(row["tokens"], row["rounds"], row["forwards"], row["read"], sizes)
            nodes = sum((size - 1) * n for size, n in sizes.items()) / counts.rounds
            speed = counts.speedup(curve, args.draft_cost)
            per_round = counts.tokens / counts.rounds
            print(f"{shape:45} {per_round:12.2f} {nodes:12.2f} {speed:8.3f}  {counts.rounds:6d}", flush=True)


def _arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--curve", action="append", default=[], help="NAME=1,1.1,... ; may be given several times")
    parser.add_argument("--draft-cost", type=float, default=0.45, help="c of one forward of the draft, in plain tokens")
    parser.add_argument("--precision", default="same", choices=("same", "int8", "int4"), help="of the draft's weights")
    parser.add_argument("--max-draft", type=int, default=6)
    parser.add_argument("--max-nodes", type=int, default=16)
    parser.add_argument("--batch-starts", type=int, default=1024, help="places to draft from in one batch")
    parser.add_argument("--file", default="outputs/bench_trees.jsonl")
    args, rest = parser.parse_known_args()
    wrong = [word for word in rest if "=" not in word]
    if wrong:
        parser.error(f"cannot read {wrong[0]!r}; settings of the evaluation are KEY=VALUE")
    curves = dict(curve.split("=", 1) for curve in args.curve) or {"flat": "1,1"}
    args.curves = {name: [float(v) for v in values.split(",")] for name, values in curves.items()}
    return args, rest


if __name__ == "__main__":
    sys.exit(main())
