"""ConfLayers: skip the layers whose outputs are less certain than those of their neighbours.

A sublayer's confidence is 1 minus the normalised entropy of the softmax of its output. A layer is skipped if its
confidence lies more than lambda standard deviations below the mean of the layers around it.
"""

# L layers, T tokens, D hidden size

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from search.online.set_searcher import SetSearcher, Tools
from search.online.window import Window, count_agreed, reading, window_of
from selfspec.engine.cache import ClockCache
from selfspec.engine.protocols import Row
from selfspec.errors import InputError
from selfspec.models.decoder import Decoder
from selfspec.skipping.skip_set import SkipSet, evenly_spaced


@dataclass(frozen=True, slots=True)
class ConfLayers:
    """Settings of ConfLayers' search.

    Attributes:
        window: newest tokens whose confidences are averaged.
        skip_ratio: smallest share of the layers that is skipped.
        most_above: how far the share may lie above `skip_ratio`.
        neighbours: layers on each side that a layer is compared with.
        lambda_step: change of lambda until the share is right.
        interval: rounds from one search to the next.
        max_opt_iter: searches after which the set stays.

    Source: ConfLayers (arXiv:2604.14612). The paper's released sets are of whole layers; the number of neighbours is
    not known to us and was chosen.
    """

    window: int
    skip_ratio: float
    most_above: float
    neighbours: int
    lambda_step: float
    interval: int
    max_opt_iter: int

    def __post_init__(self) -> None:
        if min(self.window, self.neighbours, self.interval) < 1 or self.lambda_step <= 0 or self.most_above < 0:
            raise InputError(
                f"online=conflayers with window={self.window}, neighbours={self.neighbours}, interval={self.interval}, "
                f"lambda_step={self.lambda_step}, most_above={self.most_above}; the first three are 1 at least, the "
                "step is positive, and the last is not negative"
            )
        if not 0 < self.skip_ratio < 1:
            raise InputError(f"online=conflayers with skip_ratio={self.skip_ratio}; it lies between 0 and 1")

    def begin(self, tools: Tools) -> ConfLayersSearcher:
        """The searcher of a new stream."""
        return ConfLayersSearcher(tools, self)


class ConfLayersSearcher(SetSearcher):
    """See `ConfLayers`; until the first search it skips evenly spaced layers."""

    objective: ClassVar[str] = "agreement"

    def __init__(self, tools: Tools, settings: ConfLayers) -> None:
        n = tools.decoder.n_layers
        super().__init__(tools, start=evenly_spaced(n, max(0, min(n - 2, round(settings.skip_ratio * n)))))
        self._settings, self._next = settings, 0

    def improve(self, rows: Sequence[Row], cache: ClockCache) -> None:
        """Choose a set, if the interval is over."""
        s = self._settings
        if self.progress.n_rounds < self._next or len(self.progress.trials) >= s.max_opt_iter:
            return
        window = window_of(rows, self.prompts, cache, n_tokens=s.window, is_first=False)
        if window is None:
            return
        self._next, began = self.progress.n_rounds + s.interval, self.watch.now()
        skip = uncertain_layers(confidences(self.decoder, window), s)
        agreed = count_agreed(self.decoder.bind(self.plan_of(skip)), window, own_keys=False)
        self.value = agreed / window.n_tokens
        self.progress.add(
            skip,
            self.value,
            n_read=window.n_tokens,
            n_agreed=agreed,
            seconds=self.watch.now() - began,
            is_taken=skip != self.skip,
        )
        if skip != self.skip:
            self.use(skip)


def uncertain_layers(confidences_L: Sequence[float], settings: ConfLayers) -> SkipSet:
    """The whole layers to skip; never the first and the last."""
    n = len(confidences_L)
    scores: dict[int, float] = {}  # standard deviations below the mean of the layers around
    for i in range(1, n - 1):
        around = confidences_L[max(0, i - settings.neighbours) : i + settings.neighbours + 1]
        scores[i] = (statistics.mean(around) - confidences_L[i]) / (statistics.pstdev(around) or 1.0)
    least, most = settings.skip_ratio, settings.skip_ratio + settings.most_above
    cut = max(scores.values(), default=0.0)
    chosen: list[int] = []
    while len(chosen) / n < least and len(chosen) < len(scores):
        cut -= settings.lambda_step
        chosen = sorted((i for i, score in scores.items() if score > cut), key=lambda i: -scores[i])
    layers = frozenset(chosen[: max(1, int(most * n))])
    return SkipSet(n, layers, layers)


@torch.inference_mode()
def confidences(decoder: Decoder, window: Window) -> list[float]:
    """Mean confidence of each layer's two sublayers on the tokens of a window, from one forward; length L."""
    found: list[list[float]] = [[] for _ in range(decoder.n_layers)]

    def keep(layer: int) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            found[layer].append(_confidence(output if isinstance(output, Tensor) else output[0]))

        return hook

    ids_1T, where = reading(decoder.full, window, own_keys=False)
    with ExitStack() as hooks:
        for layer in range(decoder.n_layers):
            for path in (*decoder.paths(("attn", layer)), *decoder.paths(("mlp", layer))):
                module = decoder.model.get_submodule(path)
                hooks.callback(module.register_forward_hook(keep(layer)).remove)
        decoder.full.tree(ids_1T, **where)
    return [statistics.mean(values) if values else math.nan for values in found]


def _confidence(output_BTD: Tensor) -> float:
    """1 minus the mean entropy of softmax over the width, divided by its largest possible value."""
    logs = output_BTD.double().log_softmax(-1)
    entropy = -(logs.exp() * logs).sum(-1).mean()
    return 1 - float(entropy) / math.log(output_BTD.shape[-1])
