"""Whether the Hugging Face hub answers, decided within seconds; without it its libraries use their caches alone.

They try again several times before they give up, and wait longer each time.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import huggingface_hub
from huggingface_hub import constants

from selfspec.measure.stopwatch import Stopwatch

_SETTINGS = "huggingface_hub.constants", "datasets.config"  # modules with the switch HF_HUB_OFFLINE
HUB_TIMEOUT_S = 3.0  # chosen, not tuned; a reachable hub answers in well under a second
REMEMBERED_S = 60  # chosen, not tuned: longer than the start of a run


def hub_answers(*, timeout_s: float = HUB_TIMEOUT_S) -> bool:
    """Whether the hub answers one request within `timeout_s`; False at once if HF_HUB_OFFLINE is set.

    The answer holds for a minute, so that a run that needs a model and several parts of data waits once.
    """
    return not constants.HF_HUB_OFFLINE and _asked(timeout_s, int(Stopwatch().now() / REMEMBERED_S))


@lru_cache(maxsize=1)
def _asked(timeout_s: float, period: int) -> bool:
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of the client this hub version uses

    answered, finished = threading.Event(), threading.Event()

    def ask() -> None:
        with contextlib.suppress(HTTPError, OSError):
            huggingface_hub.get_session().head(constants.ENDPOINT, timeout=timeout_s)
            answered.set()
        finished.set()

    # A thread, because the client's timeout covers neither the name look-up nor several addresses in turn.
    threading.Thread(target=ask, daemon=True).start()
    finished.wait(timeout_s)
    return answered.is_set()


@contextlib.contextmanager
def cache_unless_answering() -> Iterator[bool]:
    """A context in which the hub's libraries use their caches alone if the hub does not answer.

    Yields:
        Whether the hub answers.
    """
    answers = hub_answers()
    # `datasets` has a copy of the setting
    places: list[Any] = [module for name in _SETTINGS if (module := sys.modules.get(name))]
    former = [place.HF_HUB_OFFLINE for place in places]
    try:
        for place in places:
            place.HF_HUB_OFFLINE |= not answers
        yield answers
    finally:
        for place, was in zip(places, former, strict=True):
            place.HF_HUB_OFFLINE = was
