"""The words of a sweep, which Hydra reads before each job does.

Hydra reads a value by its looks (`1_0` is 10), a job by the kind of its setting; so Hydra gets values in quotes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from secrets import token_hex

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import OmegaConf

from experiments.config.composing import check_option, composing, groups, is_choice, kind_of, split, unchecked
from experiments.config.words import choices
from selfspec.skipping.skip_set import SYNTAX

SWEEP, PLACE = {"-m", "--multirun"}, "hydra.sweep.dir"
CHOICE = re.compile(r"choice\((.*)\)", re.DOTALL)
FUNCTION = re.compile(r"(range|interval|glob|shuffle|sort|tag)\(.*\)", re.DOTALL)


def check_sweep(verb: str, words: Sequence[str], *, folder: Path | None = None) -> None:
    """Refuse unknown settings and options before any job of a sweep runs.

    Args:
        verb: verb of the jobs.
        words: the words as they were typed; a word may hold several values.
        folder: the user's folder of options; None means the folder of the running command, if any.

    Raises:
        InputError: for the first unknown setting or option.
    """
    with composing(folder):
        own, first = groups(verb), []
        for word in words:
            key, value = split(word)
            if is_choice(word, own) and not FUNCTION.fullmatch(value):
                names = _values(value)
                for name in names:
                    check_option(key, name)
                first.append(f"{word.partition('=')[0]}={names[0]}")  # the first job stands for all
        tree = OmegaConf.to_container(unchecked(verb, first), resolve=False)
        for word in words:
            if not is_choice(word, own):
                kind_of(verb, tree, split(word)[0])


def for_hydra(verb: str, words: Sequence[str], *, folder: Path | None = None) -> list[str]:
    """The words for Hydra: values in quotes, since a job reads them by their kinds, and Hydra by their looks.

    Flags come first, as Hydra's parser wants them. A sweep gets a folder whose name no other sweep has.
    """
    with composing(folder):
        own = groups(verb)
    is_sweep = bool(SWEEP & set(words))

    def quoted(word: str) -> str:
        key, equals, value = word.partition("=")
        if not equals or word.startswith(("~", "hydra")) or is_choice(word, own) or FUNCTION.fullmatch(value):
            return word
        is_one = not is_sweep or (key == "skip" and SYNTAX.fullmatch(value))
        values = [value] if is_one else _values(value)
        return f"++{split(word)[0]}={','.join(QuotedString(v, Quote.single).with_quotes() for v in values)}"

    settings = [word for word in words if not word.startswith("-") and ("=" in word or word.startswith("~"))]
    flags = [word for word in words if word not in settings]
    place = f"{PLACE}=${{paths.outputs}}/sweep/{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{token_hex(3)}"
    is_placed = not is_sweep or any(word.startswith(f"{PLACE}=") for word in words)
    return [*flags, *([] if is_placed else [place]), *map(quoted, settings)]


def as_typed(words: Sequence[str]) -> list[str]:
    """The words of a job, which Hydra has in quotes, as they would be typed."""
    found = []
    for override in OverridesParser.create().parse_overrides(list(words)):
        word, value = str(override.input_line), override.value()
        is_quoted = isinstance(value, str) and word.partition("=")[2].startswith(("'", '"'))
        found.append(f"{override.key_or_group}={value}" if is_quoted else word)
    return found


def _values(value: str) -> list[str]:
    """The values in `a,b` or `choice(a,b)`."""
    listed = CHOICE.fullmatch(value)
    return choices(listed[1] if listed else value)
