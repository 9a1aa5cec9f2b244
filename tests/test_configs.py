"""Configuration: whatever a user may choose composes, means what it is called, and fits what it is handed to."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from hydra.utils import get_object
from omegaconf import MISSING, DictConfig, OmegaConf

from experiments.config.composing import options
from tests.commands import command

CONF = Path(__file__).parents[1] / "conf"
FILES = sorted(CONF.rglob("*.yaml"))
VERBS = sorted(path.stem for path in CONF.glob("*.yaml") if not path.stem.startswith("_"))


@cache
def config(verb: str, *overrides: str) -> DictConfig:
    """The verb's configuration, with Hydra's own."""
    with initialize_config_module("conf", version_base="1.3"):
        return compose(verb, overrides=list(overrides), return_hydra_config=True)


def settings(cfg: DictConfig) -> Any:
    """What a verb gets, with every reference resolved."""
    return OmegaConf.to_container(OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"]), resolve=True)


def groups(verb: str) -> list[str]:
    """The config groups that a verb's defaults name."""
    return sorted(group for group in config(verb).hydra.runtime.choices if not group.startswith("hydra/"))


PAIRS = [(verb, group) for verb in VERBS for group in groups(verb)]


def composed(verb: str, group: str) -> Iterator[tuple[str, Any]]:
    """The verb's settings under each option of a group."""
    for option in options(group):
        yield option, settings(config(verb, f"{group}={option}"))


def targets(tree: Any) -> Iterator[dict[str, Any]]:
    """The parts of a configuration that name what they build."""
    if isinstance(tree, dict):
        if "_target_" in tree:
            yield tree
        for value in tree.values():
            yield from targets(value)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(CONF).as_posix())
class TestFile:
    def test_starts_with_a_comment_that_says_when_to_choose_it(self, path: Path) -> None:
        first = path.read_text(encoding="utf-8").splitlines()[0]
        assert re.match(r"# \S.{8,}", first), first

    def test_is_reached_by_a_verb(self, path: Path) -> None:
        *folders, _ = path.relative_to(CONF).parts
        group = folders[0] if folders else "."
        if group not in (".", "published") and not path.stem.startswith("_"):  # published figures are data, not choices
            assert [verb for verb, used in PAIRS if used == group] != [], f"no verb has the group {group}"


@pytest.mark.parametrize(("verb", "group"), PAIRS, ids=lambda name: name)
class TestGroup:
    def test_every_option_composes_and_leaves_nothing_unresolved(self, verb: str, group: str) -> None:
        assert [option for option, tree in composed(verb, group) if "${" in str(tree)] == []

    def test_every_option_sets_what_the_schema_knows(self, verb: str, group: str) -> None:
        assert [option for option, tree in composed(verb, group) if MISSING in str(tree)] == []

    def test_an_option_that_has_a_name_is_called_by_it(self, verb: str, group: str) -> None:
        named = {option: (tree.get(group) or {}).get("name", option) for option, tree in composed(verb, group)}
        assert [(option, name) for option, name in named.items() if name != option] == []

    def test_everything_it_builds_is_there_and_takes_the_settings(self, verb: str, group: str) -> None:
        for _, tree in composed(verb, group):
            for part in targets(tree):
                built = get_object(part["_target_"])
                given = {key: value for key, value in part.items() if not key.startswith("_")}
                inspect.signature(built).bind_partial(**given)  # a TypeError names the setting

    def test_a_configuration_survives_being_stored(self, verb: str, group: str) -> None:
        for _, tree in composed(verb, group):
            assert OmegaConf.to_container(OmegaConf.create(OmegaConf.to_yaml(OmegaConf.create(tree)))) == tree


@pytest.mark.parametrize("verb", VERBS)
class TestHelp:
    def test_shows_every_option_that_can_be_chosen(self, verb: str) -> None:
        shown = dict(re.findall(r"^([\w/]+): (.+)$", _help(verb).partition("== Config ==")[0], re.MULTILINE))
        for group in groups(verb):
            names = shown[group].split(", ")
            for nested in (other for other in shown if other.startswith(f"{group}/")):
                folder = nested.removeprefix(f"{group}/")
                names += [f"{folder}/{name}" for name in shown[nested].split(", ") if not name.startswith("_")]
            assert sorted(name for name in names if not name.startswith("_")) == options(group)

    def test_lists_the_groups_of_the_verb_alone(self, verb: str) -> None:
        shown = re.findall(r"^([\w/]+): ", _help(verb).partition("== Config ==")[0], re.MULTILINE)
        assert sorted(shown) == groups(verb)

    def test_shows_every_setting(self, verb: str) -> None:
        text = re.search(r"== Config ==\n[^\n]+\n(.*?)\n\nPowered by", _help(verb), re.DOTALL)
        assert text is not None
        shown = OmegaConf.create(text[1])
        assert settings(shown) == settings(config(verb))

    def test_its_first_line_is_a_command(self, verb: str) -> None:
        assert (CONF / f"{verb}.yaml").read_text().startswith(f"# selfspec {verb}")


@cache
def _help(verb: str) -> str:
    ran = command(verb, "--help")
    assert ran.status == 0, ran.err
    return ran.out


def test_every_verb_is_in_the_usage() -> None:
    assert [verb for verb in VERBS if f"\n  {verb} " not in command().out] == []


def test_files_that_begin_with_an_underscore_are_no_options() -> None:
    hidden = {path.stem for path in FILES if path.stem.startswith("_")}
    assert hidden and not hidden & {name for path in CONF.iterdir() if path.is_dir() for name in options(path.name)}
