"""Fit bridges to the full model's sublayers on calibration texts, in closed form and without training.

A bridge is a ridge regression of the outputs of a run of sublayers on the input of the first one, all of which were
observed before. The eigenvectors of an input's Gram matrix are computed once for each sublayer at which a run begins; a
further run from there needs one product of inputs and outputs.
"""

# N tokens, D hidden size, R rank

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from search.fitting.observing import LaterObserved, Observed
from selfspec.errors import InputError, unknown_name
from selfspec.skipping.bridges import KINDS, Bridge
from selfspec.skipping.plan import PLAIN, DraftPlan, Sublayer, position, sublayer
from selfspec.skipping.skip_set import SkipSet

CHUNK = 1024  # tokens to convert to a wider dtype at once; bounds memory
CACHED_BYTES = 1 << 28  # largest size of the cache of fitted bridges; chosen, not tuned
MOST_SPENT = 0.9  # largest ratio of degrees of freedom to tokens, so that residuals remain; chosen, not tuned
Key = tuple[int, int, str, int | None]  # of a bridge: its first and last sublayer, kind and rank


class KeptBridges(Protocol):
    """Bridges that were fitted to the same observation before."""

    def get(self, key: Key) -> Bridge | None:
        """The bridge, or None if it was not fitted."""
        ...

    def put(self, key: Key, bridge: Bridge) -> None:
        """Keep a bridge."""
        ...


@dataclass(frozen=True, slots=True)
class _Spectrum:
    """Mean of an input [D], and eigenvalues [D] and eigenvectors (columns, [D, D]) of its centred Gram matrix."""

    mean: Tensor
    values: Tensor
    vectors: Tensor


class BridgeFitter:
    """Fits bridges and plans to observed inputs and outputs; the same observation gives the same plans.

    Args:
        observed: inputs and outputs of all sublayers.
        cached_bytes: largest size of the bridges in memory; the least recently used bridges are dropped.
        kept: bridges that were fitted to this observation before; None: there are none.
    """

    def __init__(
        self, observed: Observed | LaterObserved, *, cached_bytes: int = CACHED_BYTES, kept: KeptBridges | None = None
    ) -> None:
        self.observed = observed
        self._cached_bytes, self._kept = cached_bytes, kept
        self._bridges: OrderedDict[Key, Bridge] = OrderedDict()
        self._spectra: dict[int, _Spectrum] = {}
        self._means: dict[int, Tensor] = {}

    def plan(self, skip: SkipSet, *, kind: str = "linear", merge: bool = True, rank: int | None = None) -> DraftPlan:
        """The plan of `skip` with bridges of one kind, fitted to the full model's inputs and outputs.

        With `merge`, one bridge replaces each run of adjacent skipped sublayers if all layers of the run add their
        outputs to the stream unchanged: the run then adds exactly the sum of the outputs. Without `merge`, and if an
        output passes a norm first (Gemma, OLMo2), each sublayer has its own bridge. A sublayer of several modules
        (OPT's MLP) has none.

        Raises:
            InputError: if `skip` is for another number of layers, or kind and rank do not go together.
        """
        n_layers = len(self.observed.outline.adds)
        if skip.n_layers != n_layers:
            raise InputError(
                f"the skip set is for a model of {skip.n_layers} layers, but one of {n_layers} was observed; "
                "use a set of that model"
            )
        if kind not in (PLAIN, *KINDS):
            raise unknown_name("kind of bridge", kind, [PLAIN, *KINDS])
        if (kind == "lowrank") != (rank is not None) or (rank is not None and rank < 1):
            raise InputError(f"kind={kind} with rank={rank}: lowrank needs a rank of at least 1, other kinds take none")
        if kind == PLAIN:
            return DraftPlan.from_skip_set(skip)
        bridges: dict[Sublayer, Bridge] = {}
        for first, last in self.runs(skip, merge=merge):
            bridges[sublayer(first)] = self.bridge(first, last, kind=kind, rank=rank)
        return DraftPlan(skip, bridges, kind=kind)

    def blanks(self, skip: SkipSet, *, kind: str, merge: bool, rank: int | None) -> dict[Sublayer, Bridge]:
        """Bridges of zeros with the sizes of those that `plan` would fit; they need almost no memory."""
        width = self.observed.outline.width
        ranks = {"mean": [], "linear": [width], "lowrank": [min(rank or width, width), width]}[kind]
        zero = torch.zeros((), dtype=self.observed.outline.dtype)
        shapes = zip(ranks, [width, *ranks], strict=False)
        blank = Bridge(zero.expand(width), tuple(zero.expand(shape) for shape in shapes))
        return {sublayer(first): blank for first, _ in self.runs(skip, merge=merge)}

    def runs(self, skip: SkipSet, *, merge: bool) -> list[tuple[int, int]]:
        """(first, last) sublayer that each bridge of `plan` replaces."""
        found: list[tuple[int, int]] = []
        outline = self.observed.outline
        for at in map(position, DraftPlan.from_skip_set(skip).skipped):
            joins = merge and outline.adds[at // 2] and bool(found) and found[-1][1] == at - 1
            if joins and outline.adds[(at - 1) // 2]:
                found[-1] = (found[-1][0], at)
            elif outline.takes[at]:
                found.append((at, at))
        return found

    @torch.inference_mode()
    def bridge(self, first: int, last: int, *, kind: str = "linear", rank: int | None = None) -> Bridge:
        """The bridge at sublayer `first` that replaces the sublayers `first` to `last`, in the model's dtype."""
        key = (first, last, kind, rank)
        if key not in self._bridges:
            bridge = self._kept.get(key) if self._kept else None
            if bridge is None:
                bridge = self._fit(first, last, kind, rank)
                if self._kept:
                    self._kept.put(key, bridge)
            self._bridges[key] = bridge
            while len(self._bridges) > 1 and sum(b.n_bytes for b in self._bridges.values()) > self._cached_bytes:
                self._bridges.popitem(last=False)
        self._bridges.move_to_end(key)
        return self._bridges[key]

    def _fit(self, first: int, last: int, kind: str, rank: int | None) -> Bridge:
        x_ND = self.observed.inputs[first]
        assert x_ND is not None
        dtype, wide = x_ND.dtype, torch.float64 if x_ND.dtype == torch.float64 else torch.float32
        mean_D = torch.stack([self._mean(s) for s in range(first, last + 1)]).sum(0).to(wide)
        if kind == "mean":
            return Bridge(mean_D.to(dtype))
        spectrum = self._spectrum(first)
        cross_DD, total = torch.zeros(len(mean_D), len(mean_D), dtype=wide, device=x_ND.device), 0.0
        for begin in range(0, len(x_ND), CHUNK):
            rows = slice(begin, begin + CHUNK)
            # With centred outputs the mean of the inputs adds nothing to the product.
            y_ND = (-mean_D).repeat(len(x_ND[rows]), 1)
            for output_ND in self.observed.outputs[first : last + 1]:
                assert output_ND is not None
                y_ND += output_ND[rows]
            total += float(y_ND.square().sum(dtype=torch.float64))
            cross_DD.addmm_(x_ND[rows].to(wide).T, y_ND)
        along_DD = spectrum.vectors.T @ cross_DD
        along_D = along_DD.square().sum(1, dtype=torch.float64)
        ridge = choose_ridge(spectrum.values, along_D, total, len(x_ND), wide)
        along_DD /= (spectrum.values + ridge).to(wide).unsqueeze(1)
        whole = ((spectrum.vectors @ along_DD).T,) if rank is None else _of_rank(rank, along_DD, spectrum)
        matrices = tuple(m.to(dtype).contiguous() for m in whole)
        # The bias makes the mean exact for the rounded matrices, not for the unrounded ones.
        at_mean_D = spectrum.mean
        for m in matrices:
            at_mean_D = m.to(wide) @ at_mean_D
        return Bridge((mean_D - at_mean_D).to(dtype), matrices)

    def _mean(self, s: int) -> Tensor:
        """Mean of the output of sublayer `s`, [D]."""
        if s not in self._means:
            y_ND = self.observed.outputs[s]
            assert y_ND is not None
            self._means[s] = y_ND.mean(0, dtype=torch.float64)
        return self._means[s]

    def _spectrum(self, s: int) -> _Spectrum:
        if s not in self._spectra:
            x_ND = self.observed.inputs[s]
            assert x_ND is not None
            mean_D = x_ND.mean(0, dtype=torch.float64)
            gram_DD = torch.zeros(len(mean_D), len(mean_D), dtype=torch.float64, device=x_ND.device)
            for begin in range(0, len(x_ND), CHUNK):
                centred_ND = x_ND[begin : begin + CHUNK].double() - mean_D
                gram_DD.addmm_(centred_ND.T, centred_ND)
            values_D, vectors_DD = torch.linalg.eigh(gram_DD)
            if values_D.sum() <= torch.finfo(torch.float64).eps * len(x_ND) * mean_D.square().sum():
                values_D = torch.zeros_like(values_D)  # an input that is constant up to the rounding of its mean
            wide = torch.float64 if x_ND.dtype == torch.float64 else torch.float32
            self._spectra[s] = _Spectrum(mean_D.to(wide), values_D.clamp(min=0), vectors_DD.to(wide))
        return self._spectra[s]


def choose_ridge(values_D: Tensor, along_D: Tensor, total: float, n: int, wide: torch.dtype) -> float:
    """The ridge λ of a grid with the least generalised cross-validation score, n·RSS / (n - degrees of freedom)².

    The grid has steps of half a decade of the mean eigenvalue, from the rounding of `wide` up to a hundredfold. A λ
    whose degrees of freedom exceed `MOST_SPENT` of the tokens does not count.

    Args:
        values_D: eigenvalues of the inputs' centred Gram matrix.
        along_D: squared length of the product of each eigenvector with the outputs.
        total: sum of squares of the centred outputs.
        n: number of tokens.
        wide: dtype of the products.

    Source: Golub, Heath and Wahba 1979, Technometrics 21(2), equation 1.4; their nλ is our λ.
    """
    mean = float(values_D.mean())
    if mean == 0:
        return math.inf  # a constant input explains nothing
    begin = 2 * math.ceil(math.log10(10 * torch.finfo(wide).eps))
    ridges_G = mean * 10 ** (torch.arange(begin, 5, device=values_D.device, dtype=torch.float64) / 2)
    known = values_D > torch.finfo(wide).eps * values_D.max()
    values_K, along_K = values_D[known], along_D[known]
    damped_GK = values_K + ridges_G.unsqueeze(1)
    # The part that no map explains, plus the part lost by this ridge; no difference of large numbers.
    unexplained = max(0.0, total - float((along_K / values_K).sum()))
    rss_G = unexplained + (along_K / values_K * (ridges_G.unsqueeze(1) / damped_GK).square()).sum(1)
    left_G = n - 1 - (values_K / damped_GK).sum(1)
    scores_G = (n * rss_G / left_G.square()).masked_fill(left_G < (1 - MOST_SPENT) * n, math.inf)
    return float(ridges_G[int(scores_G.argmin()) if bool(scores_G.isfinite().any()) else -1])


def _of_rank(rank: int, along_DD: Tensor, spectrum: _Spectrum) -> tuple[Tensor, Tensor]:
    """Two matrices, [R, D] and [D, R], whose outputs on the observed inputs are nearest to those of the full map.

    Source: Izenman 1975, Journal of Multivariate Analysis 5(2), reduced-rank regression: the fitted outputs projected
    onto their own first principal directions.
    """
    weighted_DD = spectrum.values.to(along_DD.dtype).sqrt().unsqueeze(1) * along_DD
    _, directions_DD = torch.linalg.eigh((weighted_DD.T @ weighted_DD).double())
    kept_DR = directions_DD[:, -rank:].to(along_DD.dtype)
    return (spectrum.vectors @ (along_DD @ kept_DR)).T, kept_DR
