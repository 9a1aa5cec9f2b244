"""What can be chosen and composed: this package's `conf`, and behind it the user's own folder (`--config-dir`).

Both lie on Hydra's search path, which is asked for everything: which groups there are, which options a group has, what
an option says. A new option is a file; no list names it.

Python files beside the user's YAML can be imported, by `_target_: rules.Patient` for `rules.py` in that folder, and so
can those of the current folder. Both folders come after everything that is installed, the user's folder first: no file
there takes the place of an installed module.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import compose, version
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException, ValidationError

from experiments.config import kinds
from selfspec.errors import InputError, unknown_name
from selfspec.targets import TARGET, current, first

PACKAGE = "pkg://conf"
FLAGS = ("--config-dir", "-cd")
PROVIDER = "command-line"  # Hydra's own word for where --config-dir comes from


def split_config_dir(words: Sequence[str]) -> tuple[Path | None, list[str]]:
    """The folder that `--config-dir` names among the words of a command, and the other words.

    Raises:
        InputError: if it names none, or one that is not there.
    """
    folder: Path | None = None
    others: list[str] = []
    left = iter(words)
    for word in left:
        flag, equals, value = word.partition("=")
        if flag not in FLAGS:
            others.append(word)
            continue
        value = value if equals else next(left, "")
        folder = Path(value).expanduser().absolute()
        if not value or not folder.is_dir():
            raise InputError(f"{flag} {value}".rstrip() + ": no such folder; name the one that holds your options")
    return folder, others


def flag_of(folder: Path | None) -> list[str]:
    """The word that names the folder, as it would be typed; nothing for none."""
    return [] if folder is None else [f"{FLAGS[0]}={folder}"]


def make_importable(folder: Path | None) -> None:
    """Let the Python files of the user's folder and of the current one be imported, after all that is installed."""
    for place in (folder, Path.cwd()):
        if place is not None and str(place) not in sys.path:
            sys.path.append(str(place))


@contextmanager
def composing(folder: Path | None = None) -> Iterator[None]:
    """While it lasts, configuration can be composed, and options found, also within a job of Hydra's.

    Args:
        folder: of the user; None: that of the command that runs, if one does.
    """
    instance = GlobalHydra.instance()
    outer = instance.hydra
    if outer is not None and folder in (None, config_dir()):
        yield
        return
    instance.clear()
    try:
        version.setbase("1.3")
        path = create_config_search_path(PACKAGE)
        if folder is not None:
            path.prepend(PROVIDER, f"file://{folder}", anchor=SearchPathQuery(provider="schema"))
        Hydra.create_main_hydra2("app", path)
        yield
    finally:
        instance.hydra = outer


def config_dir() -> Path | None:
    """The user's folder of the command that runs."""
    if not GlobalHydra.instance().is_initialized():
        return None
    sources = GlobalHydra.instance().config_loader().get_sources()
    found = [source.path for source in sources if source.provider == PROVIDER]
    return Path(found[0]) if found else None


def groups(verb: str) -> set[str]:
    """The groups that a verb's defaults choose from: `model`, `stop`, `searcher`."""
    with composing():
        loader = GlobalHydra.instance().config_loader()
        defaults = loader.compute_defaults_list(verb, overrides=[], run_mode=RunMode.RUN)
    return {group for group in defaults.overrides.known_choices if "/" not in group}


def options(group: str) -> list[str]:
    """The names in a config group, e.g. the stop rules; `folder/name` for those in a folder of it."""
    with composing():
        loader = GlobalHydra.instance().config_loader()
        names = [n for n in loader.get_group_options(group, ObjectType.CONFIG) if not n.startswith("_")]
        folders = loader.get_group_options(group, ObjectType.GROUP)
        return sorted(names + [f"{f}/{name}" for f in folders for name in options(f"{group}/{f}")])


def option(group: str, name: str) -> DictConfig:
    """The settings of one option of a group, as its file has them."""
    check_option(group, name)
    with composing():
        alone = compose(overrides=[f"+{group}={name}"])
    # not bound to where it was composed, so that it can take another place
    return DictConfig(OmegaConf.create(OmegaConf.to_yaml(alone[group])))


def check_option(group: str, name: str) -> None:
    """Refuse a name that is no option, with the nearest one that is.

    Raises:
        InputError: for such a name.
    """
    known = options(group)
    if name not in known:
        raise unknown_name({"stop": "stop rule", "data": "data set"}.get(group, group), name, known)


def configuration(verb: str, words: Sequence[str], *, folder: Path | None = None) -> DictConfig:
    """The configuration that settings make, checked, with plain values.

    Args:
        verb: that is to run.
        words: `key=value`, quoted as Hydra wants them.
        folder: of the user's own options; None: that of the command that runs, if one does.

    Raises:
        InputError: for a setting or an option that is not there, with the nearest one, and for a value of another kind.
    """
    with composing(folder):
        for word in words:
            group, _, name = word.partition("=")
            if name.rpartition("/")[2].startswith("_") and options(group):
                check_option(group, name)  # Hydra takes those that are not for choosing
        try:
            cfg = compose(verb, overrides=list(words))
        except (HydraException, OmegaConfBaseException) as error:
            raise _refusal(verb, words, error) from None
        free = [w for w in words if w.partition("=")[0] not in kinds.settings(verb) and "." in w.partition("=")[0]]
        if free:  # of options that build a class: their kinds are those of the defaults
            default = compose(verb, overrides=[w for w in words if w not in free])
            _check_kinds(_flat_of(default), _flat_of(cfg))
    return plain(verb, cfg)


def plain(verb: str, cfg: DictConfig) -> DictConfig:
    """A composed configuration without its schema, as a run folder holds it.

    Raises:
        InputError: for a number that is less than it may be.
    """
    kinds.check_least(verb, cfg)
    found = DictConfig(OmegaConf.to_container(cfg, resolve=False, enum_to_str=True))
    OmegaConf.set_struct(found, True)
    return found


def check_sweep(verb: str, words: Sequence[str], *, folder: Path | None = None) -> None:
    """Refuse settings and options that are not there, before any job of a sweep runs.

    Args:
        verb, folder: see `configuration`.
        words: as Hydra gets them, of which each may have several values.

    Raises:
        InputError: for the first one.
    """
    with composing(folder):
        own, chosen = groups(verb), []
        for word in words:
            key, _, value = word.partition("=")
            if key.lstrip("+") in own or (key.startswith("+") and options(key.lstrip("+"))):
                names = _swept(value)
                for name in names:
                    check_option(key.lstrip("+"), name)
                chosen += [f"{key}={name}" for name in names[:1]]  # the first job stands for all
        known = _known(verb, chosen)
        for word in words:
            key = word.partition("=")[0].lstrip("~")
            if not key.startswith("+") and key not in known and key not in own:
                raise unknown_name("setting", key, sorted(known))


def help_text(verb: str, words: Sequence[str], *, folder: Path | None = None) -> str:
    """The groups of a verb with their options, and its settings as the words make them."""
    with composing(folder):
        listed = "\n".join(f"{group}: {', '.join(options(group))}" for group in sorted(groups(verb)))
        settings = OmegaConf.to_yaml(configuration(verb, words, folder=folder)).strip()
    return (
        f"== Configuration groups ==\nOptions are chosen by group=option\n\n{listed}\n\n"
        f"== Config ==\nSettings are changed by setting=value\n\n{settings}\n\n"
        f"Powered by Hydra (https://hydra.cc), see {verb} --hydra-help"
    )


def _refusal(verb: str, words: Sequence[str], error: Exception) -> InputError:
    """What Hydra refuses, in one line with the nearest name."""
    own, chosen = groups(verb), []
    for word in words:
        key, _, value = word.partition("=")
        if key in own:
            try:
                check_option(key, value)
            except InputError as refusal:
                return refusal
            chosen.append(word)
    cause = error.__cause__ or error
    name = str(getattr(cause, "full_key", None) or "")
    known = _known(verb, chosen)
    typed = [word.partition("=")[0].lstrip("~") for word in words if not word.startswith("+")]
    strange = [key for key in typed if key not in known and key not in own]
    if strange or isinstance(cause, ConfigAttributeError | ConfigKeyError):
        return unknown_name("setting", strange[0] if strange else name, sorted(known))
    if isinstance(cause, ValidationError) and name in kinds.settings(verb):
        value = next((w.partition("=")[2] for w in words if w.partition("=")[0] == name), "null")
        default = known.get(name)
        return kinds.settings(verb)[name].refusal(name, value, "null" if default is None else default)
    why = f": {str(cause).splitlines()[0]}" if cause is not error else ""
    return InputError(" ".join(str(error).split()) + why)


def _known(verb: str, chosen: list[str]) -> dict[str, Any]:
    """The settings of a verb with these options, and their defaults."""
    return _flat_of(compose(verb, overrides=chosen))


def _flat_of(cfg: DictConfig) -> dict[str, Any]:
    return flat(OmegaConf.to_container(cfg, resolve=False))


def _swept(value: str) -> list[str]:
    """The names in `a,b` or `choice(a,b)`; none where another function of Hydra's makes them."""
    listed = re.fullmatch(r"(?:choice\()?([^()]*)\)?", value)
    return [name.strip() for name in listed[1].split(",")] if listed else []


def _check_kinds(known: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Refuse what is no number where the default is one, and what is neither true nor false where that is."""
    for name in known.keys() & asked.keys():
        default, value = known[name], asked[name]
        if value is None or not isinstance(default, bool | int | float):
            continue
        wanted = bool if isinstance(default, bool) else int if isinstance(default, int) else int | float
        if not isinstance(value, wanted) or isinstance(value, bool) != isinstance(default, bool):
            kind = bool if wanted is bool else int if wanted is int else float
            raise kinds.Setting(kind, False, None).refusal(name, value, default)


def check_no_shadows(folder: Path | None) -> None:
    """Refuse a user's folder one of whose options has the name of one of this package, which Hydra would take instead.

    Raises:
        InputError: if there is one.
    """
    if folder is None:
        return
    with composing(folder):
        sources = GlobalHydra.instance().config_loader().get_sources()
        own = [source for source in sources if source.provider == "main"]
    for file in sorted((*folder.glob("*.yaml"), *folder.glob("*/*.yaml"))):
        name = file.relative_to(folder).as_posix()
        if any(source.is_config(name) for source in own):
            raise InputError(f"{file} has the name of an option of selfspec, which would be used instead; rename it")


def known_settings(verb: str) -> set[str]:
    """The names that begin a setting of a verb: `model`, `n`, `searcher`."""
    with composing():
        return {str(key) for key in compose(verb)} | groups(verb)


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Every setting of a configuration by its whole name: `searcher.n_trials`."""
    found: dict[str, Any] = {}
    for key, value in tree.items() if isinstance(tree, dict) else ():
        found |= {f"{prefix}{key}": value} | flat(value, f"{prefix}{key}.")
    return found


def read_config(file: Path) -> DictConfig:
    """The configuration of a run, with classes named by where they are now: the run may be older than a move."""
    body = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    return DictConfig(_renamed(body, current))


def under_first_names(cfg: DictConfig) -> Any:
    """Settings as plain values, classes under their first names: that a class has moved makes no other search."""
    return _renamed(OmegaConf.to_container(cfg, resolve=True), first)


def _renamed(value: Any, rename: Callable[[str], str]) -> Any:
    if isinstance(value, dict):
        return {
            key: rename(item) if key == TARGET and isinstance(item, str) else _renamed(item, rename)
            for key, item in value.items()
        }
    return [_renamed(item, rename) for item in value] if isinstance(value, list) else value
