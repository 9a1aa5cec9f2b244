"""From an example's text to the token ids that a decode starts from."""

from __future__ import annotations

import logging
import re
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import StopStringCriteria

from selfspec.data.task import Example
from selfspec.errors import InputError

log = logging.getLogger(__name__)


Template = Mapping[str, Any] | None
"""Arguments of a chat template by name."""

_OWN_ARGUMENTS = ("messages", "add_generation_prompt", "tokenize", "chat_template", "conversation")


@dataclass(frozen=True, slots=True)
class Prompt:
    """An example, encoded."""

    example: Example
    ids: list[int]


def encode(
    tokenizer: Any,
    examples: Sequence[Example],
    *,
    chat: bool,
    context_length: int,
    max_new_tokens: int,
    template: Template = None,
) -> list[Prompt]:
    """The examples as token ids, each with room for its answer; `fit` shortens long texts.

    Args:
        tokenizer: the model's tokenizer.
        examples: examples to encode.
        chat: use the model's chat template; otherwise continue the raw text.
        context_length: length of the longest sequence of the model, in tokens.
        max_new_tokens: room for the answer, in tokens.
        template: arguments of the chat template, see `encode_turns`.

    Raises:
        InputError: if there is no chat template, or a prompt is too long.
    """
    prompts = []
    room = {"context_length": context_length, "max_new_tokens": max_new_tokens}
    for example in fit(tokenizer, examples, chat=chat, template=template, **room):
        ids = encode_turns(tokenizer, [example.prompt], chat=chat, template=template)
        check_room(example.id, ids, **room)
        prompts.append(Prompt(example, ids))
    return prompts


def fit(
    tokenizer: Any,
    examples: Sequence[Example],
    *,
    chat: bool,
    context_length: int,
    max_new_tokens: int,
    template: Template = None,
) -> list[Example]:
    """The examples, with long texts shortened at the end of a word if there is no room for the whole text.

    Only the part that `Example.clip` names is shortened, not the instruction or the shots. An example that does not fit
    even so is unchanged, and `check_room` refuses it.

    Args:
        tokenizer, chat, context_length, max_new_tokens, template: as in `encode`.
        examples: examples that will be encoded.

    Source: Zhang et al. 2024 (arXiv:2309.08168), whose code cuts articles just before the instruction that follows.
    """
    room = context_length - max_new_tokens

    def n_tokens(text: str) -> int:
        return len(encode_turns(tokenizer, [text], chat=chat, template=template))

    fitted = [_cut(e, room, n_tokens) if e.clip and n_tokens(e.prompt) > room else e for e in examples]
    n_cut = sum(a is not b for a, b in zip(fitted, examples, strict=True))
    if n_cut:
        log.warning(
            "%d of %d prompts: text cut at its end, for a prompt of at most %d tokens", n_cut, len(fitted), room
        )
    return fitted


def _cut(example: Example, room: int, n_tokens: Callable[[str], int]) -> Example:
    assert example.clip
    start, end = example.clip
    ends = [start + word.end() for word in re.finditer(r"\S+", example.prompt[start:end])]
    rest = example.prompt[end:]
    n_words = bisect_right(ends, room, key=lambda at: n_tokens(example.prompt[:at] + rest))
    if n_words == 0:
        return example
    at = ends[n_words - 1]
    return replace(example, prompt=example.prompt[:at] + rest, clip=(start, at))


def encode_turns(tokenizer: Any, texts: Sequence[str], *, chat: bool, template: Template = None) -> list[int]:
    """The token ids of a conversation, up to the beginning of the next answer.

    Args:
        tokenizer: the model's tokenizer.
        texts: texts of the user and of the model in turn; the user's are the first and the last.
        chat: use the chat template; otherwise join the texts with an empty line between them.
        template: arguments of the chat template by name, such as `{"enable_thinking": False}`.

    Raises:
        InputError: if there is no chat template, or it does not use an argument.
    """
    check_template(tokenizer, chat=chat, template=template)
    if not chat:
        return list(tokenizer("\n\n".join(texts)).input_ids)
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    # The template writes special tokens itself, so the tokenizer must not add them again.
    rendered = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False, **template or {})
    return list(tokenizer(rendered, add_special_tokens=False).input_ids)


def check_template(tokenizer: Any, *, chat: bool, template: Template) -> None:
    """Check that the chat template exists if it is needed, and uses all arguments.

    Raises:
        InputError: if it is missing, or an argument has no effect.
    """
    text = getattr(tokenizer, "chat_template", None)
    if chat and not text:
        raise InputError("this model's tokenizer has no chat template; use data.chat=false to continue raw text")
    for name in template or ():
        if not chat:
            raise InputError(f"data.template sets {name}, but data.chat=false asks without the chat template; drop one")
        if not re.search(rf"\b{re.escape(str(name))}\b", str(text)) or name in _OWN_ARGUMENTS:
            raise InputError(f"data.template sets {name}, but this model's chat template takes no such argument")


def check_room(name: str, ids: Sequence[int], *, context_length: int, max_new_tokens: int) -> None:
    """Check that a prompt leaves room for its answer.

    Raises:
        InputError: if it does not.
    """
    if len(ids) + max_new_tokens > context_length:
        raise InputError(
            f"prompt {name!r} has {len(ids)} tokens; with max_new_tokens={max_new_tokens} there is no room "
            f"in the context of {context_length}; shorten it or ask for fewer tokens"
        )


def ends_with_any(tokenizer: Any, strings: Sequence[str]) -> Callable[[list[int]], bool]:
    """A criterion for `Ending`: whether the text so far ends with one of `strings`, even within a token."""
    criterion = StopStringCriteria(tokenizer, list(strings))
    return lambda ids: bool(criterion(torch.tensor([ids]), None).all())
