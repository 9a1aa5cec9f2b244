"""selfspec runs list|show|compare: run folders and their skip sets on the terminal, or as JSON for scripts.

It writes no files. Its words are names, not settings, so it does not use Hydra.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console, RenderableType

from experiments.config.words import OUTPUTS, outputs_of
from experiments.terminal import compare_sets, run_details, run_list
from selfspec.errors import InputError
from selfspec.records.names import printable

COLOUR = re.compile(r"(\x1b\[[0-9;]*m)")
WIDE = 1000  # characters of a line in a pipe, which no terminal folds
EPILOG = "Runs lie in `outputs`; elsewhere: paths.outputs=FOLDER, as for the other verbs."


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see `{self.prog} --help`")


def runs(words: Sequence[str], say: Callable[[str], None]) -> None:
    """Run the verb.

    Args:
        words: words after `runs`.
        say: function that prints a line.

    Raises:
        InputError: if the words are unreadable, or name no run or no set.
    """
    names = [word for word in words if not word.startswith(OUTPUTS)]
    arguments, outputs = _parser().parse_args(names), outputs_of(words)
    if len(names) < len(words) and not outputs.is_dir():
        raise InputError(f"{OUTPUTS}{outputs} is no folder; name the one that holds the runs")
    facts, lines = arguments.do(arguments, outputs)
    if arguments.json:
        return say(printable(json.dumps(facts, indent=2, ensure_ascii=False, allow_nan=False)))
    say(text_of(lines))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser("selfspec runs", description="Run folders, and their skip sets side by side.", epilog=EPILOG)
    verbs = parser.add_subparsers(required=True, metavar="list|show|compare")

    def verb(name: str, description: str, do: Callable[[argparse.Namespace, Path], Any]) -> argparse.ArgumentParser:
        own = verbs.add_parser(name, help=description, description=description, epilog=EPILOG)
        own.add_argument("--json", action="store_true", help="facts for scripts: JSON and nothing else")
        own.set_defaults(do=do)
        return own

    one = verb("list", "runs and stores, the newest first", lambda a, o: run_list.show_runs(a.pattern, o))
    one.add_argument("pattern", nargs="?", help="a folder, or a part of a run's name, model, data or searcher")
    one = verb("show", "one run: conditions, what it found, files", lambda a, o: run_details.show_run(a.run, o))
    one.add_argument("run", help="its id, a part of it that no other run has, or its folder")
    one = verb(
        "compare", "2 to 8 skip sets side by side", lambda a, o: compare_sets.compare(a.sets, o, n_layers=a.layers)
    )
    help_of_sets = "a run, a file of a skip set or plan, a published set (llama-2-13b/swift) or a set ('a3,5 m7')"
    one.add_argument("sets", nargs="+", metavar="SET", help=help_of_sets)
    one.add_argument("--layers", type=int, help="of the model that sets like 'a3 m5' are for, if no other set tells")
    return parser


def text_of(lines: Iterable[RenderableType]) -> str:
    """The lines as text: coloured and folded on a terminal, plain and unfolded in a pipe."""
    console = Console(file=sys.stdout)
    if not console.is_terminal:
        console = Console(file=sys.stdout, width=WIDE, color_system=None)
    with console.capture() as captured:
        console.print(*lines, sep="\n", highlight=False, markup=False)
    # a run folder may come from elsewhere: of all that a terminal obeys, only colours may pass
    parts = COLOUR.split(captured.get()) if console.is_terminal else [captured.get()]
    shown = "".join(part if i % 2 else printable(part) for i, part in enumerate(parts))
    return "\n".join(line.rstrip() for line in shown.split("\n")).rstrip("\n")
