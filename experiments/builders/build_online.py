"""From configuration to a draft that changes while text is decoded, and to what an earlier stream has learnt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from experiments.builders import build
from experiments.config import kinds
from experiments.config.composing import option
from experiments.config.schema_groups import Built
from experiments.results.find_runs import list_runs
from experiments.results.locate_draft import locate_draft
from experiments.results.online_files import ONLINE, read_learnt
from search.online.set_searcher import Tools
from selfspec.drafters.online import OnlineDraft
from selfspec.drafters.spec import DraftSpec
from selfspec.errors import InputError
from selfspec.measure.stopwatch import Stopwatch
from selfspec.models.load import Loaded

PORTFOLIO = "portfolio"
_OF_ARMS = ("skip", "lookup", "stop", "tree", "drafter")  # settings of an arm of a portfolio


def is_online(settings: DictConfig | None) -> bool:
    """Whether the settings of the group `online` name a searcher."""
    return settings is not None and settings.get("searcher") is not None


def online_by_name(asked: str | Mapping[str, Mapping[str, Any]]) -> DictConfig:
    """The settings of an option of the group `online`, with its searcher's settings or others: `{swift: {window: 32}}`.

    Raises:
        InputError: if there is no such option or setting, or several are named.
    """
    options = {asked: {}} if isinstance(asked, str) else dict(asked)
    if len(options) != 1:
        raise InputError(f"online={options} names {len(options)} searchers; give one, as {{swift: {{window: 32}}}}")
    ((name, changed),) = options.items()
    settings = option("online", name)
    if changed:
        merged = OmegaConf.to_container(OmegaConf.merge(settings.searcher, dict(changed)))
        settings.searcher = kinds.read(merged, Built, f"online.{name}")
    return settings


def online_draft(
    cfg: DictConfig, settings: DictConfig, loaded: Loaded, spec: DraftSpec, stopwatch: Stopwatch
) -> OnlineDraft:
    """The drafter that `settings` of the group `online` describe; it begins with `spec`.

    Raises:
        InputError: if the searcher cannot be made, or there is nothing to start from.
    """
    searcher = build.instance(settings.searcher)
    arms = {
        name: _arm_spec(cfg, loaded, name, {} if body is None else dict(body))
        for name, body in (getattr(searcher, "arms", None) or {}).items()
    }
    if spec.lookup == "only" and settings.name != PORTFOLIO:
        raise InputError(
            f"lookup=only leaves online={settings.name} nothing to choose; take lookup=front, or leave it out"
        )
    made = searcher.begin(Tools(loaded.decoder, spec, stopwatch, arms))
    if settings.start:
        made.begin_from(_learnt(str(settings.start), str(settings.name), Path(cfg.paths.outputs)))
    return OnlineDraft(made)


def around(settings: DictConfig, spec: DraftSpec) -> DraftSpec:
    """The spec whose lookup stands before the online draft: none before a portfolio, whose arm it is."""
    return replace(spec, lookup=None, lookup_settings={}) if settings.name == PORTFOLIO else spec


def facts_of(settings: DictConfig) -> dict[str, Any]:
    """The settings as plain values, for records."""
    found = OmegaConf.to_container(settings, resolve=True)
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}


def _learnt(word: str, name: str, outputs: Path) -> Mapping[str, Any]:
    """The state of the searcher `name` in a run that `word` names, or in a file.

    Raises:
        InputError: if there is none.
    """
    path = Path(word).expanduser()
    if not path.exists():
        runs = [run for run in list_runs(word, outputs) if (run.path / ONLINE).is_file()]
        if not runs:
            raise InputError(
                f"online.start={word}: no run or file with {ONLINE}; name one of `selfspec evaluate online=...`"
            )
        path = runs[0].path
    file = path / ONLINE if path.is_dir() else path
    known = read_learnt(file)
    same = [body["state"] for body in known.values() if body["searcher"] == name]
    if not same:
        others = ", ".join(sorted({str(body["searcher"]) for body in known.values()}))
        raise InputError(f"online.start={word} holds what online={others} learnt, and nothing of online={name}")
    state: Mapping[str, Any] = same[0]
    return state


def _arm_spec(cfg: DictConfig, loaded: Loaded, name: str, settings: Mapping[str, Any]) -> DraftSpec:
    """The draft of an arm of a portfolio; what it does not name is the run's."""
    for key in settings:
        if key not in _OF_ARMS:
            raise InputError(
                f"online.searcher.arms.{name} has {key}; an arm of a portfolio has {', '.join(_OF_ARMS)}. What is "
                "fitted is searched first, and then named by skip=RUN"
            )
    draft = locate_draft(str(settings.get("skip", "none")), Path(cfg.paths.outputs))
    lookup = settings.get("lookup")
    if lookup == "searched":
        lookup = build.searched(draft).get("lookup")
    asked = settings.get("stop")
    policy = build.stop(cfg, draft) if asked is None else build.stop_by_name(asked, draft)
    drafter = build.drafter_by_name(str(settings["drafter"])) if "drafter" in settings else None
    tree = build.tree_by_name(str(settings["tree"])) if "tree" in settings else None
    return build.spec(cfg, draft, loaded, policy, lookup=lookup, drafter=drafter, tree=tree)
