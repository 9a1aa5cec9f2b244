"""The model's last norm and output head on the states after any layer: what it would say if it ended there."""

# L layers, N tokens, D hidden size, V vocabulary

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from selfspec.engine.forward import BoundForward
from selfspec.models.decoder import Decoder, share
from selfspec.skipping.skip_set import SkipSet

MOST_ROWS = 64  # rows of the head in one forward; bounds memory; chosen, not tuned


class ExitHead:
    """Runs what follows the layers of a model.

    The model's own forward does it, in a copy that skips every sublayer and whose last layer returns the given states,
    so that no architecture needs to name its norm.

    Args:
        decoder: the model.
    """

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._states: Tensor | None = None
        everything = SkipSet.from_bits([True] * (2 * decoder.n_layers))
        bound: Any = decoder.bind(everything)
        module = share(bound.module)
        last: Any = [*module.get_submodule(decoder.sublayers.path).children()][-1]
        inner = last.forward

        def given(*args: Any, **kwargs: Any) -> Any:
            out = inner(*args, **kwargs)
            return self._states if isinstance(out, Tensor) else (self._states, *out[1:])

        last.forward = given
        self._forward = BoundForward(module, decoder.context_length)

    @torch.inference_mode()
    def logits(self, states_LND: Tensor) -> Tensor:
        """Logits [L, N, V] of states after layers."""
        n = states_LND.shape[1]
        step = max(1, MOST_ROWS // n)
        return torch.cat([self._logits(part) for part in torch.split(states_LND, step)])

    def _logits(self, states_LND: Tensor) -> Tensor:
        rows, n, _ = states_LND.shape
        self._states = states_LND
        ids_LN = torch.zeros(rows, n, dtype=torch.long, device=self._decoder.device)
        cache = self._decoder.new_cache(n_rows=rows, capacity=n)
        found = self._forward(ids_LN, starts=[0] * rows, cache=cache)
        self._states = None
        return found
