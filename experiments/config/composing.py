"""Configurations and their options: this package's `conf`, then the user's own folder (`--config-dir`).

Both lie on Hydra's search path, which answers which groups exist, which options a group has, and what an option sets.
A new option is a new file; no list names it.

Python files beside the user's YAML can be imported: `_target_: rules.Patient` names a class in `rules.py` of that
folder. The same holds for the current folder. Installed modules come first, then the user's folder, then the current
folder, so that no file there replaces an installed module.
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
PROVIDER = "command-line"  # Hydra's own name for the source of --config-dir


def split_config_dir(words: Sequence[str]) -> tuple[Path | None, list[str]]:
    """The folder that `--config-dir` names among the words of a command, and the other words.

    Raises:
        InputError: if `--config-dir` names no folder, or a folder that does not exist.
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
    """The words that name the folder on a command line; empty for None."""
    return [] if folder is None else [f"{FLAGS[0]}={folder}"]


def make_importable(folder: Path | None) -> None:
    """Make the Python files of the user's folder and of the current one importable, after all installed modules."""
    for place in (folder, Path.cwd()):
        if place is not None and str(place) not in sys.path:
            sys.path.append(str(place))


@contextmanager
def composing(folder: Path | None = None) -> Iterator[None]:
    """A context in which configurations can be composed and options listed, also within a job of Hydra's.

    Args:
        folder: the user's folder; None means the folder of the running command, if any.
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
    """The user's folder of the running command; None if it has none."""
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
    """The option names of a config group, such as the stop rules; `folder/name` for options in its folders."""
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
    # a copy without a parent, so that it can stand elsewhere in a configuration
    return DictConfig(OmegaConf.create(OmegaConf.to_yaml(alone[group])))


def check_option(group: str, name: str) -> None:
    """Refuse a name that is no option of the group.

    Raises:
        InputError: for such a name, with the nearest option.
    """
    known = options(group)
    if name not in known:
        raise unknown_name({"stop": "stop rule", "data": "data set"}.get(group, group), name, known)


def configuration(verb: str, words: Sequence[str], *, folder: Path | None = None) -> DictConfig:
    """The checked configuration that the words of a verb describe, with plain values.

    Args:
        verb: the verb to run.
        words: settings `key=value`, quoted for Hydra.
        folder: the user's folder of options; None means the folder of the running command, if any.

    Raises:
        InputError: for an unknown setting or option, with the nearest known one, and for a value of a wrong kind.
    """
    with composing(folder):
        for word in words:
            group, _, name = word.partition("=")
            if name.rpartition("/")[2].startswith("_") and options(group):
                check_option(group, name)  # Hydra accepts names that are not for choosing
        try:
            cfg = compose(verb, overrides=list(words))
        except (HydraException, OmegaConfBaseException) as error:
            raise _refusal(verb, words, error) from None
        free = [w for w in words if w.partition("=")[0] not in kinds.settings(verb) and "." in w.partition("=")[0]]
        if free:  # settings of options that build a class: their default values tell their kinds
            default = compose(verb, overrides=[w for w in words if w not in free])
            _check_kinds(_flat_of(default), _flat_of(cfg))
    return plain(verb, cfg)


def plain(verb: str, cfg: DictConfig) -> DictConfig:
    """A composed configuration without its schema, in the form that a run folder holds.

    Raises:
        InputError: for a number below the least allowed one.
    """
    kinds.check_least(verb, cfg)
    found = DictConfig(OmegaConf.to_container(cfg, resolve=False, enum_to_str=True))
    OmegaConf.set_struct(found, True)
    return found


def check_sweep(verb: str, words: Sequence[str], *, folder: Path | None = None) -> None:
    """Refuse unknown settings and options before any job of a sweep runs.

    Args:
        verb, folder: see `configuration`.
        words: the words that Hydra gets; a word may hold several values.

    Raises:
        InputError: for the first unknown setting or option.
    """
    with composing(folder):
        own, chosen = groups(verb), []
        for word in words:
            key, _, value = word.partition("=")
            if key.lstrip("+") in own or (key.startswith("+") and options(key.lstrip("+"))):
                names = _swept(value)
                for name in names:
                    check_option(key.lstrip("+"), name)
                chosen += [f"{key}={name}" for name in names[:1]]  # checks the first job instead of all jobs
        known = _known(verb, chosen)
        for word in words:
            key = word.partition("=")[0].lstrip("~")
            if not key.startswith("+") and key not in known and key not in own:
                raise unknown_name("setting", key, sorted(known))


def help_text(verb: str, words: Sequence[str], *, folder: Path | None = None) -> str:
    """The groups of a verb with their options, and its settings under these words."""
    with composing(folder):
        listed = "\n".join(f"{group}: {', '.join(options(group))}" for group in sorted(groups(verb)))
        settings = OmegaConf.to_yaml(configuration(verb, words, folder=folder)).strip()
    return (
        f"== Configuration groups ==\nOptions are chosen by group=option\n\n{listed}\n\n"
        f"== Config ==\nSettings are changed by setting=value\n\n{settings}\n\n"
        f"Powered by Hydra (https://hydra.cc), see {verb} --hydra-help"
    )


def _refusal(verb: str, words: Sequence[str], error: Exception) -> InputError:
    """Hydra's error as an InputError of one line, with the nearest name."""
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
    """The settings of a verb with these options, by whole name, with their default values."""
    return _flat_of(compose(verb, overrides=chosen))


def _flat_of(cfg: DictConfig) -> dict[str, Any]:
    return flat(OmegaConf.to_container(cfg, resolve=False))


def _swept(value: str) -> list[str]:
    """The names in `a,b` or `choice(a,b)`; empty for other functions of Hydra's."""
    listed = re.fullmatch(r"(?:choice\()?([^()]*)\)?", value)
    return [name.strip() for name in listed[1].split(",")] if listed else []


def _check_kinds(known: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Refuse a value that is no number if the default is a number, and likewise for true and false."""
    for name in known.keys() & asked.keys():
        default, value = known[name], asked[name]
        if value is None or not isinstance(default, bool | int | float):
            continue
        wanted = bool if isinstance(default, bool) else int if isinstance(default, int) else int | float
        if not isinstance(value, wanted) or isinstance(value, bool) != isinstance(default, bool):
            kind = bool if wanted is bool else int if wanted is int else float
            raise kinds.Setting(kind, False, None).refusal(name, value, default)


def check_no_shadows(folder: Path | None) -> None:
    """Refuse a user's option with the name of an option of this package: Hydra would use the package's.

    Raises:
        InputError: if the folder holds such an option.
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
    """The first parts of the names of a verb's settings: `model`, `n`, `searcher`."""
    with composing():
        return {str(key) for key in compose(verb)} | groups(verb)


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """The settings of a configuration by whole name: `searcher.n_trials`."""
    found: dict[str, Any] = {}
    for key, value in tree.items() if isinstance(tree, dict) else ():
        found |= {f"{prefix}{key}": value} | flat(value, f"{prefix}{key}.")
    return found


def read_config(file: Path) -> DictConfig:
    """The configuration of a run with the current names of classes; classes may have moved since the run."""
    body = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    return DictConfig(_renamed(body, current))


def under_first_names(cfg: DictConfig) -> Any:
    """Settings as plain values with the first names of classes, so that a moved class makes no other search."""
    return _renamed(OmegaConf.to_container(cfg, resolve=True), first)


def _renamed(value: Any, rename: Callable[[str], str]) -> Any:
    if isinstance(value, dict):
        return {
            key: rename(item) if key == TARGET and isinstance(item, str) else _renamed(item, rename)
            for key, item in value.items()
        }
    return [_renamed(item, rename) for item in value] if isinstance(value, list) else value
