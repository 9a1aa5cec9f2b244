"""selfspec VERB key=value ... : the command line, and the only place that prints.

Hydra composes and sweeps. What is asked is checked first, so that a mistake is one line and exit status 2, not a
traceback.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

USAGE = """selfspec VERB key=value ...

  decode prompt="..."    stream an answer, coloured by accepted, correction and bonus tokens
  profile                what drafts cost on this machine: measured, and checked
  search                 find which sublayers to skip, on calibration prompts
  evaluate skip=...      plain decoding and drafts in turn, on prompts no search has seen
  report [runs=...]      tables and pictures of finished runs
  reproduce experiment=  all of these, one after the other, as a paper or an experiment has them
  dashboard [runs=...]   runs in the browser: searches as they go on, skip sets side by side, answers token by token
  runs list|show|compare runs and skip sets on the terminal; `--json` for scripts

`selfspec VERB --help` shows the settings and their groups; `-m` sweeps: selfspec search -m searcher=tpe,gp
"""

VERBS = ("decode", "profile", "search", "evaluate", "report", "reproduce", "dashboard", "runs")
FREE_TEXT = (
    "prompt",
    "skip",
    "ablation",
    "runs",
    "resume",
    "arm",
    "name",
    "model.path",
    "data.path",
    "paths.outputs",
    "costs.path",
    "data_folder",
    "storage",
)
FLAGS = {"--repair": "data.repair=true"}  # what may be written shorter than as a setting
QUOTED = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""", re.DOTALL)


def main() -> None:
    """The console script."""
    sys.argv[1:] = argv = [FLAGS.get(word, word) for word in sys.argv[1:]]
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return
    verb, *words = argv
    from experiments.steps import is_own
    from selfspec.errors import InputError

    try:
        _check_verb(verb)
        if verb == "runs":  # its words are names, not settings
            from experiments.listing import runs

            return runs(words, print)
        words = quote_text(words)
        if verb == "reproduce":
            if {"-m", "--multirun"} & set(words):
                raise InputError("reproduce runs one experiment, step by step; -m sweeps over the other verbs")
            words = [w for w in words if is_own(w)]  # the others are for its steps
        if not {"--help", "-h", "--hydra-help", "--info", "-i", "--cfg", "-c", "--version"} & set(words):
            check_overrides(verb, words)
    except InputError as error:
        _fail(error)
    _run_hydra(verb, words)


def _check_verb(verb: str) -> None:
    from selfspec.errors import unknown_name

    if verb not in VERBS:
        raise unknown_name("verb", verb, list(VERBS))


def _fail(error: Exception) -> None:
    print(f"selfspec: {error}", file=sys.stderr)
    sys.exit(2)


def quote_text(words: list[str]) -> list[str]:
    """The words, with the quotes that keep Hydra from reading a comma or a bracket of free text as its own syntax.

    In a sweep (`-m`) commas separate values, but for those inside one written skip set.
    """
    from selfspec.skip import SYNTAX

    is_sweep = bool({"-m", "--multirun"} & set(words))

    def quoted(word: str) -> str:
        key, equals, value = word.partition("=")
        if not equals or key.lstrip("+") not in FREE_TEXT or value in ("", "null") or QUOTED.fullmatch(value):
            return word
        if is_sweep and not (key == "skip" and SYNTAX.fullmatch(value)):
            return word
        # OmegaConf reads ${ as a reference; it unescapes that and the backslashes before it, Hydra those before quotes.
        text = re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
        text = re.sub(r"(\\*)'", r"\1\1\'", text)
        tail = len(text) - len(text.rstrip("\\"))
        return f"{key}='{text}{chr(92) * tail}'"

    return [quoted(word) for word in words]


def check_overrides(verb: str, words: list[str]) -> None:
    """Refuse what Hydra would refuse, in one line with the nearest name.

    Raises:
        InputError: for a config group, an option of one, or a setting that is not there, and what does not compose.
    """
    from hydra import compose
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from experiments.build import options
    from selfspec.errors import InputError, unknown_name

    is_sweep = bool({"-m", "--multirun"} & set(words))
    given = [w for w in words if "=" in w and not w.startswith(("-", "hydra"))]
    stray = [w for w in words if "=" not in w and not w.startswith(("-", "~"))]
    if stray:
        raise InputError(f"cannot read {stray[0]!r}; settings are written key=value (in quotes where there are spaces)")
    groups = (
        "model",
        "data",
        "stop",
        "searcher",
        "objective",
        "costs",
        "recipe",
        "draft",
        "drafter",
        "head",
        "calibration",
        "sampling",
        "tracker",
        "paths",
        "experiment",
    )
    chosen = []
    for word in given:
        key, _, value = word.partition("=")
        group = key.lstrip("+")
        if group in groups:
            names = _swept(value) if is_sweep else [value]
            for name in names:
                if name not in options(group):
                    raise unknown_name(group, name, options(group))
            chosen += [f"{key}={name}" for name in names[:1]]  # of a sweep, its first job stands for all
    try:
        with _composing():
            known = _flat(OmegaConf.to_container(compose(verb, overrides=chosen), resolve=False))
            for word in given:
                key = word.partition("=")[0].lstrip("~")
                if not key.startswith("+") and key not in known and key not in groups:
                    raise unknown_name("setting", key, sorted(known))
            if not is_sweep:
                _check_kinds(known, _flat(OmegaConf.to_container(compose(verb, overrides=given), resolve=False)))
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(" ".join(str(error).split())) from None


def known_settings(verb: str) -> set[str]:
    """The names that begin a setting of a verb: `model`, `n`, `searcher`."""
    from hydra import compose

    with _composing():
        cfg = compose(verb, return_hydra_config=True)
    return {str(key) for key in (*cfg, *cfg.hydra.runtime.choices) if key != "hydra" and "/" not in str(key)}


def composed(verb: str, words: Sequence[str]) -> Any:
    """The configuration that the words of a command make."""
    from hydra import compose

    with _composing():
        return compose(verb, overrides=quote_text(list(words)))


def run_words(verb: str, words: Sequence[str], say: Callable[[str], None]) -> None:
    """Run a verb in this process, as `selfspec VERB WORDS` would in its own."""
    _verb(verb)(composed(verb, words), list(words), say)


@contextmanager
def _composing() -> Iterator[None]:
    """While it lasts, configuration can be composed, also within a job of Hydra's, which has one already."""
    from hydra import initialize_config_module
    from hydra.core.global_hydra import GlobalHydra

    instance = GlobalHydra.instance()
    outer = instance.hydra
    instance.clear()
    try:
        with initialize_config_module("conf", version_base="1.3"):
            yield
    finally:
        instance.hydra = outer


def _swept(value: str) -> list[str]:
    """The names in `a,b` or `choice(a,b)`; none where another function of Hydra's makes them."""
    listed = re.fullmatch(r"(?:choice\()?([^()]*)\)?", value)
    return [name.strip() for name in listed[1].split(",")] if listed else []


def _check_kinds(known: dict[str, Any], asked: dict[str, Any]) -> None:
    """Refuse what is no number where the default is one, and what is neither true nor false where that is."""
    from selfspec.errors import InputError

    for key in known.keys() & asked.keys():
        default, value = known[key], asked[key]
        if value is None or not isinstance(default, bool | int | float):
            continue
        wanted = bool if isinstance(default, bool) else int if isinstance(default, int) else int | float
        if not isinstance(value, wanted) or isinstance(value, bool) != isinstance(default, bool):
            kind = "true or false" if wanted is bool else "a whole number" if wanted is int else "a number"
            raise InputError(f"{key}={value} was asked for, but it must be {kind}; its default is {default}")


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items() if isinstance(tree, dict) else ():
        found |= {f"{prefix}{key}": value} | _flat(value, f"{prefix}{key}.")
    return found


def _run_hydra(verb: str, words: list[str]) -> None:
    import hydra
    from omegaconf import DictConfig

    def task(cfg: DictConfig) -> None:
        _run_verb(verb, cfg, [] if is_sweep else asked)

    is_sweep = bool({"-m", "--multirun"} & set(words))
    asked = [w for w in sys.argv[2:] if "=" in w and not w.startswith("-")]
    sys.argv = [f"selfspec {verb}", *words]
    hydra.main(version_base="1.3", config_path="pkg://conf", config_name=verb)(task)()


def _run_verb(verb: str, cfg: Any, asked: list[str]) -> None:
    """One job: run the verb, log to standard error, and turn a mistake in what was asked into one line."""
    from hydra.core.hydra_config import HydraConfig

    from experiments.sweep import is_sweep, leave_failure
    from selfspec.errors import InputError

    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[_Terminal()], force=True)
    run = _verb(verb)
    overrides = asked or list(HydraConfig.get().overrides.task)  # as they were typed; of a sweep, this job's
    try:
        run(cfg, overrides, print)
    except KeyboardInterrupt:
        print("selfspec: interrupted; what was finished is in the run folder", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if is_sweep():
            leave_failure(verb, cfg, overrides, error)  # the other jobs go on
        elif isinstance(error, InputError):
            _fail(error)
        else:
            raise


class _Terminal(logging.Handler):
    """Log lines on standard error as it is now: a progress bar puts itself in its place, to keep below the lines."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


def _verb(verb: str) -> Any:
    """The function of a verb, imported when it is needed; the libraries that come with it are told to be quiet."""
    function = getattr(import_module(f"experiments.{verb}"), verb)
    for noisy in ("optuna", "httpx", "httpcore", "urllib3", "matplotlib", "fontTools", "filelock"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    return function
