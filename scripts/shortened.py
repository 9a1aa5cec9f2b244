"""A model without some of its whole layers, as transformers' assisted generation takes an assistant.

Left-out attention alone would leave layers of the assistant's cache empty, which transformers 5.17 cannot crop;
here the remaining layers are counted anew, so that the cache has no empty ones.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from selfspec.models.decoder import Decoder, share
from selfspec.skipping.skip_set import SkipSet


def shorter(decoder: Decoder, skip: SkipSet) -> Any:
    """The model without the layers of `skip`, sharing its weights, as transformers takes an assistant.

    Raises:
        ValueError: if `skip` does not leave out whole layers.
    """
    if skip.attn != skip.mlp:
        raise ValueError(f"skip={skip}: an assistant can only lack whole layers, attention and MLP")
    model: Any = share(decoder.model)
    config = copy.deepcopy(decoder.model.config)
    text: Any = config.get_text_config()  # type: ignore[operator, union-attr]
    kept = [i for i in range(decoder.n_layers) if i not in skip.attn]
    text.num_hidden_layers = len(kept)
    if getattr(text, "layer_types", None):
        text.layer_types = [text.layer_types[i] for i in kept]
    path, _, name = decoder.sublayers.path.rpartition(".")
    parent = model.get_submodule(path)
    setattr(parent, name, nn.ModuleList(getattr(parent, name)[i] for i in kept))
    for module in model.modules():
        if hasattr(module, "config"):
            module.config = config
    for i, layer in enumerate(getattr(parent, name)):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = i  # where its keys and values are in the assistant's own cache
    return model
