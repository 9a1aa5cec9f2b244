"""Collect the residual stream after chosen layers during a forward.

Hooks exist for the length of one forward, on the chosen layers only. Without chosen layers there is no hook, and the
forward is the model's own.
"""

# B rows, T tokens, D hidden size

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from selfspec.errors import InputError

HEAD = -1  # the input of the output head


@contextmanager
def caught(model: nn.Module, layers: nn.ModuleList, wanted: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """Within this context a forward of `model` fills the dictionary with hidden states [B, T, D], by layer.

    Args:
        model: a causal language model.
        layers: the layers of the model.
        wanted: indices of layers whose output to collect; `HEAD` for the input of the output head.

    Raises:
        InputError: if the model has no such layer.
    """
    for layer in wanted:
        if layer != HEAD and not 0 <= layer < len(layers):
            raise InputError(
                f"the hidden states of layer {layer} were asked for; this model has 0..{len(layers) - 1}, and -1 for "
                "what enters its head"
            )
    found: dict[int, Tensor] = {}
    with ExitStack() as hooks:
        for layer in wanted:
            module: Any = model.base_model if layer == HEAD else layers[layer]
            hooks.callback(module.register_forward_hook(_keeper(found, layer)).remove)
        yield found


def _keeper(found: dict[int, Tensor], layer: int) -> Any:
    def keep(module: nn.Module, args: Any, output: Any) -> None:
        if not isinstance(output, Tensor):
            output = output[0]  # some layers return a tuple; a model returns its last hidden state first
        found[layer] = output

    return keep
