"""From configuration to objects: the last place that knows Hydra. Below it there are plain arguments."""

from __future__ import annotations

import logging
import os
from importlib import resources
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from experiments.arms import GENERATE, PLAIN, Arm, DraftArm, GenerateArm, PlainArm
from experiments.tracking import NoTracker, SafeTracker, Tracker, WandbTracker
from selfspec import provenance
from selfspec.decode import Ending
from selfspec.draft import Drafter, ModelDraft
from selfspec.errors import InputError, unknown_name
from selfspec.hub import RegistrySource, locate
from selfspec.load import Loaded, load
from selfspec.lookup import LookupDraft
from selfspec.model import Decoder
from selfspec.plan import DraftPlan
from selfspec.planfile import NAME as PLAN
from selfspec.planfile import load_plan
from selfspec.prompt import Prompt, encode, ends_with_any
from selfspec.sampling import Sampling
from selfspec.skip import SkipSet
from selfspec.skipfile import load_skip_set
from selfspec.stop import StopPolicy
from selfspec.tasks.base import Part, select
from selfspec.timing import Stopwatch

log = logging.getLogger(__name__)


def options(group: str) -> list[str]:
    """The names in a config group, e.g. the stop rules."""
    folder = resources.files("conf").joinpath(group)
    names = (p.name for p in folder.iterdir())
    return sorted(n.removesuffix(".yaml") for n in names if n.endswith(".yaml") and not n.startswith("_"))


def instance(cfg: DictConfig) -> Any:
    """What `_target_` names; a mistake in its settings comes out as the one line that says so."""
    try:
        return instantiate(cfg)
    except InstantiationException as error:
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from None
        raise InputError(f"cannot build {cfg.get('_target_')}: {error.__cause__ or error}") from error


def model(cfg: DictConfig) -> Loaded:
    """The model and tokenizer of `cfg.model`."""
    m = cfg.model
    check_count("threads", cfg.threads)
    registry = RegistrySource(**m.registry) if m.registry else None
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


def prompts(
    cfg: DictConfig, loaded: Loaded, part: Part, *, n: int | None, seed: int, max_new_tokens: int
) -> list[Prompt]:
    """Encoded prompts of one part of the data."""
    check_count("n", n)
    examples = select(instance(cfg.data.task).examples(part), n=n, seed=seed)
    return encode(
        loaded.tokenizer,
        examples,
        chat=cfg.data.chat,
        context_length=loaded.decoder.context_length,
        max_new_tokens=max_new_tokens,
    )


def check_count(name: str, value: Any) -> None:
    """Settings that are null or a whole number from 1 on; null tells Hydra nothing of their kind."""
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise InputError(f"{name}={value}; it is a whole number from 1 on, or null")


def facts(cfg: DictConfig, loaded: Loaded, **more: Any) -> dict[str, Any]:
    """What readers of a run need to know of it, without reading its configuration."""
    template = getattr(loaded.tokenizer, "chat_template", None)
    return {
        "name": cfg.name,
        "model": cfg.model.name,
        "data": cfg.data.name,
        "chat": cfg.data.chat,
        "task_version": instance(cfg.data.task).version,
        "vocabulary": provenance.digest(str(sorted(loaded.tokenizer.get_vocab().items()))),
        "chat_template": provenance.digest(str(template)) if template else None,
        **loaded.facts,
        **more,
    }


def stop(cfg: DictConfig) -> StopPolicy:
    """The stop rule of the run."""
    policy: StopPolicy = instance(cfg.stop)
    return policy


def stop_by_name(name: str) -> StopPolicy:
    """The stop rule of that name, with the settings of its file."""
    if name not in options("stop"):
        raise unknown_name("stop rule", name, options("stop"))
    text = resources.files("conf").joinpath(f"stop/{name}.yaml").read_text(encoding="utf-8")
    policy: StopPolicy = instance(DictConfig(OmegaConf.create(text)))
    return policy


def stop_name(policy: StopPolicy) -> str:
    """`Adaptive` is called `adaptive`."""
    return type(policy).__name__.lower()


def skip(text: str, n_layers: int) -> SkipSet:
    """The skip set that was asked for: written out, a file, the folder of a search, published, or `none`."""
    if "/" in text or text.endswith((".yaml", ".yml")) or os.path.exists(os.path.expanduser(text)):
        return load_skip_set(text, n_layers=n_layers)
    return SkipSet.parse(text, n_layers)


def sampling(cfg: DictConfig) -> Sampling:
    """How tokens are chosen."""
    settings = {key: value for key, value in cfg.sampling.items() if key != "sample_draft"}
    return Sampling(**settings)


def plan(text: str, loaded: Loaded) -> DraftPlan:
    """The plan that was asked for: that of a search or of a file, or the plain one of a skip set."""
    path = os.path.expanduser(text)
    if os.path.isfile(os.path.join(path, PLAN)) or os.path.basename(path) == PLAN:
        return load_plan(path, loaded.decoder, loaded.facts)
    return DraftPlan.of(skip(text, loaded.decoder.n_layers))


def drafter(cfg: DictConfig, decoder: Decoder, plan: DraftPlan, policy: StopPolicy, *, lookup: str | None) -> Drafter:
    """The draft of a plan, as the run samples and as the stop rule needs it, alone or behind prompt lookup.

    Args:
        cfg: of the run.
        decoder: the model.
        plan: of the draft.
        policy: the stop rule.
        lookup: `front`: before the draft; `only`: instead of it; None: none.

    Raises:
        InputError: for any other lookup.
    """
    if lookup == "only":
        return LookupDraft()
    if lookup not in (None, "front"):
        raise InputError(f"lookup={lookup}; it is front (before the draft), only (instead of it) or null")
    draft = ModelDraft(decoder.bind(plan), cfg.sampling.sample_draft, policy.needs_confidence)
    return LookupDraft(draft) if lookup else draft


def ending(cfg: DictConfig, loaded: Loaded) -> Ending:
    """When a sequence is over: its length, and the strings it may be asked to stop at."""
    strings = list(cfg.stop_strings or ())
    return Ending(cfg.max_new_tokens, criterion=ends_with_any(loaded.tokenizer, strings) if strings else None)


def arms(cfg: DictConfig, loaded: Loaded, ending: Ending) -> list[Arm]:
    """The arms of an evaluation, plain decoding first."""
    decoder = loaded.decoder
    how, watch = sampling(cfg), Stopwatch(decoder.device)
    found: list[Arm] = [PlainArm(decoder, ending, how, watch)]
    if cfg.generate:
        found.append(GenerateArm(decoder, ending, how, watch))

    def add(name: str | None, text: str, policy: StopPolicy, lookup: str | None) -> None:
        asked = plan(text, loaded)
        chosen, rule = asked.skip, stop_name(policy)
        found.append(
            DraftArm(
                name or (f"skip {len(chosen)}, {rule}" if len(chosen) else f"skip nothing, {rule}"),
                decoder,
                ending,
                how,
                watch,
                chosen,
                rule,
                policy,
                drafter(cfg, decoder, asked, policy, lookup=lookup),
            )
        )

    add(cfg.arm, str(cfg.skip), stop(cfg), cfg.lookup)
    for name, settings in (cfg.arms or {}).items():
        unknown = set(settings) - {"skip", "stop", "lookup"}
        if unknown or not {"skip", "lookup"} & set(settings):
            raise InputError(
                f"arms.{name} has {sorted(settings)}; an arm has a skip or a lookup and, if it is not the run's, a stop"
            )
        policy = stop_by_name(settings.stop) if "stop" in settings else stop(cfg)
        add(str(name), str(settings.get("skip", "none")), policy, settings.get("lookup", cfg.lookup))
    names = [a.name for a in found]
    if len(set(names)) < len(names) or {PLAIN, GENERATE} & set(names[1 + bool(cfg.generate) :]):
        raise InputError(
            f"two arms have the same name: {', '.join(names)}; name them with arm=NAME or in arms={{NAME: ...}}"
        )
    return found


def tracker(cfg: DictConfig, *, verb: str, run_id: str, folder: Path) -> Tracker:
    """Where the run is shown."""
    t = cfg.tracker
    if t.name == "none":
        return NoTracker()
    return SafeTracker(
        lambda: WandbTracker(
            project=t.project,
            name=f"{cfg.name} {run_id}",
            group=t.group or cfg.name,
            job_type=verb,
            folder=folder,
            config=OmegaConf.to_container(cfg, resolve=True),  # type: ignore[arg-type]
            tags=list(t.tags),
            mode=t.mode,
        )
    )
