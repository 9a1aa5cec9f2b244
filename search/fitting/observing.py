"""Observe the full model's sublayers on calibration texts: what bridges are fitted to.

One pass over the texts records the input and the output of every sublayer, at the tokens after which drafts begin.
"""

# N tokens, D hidden size, S sublayers (a0 m0 a1 m1 ...), L layers

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from search.fitting.hidden_states_runner import Text
from selfspec.engine.forward import BoundForward
from selfspec.errors import InputError
from selfspec.measure.phases import Phases, unwatched
from selfspec.models.decoder import Decoder, share

_ULPS = 4  # a sum of three numbers rounds twice; twice that is still far below the effect of a norm


@dataclass(frozen=True, slots=True)
class Outline:
    """What is known of an observation without its tensors.

    Attributes:
        adds: see `Observed`.
        takes: for each sublayer, whether a bridge can replace it, since it is one module.
        n_tokens: N, the number of tokens.
        width: D, the hidden size.
        dtype: dtype of the model.
    """

    adds: tuple[bool, ...]
    takes: tuple[bool, ...]
    n_tokens: int
    width: int
    dtype: torch.dtype


@dataclass(frozen=True)
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

    @cached_property
    def outline(self) -> Outline:
        """All that is known without the tensors' values."""
        shape = next(((len(t), t.shape[1], t.dtype) for t in self.inputs if t is not None), (0, 0, torch.float32))
        n_tokens, width, dtype = shape
        return Outline(self.adds, tuple(t is not None for t in self.inputs), n_tokens, width, dtype)

    @property
    def n_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(t.numel() * t.element_size() for t in (*self.inputs, *self.outputs) if t is not None)


@dataclass(frozen=True)
class LaterObserved:
    """An observation whose tensors are computed when somebody reads them; its outline is known from an earlier run.

    Attributes:
        outline: what is known without them.
        make: computes the observation.
    """

    outline: Outline
    make: Callable[[], Observed]

    @cached_property
    def _made(self) -> Observed:
        return self.make()

    @property
    def inputs(self) -> tuple[Tensor | None, ...]:
        """See `Observed`."""
        return self._made.inputs

    @property
    def outputs(self) -> tuple[Tensor | None, ...]:
        """See `Observed`."""
        return self._made.outputs


@torch.inference_mode()
def observe(decoder: Decoder, texts: Sequence[Text], *, n_tokens: int, phase: Phases = unwatched) -> Observed:
    """Record inputs and outputs in one forward over each text, on a copy of the module tree; the model is not changed.

    Args:
        decoder: the model.
        texts: each gives an equal number of tokens: tokens before the model's own ones, evenly spaced, and then the
            last ones of the prompt; never the first token of a text, whose states are unlike all others.
        n_tokens: largest number of tokens. Memory is n_tokens · 4L · D numbers of the model's dtype.
        phase: is told how the forwards go on.

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
    with phase("hidden states", len(texts)) as step:
        for text, rows in zip(texts, chosen, strict=True):
            if rows:
                watch.read([*text.prompt, *text.tokens][: rows[-1] + 1], rows)
            step()
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
