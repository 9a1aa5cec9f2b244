"""Fit predictors of acceptance to examples, and judge them on others."""

# N examples

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from search.fitting.draft_examples import Examples
from search.replay.rule_tuner import calibration
from selfspec.acceptance.features import CONFIDENCE, columns
from selfspec.acceptance.predictors import Logistic, Predictor, ResidualHead, Table
from selfspec.errors import InputError

LEAST = 100  # examples of a source below which nothing is fitted; chosen, not tuned
RIDGE = 1e-4  # weight of the squared weights of a regression; chosen, not tuned
N_BINS = 10  # of a reliability curve


@dataclass(frozen=True, slots=True)
class HeadTraining:
    """How a residual head is trained.

    Attributes:
        rejection_weight: of a rejection beside an acceptance; the authors take 6, which lifts every probability of a
            rejection, and 1 keeps them as they are.
        epochs, lr, batch, warmup: of AdamW with a cosine schedule; the authors take 3, 5e-5, 32 texts and .03.
        seed: of the order of examples.

    Raises:
        InputError: if a setting is impossible.
    """

    rejection_weight: float = 1.0
    epochs: int = 3
    lr: float = 1e-3
    batch: int = 256
    warmup: float = 0.03
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rejection_weight <= 0 or self.epochs < 1 or self.lr <= 0 or self.batch < 1:
            raise InputError(
                f"predictor.rejection_weight={self.rejection_weight}, epochs={self.epochs}, lr={self.lr}, "
                f"batch={self.batch}: weight and lr are above 0, the others at least 1"
            )


def fit_table(found: Examples) -> Table:
    """The isotonic table from confidence to acceptance."""
    knots = calibration(list(zip(found.scalars_N5[:, CONFIDENCE].tolist(), found.label_N.tolist(), strict=True)))
    table = Table(len(knots))
    for name, values in zip(("x_K", "y_K"), zip(*knots, strict=True), strict=True):
        table.get_buffer(name).copy_(torch.tensor(values))
    return table


def fit_logistic(found: Examples) -> Logistic:
    """Logistic regression by L-BFGS, in float64 until it converges."""
    model = Logistic()
    columns_N5, label_N = columns(found.scalars_N5), found.label_N.double()
    model.scale.fit(columns_N5)
    scaled_N5 = model.scale(columns_N5).double()
    weight = torch.zeros(scaled_N5.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        logit_N = scaled_N5 @ weight + bias
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logit_N, label_N) + RIDGE * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        model.weight.copy_(weight)
        model.bias.copy_(bias)
    return model


def fit_head(head: ResidualHead, found: Examples, how: HeadTraining) -> ResidualHead:
    """Train a head in place: cross-entropy with the label as the weight of acceptance.

    Source of the loss: Huang et al. 2024, SpecDec++ (arXiv:2405.19715), section 3.2: [w Σ (1 - l)(-log s_0) +
    Σ l (-log s_1)] / [w Σ (1 - l) + Σ l] for labels l and weight w.
    """
    assert found.hidden_ND is not None
    head.train()
    head.scale.fit(columns(found.scalars_N5))
    optimizer = torch.optim.AdamW(head.parameters(), lr=how.lr)
    rng = torch.Generator().manual_seed(how.seed)
    n_steps, step = how.epochs * math.ceil(len(found) / how.batch), 0
    for _ in range(how.epochs):
        for at in torch.split(torch.randperm(len(found), generator=rng), how.batch):
            done = step / n_steps
            rise = min(1.0, (step + 1) / max(1.0, how.warmup * n_steps))
            for group in optimizer.param_groups:
                group["lr"] = how.lr * min(rise, 0.5 * (1 + math.cos(math.pi * done)))
            part = found.only(at)
            assert part.hidden_ND is not None
            logs_N2 = head.logits(part.scalars_N5, part.hidden_ND).log_softmax(-1)
            loss = _loss(logs_N2, part.label_N, how.rejection_weight)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            step += 1
    return head.eval()


def _loss(logs_N2: Tensor, label_N: Tensor, weight: float) -> Tensor:
    rejected_N = weight * (1 - label_N)
    total = -(rejected_N * logs_N2[:, 0] + label_N * logs_N2[:, 1]).sum()
    return total / (rejected_N + label_N).sum()


@torch.inference_mode()
def predicted(predictor: Predictor, found: Examples, *, chunk: int = 4096) -> Tensor:
    """What a predictor says of examples, [N]."""
    parts = []
    for at in torch.split(torch.arange(len(found)), chunk):
        hidden = found.hidden_ND[at] if found.hidden_ND is not None and predictor.needs_hidden else None
        parts.append(predictor(found.scalars_N5[at], hidden))
    return torch.cat(parts)


@dataclass(frozen=True, slots=True)
class Reliability:
    """How probabilities fare against what happened.

    Attributes:
        n: number of examples.
        log_loss: mean cross-entropy, in nats; smaller is better.
        brier: mean squared difference.
        bins: (mean probability, mean acceptance, examples) of each tenth of [0, 1] that holds any.
    """

    n: int
    log_loss: float
    brier: float
    bins: tuple[tuple[float, float, int], ...]

    @property
    def error(self) -> float:
        """Expected calibration error: mean distance of probability and acceptance over the bins."""
        return sum(n * abs(p - a) for p, a, n in self.bins) / self.n

    @classmethod
    def of(cls, chances: Sequence[float], labels: Sequence[float]) -> Reliability:
        """From probabilities and labels of the same tokens, at least one."""
        p_N, label_N = torch.tensor(chances).double(), torch.tensor(labels).double()
        safe_N = p_N.clamp(1e-6, 1 - 1e-6)
        loss = -(label_N * safe_N.log() + (1 - label_N) * (1 - safe_N).log()).mean()
        bin_N = (p_N * N_BINS).long().clamp(max=N_BINS - 1)
        masks = [bin_N == i for i in range(N_BINS)]
        bins = tuple((float(p_N[m].mean()), float(label_N[m].mean()), int(m.sum())) for m in masks if bool(m.any()))
        return cls(len(p_N), float(loss), float((p_N - label_N).square().mean()), bins)


def check_enough(found: Examples, source: str) -> None:
    """Refuse too few examples.

    Raises:
        InputError: below `LEAST`.
    """
    if len(found) < LEAST:
        raise InputError(
            f"the stored texts give {len(found)} judged tokens of {source}, and a predictor needs {LEAST}: collect "
            "more (selfspec collect)"
        )


def published(how: HeadTraining) -> HeadTraining:
    """The same training with the authors' weight of rejections."""
    return replace(how, rejection_weight=6.0)
