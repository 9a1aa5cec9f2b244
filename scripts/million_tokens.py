"""Is it lossless? A million tokens of toys against plain decoding: families, kernels, dtypes, drafters and stop rules.

    python -m scripts.million_tokens FILE [--tokens 1000000] [--seconds S]

Each piece is drawn from its number and ends in a line of FILE, so a run that was killed goes on where it stopped. Where
two tokens are nearly equally likely, a first difference is a near tie (`selfspec.measure.exactness`) and counted apart.
Exit status 1 if any output is a mismatch.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from selfspec import Adaptive, DraftSpec, Fixed, Heuristic, InputError, SkipSet, Speculator, Static, Threshold
from selfspec.drafters.spec import Lookup
from selfspec.drafters.tree_shapes import BestFirst, TreeShape
from selfspec.engine.decode import Ending, autoregress
from selfspec.measure.exactness import compare
from selfspec.measure.stopwatch import Stopwatch
from selfspec.models.decoder import Decoder
from selfspec.records.run_files import append_row, drop_partial_line, read_rows
from selfspec.skipping.plan import DraftPlan
from selfspec.stopping import StopPolicy
from tests.toys import FAMILIES, VOCAB, toy

N_PROMPTS, N_NEW = 12, 96
DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}
SKIPS = ("none", "a1", "m0", "a1 m2", "a0-2 m0-2")
STOPS: tuple[StopPolicy, ...] = (
    Fixed(1),
    Fixed(5),
    Threshold(8, 0.3),
    Adaptive(6, 0.3, 0.6, 0.2, 0.5, 0.5, carry_over=False),
    Heuristic(8, 3, 2, 1, carry_over=False),
)
LOOKUPS: tuple[Lookup | None, ...] = (None, None, "front", "only", "beside")
TREES: tuple[TreeShape | None, ...] = (None, None, Static(((0,), (1,), (0, 0), (0, 1))), BestFirst(6, 4, 2, 0.4, 0.1))


@dataclass(frozen=True)
class Piece:
    """What one line of the file is about."""

    family: str
    kernel: str
    dtype: str
    spec: DraftSpec
    prompts: list[list[int]]

    @classmethod
    def of(cls, number: int) -> Piece:
        """The piece of a number."""
        rng = random.Random(number)
        family = rng.choice(sorted(FAMILIES))
        n_prompts = N_PROMPTS if FAMILIES[family].takes_batches else 1
        prompts = [[rng.randrange(VOCAB) for _ in range(rng.randint(1, 24))] for _ in range(n_prompts)]
        lookup = rng.choice(LOOKUPS)
        tree = None if lookup == "only" else rng.choice(TREES)
        plan = DraftPlan(SkipSet.parse(rng.choice(SKIPS), 3))
        spec = DraftSpec(plan, rng.choice(STOPS), lookup, tree=tree)
        return cls(family, rng.choice(FAMILIES[family].attentions), rng.choice(sorted(DTYPES)), spec, prompts)

    def row(self) -> dict[str, Any]:
        """Counts of this piece: tokens of drafted outputs; how many outputs are identical, near ties and mismatches."""
        about = {"family": self.family, "kernel": self.kernel, "dtype": self.dtype, "skip": str(self.spec.skip)}
        about |= {name: value for name, value in self.spec.settings().items() if value is not None}
        decoder, ending = decoder_of(self.family, self.kernel, self.dtype), Ending(N_NEW, frozenset())
        try:
            drafted = Speculator(decoder, self.spec)(self.prompts, ending=ending)
        except InputError as error:  # as a tree for a model whose layers make masks of their own
            return {**about, "refused": str(error), "tokens": 0}
        plain = autoregress(decoder, self.prompts, ending=ending)
        found = Counter(
            compare(decoder, prompt, one.tokens, other.tokens).verdict
            for prompt, one, other in zip(self.prompts, plain, drafted, strict=True)
        )
        return {**about, "tokens": sum(len(result.tokens) for result in drafted), **found}


@cache
def decoder_of(family: str, kernel: str, dtype: str) -> Decoder:
    """The toy of a family, made once."""
    return Decoder(toy(family, kernel).to(DTYPES[dtype]))


def totals(rows: Sequence[dict[str, Any]]) -> dict[str, Counter[str]]:
    """Counts by dtype."""
    found: dict[str, Counter[str]] = {}
    for row in rows:
        counts = found.setdefault(row["dtype"], Counter())
        counts.update({name: row.get(name, 0) for name in ("tokens", "identical", "near_tie", "mismatch")})
        counts.update({"pieces": 1, "refused": int("refused" in row)})
    return found


def main(words: Sequence[str]) -> int:
    """Add pieces to the file until it holds enough tokens; 1 if it holds a mismatch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no piece after so many")
    asked = parser.parse_args(words)
    torch.set_num_threads(1)  # the toys are far too small for a second thread to help
    drop_partial_line(asked.file)
    rows = read_rows(asked.file) if asked.file.is_file() else []
    n_tokens, watch = sum(row["tokens"] for row in rows), Stopwatch(torch.device("cpu"))
    begin = watch.now()
    while n_tokens < asked.tokens and watch.now() - begin < asked.seconds:
        row = {"piece": len(rows), **Piece.of(len(rows)).row()}
        append_row(asked.file, row)
        rows.append(row)
        n_tokens += row["tokens"]
    for dtype, counts in sorted(totals(rows).items()):
        print(f"{dtype}: " + ", ".join(f"{n} {name}" for name, n in counts.items()))
    return int(any(row.get("mismatch") for row in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
