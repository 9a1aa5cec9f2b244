"""Cuts answers that go on too long."""

from __future__ import annotations

from collections.abc import Sequence


def cut(text: str, stops: Sequence[str]) -> str:
    """The text before the first of `stops`; the whole text if it holds none of them."""
    return text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))]
