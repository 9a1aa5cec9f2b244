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
from transformers import StoppingCriteriaList, StopStringCriteria
from transformers.generation import GenerateDecoderOnlyOutput

from selfspec.answer_text import text_after
from selfspec.control.base import Controller
from selfspec.engine.decode import Kind
from selfspec.engine.sampling import Sampling
from selfspec.errors import InputError
from selfspec.hf_checks import check_arguments, check_mask, check_settings, check_streamer, kept_tokens
from selfspec.hf_rows import Ends, padded, row_warp, views
from selfspec.models.context import tell_full
from selfspec.speculator import CostsLike, DraftLike, kept
from selfspec.stopping import StopPolicy

_NOT_HERE = {
    "assistant_model": "the draft is its assistant",
    "assistant_tokenizer": "the draft has the model's tokenizer",
    "custom_generate": "it is one itself; use model.generate with as_custom_generate",
    "synced_gpus": "each process decodes for itself",
    "token_streamer": "pass streamer=",
}


def generate(
    model: Any,
    inputs: Tensor | Sequence[int] | str,
    *,
    draft: DraftLike,
    stop: StopPolicy | None = None,
    lookup: bool | None = None,
    controller: Controller | None = None,
    costs: CostsLike | None = None,
    tokenizer: Any = None,
    streamer: Any = None,
    **settings: Any,
) -> Any:
    """The result of `model.generate`, with fewer forwards of the model.

    Args:
        model: a decoder-only transformers model.
        inputs: token ids ([B, T] or one list), or one text, which needs `tokenizer`.
        draft: as in `Speculator`; the folder of a search is enough; a batch should have a controller too.
        stop: as in `Speculator`.
        lookup: as in `Speculator`.
        controller: as in `Speculator`.
        costs: as in `Speculator`.
        tokenizer: encodes a text, and serves `stop_strings`.
        streamer: as in `model.generate`; it gets tokens when they are committed.
        **settings: as in `model.generate`: max_new_tokens, do_sample, temperature, logits_processor, ...

    Returns:
        The return value of `model.generate`; for a text, the text after it, or a list of `num_return_sequences` texts.

    Raises:
        InputError: if there is no such draft, a setting is not supported, or a tokenizer is missing.
    """
    for name in _NOT_HERE:
        if settings.get(name) is not None:
            raise InputError(f"selfspec.generate takes no {name}: {_NOT_HERE[name]}")
    if isinstance(inputs, str):
        if tokenizer is None:
            raise InputError("generate was given a text; it needs tokenizer=... to encode it")
        ids_BT = tokenizer(inputs, return_tensors="pt").input_ids
        settings.setdefault("attention_mask", torch.ones_like(ids_BT))  # a text has no padding
    else:
        ids_BT = inputs if isinstance(inputs, Tensor) else torch.tensor([list(inputs)])
    ids_BT = ids_BT.to(model.device)
    _hand_over_stop_strings(model, settings, tokenizer)
    output = model.generate(
        ids_BT,
        custom_generate=as_custom_generate(draft, stop=stop, lookup=lookup, controller=controller, costs=costs),
        token_streamer=streamer,
        **settings,
    )
    if not isinstance(inputs, str):
        return output
    sequences = output if isinstance(output, Tensor) else output.sequences
    prompt, answers = ids_BT[0].tolist(), sequences[:, ids_BT.shape[1] :].tolist()
    texts = [text_after(tokenizer, prompt, answer) for answer in answers]
    return texts if len(texts) > 1 else texts[0]


def as_custom_generate(
    draft: DraftLike,
    *,
    stop: StopPolicy | None = None,
    lookup: bool | None = None,
    sample_draft: bool | None = None,
    controller: Controller | None = None,
    costs: CostsLike | None = None,
) -> Callable[..., Any]:
    """A callable for `model.generate(ids, custom_generate=...)` that drafts and verifies.

    The first call binds the draft to the model; later calls reuse it and the state of its stop rule
    (`speculator.kept`). `generate` drops `streamer` if it gets a callable: pass `token_streamer=` instead. In sampling,
    `torch.manual_seed` makes the output reproducible. docs/generate.md lists what happens to each argument.

    Args:
        draft: as in `Speculator`.
        stop: as in `Speculator`.
        lookup: as in `Speculator`.
        sample_draft: as in `Speculator`.
        controller: as in `Speculator`.
        costs: as in `Speculator`.
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
        config, processors = generation_config, list(logits_processor or ())
        kept_BT = kept_tokens(input_ids, model_kwargs.get("attention_mask"))
        check_settings(config, processors)
        check_arguments(model_kwargs, kept_BT)
        check_streamer(token_streamer, len(input_ids))
        speculator = kept(
            model, draft, stop=stop, lookup=lookup, sample_draft=sample_draft, controller=controller, costs=costs
        )
        check_mask(kept_BT, speculator.decoder.config)
        rows = views(input_ids, kept_BT)
        ends = Ends(stopping_criteria, n_rows=len(rows), n_prompt=input_ids.shape[1])
        asked, room = ends.max_new_tokens, speculator.decoder.context_length - max(len(row.prompt) for row in rows)
        # all rows end with the longest, so that no row is filled up where there is no pad token
        ends.max_new_tokens = max(1, min(asked, room))
        # from torch's own stream, so that torch.manual_seed determines the output
        seed = int(torch.randint(2**31, ())) if config.do_sample else 0
        if token_streamer is not None:
            token_streamer.put(input_ids.cpu())
        results = speculator(
            [row.prompt for row in rows],
            ending=[ends.of(row) for row in rows],
            sampling=[
                Sampling(
                    do_sample=bool(config.do_sample),
                    warps=(row_warp(row, processors, ends.eos_ids),) if processors else (),
                    seed=seed,
                )
                for row in rows
            ],
            listener=_listener(token_streamer),
        )
        if token_streamer is not None:
            token_streamer.end()
        if room < asked and any(result.finish == "length" for result in results):
            tell_full(speculator.decoder.config, asked)
        sequences = padded(input_ids, [ends.cut(result.tokens) for result in results], _pad_id(config))
        if config.return_dict_in_generate:
            return GenerateDecoderOnlyOutput(sequences=sequences)
        return sequences

    return custom_generate


def _listener(streamer: Any) -> Callable[[int, list[int], list[Kind]], None] | None:
    if streamer is None:
        return None
    return lambda row, tokens, kinds: streamer.put(torch.tensor(tokens))


def _pad_id(config: Any) -> int:
    """The token that fills up rows: as in `generate` the first end token if there is no pad token."""
    for token in (config.pad_token_id, config.eos_token_id):
        if token is not None:
            return int(torch.as_tensor(token).flatten()[0])
    return 0  # without an end token no row is shorter than another


def _hand_over_stop_strings(model: Any, settings: dict[str, Any], tokenizer: Any) -> None:
    """Make a stopping criterion of stop strings: `generate` has no tokenizer for its own if it calls a callable."""
    config = settings.get("generation_config")
    strings = next((c.stop_strings for c in (config, model.generation_config) if c and c.stop_strings), None)
    strings = settings.pop("stop_strings", strings)
    if strings is None:
        return
    if tokenizer is None:
        raise InputError(f"stop_strings={strings!r} need tokenizer=...")
    settings["stop_strings"] = None  # also of the model's own generation config
    criteria = StoppingCriteriaList(settings.get("stopping_criteria") or [])
    if not any(type(criterion) is StopStringCriteria for criterion in criteria):
        criteria.append(StopStringCriteria(tokenizer, strings))
    settings["stopping_criteria"] = criteria
