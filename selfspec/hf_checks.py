"""What a call of `generate` may not ask of a draft: it is refused by name. docs/generate.md lists every argument."""

# B rows of the call, T tokens

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor
from transformers.generation import (
    ClassifierFreeGuidanceLogitsProcessor,
    GenerationMode,
    SynthIDTextWatermarkLogitsProcessor,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)

from selfspec.errors import InputError

_OUTPUTS = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
_MODES = (  # settings that choose another way of decoding, and what to do instead
    ("constraints", ""),
    ("force_words_ids", ""),
    ("num_beams", ""),
    ("penalty_alpha", ""),
    ("dola_layers", ""),
    ("prompt_lookup_num_tokens", "lookup=True of the draft does the same"),
    ("assistant_early_exit", ""),
    ("use_mtp", ""),
)
_SAME_TOKENS = (None, "dynamic", "static", "sliding_window", "hybrid", "hybrid_chunked")  # kinds of cache
_REMEMBER = (  # processors that count their calls; a draft calls them more often
    ClassifierFreeGuidanceLogitsProcessor,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
    SynthIDTextWatermarkLogitsProcessor,
)
_TAKEN = {"attention_mask", "position_ids", "past_key_values", "use_cache", "logits_to_keep", "cache_position"}
_WINDOWS = ("sliding_window", "window_size", "attention_chunk_size")


def check_settings(config: Any, processors: Sequence[LogitsProcessor]) -> None:
    """Check the generation config of a call and its processors.

    Raises:
        InputError: if one of them is not offered.
    """
    for name in _OUTPUTS:
        if getattr(config, name, None):
            raise _refused(name)
    if config.get_generation_mode() not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
        name, instead = next(each for each in _MODES if getattr(config, each[0], None) not in (None, False, 1))
        raise _refused(f"{name}={getattr(config, name)!r}", instead)
    if config.cache_implementation not in _SAME_TOKENS:
        raise _refused(f"cache_implementation={config.cache_implementation!r}")
    for processor in processors:
        if isinstance(processor, _REMEMBER):
            what = "watermarking_config (SynthID)" if "Watermark" in type(processor).__name__ else "guidance_scale"
            raise _refused(f"{what}, whose {type(processor).__name__} remembers its calls")


def check_arguments(arguments: Mapping[str, Any], kept_BT: Tensor) -> None:
    """Check what `generate` would hand to the model's forward.

    Args:
        arguments: by name.
        kept_BT: true at the tokens that the attention mask keeps.

    Raises:
        InputError: if an argument is not offered, or has another value than `generate` gives it by itself.
    """
    for name, value in arguments.items():
        if name not in _TAKEN and value is not None:
            raise _refused(f"{name}: it reads token ids and their mask alone")
    if getattr(arguments.get("past_key_values"), "_is_user_defined", False):
        raise _refused("past_key_values: it begins with an empty cache of its own", "pass the whole text as ids")
    positions = arguments.get("position_ids")
    if positions is not None and not _counts_on(positions, kept_BT):
        raise _refused("position_ids that do not count the tokens of the mask from 0")


def _counts_on(positions: Tensor, kept_BT: Tensor) -> bool:
    """Whether positions [.., T] are those that `generate` makes of the mask."""
    if positions.shape[-1] != kept_BT.shape[-1]:
        return False
    return bool(((positions == kept_BT.long().cumsum(-1) - 1) | ~kept_BT).all())


def check_mask(kept_BT: Tensor, config: Any) -> None:
    """Check that a row without its masked tokens is what the model would see.

    Args:
        kept_BT: true at the tokens that the attention mask keeps.
        config: the text part of the model's configuration.

    Raises:
        InputError: if the last token of a row is masked, or one behind the first in a model with a window.
    """
    for row in (~kept_BT[:, -1]).nonzero().flatten().tolist():
        raise InputError(
            f"attention_mask leaves out the last token of row {row}: pad on the left, with padding_side='left' of the "
            "tokenizer"
        )
    holes_B = (kept_BT[:, 1:] < kept_BT[:, :-1]).any(1)
    window = next((name for name in _WINDOWS if getattr(config, name, None) is not None), None)
    if window and bool(holes_B.any()):
        row = int(holes_B.nonzero()[0])
        raise InputError(
            f"attention_mask leaves out a token of row {row} behind its first, which a model with {window} counts; "
            "take it out of the ids"
        )


def check_streamer(streamer: Any, n_rows: int) -> None:
    """Check that a streamer hears one prompt.

    Raises:
        InputError: if there are more; their rows advance by different numbers of tokens.
    """
    if streamer is not None and n_rows > 1:
        raise InputError(f"a streamer hears one prompt, not {n_rows} at once: call it for each, or leave it out")


def _refused(what: str, instead: str = "") -> InputError:
    advice = f"; {instead}, or decode without a draft" if instead else "; leave it out, or decode without a draft"
    return InputError(f"self-speculative decoding does not offer {what}{advice}")


def kept_tokens(input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Where the model reads a token, [B, T]: everywhere without a mask."""
    if attention_mask is None:
        return torch.ones_like(input_ids, dtype=torch.bool)
    return (attention_mask != 0).to(input_ids.device)
