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
from omegaconf import DictConfig, OmegaConf

from experiments.config.composing import configuration, options
from experiments.config.kinds import missing, read
from experiments.config.schema import VERBS as VERBS_OF
from selfspec.errors import InputError
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


@cache
def own_groups(verb: str) -> list[str]:
    """The groups whose options are tried with this verb: each with the first two verbs that have it, of those with
    most groups."""
    order = sorted(VERBS, key=lambda name: -len(groups(name)))
    return [group for group in groups(verb) if verb in [name for name in order if group in groups(name)][:2]]


@cache
def composed(verb: str) -> list[tuple[str, Any]]:
    """The verb's settings under each option of its own groups, with the word that chooses it: `stop=fixed`."""
    words = [f"{group}={option}" for group in own_groups(verb) for option in options(group)]
    words = words or [f"{group}={config(verb).hydra.runtime.choices[group]}" for group in groups(verb)[:1]]
    return [(word, settings(config(verb, word))) for word in words]


def targets(tree: Any) -> Iterator[dict[str, Any]]:
    """The parts of a configuration that name what they build."""
    if isinstance(tree, dict):
        if "_target_" in tree:
            yield tree
        for value in tree.values():
            yield from targets(value)


def test_every_file_starts_with_a_comment_that_says_when_to_choose_it() -> None:
    first = {path: path.read_text(encoding="utf-8").splitlines()[0] for path in FILES}
    assert {path: line for path, line in first.items() if not re.match(r"# \S.{8,}", line)} == {}


def test_every_file_is_reached_by_a_verb() -> None:
    used = {group for verb in VERBS for group in groups(verb)} | {"published"}  # whose figures are data, not choices
    parts = {path.relative_to(CONF): path.relative_to(CONF).parts for path in FILES if not path.stem.startswith("_")}
    assert [str(path) for path, (top, *below) in parts.items() if below and top not in used] == []


@pytest.mark.parametrize("verb", VERBS)
class TestOptions:
    def test_every_one_composes_and_leaves_nothing_unresolved(self, verb: str) -> None:
        assert [word for word, tree in composed(verb) if "${" in str(tree)] == []

    def test_every_one_sets_what_the_schema_knows(self, verb: str) -> None:
        assert [word for word, tree in composed(verb) if read(tree, VERBS_OF[verb], "") != tree] == []
        assert {word: lost for word, tree in composed(verb) if (lost := list(missing(tree, VERBS_OF[verb])))} == {}

    def test_one_that_has_a_name_is_called_by_it(self, verb: str) -> None:
        words = [(word.split("="), tree) for word, tree in composed(verb)]
        named = {(group, option): (tree.get(group) or {}).get("name", option) for (group, option), tree in words}
        assert {place: name for place, name in named.items() if name != place[1]} == {}

    def test_everything_they_build_is_there_and_takes_the_settings(self, verb: str) -> None:
        for _, tree in composed(verb):
            for part in targets(tree):
                built = get_object(part["_target_"])
                given = {key: value for key, value in part.items() if not key.startswith("_")}
                inspect.signature(built).bind_partial(**given)  # a TypeError names the setting

    def test_a_configuration_survives_being_stored(self, verb: str) -> None:
        def stored(tree: Any) -> Any:
            return OmegaConf.to_container(OmegaConf.create(OmegaConf.to_yaml(OmegaConf.create(tree))))

        assert [word for word, tree in composed(verb) if stored(tree) != tree] == []


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
    ran = command(verb, "--help", "all")
    assert ran.status == 0, ran.err
    return ran.out


def test_every_verb_is_in_the_usage() -> None:
    assert [verb for verb in VERBS if f"\n  {verb} " not in command().out] == []


def test_files_that_begin_with_an_underscore_are_no_options() -> None:
    hidden = {path.stem for path in FILES if path.stem.startswith("_")}
    assert hidden and not hidden & {name for path in CONF.iterdir() if path.is_dir() for name in options(path.name)}


def test_a_setting_may_be_called_like_a_folder_of_conf() -> None:
    assert configuration("report", ["published=swift"]).published == "swift"


def test_a_setting_that_an_option_passes_on_has_the_kind_of_the_class() -> None:
    cfg = configuration("decode", ["data=jsonl", "data.path=1_0", "data.prompt_field=2e3", "prompt=${x}"])
    assert cfg.data.task.path == "1_0" and cfg.data.task.prompt_field == "2e3" and cfg.prompt == "${x}"
    with pytest.raises(InputError, match=r"data.calibration_fraction=null was asked for, but it must be a number"):
        configuration("decode", ["data=jsonl", "data.calibration_fraction=null"])


def test_a_global_option_sets_all_that_it_says() -> None:
    # What the primary says of itself must not win over a recipe that was chosen.
    lost = {}
    for path in FILES:
        if path.read_text(encoding="utf-8").startswith("# @package _global_"):
            group, name = path.parent.relative_to(CONF).as_posix(), path.stem
            said = OmegaConf.to_container(OmegaConf.load(path))
            assert isinstance(said, dict)
            said.pop("defaults", None)
            for verb in (v for v in VERBS if group in groups(v)):
                cfg = config(verb, f"{group}={name}")
                lost |= {f"{verb} {group}={name}: {key}": value for key, value in flat(said) if at(cfg, key) != value}
    assert lost == {}


def flat(body: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in body.items():
        yield from flat(value, f"{before}{key}.") if isinstance(value, dict) else [(f"{before}{key}", value)]


def at(cfg: DictConfig, key: str) -> Any:
    found = OmegaConf.select(cfg, key)
    return OmegaConf.to_container(found) if OmegaConf.is_config(found) else found


def test_a_typed_map_is_merged_and_its_lists_replace() -> None:
    cfg = configuration("search", ["draft=auto", "space={precision: [same, int8], stop.max_draft: {low: 1, high: 4}}"])
    assert cfg.space["precision"] == ["same", "int8"] and cfg.space["stop.max_draft"]["high"] == 4
    assert cfg.space["memory"]["values"] == [0, 8192]
