"""The residual stream behind chosen layers, caught on its way through a forward.

Hooks stand for the length of one forward and only on the layers that somebody asked for: where nobody asks nothing is
registered, and the forward is the model's own.
"""

# B rows, T tokens, D hidden size

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from selfspec.errors import InputError

HEAD = -1  # stands for what enters the output head


@contextmanager
def caught(model: nn.Module, layers: nn.ModuleList, wanted: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """While it lasts, a forward of `model` leaves hidden states [B, T, D] in the dictionary, by layer.

    Args:
        model: a causal language model.
        layers: its layers.
        wanted: numbers of layers, each for what that layer gives; `HEAD` for what enters the output head.

    Raises:
        InputError: for a layer that is not there.
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
            output = output[0]  # of a layer that returns a tuple; of a model, its last hidden state
        found[layer] = output

    return keep
