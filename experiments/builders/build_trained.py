"""The trained draft that a search or an ablation tries after the other parts: one that is there already.

A search trains nothing. It takes the newest training of the model's own weights, or the one that the run names, and
judges it on calibration prompts that the training has not seen.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from experiments.builders.build_costs import given_table
from experiments.builders.build_ladder import Part
from experiments.results.locate_draft import locate_draft
from experiments.results.run_facts import read_provenance
from search.dimensions import Choice, Dimension
from search.draft_of_point import Drafts
from search.goal import AGREED, Goal
from search.ladder import LOOKUP
from search.point import TRAINED
from selfspec.data.prompts import Prompt
from selfspec.data.same_prompts import example_digests
from selfspec.drafters.spec import DraftSpec
from selfspec.drafters.spec_files import load_spec
from selfspec.errors import InputError
from selfspec.models.load import Loaded
from selfspec.skipping.plan_files import NAME as PLAN

log = logging.getLogger(__name__)

AUTO = "auto"
OF_LAYERS = ("precision", "head", "draft")  # dimensions of the model's own layers, which a trained head replaces


@dataclass(frozen=True, slots=True)
class Trained:
    """A training of this model.

    Attributes:
        name: id of the run.
        path: its folder.
        spec: its draft.
        seen: digests of the prompts that it was trained on.
    """

    name: str
    path: Path
    spec: DraftSpec
    seen: frozenset[str]

    def unseen_first(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """The prompts, those first that it was not trained on."""
        return sorted(prompts, key=self.has_seen)

    def has_seen(self, prompt: Prompt) -> bool:
        """Whether it was trained on the prompt."""
        return not self.seen.isdisjoint(example_digests(prompt.example))


def find_trained(cfg: DictConfig, loaded: Loaded, drafts: Drafts, goal: Goal) -> Trained | None:
    """The training that a search may try; None if there is none, which the log explains.

    Raises:
        InputError: if the run names a training that cannot be tried.
    """
    asked = cfg.get(TRAINED)
    if not asked:
        return None
    if why := _impossible(cfg, drafts, goal):
        if asked != AUTO:
            raise InputError(f"trained={asked} cannot be tried: {why}; leave one of them out")
        log.info("no trained draft is tried: %s", why)
        return None
    return named_trained(cfg, loaded)


def named_trained(cfg: DictConfig, loaded: Loaded) -> Trained | None:
    """The training that `cfg.trained` names, or the newest one of these weights; None if there is none.

    Raises:
        InputError: if the named one is no training of these weights.
    """
    outputs = Path(cfg.paths.outputs)
    if cfg.trained != AUTO:
        return _opened(Path(locate_draft(str(cfg.trained), outputs)), loaded)
    for file in sorted(outputs.glob(f"train/*/*/{PLAN}"), key=lambda file: file.parent.name, reverse=True):
        try:
            return _opened(file.parent, loaded)
        except InputError:  # of other weights, or damaged: the next one may fit
            continue
    of = f"model={cfg.model.name}"
    log.info(
        "there is no trained draft of these weights in %s/train, which may pay more: "
        "selfspec collect %s data=%s; selfspec train %s drafter=eagle",
        *(outputs, of, cfg.data.name, of),
    )
    return None


def pinned(cfg: DictConfig, trained: Trained | None) -> DictConfig:
    """The configuration that names this training, so that a resumed run takes the same one."""
    if TRAINED not in cfg:  # a run of an earlier version
        return cfg
    found = OmegaConf.merge(cfg, {TRAINED: str(trained.path) if trained else None})
    assert isinstance(found, DictConfig)
    return found


def refuse_seen(cfg: DictConfig, trained: Trained, n_seen: int) -> None:
    """Tell that too few prompts are left to judge a trained draft on.

    Raises:
        InputError: if the run names it.
    """
    why = (
        f"{n_seen} of the calibration prompts of search and finals are those that it was trained on; give more, "
        "as by data.calibration_n where the data has that, or fewer by objective.n_prompts and finals.n_prompts"
    )
    if cfg.trained != AUTO:
        raise InputError(f"trained={cfg.trained} cannot be judged: {why}")
    log.info("the trained draft %s is not tried: %s", trained.name, why)


def with_trained(
    trained: Trained, drafts: Drafts, dimensions: Sequence[Dimension], parts: Sequence[Part]
) -> tuple[Drafts, tuple[Dimension, ...], list[Part]]:
    """Drafts, dimensions and parts of a ladder with a trained draft as its last part.

    It takes the place of the model's layers, so that these have no precision, head or bridges of their own beside it.
    """
    lookup = next((d for d in dimensions if d.name == LOOKUP and d.domain.holds("front") and not d.when), None)
    when = {LOOKUP: (None, "front")} if lookup else {}
    choice = Dimension(TRAINED, Choice((None, trained.name)), None, when)
    others = [replace(d, when={**d.when, TRAINED: (None,)}) if d.name in OF_LAYERS else d for d in dimensions]
    first = [lookup] if lookup else []  # each dimension comes after those that it depends on
    found = (*first, choice, *(d for d in others if d is not lookup))
    part: Part = {**({LOOKUP: "front"} if lookup else {}), TRAINED: trained.name}
    return replace(drafts, trained={trained.name: trained.spec}), found, [*parts, part]


def _opened(path: Path, loaded: Loaded) -> Trained:
    spec = load_spec(path, loaded.decoder, loaded.facts)
    if spec.plan.trained is None:
        raise InputError(f"trained={path} is no training, but a draft that skips; name the folder of a selfspec train")
    try:
        seen = read_provenance(path)["run"].get("seen") or ()
    except ValueError as error:
        raise InputError(f"trained={path}: {error}, so its training prompts are unknown; train again") from None
    return Trained(path.name, path, spec, frozenset(seen))


def _impossible(cfg: DictConfig, drafts: Drafts, goal: Goal) -> str | None:
    """Why no trained draft can be in this search."""
    if drafts.drafter or drafts.tree:
        return f"it drafts chains itself, and the run has {'a drafter of its own' if drafts.drafter else 'trees'}"
    if drafts.lookup == "beside":
        return "it has no branch beside it, as lookup=beside"
    if goal.name == AGREED:
        return "objective=matchness scores the model's own layers"
    if given_table(cfg) is not None:
        return f"costs={cfg.costs.name} does not hold what it costs"
    return None
