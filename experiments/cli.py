"""selfspec VERB key=value ... : the command line, and the only place that prints.

Hydra composes configurations and runs sweeps. This module checks the words first, so that a mistake ends in one line
and exit status 2, not in a traceback.
"""

from __future__ import annotations

import logging
import os
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

Find a draft
  profile                what drafts cost on this machine: measured, and checked
  search                 find what to draft with and which sublayers to skip, on calibration prompts
  collect                the model's own text and hidden states, to train drafts on
  train drafter=eagle    train a draft head on them; evaluate drafter=RUN decodes with it

Use and judge it
  decode prompt="..."    stream an answer, coloured by accepted, correction and bonus tokens
  evaluate skip=...      plain decoding and drafts in turn, on prompts no search has seen
  serve-sim skip=...     requests that come and go, with each controller at each rate: latency and throughput
  export RUN             a trained draft in the format of other engines: format=speculators

Look at runs
  runs list|show|compare runs and skip sets on the terminal; `--json` for scripts
  report [runs=...]      tables and pictures of finished runs
  dashboard [runs=...]   the same in the browser, and searches and trainings as they go on
  reproduce experiment=  a whole experiment, step by step, as a paper or an ablation has it

This machine
  doctor                 versions, device, threads, hub, extras: what this machine offers
  completion bash        completion of verbs, options and settings in your shell

Examples
  selfspec search model=qwen2.5-0.5b data=humaneval
  selfspec evaluate skip=outputs/search/NAME/RUN stop=searched lookup=searched
  selfspec search -m searcher=tpe,gp       # -m sweeps: one run each

`selfspec VERB --help` shows examples, options and settings; `selfspec VERB --help stop` explains the group stop.
`--config-dir FOLDER` adds options of your own: FOLDER/stop/mine.yaml is stop=mine, and may name classes of FOLDER/*.py
"""

VERBS = (
    "decode",
    "profile",
    "search",
    "evaluate",
    "serve-sim",
    "collect",
    "train",
    "export",
    "report",
    "reproduce",
    "dashboard",
    "runs",
    "doctor",
    "completion",
)
FLAGS = {"--repair": "data.repair=true"}  # short forms of settings


@contextmanager
def _ending_well() -> Iterator[None]:
    """Turn a user's mistake or a full disk into one line and exit status 2, an interruption into exit status 130."""
    try:
        yield
    except BrokenPipeError:  # the reader of a pipe has ended, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (InputError, OSError) as error:
        told = error if isinstance(error, InputError) else refused_write(error)
        if told is None:
            raise
        print(f"selfspec: {one_line(str(told))}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as end:
        print("; ".join(["selfspec: interrupted", *getattr(end, "__notes__", [])[:1]]), file=sys.stderr)
        sys.exit(130)


@_ending_well()
def main() -> None:
    """The console script."""
    sys.argv[1:] = argv = [FLAGS.get(word, word) for word in sys.argv[1:]]
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return
    _check_words(argv)
    verb, *words = argv
    if verb not in VERBS:
        raise unknown_name("verb", verb, list(VERBS))
    if verb in ("runs", "doctor", "export", "completion"):  # whose words are names, or names before all
        return _verb(verb)(list(words), print)  # type: ignore[no-any-return]
    from experiments.config.composing import (
        check_no_shadows,
        composing,
        configuration,
        make_importable,
        split_config_dir,
    )
    from experiments.config.help import verb_help
    from experiments.config.steps import is_own
    from experiments.config.sweep_words import SWEEP, check_sweep
    from experiments.config.words import outputs_of

    folder, typed = split_config_dir(words)
    make_importable(folder)
    check_no_shadows(folder)
    is_sweep = bool(SWEEP & set(typed))
    asked = typed
    if verb == "reproduce":
        if is_sweep:
            raise InputError("reproduce runs one experiment, step by step; -m sweeps over the other verbs")
        asked = [w for w in typed if is_own(w)]  # the other words are for the steps of the experiment
    settings = [w for w in asked if not w.startswith(("-", "hydra"))]
    if {"-h", "--help"} & set(asked):
        topics = [word for word in settings if "=" not in word]
        return print(verb_help(verb, topics, [w for w in settings if w not in topics], folder=folder))
    if is_sweep:
        check_sweep(verb, settings, folder=folder)
        if not {",", "$"} & set(str(outputs := outputs_of(settings))):  # otherwise it is no single folder
            make_writable(outputs)  # Hydra makes the sweep's folder before any job
    if len(settings) < len(asked):
        return _run_hydra(verb, asked, folder)
    cfg = configuration(verb, settings, folder=folder)
    run = _verb(verb)
    _log_to_terminal()
    check_names(cfg)
    with composing(folder):
        run(cfg, typed, say)


def _check_words(words: Sequence[str]) -> None:
    """Refuse words that are not UTF-8, which no file of a run could hold."""
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise InputError(f"cannot read {word!a}: it is not UTF-8; type it in UTF-8") from None


def check_names(cfg: Any) -> None:
    """Refuse names that are no names of a folder, before anything is loaded."""
    from omegaconf import OmegaConf

    for setting in ("model.name", "data.name", "name"):
        if (name := OmegaConf.select(cfg, setting)) is not None:
            path_part(str(name), setting)


def say(text: str) -> None:
    """Print a line; a name in it cannot write elsewhere on the terminal."""
    print(printable(text))


def composed(verb: str, words: Sequence[str]) -> Any:
    """The configuration that the words of a command describe."""
    from experiments.config.composing import configuration, split_config_dir

    folder, settings = split_config_dir(words)
    return configuration(verb, settings, folder=folder)


def run_words(verb: str, words: Sequence[str], say: Callable[[str], None]) -> Path | None:
    """Run a verb in this process; the effect equals that of the command `selfspec VERB WORDS`. Returns its folder."""
    from experiments.config.composing import composing, make_importable, split_config_dir

    folder, settings = split_config_dir(words)
    make_importable(folder)
    with composing(folder):
        cfg = composed(verb, settings)
        check_names(cfg)
        folder_of_run: Path | None = _verb(verb)(cfg, settings, say)
        return folder_of_run


def _run_hydra(verb: str, words: list[str], folder: Path | None) -> None:
    """Let Hydra run the verb: a sweep with its launchers, or a command with Hydra's own flags and settings."""
    import hydra
    from omegaconf import DictConfig

    from experiments.config.composing import flag_of
    from experiments.config.sweep import run_job
    from experiments.config.sweep_words import for_hydra

    def run(cfg: DictConfig, words: list[str]) -> None:
        check_names(cfg)
        _verb(verb)(cfg, words, say)

    def job(cfg: DictConfig) -> None:
        _log_to_terminal()
        run_job(verb, cfg, run, folder=folder)

    sys.argv = [f"selfspec {verb}", *flag_of(folder), *for_hydra(verb, words, folder=folder)]
    hydra.main(version_base="1.3", config_path="pkg://conf", config_name=verb)(job)()


def _log_to_terminal() -> None:
    """Send log lines to standard error, without level, time or name."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[_Terminal()], force=True)


class _Terminal(logging.Handler):
    """Writes log lines to the current `sys.stderr`, which a progress bar replaces to stay below the lines."""

    def emit(self, record: logging.LogRecord) -> None:
        print(printable(self.format(record)), file=sys.stderr)


def _verb(verb: str) -> Any:
    """The function of a verb, imported on first use; its libraries log warnings only."""
    name = verb.replace("-", "_")
    function = getattr(import_module(f"experiments.verbs.{name}"), name)
    for noisy in ("optuna", "httpx", "httpcore", "urllib3", "matplotlib", "fontTools", "filelock"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    return function
