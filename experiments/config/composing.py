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
from collections.abc import Callable, Collection, Iterator, Sequence
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
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from experiments.config import kinds
from experiments.config.annotations import is_nested, members, passed_on
from experiments.config.schema import VERBS
from experiments.config.words import Typed
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
    """The groups that a verb chooses from: `model`, `stop`, `searcher`; each is a setting that holds settings."""
    with composing():
        return {name for name, kind in members(VERBS[verb], None)[0].items() if is_nested(kind) and options(name)}


def options(group: str) -> list[str]:
    """The option names of a config group, such as the stop rules; `folder/name` for options in its folders."""
    with composing():
        # the sources themselves: Hydra's loader copies all that it has read whenever it lists a group
        sources = [s for s in GlobalHydra.instance().config_loader().get_sources() if s.is_group(group)]
        names = {n for source in sources for n in source.list(group, ObjectType.CONFIG) if not n.startswith("_")}
        folders = {f for source in sources for f in source.list(group, ObjectType.GROUP)}
        return sorted([*names, *(f"{f}/{name}" for f in folders for name in options(f"{group}/{f}"))])


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
    """The checked configuration that the words of a verb describe, with plain values and without references.

    Hydra composes the options once. The settings are then read by their kinds, so that text stays as it was typed.

    Args:
        verb: the verb to run.
        words: settings `key=value` as they were typed.
        folder: the user's folder of options; None means the folder of the running command, if any.

    Raises:
        InputError: for an unknown setting or option, with the nearest known one, and for a value of a wrong kind.
    """
    with composing(folder):
        cfg = unchecked(verb, [as_skip(verb, word) for word in words])
        try:
            tree = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
        except OmegaConfBaseException as error:
            raise _told(error) from None
    found = kinds.read(tree, VERBS[verb], "")
    for name in kinds.missing(found, VERBS[verb]):
        raise InputError(f"{name} is not set; add it to the option's file")
    return as_config(found)


def as_skip(verb: str, word: str) -> str:
    """`drafter=RUN` as `skip=RUN`: a trained draft is a plan, like that of a search. For a search: `trained=RUN`."""
    key, _, value = word.partition("=")
    names = {"evaluate": "skip", "decode": "skip", "search": "trained", "serve-sim": "skip"}
    is_run = verb in names and key == "drafter" and value not in options("drafter")
    return f"{names[verb]}={value}" if is_run and ("/" in value or value[:2] == "20") else word


def as_config(tree: Any) -> DictConfig:
    """Plain values as a configuration that takes no further names."""
    found = DictConfig(_literal(tree))
    OmegaConf.set_struct(found, True)
    return found


def unchecked(verb: str, words: Sequence[str]) -> DictConfig:
    """The composed options of a verb, with the settings of these words; values of YAML files are not checked."""
    own = groups(verb)
    chosen = [word for word in words if is_choice(word, own)]
    for word in chosen:
        group, _, name = word.lstrip("+").partition("=")
        if group.startswith("~"):
            raise InputError(f"{word}: {group[1:]} cannot be left out; choose one of {', '.join(options(group[1:]))}")
        if options(group):
            check_option(group, name)
    try:
        cfg = compose(verb, overrides=chosen)
    except (HydraException, OmegaConfBaseException) as error:
        raise _told(error) from None
    for word in words:
        if word not in chosen:
            _put(cfg, verb, word)
    return cfg


def is_choice(word: str, own: Collection[str]) -> bool:
    """Whether a word chooses an option: `stop=fixed`, `+group=name`."""
    key = word.partition("=")[0]
    group = key.lstrip("+~").partition("@")[0]
    return group in own or "/" in group or (key.startswith("+") and bool(options(group)))


def split(word: str) -> tuple[str, str]:
    """The name of a setting and its value, without Hydra's marks for adding and leaving out.

    Raises:
        InputError: for a word that is neither `key=value` nor `~key`.
    """
    key, equals, value = word.partition("=")
    if not equals and not word.startswith("~"):
        raise InputError(f"cannot read {word!r}; settings are written key=value (in quotes where there are spaces)")
    return key.lstrip("+~"), value


def _put(cfg: DictConfig, verb: str, word: str) -> None:
    """Set what a word says."""
    key, value = split(word)
    tree = OmegaConf.to_container(cfg, resolve=False)
    kind = kind_of(verb, tree, key)
    if word.startswith("~"):
        place, _, name = key.rpartition(".")
        if not place or members(kind_of(verb, tree, place), None)[1] is None:
            raise InputError(f"{word}: {key} is a setting and cannot be left out; give it another value")
        with open_dict(cfg):
            OmegaConf.select(cfg, place).pop(name, None)
        return
    try:
        found = kinds.from_word(value, kind, key)
    except kinds.KindError as error:
        if error.name != key:
            raise
        raise InputError(f"{error}; its default is {kinds.shown(flat(tree).get(key))}") from None
    before = tree
    for part in key.split("."):
        before = before.get(part) if isinstance(before, dict) else None
    OmegaConf.update(cfg, key, _over(before, _literal(found)), merge=False, force_add=True)


def _over(before: Any, new: Any) -> Any:
    """A new value in the place of another: maps are merged, also those below; all else is replaced."""
    if not (isinstance(before, dict) and isinstance(new, dict)):
        return new
    return {**before, **{key: _over(before.get(key), value) for key, value in new.items()}}


def kind_of(verb: str, tree: Any, key: str) -> Any:
    """The kind of the setting `key` of a verb.

    Args:
        verb: the verb.
        tree: its settings as plain values, with references.
        key: whole name of the setting.

    Raises:
        InputError: if there is no such setting, with the nearest one.
    """
    kind, node, before = VERBS[verb], tree, ""
    for part in key.split("."):
        known, others = members(kind, node)
        node = node.get(part) if isinstance(node, dict) else None
        if part not in known and others is None:
            near = [f"{before}{name}" for name in known if not name.startswith("_")]
            raise unknown_name("setting", key, near if before else sorted(flat(tree)))
        kind, before = known.get(part, others), f"{before}{part}."
    group = key.partition(".")[0]
    return dict(passed_on(tree.get(group), (group,))).get(key, Any) if kind is Any else kind


def _literal(value: Any) -> Any:
    """The value in the form in which OmegaConf takes text as it is: `${` begins a reference there."""
    if isinstance(value, dict):
        return {key: _literal(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_literal(inner) for inner in value]
    if isinstance(value, str) and not isinstance(value, Typed):
        return re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    return str(value) if isinstance(value, Typed) else value


def _told(error: Exception) -> InputError:
    """Hydra's or OmegaConf's error in one line."""
    cause = error.__cause__
    why = f": {str(cause).splitlines()[0]}" if cause else ""
    return InputError(" ".join(str(error).split()) + why)


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
    body = OmegaConf.to_container(OmegaConf.load(file), resolve=False)  # a run holds no references, but text may
    return DictConfig(_literal(_renamed(body, current)))


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
