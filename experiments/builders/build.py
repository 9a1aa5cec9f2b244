"""From configuration to objects: builders of the parts that several verbs share. They pass plain arguments on."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from experiments.config import kinds
from experiments.config.composing import as_config, option
from experiments.config.registry_source import RegistrySource
from experiments.config.schema_groups import Built
from experiments.results.locate_draft import locate_predictor
from experiments.tracking import NoTracker, SafeTracker, Tracker, WandbTracker
from experiments.tracking.public import public
from selfspec.data.prompts import Prompt, encode, ends_with_any
from selfspec.data.task import Example, Part, select
from selfspec.drafters.small_model import check_same_tokens
from selfspec.drafters.spec import DraftSpec
from selfspec.drafters.spec_files import find_draft, load_spec, read_draft
from selfspec.drafters.tree_shapes import TreeShape
from selfspec.engine.decode import Ending
from selfspec.engine.sampling import Sampling
from selfspec.errors import InputError
from selfspec.measure.phases import Phases, unwatched
from selfspec.models.load import Loaded, load, vocabulary
from selfspec.models.locate import locate
from selfspec.records import provenance, run_files
from selfspec.records.content_cache import ContentCache
from selfspec.skipping.plan import DraftPlan
from selfspec.stopping import PauseWhenUnprofitable, StopPolicy, StopRule
from selfspec.targets import TARGET

log = logging.getLogger(__name__)

SMALL_MODEL = "selfspec.drafters.small_model.SmallModel"


def instance(cfg: DictConfig) -> Any:
    """The object that `_target_` names; a mistake in its settings raises an InputError of one line."""
    try:
        return instantiate(cfg)
    except InstantiationException as error:
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from None
        why = " ".join(str(error.__cause__ or error).split())
        raise InputError(f"cannot build {cfg.get('_target_')}: {why}") from error


def model(cfg: DictConfig, *, phase: Phases = unwatched) -> Loaded:
    """The model and tokenizer of `cfg.model`; `phase` is told while they are found and loaded."""
    m = cfg.model
    registry = RegistrySource(**m.registry) if m.registry else None
    with phase("loading", 0):
        located = locate(m.hub_id, path=m.path, revision=m.revision, registry=registry)
        return load(
            located,
            dtype=m.dtype,
            device=m.device,
            attention=m.attention,
            threads=cfg.threads,
            trust_remote_code=m.trust_remote_code,
            device_map=m.device_map,
            pack=m.pack,
        )


def cache(cfg: DictConfig, loaded: Loaded) -> ContentCache | None:
    """What was computed with this model before; None if nothing is kept.

    The number of threads does not count: it may change the rounding of a sum, but not whose answers they are.
    """
    folder, weights = cfg.paths.get("cache"), loaded.facts["weights"]
    if not folder or not (weights["revision"] or weights["sha256"]):
        return None
    of = {name: loaded.facts[name] for name in ("model_type", "weights", "dtype", "device", "attention", "n_packed")}
    return ContentCache(Path(folder), of | {name: metadata.version(name) for name in ("torch", "transformers")})


def examples(cfg: DictConfig, part: Part, *, n: int | None, seed: int) -> list[Example]:
    """Examples of one part of the data."""
    return select(instance(cfg.data.task).examples(part), n=n, seed=seed)


def prompts(
    cfg: DictConfig, loaded: Loaded, part: Part, *, n: int | None, seed: int, max_new_tokens: int
) -> list[Prompt]:
    """Encoded prompts of one part of the data."""
    return encode(
        loaded.tokenizer,
        examples(cfg, part, n=n, seed=seed),
        chat=cfg.data.chat,
        template=template(cfg),
        context_length=loaded.decoder.context_length,
        max_new_tokens=max_new_tokens,
    )


def template(cfg: DictConfig) -> dict[str, Any] | None:
    """The arguments of the chat template; None if there are none."""
    asked = cfg.data.get("template")
    return {str(k): v for k, v in OmegaConf.to_container(asked).items()} if asked else None  # type: ignore[union-attr]


def facts(cfg: DictConfig, loaded: Loaded, **more: Any) -> dict[str, Any]:
    """The facts that readers of a run need, so that they need not read its configuration."""
    text, arguments = getattr(loaded.tokenizer, "chat_template", None), template(cfg)
    task = instance(cfg.data.task)
    return {
        "name": cfg.name,
        "model": cfg.model.name,
        "data": cfg.data.name,
        "chat": cfg.data.chat,
        "task_version": task.version,
        "task": task.facts(),
        "vocabulary": provenance.digest(str(sorted(loaded.tokenizer.get_vocab().items()))),
        "chat_template": provenance.digest(str(text)) if text else None,
        **({"template": arguments} if arguments else {}),
        **loaded.facts,
        **more,
    }


def stop(cfg: DictConfig, draft: str = "none") -> StopPolicy:
    """The stop rule of the run; the setting `searched` means the rule of the search that saved `draft`."""
    settings = cfg.stop
    if settings.get("predictor"):
        found = locate_predictor(str(settings.predictor), Path(cfg.paths.outputs))
        settings = as_config({**settings, "predictor": found})
    return _stop(settings, draft)


def stop_by_name(asked: str | Mapping[str, Mapping[str, Any]], draft: str = "none") -> StopPolicy:
    """The stop rule of a name, with the settings of its file or with given ones: `{fixed: {max_draft: 2}}`."""
    rules = {asked: {}} if isinstance(asked, str) else dict(asked)
    if len(rules) != 1:
        raise InputError(f"stop={rules} names {len(rules)} stop rules; give one, as {{fixed: {{max_draft: 2}}}}")
    ((name, changed),) = rules.items()
    settings = OmegaConf.to_container(OmegaConf.merge(option("stop", name), dict(changed)))
    return _stop(as_config(kinds.read(settings, Built, f"stop.{name}")), draft)


def _stop(settings: DictConfig, draft: str) -> StopPolicy:
    if "searched" in settings:
        return StopRule.from_dict(searched(draft)["stop"])
    rule, target = instance(settings), settings.get("_target_")
    if not isinstance(rule, StopRule):
        raise InputError(f"stop: {target} is not a stop rule; it must inherit from selfspec.stopping.StopRule")
    try:  # records hold the rule in this form; a rule that cannot be written is refused before anything runs
        written = StopRule.from_dict(json.loads(json.dumps(rule.to_dict())))
        hash(written)
    except TypeError as error:
        raise InputError(
            f"stop: {target} must be a frozen dataclass whose settings are numbers, texts or tuples of them ({error})"
        ) from None
    return written


def searched(draft: str) -> Mapping[str, Any]:
    """The settings that a search saved with its draft.

    Raises:
        InputError: if no search saved the draft.
    """
    body = find_draft(draft).settings
    if "stop" not in body:
        raise InputError(f"stop or lookup is `searched`, but {draft!r} is not the folder of a search; name it by skip=")
    return dict(body)


def stop_name(policy: StopPolicy) -> str:
    """Name of a rule: `adaptive` for `Adaptive`, and `adaptive, paying` for a rule that pauses unprofitable drafts."""
    if isinstance(policy, PauseWhenUnprofitable):
        return f"{stop_name(policy.rule)}, paying"
    return type(policy).__name__.lower()


def sampling(cfg: DictConfig) -> Sampling:
    """The sampling settings of the run."""
    settings = {key: value for key, value in cfg.sampling.items() if key != "sample_draft"}
    return Sampling(**settings)


def own_drafter(cfg: DictConfig) -> dict[str, Any] | None:
    """The user's drafter that `cfg.drafter` names, with its settings; None for the built-in drafter.

    Raises:
        InputError: if the model of `model.draft_path` drafts too.
    """
    found, path = _drafter_of(cfg.get("drafter")), cfg.model.get("draft_path")
    if path is None:
        return found
    if found is not None:
        raise InputError(f"model.draft_path={path} and drafter={cfg.drafter.get('name')} both draft; leave one out")
    return {TARGET: SMALL_MODEL, "path": str(Path(path).expanduser())}


def drafter_by_name(name: str) -> dict[str, Any] | None:
    """The drafter of a name, with the settings of its file; None for the built-in drafter."""
    return _drafter_of(option("drafter", name))


def _drafter_of(settings: DictConfig | None) -> dict[str, Any] | None:
    if settings is not None and settings.get("train"):
        name = settings.get("name")
        raise InputError(f"drafter={name} is trained first: selfspec train drafter={name}, then drafter=RUN")
    if settings is None or not settings.get(TARGET):
        return None
    found = OmegaConf.to_container(settings, resolve=True)
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items() if key != "name"}


def tree(cfg: DictConfig) -> TreeShape | None:
    """The shape of the run's drafts; None for chains."""
    return _tree_of(cfg.get("tree"))


def tree_by_name(name: str) -> TreeShape | None:
    """The shape of a name, with the settings of its file; None for chains."""
    return _tree_of(option("tree", name))


def _tree_of(settings: DictConfig | None) -> TreeShape | None:
    if settings is None or not settings.get(TARGET):
        return None
    found: TreeShape = instance(settings)
    return found


def plan(draft: str, loaded: Loaded) -> DraftPlan:
    """The plan of the draft that `draft` names; see `spec`."""
    return read_draft(draft, loaded.decoder, loaded.facts)[0]


def spec(
    cfg: DictConfig,
    draft: str,
    loaded: Loaded,
    policy: StopPolicy,
    *,
    lookup: str | None,
    drafter: Mapping[str, Any] | None,
    tree: TreeShape | None = None,
) -> DraftSpec:
    """The draft spec that `draft` names, with the sampling of the run.

    Args:
        cfg: configuration of the run.
        draft: a skip set, the file of a skip set or of a plan, the folder of a search, a published name, or `none`.
        loaded: the model.
        policy: the stop rule.
        lookup: prompt lookup before the draft (`front`) or instead of it (`only`); None for no lookup.
        drafter: a user's drafter; None means the drafter of the draft's file, or else the built-in one.
        tree: the shape of the draft; None means the shape of the draft's file, or else a chain.

    Raises:
        InputError: if there is no such draft or no such lookup.
    """
    if drafter and drafter[TARGET] == SMALL_MODEL:
        check_same_tokens(loaded.tokenizer.get_vocab(), vocabulary(drafter["path"]), path=drafter["path"])
    found = load_spec(draft, loaded.decoder, loaded.facts, stop=policy)
    asked: dict[str, Any] = {"lookup": lookup, "sample_draft": cfg.sampling.sample_draft}
    asked |= {"lookup_settings": {}} if lookup is None else {}
    asked |= {"drafter": drafter} if drafter or lookup == "only" else {}
    asked |= {"tree": tree} if tree or drafter or lookup == "only" else {}
    return replace(found, **asked)


def ending(cfg: DictConfig, loaded: Loaded) -> Ending:
    """The conditions that end a sequence: its length and the stop strings."""
    strings = list(cfg.stop_strings or ())
    if "" in strings:
        raise InputError("stop_strings has an empty text, which ends every answer at once; leave it out")
    return Ending(cfg.max_new_tokens, criterion=ends_with_any(loaded.tokenizer, strings) if strings else None)


@contextmanager
def tracking(cfg: DictConfig, *, verb: str, folder: Path, say: Callable[[str], None]) -> Iterator[Tracker]:
    """The tracker of a run while the run lasts; at its end `say` gets a line if the user has something left to do."""
    shown = tracker(cfg, verb=verb, folder=folder)
    try:
        yield shown
    except BaseException:
        _say_last(shown.finish(failed=True), say)
        raise
    _say_last(shown.finish(), say)


def _say_last(line: str | None, say: Callable[[str], None]) -> None:
    if line:
        say(line)


def tracker(cfg: DictConfig, *, verb: str, folder: Path) -> Tracker:
    """The tracker for the run of a folder; it shows the provenance of the run as a part of its configuration."""
    t = cfg.tracker
    if t.name == "none":
        return NoTracker()
    config = {**OmegaConf.to_container(cfg, resolve=True)}  # type: ignore[dict-item]
    if (folder / run_files.PROVENANCE).is_file():
        config["provenance"] = json.loads((folder / run_files.PROVENANCE).read_text(encoding="utf-8"))
    return SafeTracker(
        lambda: WandbTracker(
            project=t.project,
            name=f"{cfg.name} {folder.name}",
            group=t.group or _sweep() or cfg.name,
            job_type=verb,
            run_id=folder.name,
            folder=folder,
            config=public(config),
            tags=[verb, cfg.model.name, cfg.data.name, *t.tags],
            mode=t.mode,
        )
    )


def _sweep() -> str | None:
    """The name of the sweep of this job: the name of its folder, which is its start time; None outside a sweep."""
    if not (HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN):
        return None
    return f"sweep {Path(HydraConfig.get().sweep.dir).name}"
