"""How many tokens a model's context holds, and what says so."""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

log = logging.getLogger(__name__)

UNBOUNDED = 1 << 30  # of models without a largest position


def context_length(config: Any) -> int:
    """Length of the longest sequence that the model of `config` (the text part) supports, in tokens."""
    return _context(config)[0]


def context_source(config: Any) -> str:
    """Which settings of the model give its context length; the rest of a sentence in brackets."""
    return _context(config)[1]


def tell_full(config: Any, asked: int) -> None:
    """Log, once for each model and number, that answers end before `asked` tokens because the context is full."""
    _tell_once(
        f"answers end before {asked} new tokens where the model's context is full: it holds {context_length(config)} "
        f"tokens ({context_source(config)})"
    )


@cache
def _tell_once(text: str) -> None:
    log.warning(text)


def _context(config: Any) -> tuple[int, str]:
    longest = int(getattr(config, "max_position_embeddings", 0) or UNBOUNDED)
    rope = getattr(config, "rope_parameters", None) or {}
    kind, factor = rope.get("rope_type", "default"), rope.get("factor")
    original = int(rope.get("original_max_position_embeddings") or longest)
    if kind == "longrope" and original < longest:
        # beyond this length the model rotates all positions by other angles, so cached keys would be wrong
        return original, "original_max_position_embeddings of its longrope scaling, beyond which cached keys are wrong"
    scaled = int((factor or 1) * original)
    if scaled <= longest:
        return longest, "max_position_embeddings"
    if kind == "yarn":
        # model cards add yarn without raising max_position_embeddings, and its angles are the same at every length
        return scaled, f"yarn scaling of {original} by {factor:g}"
    return longest, (
        f"max_position_embeddings, which {kind} scaling by {factor:g} does not extend: raise it in config.json if the "
        "model was trained for more"
    )
