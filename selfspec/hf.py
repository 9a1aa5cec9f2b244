"""Self-speculative decoding in Hugging Face `generate`.

Example: `model.generate(ids, custom_generate=as_custom_generate("RUN"))`. The configuration of `generate`, its logits
processors, stopping criteria, padding and return type stay the same.
"""

# B rows, T tokens

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteriaList
from transformers.generation import EosTokenCriteria, GenerateDecoderOnlyOutput, MaxLengthCriteria

from selfspec.data.answer_text import text_after
from selfspec.engine.decode import Ending, Kind
from selfspec.engine.sampling import Sampling
from selfspec.errors import InputError
from selfspec.models.decoder import Decoder
from selfspec.speculator import DraftLike, kept
from selfspec.stopping import StopPolicy

_UNSUPPORTED = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")


def generate(
    model: Any,
    inputs: Tensor | Sequence[int] | str,
    *,
    draft: DraftLike,
    stop: StopPolicy | None = None,
    lookup: bool | None = None,
    tokenizer: Any = None,
    streamer: Any = None,
    **settings: Any,
) -> Any:
    """The result of `model.generate`, with fewer forwards of the model.

    Args:
        model: a decoder-only transformers model.
        inputs: token ids ([B, T] or one list), or one text, which needs `tokenizer`.
        draft, stop, lookup: as in `Speculator`; the folder of a search is enough.
        tokenizer: encodes a text, and serves `stop_strings`.
        streamer: as in `model.generate`; it gets tokens when they are committed.
        **settings: as in `model.generate`: max_new_tokens, do_sample, temperature, logits_processor, ...

    Returns:
        The return value of `model.generate`; for a text, the text after it.

    Raises:
        InputError: if there is no such draft, a setting is not supported, or a tokenizer is missing.
    """
    if isinstance(inputs, str):
        if tokenizer is None:
            raise InputError("generate was given a text; it needs tokenizer=... to encode it")
        ids_BT = tokenizer(inputs, return_tensors="pt").input_ids
    else:
        ids_BT = inputs if isinstance(inputs, Tensor) else torch.tensor([list(inputs)])
    ids_BT = ids_BT.to(model.device)
    settings.setdefault("attention_mask", torch.ones_like(ids_BT))
    if settings.get("stop_strings") is not None:
        settings["stopping_criteria"] = _with_stop_strings(settings, tokenizer)
    output = model.generate(
        ids_BT,
        custom_generate=as_custom_generate(draft, stop=stop, lookup=lookup),
        token_streamer=streamer,
        **settings,
    )
    if not isinstance(inputs, str):
        return output
    sequences = output if isinstance(output, Tensor) else output.sequences
    return text_after(tokenizer, ids_BT[0].tolist(), sequences[0, ids_BT.shape[1] :].tolist())


def as_custom_generate(
    draft: DraftLike,
    *,
    stop: StopPolicy | None = None,
    lookup: bool | None = None,
    sample_draft: bool | None = None,
) -> Callable[..., Any]:
    """A callable for `model.generate(ids, custom_generate=...)` that drafts and verifies.

    The first call binds the draft to the model; later calls reuse it and the state of its stop rule
    (`speculator.kept`). `generate` drops `streamer` if it gets a callable: pass `token_streamer=` instead. In sampling,
    `torch.manual_seed` makes the output reproducible.

    Args:
        draft, stop, lookup, sample_draft: as in `Speculator`.
    """

    def custom_generate(
        model: Any,
        input_ids: Tensor,
        logits_processor: Any = None,
        stopping_criteria: Any = None,
        generation_config: Any = None,
        token_streamer: Any = None,
        **model_kwargs: Any,
    ) -> Any:
        config = generation_config
        asked = [name for name in _UNSUPPORTED if getattr(config, name, None)]
        if asked or (config.num_beams or 1) > 1:
            what = asked[0] if asked else f"num_beams={config.num_beams}"
            raise InputError(f"self-speculative decoding does not offer {what}; leave it out, or decode without")
        speculator = kept(model, draft, stop=stop, lookup=lookup, sample_draft=sample_draft)
        prompts = _without_padding(input_ids, model_kwargs.get("attention_mask"))
        if token_streamer is not None:
            token_streamer.put(input_ids.cpu())
        results = speculator(
            prompts,
            ending=_ending(config, stopping_criteria, input_ids),
            sampling=Sampling(
                do_sample=bool(config.do_sample),
                warps=tuple(logits_processor or ()),
                # From torch's own stream, so that torch.manual_seed determines the output.
                seed=int(torch.randint(2**31, ())) if config.do_sample else 0,
            ),
            listener=_listener(token_streamer),
        )
        if token_streamer is not None:
            token_streamer.end()
        sequences = _padded(input_ids, [r.tokens for r in results], _pad_id(config, speculator.decoder))
        if config.return_dict_in_generate:
            return GenerateDecoderOnlyOutput(sequences=sequences)
        return sequences

    return custom_generate


def _without_padding(ids_BT: Tensor, attention_mask: Tensor | None) -> list[list[int]]:
    if attention_mask is None:
        return [[int(i) for i in row] for row in ids_BT.tolist()]
    return [row[keep].tolist() for row, keep in zip(ids_BT, attention_mask.bool(), strict=True)]


def _ending(config: Any, criteria: Any, input_ids: Tensor) -> Ending:
    eos = config.eos_token_id
    if isinstance(eos, Tensor):
        eos = eos.flatten().tolist()
    eos_ids = frozenset() if eos is None else frozenset([eos] if isinstance(eos, int) else eos)
    # The engine checks length and end tokens itself; a criterion would need a tensor for every token.
    own = (MaxLengthCriteria, EosTokenCriteria)
    others = StoppingCriteriaList([c for c in criteria or () if not isinstance(c, own)])

    def criterion(ids: list[int]) -> bool:
        return bool(others(torch.tensor([ids], device=input_ids.device), None).all())

    return Ending(config.max_length - input_ids.shape[1], eos_ids, criterion if len(others) else None)


def _listener(streamer: Any) -> Callable[[int, list[int], list[Kind]], None] | None:
    if streamer is None:
        return None
    return lambda row, tokens, kinds: streamer.put(torch.tensor(tokens))


def _pad_id(config: Any, decoder: Decoder) -> int:
    pad = config.pad_token_id
    if isinstance(pad, Tensor):
        pad = int(pad)
    return int(pad) if pad is not None else min(decoder.eos_ids, default=0)


def _padded(input_ids: Tensor, outputs: list[list[int]], pad_id: int) -> Tensor:
    longest = max(len(tokens) for tokens in outputs)
    rows = [tokens + [pad_id] * (longest - len(tokens)) for tokens in outputs]
    return torch.cat([input_ids, torch.tensor(rows, device=input_ids.device, dtype=input_ids.dtype)], dim=1)


def _with_stop_strings(settings: dict[str, Any], tokenizer: Any) -> StoppingCriteriaList:
    """Stopping criteria with the stop strings: `generate` gives a callable no tokenizer for its own."""
    from transformers import StopStringCriteria

    if tokenizer is None:
        raise InputError("stop_strings need tokenizer=...")
    criteria = StoppingCriteriaList(settings.get("stopping_criteria") or [])
    criteria.append(StopStringCriteria(tokenizer, settings.pop("stop_strings")))
    return criteria
