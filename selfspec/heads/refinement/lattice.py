"""The likeliest tokens of blind heads as a lattice, and the paths through it that a second score prefers.

A column holds the likeliest tokens of one head. The second score sees the tokens before, which the heads do not.
"""

# B rows, K columns, M tokens of a column, P paths, S partial paths, L tokens of a history, V vocabulary

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from selfspec.engine.protocols import ROOT

Second = Callable[[Tensor, Tensor], Tensor]  # histories [B, S, L], candidates [B, 1, M] -> log-probabilities [B, S, M]


@dataclass(frozen=True, slots=True)
class Lattice:
    """The likeliest tokens of each head.

    Attributes:
        ids_BKM: token ids, likeliest first.
        logs_BKM: their log-probabilities.
    """

    ids_BKM: Tensor
    logs_BKM: Tensor

    @classmethod
    def of(cls, logits_BKV: Tensor, m: int) -> Lattice:
        """The `m` likeliest tokens of each column."""
        wide = logits_BKV if logits_BKV.dtype == torch.float64 else logits_BKV.float()
        logs, ids = wide.log_softmax(-1).topk(min(m, wide.shape[-1]), -1)
        return cls(ids, logs)

    def mixed(self, column: int, second_BSM: Tensor, weight: float) -> Tensor:
        """Scores [B, S, M] of a column: log-probabilities of the head and of the second score, by weight."""
        return (1 - weight) * self.logs_BKM[:, column].unsqueeze(1) + weight * second_BSM

    def sure(self, column: int, scores_BM: Tensor, chosen_B1: Tensor) -> Tensor:
        """Probability [B] of the chosen places after rescoring; the column keeps the mass that its head gave it."""
        mass_B = self.logs_BKM[:, column].exp().sum(-1)
        return scores_BM.softmax(-1).gather(-1, chosen_B1).squeeze(-1) * mass_B


@dataclass(frozen=True, slots=True)
class Paths:
    """Paths through a lattice, best first.

    Attributes:
        tokens_BPK: token ids.
        sure_BPK: probability of each token after rescoring, given those before it.
    """

    tokens_BPK: Tensor
    sure_BPK: Tensor


def local(lattice: Lattice, second: Second, context_BL: Tensor, *, weight: float) -> Paths:
    """Column by column the token that scores best after those already chosen."""
    tokens, sure, history_BL = [], [], context_BL
    for column in range(lattice.ids_BKM.shape[1]):
        ids_BM = lattice.ids_BKM[:, column]
        scores_BM = lattice.mixed(column, second(history_BL.unsqueeze(1), ids_BM.unsqueeze(1)), weight)[:, 0]
        best_B1 = scores_BM.argmax(-1, keepdim=True)
        tokens.append(ids_BM.gather(-1, best_B1))
        sure.append(lattice.sure(column, scores_BM, best_B1))
        history_BL = torch.cat([history_BL, tokens[-1]], -1)
    return single(torch.cat(tokens, -1), torch.stack(sure, -1))


def best_paths(
    lattice: Lattice, second: Second, context_BL: Tensor, *, weight: float, n_paths: int, n_kept: int
) -> Paths:
    """The paths whose scores have the largest sums, by Viterbi's algorithm.

    Of the partial paths that end in one token the best `n_kept` go on. With a second score that sees one token back and
    `n_kept` of at least `n_paths` the result is exact; otherwise it is a beam.

    Args:
        lattice: the lattice.
        second: the second score.
        context_BL: the newest tokens of each row.
        weight: of the second score.
        n_paths: P.
        n_kept: partial paths that are kept for each token.
    """
    n_rows, n_columns = lattice.ids_BKM.shape[:2]
    n_back = context_BL.shape[1]
    history = context_BL.unsqueeze(1)  # [B, S, L + tokens so far]
    sums = lattice.logs_BKM.new_zeros(n_rows, 1)  # [B, S]
    sure = lattice.logs_BKM.new_zeros(n_rows, 1, 0)  # [B, S, tokens so far]
    for column in range(n_columns):
        ids_BM = lattice.ids_BKM[:, column]
        scores_BSM = lattice.mixed(column, second(history[..., -n_back:], ids_BM.unsqueeze(1)), weight)
        mass_B11 = lattice.logs_BKM[:, column].exp().sum(-1)[:, None, None]
        sure_BSM = scores_BSM.softmax(-1) * mass_B11
        totals_BSM = sums.unsqueeze(-1) + scores_BSM
        n = min(n_kept, totals_BSM.shape[1])
        best_BNM, from_BNM = totals_BSM.topk(n, dim=1)
        sums, came = best_BNM.flatten(1), from_BNM.flatten(1)  # S = N * M
        token_BS = ids_BM.unsqueeze(1).expand(-1, n, -1).flatten(1)
        own_BS = sure_BSM.gather(1, from_BNM).flatten(1)
        history = torch.cat([_taken(history, came), token_BS.unsqueeze(-1)], -1)
        sure = torch.cat([_taken(sure, came), own_BS.unsqueeze(-1)], -1)
    best_BP = sums.topk(min(n_paths, sums.shape[1]), -1).indices
    return Paths(_taken(history, best_BP)[..., n_back:], _taken(sure, best_BP))


def single(tokens_BK: Tensor, sure_BK: Tensor) -> Paths:
    """One path for each row."""
    return Paths(tokens_BK.unsqueeze(1), sure_BK.unsqueeze(1))


def merged(paths: Sequence[Sequence[int]]) -> tuple[list[int], list[int]]:
    """Tokens and parents of the tree of some paths, in which a common beginning occurs once; the first comes first."""
    tokens: list[int] = []
    parents: list[int] = []
    known: dict[tuple[int, int], int] = {}
    for path in paths:
        node = ROOT
        for token in path:
            if (node, token) not in known:
                known[node, token] = len(tokens)
                tokens.append(token)
                parents.append(node)
            node = known[node, token]
    return tokens, parents


def _taken(x_BST: Tensor, places_BS: Tensor) -> Tensor:
    return x_BST.gather(1, places_BS.unsqueeze(-1).expand(-1, -1, x_BST.shape[-1]))
