"""Which prompts are the same: those that differ in white space or in the form of their Unicode characters alone.

Where two sets of prompts must not meet, they are compared by these functions; the prompts themselves stay as they are.
"""

from __future__ import annotations

import hashlib
import logging
import unicodedata
from collections.abc import Iterable

from selfspec.data.task import Example

log = logging.getLogger(__name__)


def same_key(prompt: str) -> str:
    """A text that is equal for equal prompts: NFKC, with one blank for any white space."""
    return " ".join(unicodedata.normalize("NFKC", prompt).split())


def same_digest(prompt: str) -> str:
    """The first 12 hexadecimal digits of the SHA-256 of `same_key`, for records."""
    return hashlib.sha256(same_key(prompt).encode()).hexdigest()[:12]


def example_digests(example: Example) -> list[str]:
    """`same_digest` of its prompt and, if that is another text, of its question alone.

    A question that one data set shows behind others, or with other words around it, is the same in another data set.
    """
    return list(dict.fromkeys(same_digest(text) for text in (example.prompt, example.content or example.prompt)))


def digests_of(examples: Iterable[Example]) -> list[str]:
    """The digests of all examples, in their order."""
    return [digest for example in examples for digest in example_digests(example)]


def group_digests(prompts: Iterable[str]) -> dict[str, str]:
    """Prompt to the smallest SHA-256 among the prompts that are the same.

    Without such prompts it is the digest of the prompt itself, so that parts that were split by it stay as they were.
    """
    own = {prompt: hashlib.sha256(prompt.encode()).hexdigest() for prompt in prompts}
    smallest: dict[str, str] = {}
    for prompt, digest in own.items():
        key = same_key(prompt)
        smallest[key] = min(digest, smallest.get(key, digest))
    return {prompt: smallest[same_key(prompt)] for prompt in own}


def tell_alike(source: str, calibration: Iterable[str], evaluation: Iterable[str]) -> None:
    """Log how many evaluation prompts differ from a calibration prompt in nothing but case."""
    seen = {same_key(prompt).casefold() for prompt in calibration}
    n = sum(same_key(prompt).casefold() in seen for prompt in evaluation)
    if n:
        log.warning("%s: %d evaluation prompt(s) differ from a calibration prompt in nothing but case", source, n)
