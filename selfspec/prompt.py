"""From an example's text to the token ids that a decode starts from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import StopStringCriteria

from selfspec.errors import InputError
from selfspec.tasks.base import Example


@dataclass(frozen=True, slots=True)
class Prompt:
    """An example, encoded."""

    example: Example
    ids: list[int]


def encode(
    tokenizer: Any, examples: Sequence[Example], *, chat: bool, context_length: int, max_new_tokens: int
) -> list[Prompt]:
    """The examples as token ids, each with room for its answer.

    Args:
        tokenizer: the model's.
        examples: what to encode.
        chat: ask through the model's chat template; otherwise continue the raw text.
        context_length: the longest sequence the model takes.
        max_new_tokens: room to leave.

    Raises:
        InputError: if there is no chat template, or a prompt is too long.
    """
    if chat and not getattr(tokenizer, "chat_template", None):
        raise InputError("this model's tokenizer has no chat template; use data.chat=false to continue raw text")
    prompts = []
    for example in examples:
        ids = encode_one(tokenizer, example.prompt, chat=chat)
        if len(ids) + max_new_tokens > context_length:
            raise InputError(
                f"prompt {example.id!r} has {len(ids)} tokens; with max_new_tokens={max_new_tokens} there is no room "
                f"in the context of {context_length}; shorten it or ask for fewer tokens"
            )
        prompts.append(Prompt(example, ids))
    return prompts


def encode_one(tokenizer: Any, text: str, *, chat: bool) -> list[int]:
    """The token ids of one text, in the chat template or as it stands."""
    if not chat:
        return list(tokenizer(text).input_ids)
    messages = [{"role": "user", "content": text}]
    # The template writes its own special tokens, so they must not be added a second time.
    rendered = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return list(tokenizer(rendered, add_special_tokens=False).input_ids)


def ends_with_any(tokenizer: Any, strings: Sequence[str]) -> Callable[[list[int]], bool]:
    """A criterion for `Ending`: the text of the ids so far ends in one of `strings`, even in the midst of a token."""
    criterion = StopStringCriteria(tokenizer, list(strings))
    return lambda ids: bool(criterion(torch.tensor([ids]), None).all())
