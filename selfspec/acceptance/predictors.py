"""Predictors of acceptance: a table of the confidence, logistic regression on five numbers, and SpecDec++'s head."""

# N drafted tokens, K knots of a table, D hidden size

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from selfspec.acceptance.features import CONFIDENCE, SCALARS, columns
from selfspec.errors import InputError, unknown_name

Form = Literal["corrected", "published"]


class Predictor(nn.Module, ABC):
    """From what is known of drafted tokens to the probability that each is accepted, if those before it are.

    Attributes:
        kind: name of the class in files.
        needs_hidden: whether it reads the draft's hidden states.
        is_late: whether it scores the token that the draft has just read, instead of the one that it has just chosen.
    """

    kind: ClassVar[str]
    needs_hidden: bool = False
    is_late: bool = False

    @abstractmethod
    def forward(self, scalars_N5: Tensor, hidden_ND: Tensor | None = None) -> Tensor:
        """Probabilities of acceptance, [N] in float32.

        Args:
            scalars_N5: see `features.scalars`.
            hidden_ND: input of the draft's output head, from which the tokens were chosen.
        """

    def settings(self) -> dict[str, Any]:
        """What `made` needs to make it anew, besides the weights."""
        return {}


class Table(Predictor):
    """Linear interpolation between (confidence, acceptance) knots in rising order.

    Source: Zadrozny & Elkan 2002, Transforming classifier scores into accurate multiclass probability estimates.
    """

    kind = "table"

    def __init__(self, n_knots: int = 2) -> None:
        super().__init__()
        line_K = torch.linspace(0.0, 1.0, n_knots)
        self.register_buffer("x_K", line_K)
        self.register_buffer("y_K", line_K.clone())

    def forward(self, scalars_N5: Tensor, hidden_ND: Tensor | None = None) -> Tensor:
        """See `Predictor.forward`."""
        x_K, y_K = self.get_buffer("x_K"), self.get_buffer("y_K")
        confidence_N = scalars_N5[:, CONFIDENCE].float().clamp(x_K[0], x_K[-1])
        at_N = torch.searchsorted(x_K, confidence_N).clamp(1, len(x_K) - 1)
        (x0_N, x1_N), (y0_N, y1_N) = ((v_K[at_N - 1], v_K[at_N]) for v_K in (x_K, y_K))
        return y0_N + (y1_N - y0_N) * (confidence_N - x0_N) / (x1_N - x0_N)

    def settings(self) -> dict[str, Any]:
        """Number of knots."""
        return {"n_knots": len(self.get_buffer("x_K"))}


class Logistic(Predictor):
    """Logistic regression on the five numbers, each brought to mean 0 and deviation 1."""

    kind = "logistic"

    def __init__(self) -> None:
        super().__init__()
        n = len(SCALARS)
        self.scale = Scale()
        self.weight = nn.Parameter(torch.zeros(n))
        self.bias = nn.Parameter(torch.zeros(()))

    def logit(self, scalars_N5: Tensor) -> Tensor:
        """Log-odds of acceptance, [N]."""
        logit_N: Tensor = self.scale(columns(scalars_N5)) @ self.weight + self.bias
        return logit_N

    def forward(self, scalars_N5: Tensor, hidden_ND: Tensor | None = None) -> Tensor:
        """See `Predictor.forward`."""
        return self.logit(scalars_N5).sigmoid()


class ResidualHead(Predictor):
    """SpecDec++'s head on the draft's last hidden state: residual blocks that share their weights, and two classes.

    A block is h + SiLU(W h + b). The published form reads the hidden state alone and scores the token that the draft
    has just read, so the newest token of a draft is never scored. The corrected form reads the five numbers of the
    newest token as well and scores that token.

    Args:
        width: D.
        depth: number of blocks.
        form: `published` or `corrected`.

    Source: Huang et al. 2024, SpecDec++ (arXiv:2405.19715), section 3.2; shared weights: the authors' code.
    """

    kind = "specdec"
    needs_hidden = True

    def __init__(self, width: int, depth: int = 3, form: Form = "corrected") -> None:
        super().__init__()
        if form not in get_args(Form) or depth < 0:
            raise InputError(
                f"predictor form={form}, depth={depth}; it is {' or '.join(get_args(Form))}, and 0 or more"
            )
        self.width, self.depth, self.form, self.is_late = width, depth, form, form == "published"
        self.block = nn.Linear(width, width)
        nn.init.zeros_(self.block.weight)  # a block begins as the identity
        nn.init.zeros_(self.block.bias)
        self.scale = Scale()
        self.classes = nn.Linear(width + (0 if self.is_late else len(SCALARS)), 2)

    def logits(self, scalars_N5: Tensor, hidden_ND: Tensor) -> Tensor:
        """Scores of rejection and of acceptance, [N, 2]."""
        hidden_ND = hidden_ND.float()
        for _ in range(self.depth):
            hidden_ND = hidden_ND + nn.functional.silu(self.block(hidden_ND))
        if not self.is_late:
            hidden_ND = torch.cat([hidden_ND, self.scale(columns(scalars_N5))], -1)
        found_N2: Tensor = self.classes(hidden_ND)
        return found_N2

    def forward(self, scalars_N5: Tensor, hidden_ND: Tensor | None = None) -> Tensor:
        """See `Predictor.forward`."""
        assert hidden_ND is not None, "needs_hidden"
        return self.logits(scalars_N5, hidden_ND).softmax(-1)[:, 1]

    def settings(self) -> dict[str, Any]:
        """Size and form."""
        return {"width": self.width, "depth": self.depth, "form": self.form}


class Scale(nn.Module):
    """Brings the columns of the training examples to mean 0 and deviation 1."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean_5", torch.zeros(len(SCALARS)))
        self.register_buffer("deviation_5", torch.ones(len(SCALARS)))

    def fit(self, columns_N5: Tensor) -> None:
        """Take mean and deviation from these columns; a constant column stays as wide as it is."""
        deviation_5 = columns_N5.std(0, correction=0)
        self.get_buffer("mean_5").copy_(columns_N5.mean(0))
        self.get_buffer("deviation_5").copy_(torch.where(deviation_5 > 0, deviation_5, 1.0))

    def forward(self, columns_N5: Tensor) -> Tensor:
        """The scaled columns."""
        return (columns_N5 - self.get_buffer("mean_5")) / self.get_buffer("deviation_5")


KINDS: Mapping[str, type[Predictor]] = {p.kind: p for p in (Table, Logistic, ResidualHead)}


def made(kind: str, settings: Mapping[str, Any]) -> Predictor:
    """A new predictor of this kind.

    Raises:
        InputError: if there is no such kind, or it has other settings.
    """
    if kind not in KINDS:
        raise unknown_name("predictor", kind, list(KINDS))
    try:
        return KINDS[kind](**settings)
    except TypeError as error:
        raise InputError(f"the predictor {kind} cannot be made of {dict(settings)} ({error})") from None
