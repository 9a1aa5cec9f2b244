"""selfspec VERB key=value ... : the command line, and the only place that prints.

Hydra composes configurations and runs sweeps. This module checks the words first, so that a mistake ends in one line
and exit status 2, not in a traceback.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from selfspec.errors import InputError, unknown_name
from selfspec.records.names import one_line, path_part, printable
from selfspec.records.run_files import make_writable, refused_write

USAGE = """selfspec VERB key=value ...

  decode prompt="..."    stream an answer, coloured by accepted, correction and bonus tokens
  profile                what drafts cost on this machine: measured, and checked
  search                 find which sublayers to skip, on calibration prompts
  evaluate skip=...      plain decoding and drafts in turn, on prompts no search has seen
  report [runs=...]      tables and pictures of finished runs
  reproduce experiment=  all of these, one after the other, as a paper or an experiment has them
  dashboard [runs=...]   runs in the browser: searches as they go on, skip sets side by side, answers token by token
  runs list|show|compare runs and skip sets on the terminal; `--json` for scripts
  doctor                 versions, device, threads, hub, extras: what this machine offers

`selfspec VERB --help` shows the settings and their groups; `-m` sweeps: selfspec search -m searcher=tpe,gp
`--config-dir FOLDER` adds options of your own: FOLDER/stop/mine.yaml is stop=mine, and may name classes of FOLDER/*.py
"""

VERBS = ("decode", "profile", "search", "evaluate", "report", "reproduce", "dashboard", "runs", "doctor")
FLAGS = {"--repair": "data.repair=true"}  # short forms of settings
QUOTED = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""", re.DOTALL)


def main() -> None:
    """The console script."""
    sys.argv[1:] = argv = [FLAGS.get(word, word) for word in sys.argv[1:]]
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return
    verb, *words = argv
    from experiments.config.composing import (
        check_no_shadows,
        check_sweep,
        composing,
        configuration,
        help_text,
        make_importable,
        split_config_dir,
    )
    from experiments.config.outputs import outputs_of
    from experiments.config.steps import is_own

    with _ending_well():
        _check_words(argv)
        _check_verb(verb)
        if verb == "runs":  # the words of `runs` are names, not settings
            from experiments.verbs.runs import runs

            return runs(words, print)
        if verb == "doctor":
            from experiments.verbs.doctor import doctor

            return doctor(words, print)
        folder, typed = split_config_dir(words)
        make_importable(folder)
        check_no_shadows(folder)
        words = quote_text(typed)
        is_sweep = bool({"-m", "--multirun"} & set(words))
        if verb == "reproduce":
            if is_sweep:
                raise InputError("reproduce runs one experiment, step by step; -m sweeps over the other verbs")
            words = [w for w in words if is_own(w)]  # the other words are for the steps of the experiment
        settings = [w for w in words if not w.startswith(("-", "hydra"))]
        if {"-h", "--help"} & set(words):
            return print(help_text(verb, settings, folder=folder))
        is_for_hydra = len(settings) < len(words)
        if is_sweep:
            check_sweep(verb, _with_values(settings), folder=folder)
            if not {",", "$"} & set(str(outputs := outputs_of(settings))):  # otherwise it is no single folder
                make_writable(outputs)  # Hydra makes the sweep's folder before any job
        elif not any(word.startswith("-") for word in words):
            cfg = configuration(verb, _with_values(settings), folder=folder)
        if is_for_hydra:
            return _run_hydra(verb, words, typed, folder)
        run = _verb(verb)
        _log_to_terminal()
        _check_names(cfg)
        with composing(folder):
            run(cfg, typed, _say)


@contextmanager
def _ending_well() -> Iterator[None]:
    """Turn a user's mistake or a full disk into one line and exit status 2, an interruption into exit status 130."""
    try:
        yield
    except (InputError, OSError) as error:
        told = error if isinstance(error, InputError) else refused_write(error)
        if told is None:
            raise
        print(f"selfspec: {one_line(str(told))}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("selfspec: interrupted; what was finished is in the run folder", file=sys.stderr)
        sys.exit(130)


def _check_words(words: Sequence[str]) -> None:
    """Refuse words that are not UTF-8, which no file of a run could hold."""
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise InputError(f"cannot read {word!a}: it is not UTF-8; type it in UTF-8") from None


def _check_names(cfg: Any) -> None:
    """Refuse names that are no names of a folder, before anything is loaded."""
    from omegaconf import OmegaConf

    for setting in ("model.name", "data.name", "name"):
        if (name := OmegaConf.select(cfg, setting)) is not None:
            path_part(str(name), setting)


def _say(text: str) -> None:
    """Print a line; a name in it cannot write elsewhere on the terminal."""
    print(printable(text))


def _check_verb(verb: str) -> None:
    if verb not in VERBS:
        raise unknown_name("verb", verb, list(VERBS))


def _with_values(words: Sequence[str]) -> Sequence[str]:
    """The words; raises InputError for a word that is neither `key=value` nor `~key`."""
    stray = [w for w in words if "=" not in w and not w.startswith("~")]
    if stray:
        raise InputError(f"cannot read {stray[0]!r}; settings are written key=value (in quotes where there are spaces)")
    return words


def quote_text(words: list[str]) -> list[str]:
    """The words with quotes, so that Hydra does not read a comma or a bracket of free text as its own syntax.

    In a sweep (`-m`) commas separate values, except the commas inside a written skip set.
    """
    from experiments.config.kinds import free_text
    from selfspec.skipping.skip_set import SYNTAX

    is_sweep = bool({"-m", "--multirun"} & set(words))

    def quoted(word: str) -> str:
        key, equals, value = word.partition("=")
        if not equals or key.lstrip("+") not in free_text() or value in ("", "null") or QUOTED.fullmatch(value):
            return word
        if is_sweep and not (key == "skip" and SYNTAX.fullmatch(value)):
            return word
        # OmegaConf reads ${ as a reference. It unescapes that and the backslashes before it; Hydra unescapes the
        # backslashes before quotes.
        text = re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
        text = re.sub(r"(\\*)'", r"\1\1\'", text)
        tail = len(text) - len(text.rstrip("\\"))
        return f"{key}='{text}{chr(92) * tail}'"

    return [quoted(word) for word in words]


def composed(verb: str, words: Sequence[str]) -> Any:
    """The configuration that the words of a command describe."""
    from experiments.config.composing import configuration, split_config_dir

    folder, settings = split_config_dir(words)
    return configuration(verb, quote_text(settings), folder=folder)


def run_words(verb: str, words: Sequence[str], say: Callable[[str], None]) -> None:
    """Run a verb in this process; the effect equals that of the command `selfspec VERB WORDS`."""
    from experiments.config.composing import composing, make_importable, split_config_dir

    folder, settings = split_config_dir(words)
    make_importable(folder)
    with composing(folder):
        cfg = composed(verb, settings)
        _check_names(cfg)
        _verb(verb)(cfg, settings, say)


def _run_hydra(verb: str, words: list[str], typed: list[str], folder: Path | None) -> None:
    """Let Hydra run the verb: a sweep with its launchers, or a command with Hydra's own flags and settings."""
    import hydra
    from omegaconf import DictConfig

    from experiments.config.composing import flag_of, make_importable

    def job(cfg: DictConfig) -> None:
        make_importable(folder)  # a launcher may run a job in another process
        _run_job(verb, cfg, asked)

    asked = [w for w in typed if "=" in w and not w.startswith("-")]
    sys.argv = [f"selfspec {verb}", *flag_of(folder), *words]
    hydra.main(version_base="1.3", config_path="pkg://conf", config_name=verb)(job)()


def _run_job(verb: str, cfg: Any, asked: list[str]) -> None:
    """Run one job of Hydra's; if a job of a sweep fails, the other jobs go on."""
    from hydra.core.hydra_config import HydraConfig

    from experiments.config.composing import plain
    from experiments.config.sweep import is_sweep, leave_failure

    _log_to_terminal()
    if not is_sweep():
        with _ending_well():
            _check_names(cfg)
            _verb(verb)(plain(verb, cfg), asked, _say)
        return
    overrides = list(HydraConfig.get().overrides.task)  # the overrides of this job
    try:
        _check_names(cfg)
        _verb(verb)(plain(verb, cfg), overrides, _say)
    except Exception as error:
        with _ending_well():  # on a full disk the sweep ends here
            leave_failure(verb, cfg, overrides, error)


def _log_to_terminal() -> None:
    """Send log lines to standard error, without level, time or name."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[_Terminal()], force=True)


class _Terminal(logging.Handler):
    """Writes log lines to the current `sys.stderr`, which a progress bar replaces to stay below the lines."""

    def emit(self, record: logging.LogRecord) -> None:
        print(printable(self.format(record)), file=sys.stderr)


def _verb(verb: str) -> Any:
    """The function of a verb, imported on first use; its libraries log warnings only."""
    function = getattr(import_module(f"experiments.verbs.{verb}"), verb)
    for noisy in ("optuna", "httpx", "httpcore", "urllib3", "matplotlib", "fontTools", "filelock"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    return function
