"""Fit bridges to the full model's sublayers on calibration texts, in closed form and without training.

One pass over the texts records the input and the output of every sublayer, at the tokens after which drafts begin. A
bridge is then a ridge regression in closed form. The eigenvectors of an input's Gram matrix are computed once for each
sublayer at which a run begins; a further run from there needs one product of inputs and outputs.
"""

# N tokens, D hidden size, R rank, S sublayers (a0 m0 a1 m1 ...), L layers

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from search.fitting.hidden_states_runner import Text
from selfspec.engine.forward import BoundForward
from selfspec.errors import InputError, unknown_name
from selfspec.models.decoder import Decoder, share
from selfspec.skipping.bridges import KINDS, Bridge
from selfspec.skipping.plan import PLAIN, DraftPlan, Sublayer, position, sublayer
from selfspec.skipping.skip_set import SkipSet

CHUNK = 1024  # tokens to convert to a wider dtype at once; bounds memory
CACHED_BYTES = 1 << 28  # largest size of the cache of fitted bridges; chosen, not tuned
MOST_SPENT = 0.9  # largest ratio of degrees of freedom to tokens, so that residuals remain; chosen, not tuned
_ULPS = 4  # a sum of three numbers rounds twice; twice that is still far below the effect of a norm


@dataclass(frozen=True, slots=True)
class Observed:
    """Inputs of all sublayers, and their additions to the residual stream, at the same tokens.

    Attributes:
        inputs: input of each sublayer's module, S tensors [N, D] in the model's dtype; None for a sublayer of several
            modules.
        outputs: addition of each sublayer to the stream, in the same form.
        adds: for each layer, whether the stream after it equals the stream before it plus both outputs, up to rounding.
    """

    inputs: tuple[Tensor | None, ...]
    outputs: tuple[Tensor | None, ...]
    adds: tuple[bool, ...]

    @property
    def n_tokens(self) -> int:
        """N, the number of tokens."""
        return next((len(t) for t in self.inputs if t is not None), 0)

    @property
    def n_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(t.numel() * t.element_size() for t in (*self.inputs, *self.outputs) if t is not None)


@torch.inference_mode()
def observe(decoder: Decoder, texts: Sequence[Text], *, n_tokens: int) -> Observed:
    """Record inputs and outputs in one forward over each text, on a copy of the module tree; the model is not changed.

    Args:
        decoder: the model.
        texts: each gives an equal number of tokens: tokens before the model's own ones, evenly spaced, and then the
            last ones of the prompt; never the first token of a text, whose states are unlike all others.
        n_tokens: largest number of tokens. Memory is n_tokens · 4L · D numbers of the model's dtype.

    Raises:
        InputError: if the texts have no such token.
    """
    chosen: list[list[int]] = []
    for i, text in enumerate(texts):
        n_left = n_tokens - sum(map(len, chosen))
        chosen.append(_positions(len(text.prompt), len(text.tokens), n_left // (len(texts) - i)))
    n = sum(map(len, chosen))
    if not n:
        raise InputError(
            f"{len(texts)} texts and n_tokens={n_tokens} give no token to fit to; give texts with answers, and one "
            "token or more for each"
        )
    watch = _Watch(decoder, n)
    for text, rows in zip(texts, chosen, strict=True):
        if rows:
            watch.read([*text.prompt, *text.tokens][: rows[-1] + 1], rows)
    return Observed(tuple(watch.inputs), tuple(watch.outputs), tuple(watch.adds))


class _Watch:
    """A copy of the module tree whose layers and sublayers record their inputs and outputs."""

    def __init__(self, decoder: Decoder, n: int) -> None:
        self._decoder, self._module = decoder, share(decoder.model)
        self._rows, self._at = torch.zeros(0, dtype=torch.long), slice(0, 0)
        self._stream: dict[int, Tensor] = {}
        self.adds = [True] * decoder.n_layers
        size = (n, decoder.config.hidden_size)
        sides: list[list[Tensor | None]] = [[], []]
        layers = self._module.get_submodule(decoder.sublayers.path)
        for i in range(decoder.n_layers):
            layer = layers.get_submodule(str(i))
            for patches in (decoder.sublayers.attn, decoder.sublayers.mlp):
                for side in sides:
                    one = len(patches) == 1
                    side.append(torch.empty(size, dtype=decoder.dtype, device=decoder.device) if one else None)
                if len(patches) == 1:
                    self._note_sublayer(layer.get_submodule(patches[0].name), patches[0].forward, len(sides[0]) - 1)
            self._note_layer(layer, i)
        self.inputs, self.outputs = sides

    def read(self, ids: list[int], rows: list[int]) -> None:
        """Run one text, and record it at the positions `rows`."""
        device = self._decoder.device
        self._rows, self._at = torch.tensor(rows, device=device), slice(self._at.stop, self._at.stop + len(rows))
        cache = self._decoder.new_cache(n_rows=1, capacity=len(ids))
        BoundForward(self._module, self._decoder.context_length)(
            torch.tensor([ids], device=device), starts=[0], cache=cache, n_logits=1
        )
        for i in range(self._decoder.n_layers):
            self.adds[i] &= self._is_sum(i)

    def _is_sum(self, i: int) -> bool:
        attn_ND, mlp_ND = self.outputs[2 * i : 2 * i + 2]
        if attn_ND is None or mlp_ND is None:
            return False
        parts_3ND = torch.stack([self._stream[i], attn_ND[self._at], mlp_ND[self._at]]).double()
        error_ND = (self._stream[i + 1].double() - parts_3ND.sum(0)).abs()
        rounding = _ULPS * torch.finfo(self._decoder.dtype).eps
        return bool((error_ND <= rounding * parts_3ND.abs().sum(0)).all())

    def _chosen(self, x: Tensor) -> Tensor:
        return x.reshape(-1, x.shape[-1])[self._rows.to(x.device)]

    def _note_sublayer(self, module: Any, left_out: Any, s: int) -> None:
        plain = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            given, added = self.inputs[s], self.outputs[s]
            assert given is not None and added is not None
            given[self._at] = self._chosen(args[0] if args else kwargs["hidden_states"]).to(given)
            output = plain(*args, **kwargs)
            # Its addition is the difference to the skipped sublayer, also if it adds the residual itself.
            without = left_out(*args, **kwargs)
            added[self._at] = (self._chosen(_first(output)) - self._chosen(_first(without))).to(added)
            return output

        module.forward = forward

    def _note_layer(self, layer: Any, i: int) -> None:
        plain = layer.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            self._stream[i] = self._chosen(args[0] if args else kwargs["hidden_states"]).to(self._decoder.device)
            output = plain(*args, **kwargs)
            # The next layer overwrites this with its own input, in case the model changes the stream between them.
            self._stream[i + 1] = self._chosen(_first(output)).to(self._decoder.device)
            return output

        layer.forward = forward


def _first(output: Any) -> Tensor:
    first: Tensor = output[0] if isinstance(output, tuple) else output
    return first


def _positions(n_prompt: int, n_answer: int, most: int) -> list[int]:
    """`most` positions, evenly spaced, before the model's own tokens; if these are fewer, also the prompt's last."""
    first, end = max(1, n_prompt - 1), n_prompt + n_answer - 1
    n_own = max(0, end - first)
    if n_own > most:
        return [first + i * n_own // most for i in range(most)]
    return list(range(max(1, end - most), end))


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
        cached_bytes: largest size of the cache of bridges; the least recently used bridges are dropped.
    """

    def __init__(self, observed: Observed, *, cached_bytes: int = CACHED_BYTES) -> None:
        self.observed = observed
        self._cached_bytes = cached_bytes
        self._bridges: OrderedDict[tuple[int, int, str, int | None], Bridge] = OrderedDict()
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
        n_layers = len(self.observed.adds)
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
        width = next(len(t[0]) for t in self.observed.outputs if t is not None)
        ranks = {"mean": [], "linear": [width], "lowrank": [min(rank or width, width), width]}[kind]
        zero = torch.zeros((), dtype=next(t.dtype for t in self.observed.outputs if t is not None))
        shapes = zip(ranks, [width, *ranks], strict=False)
        blank = Bridge(zero.expand(width), tuple(zero.expand(shape) for shape in shapes))
        return {sublayer(first): blank for first, _ in self.runs(skip, merge=merge)}

    def runs(self, skip: SkipSet, *, merge: bool) -> list[tuple[int, int]]:
        """(first, last) sublayer that each bridge of `plan` replaces."""
        found: list[tuple[int, int]] = []
        for at in map(position, DraftPlan.from_skip_set(skip).skipped):
            joins = merge and self.observed.adds[at // 2] and bool(found) and found[-1][1] == at - 1
            if joins and self.observed.adds[(at - 1) // 2]:
                found[-1] = (found[-1][0], at)
            elif self.observed.inputs[at] is not None:
                found.append((at, at))
        return found

    @torch.inference_mode()
    def bridge(self, first: int, last: int, *, kind: str = "linear", rank: int | None = None) -> Bridge:
        """The bridge at sublayer `first` that replaces the sublayers `first` to `last`, in the model's dtype."""
        key = (first, last, kind, rank)
        if key not in self._bridges:
            self._bridges[key] = self._fit(first, last, kind, rank)
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
