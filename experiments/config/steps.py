"""The steps of an experiment in order; each step is a command that a user could type.

A step joins the words of all steps, its own words and the user's words. Of two words for one setting, the later one
holds. This module does not know configurations, models or folders.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from selfspec.errors import InputError, unknown_name

PLACE = re.compile(r"\{(\w+)\}")
OWN = ("experiment", "dry_run", "resume", "data_folder", "paths", "hydra")  # settings of `reproduce` itself
RUNS, CACHE, DATA = "runs", "cache", "data"  # places other than steps: of all runs, of what is kept, of the user's data


@dataclass(frozen=True, slots=True)
class Step:
    """One command.

    Attributes:
        name: name of the step and of its run.
        verb: verb of the command.
        words: its settings; `{search}` stands for the run folder of the step `search`.
    """

    name: str
    verb: str
    words: tuple[str, ...]

    @property
    def needs(self) -> set[str]:
        """The places that its words name."""
        return {place for word in self.words for place in PLACE.findall(word)}

    def filled(self, places: Mapping[str, str]) -> Step:
        """The step with every known place filled in."""
        words = (PLACE.sub(lambda m: places.get(m[1], m[0]), word) for word in self.words)
        return Step(self.name, self.verb, tuple(words))

    def command(self) -> str:
        """The command that a user would type."""
        return shlex.join(["selfspec", self.verb, *self.words])


def plan(
    commands: Mapping[str, str | None],
    *,
    settings: str,
    words: Sequence[str],
    known: Mapping[str, set[str]],
    data_folder: str | None,
) -> tuple[list[Step], dict[str, str]]:
    """The steps of an experiment, and a reason for each step that is left out.

    Args:
        commands: step name to `VERB key=value ...`; None removes a step that comes from another experiment.
        settings: words for every step whose verb knows them.
        words: the user's words, for every step whose verb knows them.
        known: verb to the first parts of the names of its settings.
        data_folder: the folder for `{data}`; None leaves out the steps that name it and the steps that need their runs.

    Raises:
        InputError: if no step knows a word, or a step names a place other than an earlier step, `{runs}`, `{cache}` or
            `{data}`.
    """
    steps: list[Step] = []
    left_out: dict[str, str] = {}
    parted = {name: shlex.split(command) for name, command in commands.items() if command}
    for verb, *_ in parted.values():
        if verb not in known:
            raise unknown_name("verb", verb, list(known))
    for word in words:
        if not any(_top(word) in known[verb] for verb, *_ in parted.values()):
            raise InputError(f"{word} was asked for, but no step of the experiment has such a setting")
    for name, (verb, *own) in parted.items():
        shared, added = ([w for w in some if _top(w) in known[verb]] for some in (shlex.split(settings), words))
        fixed = [f"name={name}", f"paths.outputs={{{RUNS}}}", f"paths.cache={{{CACHE}}}"]
        step = Step(name, verb, tuple(merged(shared, own, added, fixed)))
        if data_folder is not None:
            step = step.filled({DATA: data_folder})
        before = [s.name for s in steps]
        missing = sorted(step.needs - {*before, RUNS, CACHE})
        if any(place not in (DATA, *left_out) for place in missing):
            raise unknown_name("place", missing[0], [*before, RUNS, CACHE, DATA])
        if missing:
            left_out[name] = "needs data_folder=FOLDER" if DATA in missing else f"needs {', '.join(missing)}"
        else:
            steps.append(step)
    return steps, left_out


def merged(*layers: Sequence[str]) -> list[str]:
    """The words of all layers; a word drops earlier words with its key or a key below it (`data` drops `data.n`)."""
    found: list[str] = []
    for layer in layers:
        keys = {_key(word) for word in layer}
        found = [w for w in found if not any(_key(w) == key or _key(w).startswith(f"{key}.") for key in keys)]
        found += layer
    return found


def is_own(word: str) -> bool:
    """Whether a word of the command line is for `reproduce` itself; all other words are for its steps."""
    return "=" not in word or word.startswith("-") or _top(word) in OWN


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+~")


def _top(word: str) -> str:
    return _key(word).partition(".")[0]
