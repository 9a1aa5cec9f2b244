"""From the token ids of an answer to its text, and from that to what is judged.

It knows tokenizers by their `decode` alone, that of transformers or of `tokenizers`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

# How models mark a thought; the first pair is Qwen's, DeepSeek's and many others', the last Mistral's.
_OPENING = ("<think>", "<thinking>", "<seed:think>", "[THINK]")
_CLOSING = ("</think>", "</thinking>", "</seed:think>", "[/THINK]")
_MARK = re.compile("(" + "|".join(re.escape(mark) for mark in (*_OPENING, *_CLOSING)) + ")")
_HALF = "\ufffd"  # stands for a character of which tokens are still to come


def text_after(
    tokenizer: Any, prompt_ids: Sequence[int], ids: Sequence[int], *, skip_special_tokens: bool = True
) -> str:
    """What `ids` add to the text of `prompt_ids`.

    A tokenizer in SentencePiece's manner drops the first space of what it decodes, so an answer alone loses its own.

    Args:
        tokenizer: the model's.
        prompt_ids: what the answer follows; its last tokens will do if they have a text.
        ids: the answer.
        skip_special_tokens: leave out tokens that are no text.
    """
    before = str(tokenizer.decode(list(prompt_ids), skip_special_tokens=skip_special_tokens)) if prompt_ids else ""
    whole = str(tokenizer.decode([*prompt_ids, *ids], skip_special_tokens=skip_special_tokens))
    if whole.startswith(before):
        return whole[len(before) :]
    n_same = next((i for i, (a, b) in enumerate(zip(whole, before, strict=False)) if a != b), len(whole))
    return whole[n_same:]  # the answer completes the prompt's last character


def context(tokenizer: Any, prompt_ids: Sequence[int]) -> list[int]:
    """The last tokens of a prompt, as many as it takes for a text: all that `text_after` needs, and soon decoded."""
    for n in (16, 64, 256):
        tail = list(prompt_ids[-n:])
        if str(tokenizer.decode(tail, skip_special_tokens=True)).strip(f" {_HALF}"):
            return tail
    return list(prompt_ids)


def is_unfinished(text: str) -> bool:
    """Whether more tokens may complete the last character of a text."""
    return text.endswith(_HALF)


def opens_thought(text: str) -> bool:
    """Whether a prompt ends within a thought, so that its answer begins as one: some templates open it."""
    marks = _MARK.findall(text)
    return bool(marks) and marks[-1] in _OPENING and text.rstrip().endswith(marks[-1])


def without_thoughts(text: str, *, begins_in_thought: bool = False) -> str:
    """The answer without its thoughts; an unfinished thought is left out to its end.

    Args:
        text: as decoded.
        begins_in_thought: the prompt opened one. An answer whose first mark closes a thought began in one anyway.
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
