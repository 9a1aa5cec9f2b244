"""Exceptions for mistakes of the user or of a plug-in, not of this code."""

from typing import Any

LISTED = 25  # names that an error lists; chosen to stay readable


class InputError(ValueError):
    """A request that is impossible. The message is one line: what was requested, what is true, and what to do."""


class DrafterError(InputError):
    """An invalid draft; the message names the drafter.

    In a search the trial fails with this reason and the search continues.
    """


class PromptError(InputError):
    """A prompt that cannot be decoded; other prompts may be.

    In an evaluation its row holds this reason and the evaluation continues.
    """


def check_count(name: str, value: Any) -> None:
    """Refuse what is neither None nor a whole number from 1 on.

    Raises:
        InputError: with the name of the setting.
    """
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise InputError(f"{name}={value}; it is a whole number from 1 on, or null")


def unknown_name(kind: str, name: str, available: list[str]) -> InputError:
    """The error for an unknown name; it suggests the nearest known one."""
    from difflib import get_close_matches

    near = get_close_matches(name, available, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    shown = f"available: {', '.join(sorted(available))}" if len(available) <= LISTED else "see --help for what there is"
    return InputError(f"unknown {kind} {name!r}; {hint}{shown}")
