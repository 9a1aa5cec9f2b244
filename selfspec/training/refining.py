"""Drafts of held-out texts before and after their refinement, and the weight of the n-grams, chosen on training texts.

A draft is judged where the text is what the target itself chooses: there it is the draft of greedy decoding.
"""

# N drafts, K heads, M tokens of a column, L tokens of a history, P paths, D hidden size,
# V tokens of the draft's vocabulary

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from selfspec.heads.refinement.lattice import Lattice, Paths
from selfspec.heads.refinement.refine import MODES, Refine
from selfspec.training.batches import HELD_OUT, Batch
from selfspec.training.heldout import HeldOut, RoundCosts
from selfspec.training.store import Store
from selfspec.training.trainer import Trainer

WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)  # of the n-grams; tried on training texts
CONTROL = "p_best without n-grams"  # as many paths, so what is verified is as much
CHUNK = 256  # drafts that are refined at once


@dataclass(frozen=True, slots=True)
class Windows:
    """Places where a draft begins, and what is known there.

    Attributes:
        lattice: the heads' likeliest tokens.
        context_NL: the newest tokens, the last committed one included.
        feature_ND: the hidden states.
        goal_NK: the target's choices.
    """

    lattice: Lattice
    context_NL: Tensor
    feature_ND: Tensor
    goal_NK: Tensor


@dataclass(frozen=True, slots=True)
class Refined:
    """How drafts fare before (`none`) and after refinement.

    Attributes:
        n: number of drafts.
        weight: of the n-grams.
        accepted: by mode, the drafts with 0, 1, ... K accepted tokens; of a tree its best path counts. `CONTROL` is the
            tree of the heads' own best paths.
        repeats: by mode, the drafts in which a token repeats the one before it, the last committed one included; the
            target's own are under `target`.
        oracle: by m, as `accepted`, if each draft were the best path through its heads' m likeliest tokens.
    """

    n: int
    weight: float
    accepted: Mapping[str, Sequence[int]]
    repeats: Mapping[str, int]
    oracle: Mapping[int, Sequence[int]]

    def held_out(self, mode: str) -> HeldOut:
        """Acceptance by depth of a mode."""
        reached = [sum(self.accepted[mode][depth:]) for depth in range(len(self.accepted[mode]))]
        return HeldOut(self.n, tuple(right / n if n else 0.0 for n, right in pairwise(reached)))

    def to_dict(self) -> dict[str, Any]:
        """Counts, and block sizes: mean tokens of a round, the correction or bonus included."""
        modes = {
            mode: {"block_size": block_size(counts), "accepted": list(counts), "repeats": self.repeats[mode]}
            for mode, counts in self.accepted.items()
        }
        oracle = {str(m): block_size(counts) for m, counts in self.oracle.items()}
        return {"n": self.n, "weight": self.weight, "modes": modes, "oracle": oracle, "repeats": self.repeats["target"]}

    def __str__(self) -> str:
        modes = ", ".join(
            f"{mode} {block_size(counts):.2f} ({self.repeats[mode] / self.n:.0%} repeat a token)"
            for mode, counts in self.accepted.items()
        )
        oracle = ", ".join(f"{block_size(counts):.2f} of {m}" for m, counts in self.oracle.items())
        return (
            f"tokens a round on {self.n} held-out drafts of {len(next(iter(self.accepted.values()))) - 1}: {modes}; "
            f"the best path through the likeliest tokens: {oracle}; the target repeats a token in "
            f"{self.repeats['target'] / self.n:.0%}; n-grams weigh {self.weight}"
        )


def costs_with(costs: RoundCosts, module: Refine) -> RoundCosts:
    """The costs of rounds whose drafts are `p_best` trees: a token more of each path, if no two share a beginning."""
    if module.mode != "p_best":
        return costs
    last = len(costs.verify) - 1
    return replace(costs, verify=tuple(costs.verify[min(last, k * module.n_paths)] for k in range(last + 1)))


def block_size(counts: Sequence[int]) -> float:
    """Mean tokens of a round, of the numbers of drafts with 0, 1, ... accepted tokens."""
    return 1 + sum(a * n for a, n in enumerate(counts)) / max(1, sum(counts))


def count(module: Refine, stores: Sequence[Store], chosen: Sequence[tuple[int, int]], n_vocab: int) -> None:
    """Count the n-grams of the chosen answers, each (store, text)."""
    texts = [stores[s].text(i, ()) for s, i in chosen]
    n_before = module.ngrams.order - 1
    module.ngrams.count([text.prompt[len(text.prompt) - n_before :] + text.tokens for text in texts], n_vocab)


@torch.no_grad()
def refine(trainer: Trainer, module: Refine) -> Refined:
    """Choose the weight of the n-grams, unless it is given, and judge held-out drafts.

    The weight is chosen on the training texts of a tenth of the prompts, with n-grams that were counted on the others.
    """
    module.eval()
    judge = _Judge(trainer, module)
    if module.settings["weight"] is None:
        mode = module.mode if module.mode in ("local", "p_best") else "global"
        rest, tried = _by_prompt(trainer)
        count(module, trainer.stores, rest, trainer.decoder.n_vocab)
        known = judge.windows(trainer.batches(tried))
        sizes = {weight: block_size(judge.accepted(known, mode, weight)[0]) for weight in WEIGHTS}
        module.set_weight(max(sizes, key=lambda weight: sizes[weight]))
        count(module, trainer.stores, trainer.texts, trainer.decoder.n_vocab)
    held, weight = judge.windows(trainer.batches(trainer.held)), module.weight
    found = {mode: judge.accepted(held, mode, weight) for mode in MODES}
    found[CONTROL] = judge.accepted(held, "p_best", 0.0)
    oracle: dict[int, list[int]] = {}
    for m in sorted({1, 4, module.m}):
        is_there = (held.lattice.ids_BKM[..., :m] == held.goal_NK.unsqueeze(-1)).any(-1)
        oracle[m] = _counts(is_there.unsqueeze(1))
    goals = _repeats(held.context_NL, held.goal_NK)
    repeats = {mode: n for mode, (_, n) in found.items()} | {"target": goals}
    return Refined(len(held.goal_NK), weight, {mode: counts for mode, (counts, _) in found.items()}, repeats, oracle)


def _by_prompt(trainer: Trainer) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Training texts, and those of a tenth of the prompts apart."""
    by_prompt: dict[str, list[tuple[int, int]]] = {}
    for s, i in trainer.texts:
        by_prompt.setdefault(str(trainer.stores[s].text(i, ()).prompt), []).append((s, i))
    tried = sorted(by_prompt)[:: round(1 / HELD_OUT)]
    rest = [at for prompt, texts in by_prompt.items() if prompt not in tried for at in texts]
    return rest or trainer.texts, [at for prompt in tried for at in by_prompt[prompt]]


class _Judge:
    def __init__(self, trainer: Trainer, module: Refine) -> None:
        self.module, self.vocabulary_V = module, trainer.vocabulary_V
        self.embed, self.rows_VD = trainer.learner.embed, trainer.learner.rows_VD
        self.place = torch.zeros(trainer.decoder.n_vocab, dtype=torch.long)
        self.place[self.vocabulary_V] = torch.arange(len(self.vocabulary_V))

    def windows(self, batches: Iterable[Batch]) -> Windows:
        parts = [part for batch in batches for part in self._of(batch)]
        ids, logs, context, feature, goal = (torch.cat(each) for each in zip(*parts, strict=True))
        return Windows(Lattice(ids, logs), context, feature, goal)

    def _of(self, batch: Batch) -> Iterator[tuple[Tensor, ...]]:
        k, n_back = self.module.max_depth or 1, max(1, self.module.ngrams.order - 1)
        n = batch.goal_BT.shape[1] - k + 1
        if n < 1:
            return
        goals_BTK = batch.goal_BT.unfold(1, k, 1)
        text_BTK = batch.next_BT.unfold(1, k, 1)
        is_own = (goals_BTK >= 0).all(-1) & (text_BTK[..., 1:] == goals_BTK[..., :-1]).all(-1)
        rows, slots = (is_own & batch.counts(0)[:, :n]).nonzero(as_tuple=True)
        before = torch.nn.functional.pad(batch.next_BT, (n_back - 1, 0), value=-1).unfold(1, n_back, 1)
        for at in torch.split(torch.arange(len(rows)), CHUNK):
            b, t = rows[at], slots[at]
            feature_ND = batch.features[0][b, t].to(self.rows_VD.dtype)
            lattice = Lattice.of(self.module.columns(feature_ND) @ self.rows_VD.T, self.module.m)
            yield self.vocabulary_V[lattice.ids_BKM], lattice.logs_BKM, before[b, t], feature_ND, goals_BTK[b, t]

    def accepted(self, windows: Windows, mode: str, weight: float) -> tuple[list[int], int]:
        """Drafts with 0, 1, ... accepted tokens, and drafts whose first path repeats a token."""
        counts, n_repeats = [0] * (windows.goal_NK.shape[1] + 1), 0
        for at in torch.split(torch.arange(len(windows.goal_NK)), CHUNK):
            lattice = Lattice(windows.lattice.ids_BKM[at], windows.lattice.logs_BKM[at])
            paths = self._refined(lattice, windows.context_NL[at], windows.feature_ND[at], mode, weight)
            is_right_NPK = paths.tokens_BPK == windows.goal_NK[at].unsqueeze(1)
            counts = [a + b for a, b in zip(counts, _counts(is_right_NPK), strict=True)]
            n_repeats += _repeats(windows.context_NL[at], paths.tokens_BPK[:, 0])
        return counts, n_repeats

    def _refined(self, lattice: Lattice, context_NL: Tensor, feature_ND: Tensor, mode: str, weight: float) -> Paths:
        how: dict[str, Any] = {"embed": self.embed, "rows": lambda ids: self.rows_VD[self.place[ids]]}
        return self.module.refined(lattice, context_NL, feature_ND, mode=mode, weight=weight, **how)


def _counts(is_right_NPK: Tensor) -> list[int]:
    n_right = is_right_NPK.cumprod(-1).sum(-1).amax(1)
    return torch.bincount(n_right, minlength=is_right_NPK.shape[-1] + 1).tolist()


def _repeats(context_NL: Tensor, tokens_NK: Tensor) -> int:
    whole = torch.cat([context_NL[:, -1:], tokens_NK], 1)
    return int((whole[:, 1:] == whole[:, :-1]).any(-1).sum())
