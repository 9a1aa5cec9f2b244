"""Exceptions for mistakes of the user or of a plug-in, not of this code."""

LISTED = 25  # largest number of names that an error lists; chosen to stay readable


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


def unknown_name(kind: str, name: str, available: list[str]) -> InputError:
    """The error for an unknown name; it suggests the nearest known one."""
    from difflib import get_close_matches

    near = get_close_matches(name, available, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    shown = f"available: {', '.join(sorted(available))}" if len(available) <= LISTED else "see --help for what there is"
    return InputError(f"unknown {kind} {name!r}; {hint}{shown}")
