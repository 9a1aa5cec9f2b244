"""Where an answer ends that went on too long."""

from __future__ import annotations

from collections.abc import Sequence


def cut(text: str, stops: Sequence[str]) -> str:
    """The text before the first place where any of `stops` begins; all of it if there is none."""
    return text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))]
