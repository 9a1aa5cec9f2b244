"""Blind heads whose drafts are refined: their likeliest tokens are scored again with the tokens before them in view.

The second score is an n-gram model of the target's texts, or a small recurrent network that is trained with the heads.
"""

# B rows, T slots, K heads, M tokens of a column, L tokens of a history, P paths, D hidden size, R its width

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from selfspec.errors import InputError
from selfspec.heads.blockwise import BlindState, Blockwise
from selfspec.heads.layer import LayerSize, Norm, shifted
from selfspec.heads.modules import Predicted
from selfspec.heads.refinement.lattice import Lattice, Paths, best_paths, local, single
from selfspec.heads.refinement.ngrams import Ngrams

MODES = ("none", "local", "global", "p_best", "neural")
N_KEPT = 4  # partial paths of each token with n-grams of more than two tokens: a beam of 64 for 16 tokens


class Rescorer(nn.Module):
    """A small recurrent network that reads the hidden state and the tokens so far, and corrects what enters the head.

    Args:
        size: sizes of the target.
        width: size of its state, R.
    """

    def __init__(self, size: LayerSize, width: int) -> None:
        super().__init__()
        d = size.hidden
        self.feature_norm, self.embed_norm = Norm(d, eps=size.eps), Norm(d, eps=size.eps)
        self.first = nn.Linear(d, width)
        self.read = nn.Linear(d + width, 2 * width)
        self.out = nn.Linear(width, d)
        nn.init.zeros_(self.out.weight)  # at first nothing is corrected
        nn.init.zeros_(self.out.bias)

    def begin(self, feature: Tensor) -> Tensor:
        """The state [..., R] before any token."""
        found: Tensor = self.first(self.feature_norm(feature)).tanh()
        return found

    def next(self, state: Tensor, embed: Tensor) -> Tensor:
        """The state [..., R] after a token."""
        gate, new = self.read(torch.cat([self.embed_norm(embed), state], -1)).chunk(2, -1)
        found: Tensor = state + gate.sigmoid() * (new.tanh() - state)
        return found


class Refine(Blockwise):
    """Blind heads, an n-gram model and a rescorer; `mode` says which of them refines drafts.

    Modes: `none`: the heads' own choice; `local`: the best token after those already chosen, by n-grams; `global`: the
    best path by n-grams (Viterbi); `p_best`: the best paths as a tree; `neural`: as `local`, by the rescorer.

    Args:
        size: sizes.
        k, form, inner: see `Blockwise`.
        mode: what refines a draft.
        m: tokens of each head that are scored again.
        order: of the n-grams.
        weight: of the n-grams' log-probability, between 0 (none) and 1 (nothing else); None: not chosen yet.
        paths: number of paths of `p_best`.
        width: size of the rescorer's state.

    Source: Kim et al. 2024 (arXiv:2404.09221). There the network is a language model of its own, beside the heads; here
    it reads the target's hidden state and is trained on what the heads leave open.
    """

    kind = "refine"

    def __init__(
        self,
        size: LayerSize,
        *,
        k: int = 3,
        form: str = "stern",
        inner: int | None = None,
        mode: str = "neural",
        m: int = 16,
        order: int = 3,
        weight: float | None = None,
        paths: int = 8,
        width: int = 128,
    ) -> None:
        super().__init__(size, k=k, form=form, inner=inner)
        if mode not in MODES or min(m, paths, width) < 1 or not 0 <= (weight or 0) <= 1:
            raise InputError(
                f"refine with mode={mode}, m={m}, paths={paths}, width={width}, weight={weight}: mode is one of "
                f"{', '.join(MODES)}, the numbers are at least 1, weight lies in [0, 1]"
            )
        self.settings |= {"mode": mode, "m": m, "order": order, "weight": weight}
        self.settings |= {"paths": paths, "width": width}
        self.mode, self.m, self.weight, self.n_paths = mode, m, weight or 0.0, paths
        self.ngrams = Ngrams(order)
        self.rescorer = Rescorer(size, width)

    def set_weight(self, weight: float) -> None:
        """Choose the weight of the n-grams."""
        self.weight = self.settings["weight"] = weight

    def unroll(self, features: Sequence[Tensor], embeds_BTD: Tensor, n_depths: int) -> list[Predicted]:
        """See `DraftModule.unroll`; what is refined teaches the rescorer alone."""
        found = super().unroll(features, embeds_BTD, n_depths)
        if not self.training and self.mode != "neural":
            return found
        state_BTR = self.rescorer.begin(features[0])
        for depth, one in enumerate(found):
            state_BTR = self.rescorer.next(shifted(state_BTR, min(depth, 1)), embeds_BTD)
            found[depth] = Predicted(one.to_head, refined=one.to_head.detach() + self.rescorer.out(state_BTR))
        return found

    def columns(self, feature_BD: Tensor) -> Tensor:
        """What enters the output head at each depth, [B, K, D]."""
        return torch.stack([self._head(depth, feature_BD) for depth in range(len(self.inner))], 1)

    def features(self, states: Sequence[BlindState]) -> Tensor:
        """The hidden states that the rows draft from, [B, D]."""
        found = [state.feature_1D for state in states if state.feature_1D is not None]
        return torch.cat(found)

    def refined(
        self,
        lattice: Lattice,
        context_BL: Tensor,
        feature_BD: Tensor,
        *,
        embed: Callable[[Tensor], Tensor],
        rows: Callable[[Tensor], Tensor],
        mode: str | None = None,
        weight: float | None = None,
    ) -> Paths:
        """The refined paths of each row.

        Args:
            lattice: the heads' likeliest tokens.
            context_BL: the newest tokens of each row, the last committed one included; `order` - 1 of them count.
            feature_BD: the hidden states.
            embed: from token ids to embeddings, [..., D].
            rows: from token ids to rows of the output head, [..., D].
            mode, weight: in place of the module's own.
        """
        mode, weight = mode or self.mode, self.weight if weight is None else weight
        if mode == "neural":
            return self._neural(lattice, context_BL[:, -1], feature_BD, embed, rows)
        if mode == "none":
            return single(lattice.ids_BKM[..., 0], lattice.logs_BKM[..., 0].exp())
        context_BL = context_BL[:, -max(1, self.ngrams.order - 1) :]
        second = self.ngrams.log_probs
        if mode == "local":
            return local(lattice, second, context_BL, weight=weight)
        n_paths = self.n_paths if mode == "p_best" else 1
        n_kept = max(n_paths, N_KEPT if self.ngrams.order > 2 else 1)
        return best_paths(lattice, second, context_BL, weight=weight, n_paths=n_paths, n_kept=n_kept)

    def _neural(
        self,
        lattice: Lattice,
        token_B: Tensor,
        feature_BD: Tensor,
        embed: Callable[[Tensor], Tensor],
        rows: Callable[[Tensor], Tensor],
    ) -> Paths:
        state_BR, tokens, sure = self.rescorer.begin(feature_BD), [], []
        for column in range(lattice.ids_BKM.shape[1]):
            state_BR = self.rescorer.next(state_BR, embed(token_B))
            ids_BM = lattice.ids_BKM[:, column]
            correction_BD1 = self.rescorer.out(state_BR).unsqueeze(-1)
            scores_BM = lattice.logs_BKM[:, column] + (rows(ids_BM) @ correction_BD1).squeeze(-1)
            best_B1 = scores_BM.argmax(-1, keepdim=True)
            token_B = ids_BM.gather(-1, best_B1)[:, 0]
            tokens.append(token_B)
            sure.append(lattice.sure(column, scores_BM, best_B1))
        return single(torch.stack(tokens, -1), torch.stack(sure, -1))
