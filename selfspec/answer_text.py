"""From the token ids of an answer to its text, and to the part of the text that is judged.

Of a tokenizer it uses only `decode`, as in transformers or `tokenizers`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

# Marks of a model's thoughts; the first pair is of Qwen, DeepSeek and many others, the last of Mistral.
_OPENING = ("<think>", "<thinking>", "<seed:think>", "[THINK]")
_CLOSING = ("</think>", "</thinking>", "</seed:think>", "[/THINK]")
_MARK = re.compile("(" + "|".join(re.escape(mark) for mark in (*_OPENING, *_CLOSING)) + ")")
_HALF = "\ufffd"  # in place of a character that later tokens complete


def text_after(
    tokenizer: Any, prompt_ids: Sequence[int], ids: Sequence[int], *, skip_special_tokens: bool = True
) -> str:
    """The text that `ids` add to the text of `prompt_ids`.

    A SentencePiece tokenizer drops the first space of a decoded text, so decoding the answer alone would lose it.

    Args:
        tokenizer: the model's tokenizer.
        prompt_ids: the prompt; its last tokens are enough if they have a text (`context`).
        ids: the answer.
        skip_special_tokens: leave out special tokens.
    """
    before = str(tokenizer.decode(list(prompt_ids), skip_special_tokens=skip_special_tokens)) if prompt_ids else ""
    whole = str(tokenizer.decode([*prompt_ids, *ids], skip_special_tokens=skip_special_tokens))
    if whole.startswith(before):
        return whole[len(before) :]
    n_same = next((i for i, (a, b) in enumerate(zip(whole, before, strict=False)) if a != b), len(whole))
    return whole[n_same:]  # the answer completes the prompt's last character


def context(tokenizer: Any, prompt_ids: Sequence[int]) -> list[int]:
    """The last tokens of a prompt, enough to have a text: `text_after` needs no more, and decodes them faster."""
    for n in (16, 64, 256):
        tail = list(prompt_ids[-n:])
        if str(tokenizer.decode(tail, skip_special_tokens=True)).strip(f" {_HALF}"):
            return tail
    return list(prompt_ids)


def is_unfinished(text: str) -> bool:
    """Whether further tokens may complete the last character of a text."""
    return text.endswith(_HALF)


def opens_thought(text: str) -> bool:
    """Whether a prompt ends with the opening mark of a thought, as some chat templates write it."""
    marks = _MARK.findall(text)
    return bool(marks) and marks[-1] in _OPENING and text.rstrip().endswith(marks[-1])


def without_thoughts(text: str, *, begins_in_thought: bool = False) -> str:
    """The answer without its thoughts; an unfinished thought is removed up to its end.

    Args:
        text: decoded text of the answer.
        begins_in_thought: whether the prompt opened a thought. It is also assumed if the first mark closes one.
    """
    parts = _MARK.split(text)
    marks = parts[1::2]
    is_thought = begins_in_thought or (bool(marks) and marks[0] in _CLOSING)
    kept = []
    for i, part in enumerate(parts):
        if i % 2:
            is_thought = part in _OPENING
        elif not is_thought:
            kept.append(part)
    return "".join(kept)
