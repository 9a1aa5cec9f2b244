"""From configuration to objects: the last place that knows Hydra. Below it there are plain arguments."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from experiments.arms import GENERATE, PLAIN, Arm, DraftArm, GenerateArm, PlainArm
from experiments.tracking import NoTracker, SafeTracker, Tracker, WandbTracker
from search.constraints import Constraints
from search.cost import CostTable, measure
from search.expected import ReplayObjective, accepted_fraction, expected_speedup
from search.matchness import Matchness
from search.objective import Objective, TokensPerSecond
from search.reference import BATCH_STARTS, ReferenceBatch, refer
from search.shared import Sharing
from search.space import Space
from search.study import SearchStudy
from selfspec import provenance, records
from selfspec.decode import Ending
from selfspec.draft import ModelDraft
from selfspec.errors import InputError, unknown_name
from selfspec.hub import RegistrySource, locate
from selfspec.load import Loaded, load
from selfspec.model import Decoder
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
    _check_count("threads", cfg.threads)
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
    _check_count("n", n)
    examples = select(instance(cfg.data.task).examples(part), n=n, seed=seed)
    return encode(
        loaded.tokenizer,
        examples,
        chat=cfg.data.chat,
        context_length=loaded.decoder.context_length,
        max_new_tokens=max_new_tokens,
    )


def _check_count(name: str, value: Any) -> None:
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


def drafter(cfg: DictConfig, decoder: Decoder, skip: SkipSet, policy: StopPolicy) -> ModelDraft:
    """The draft that leaves `skip` out, as the run samples and as the stop rule needs it."""
    return ModelDraft(decoder.bind(skip), cfg.sampling.sample_draft, policy.needs_confidence)


def ending(cfg: DictConfig, loaded: Loaded) -> Ending:
    """When a sequence is over: its length, and the strings it may be asked to stop at."""
    strings = list(cfg.stop_strings or ())
    return Ending(cfg.max_new_tokens, criterion=ends_with_any(loaded.tokenizer, strings) if strings else None)


def data_sets(cfg: DictConfig) -> list[DictConfig]:
    """The configuration for each data set of the objective: that of the run, and those of `objective.data`."""
    names = cfg.objective.data
    if not names:
        return [cfg]
    found = []
    for name in names:
        if name == cfg.data.name:
            found.append(cfg)
            continue
        if name not in options("data"):
            raise unknown_name("data set", name, options("data"))
        other = cfg.copy()
        text = resources.files("conf").joinpath(f"data/{name}.yaml").read_text(encoding="utf-8")
        other.data = OmegaConf.create(text)
        found.append(other)
    return found


def constraints(cfg: DictConfig, loaded: Loaded, table: CostTable | None) -> Constraints:
    """What a skip set must be."""
    settings: dict[str, Any] = {str(k): v for k, v in cfg.constraints.items()}
    n, decoder = loaded.decoder.n_layers, loaded.decoder
    if settings["max_cost"] is not None:
        if table is None:
            raise InputError(
                f"constraints.max_cost={settings['max_cost']} needs a cost table, which objective={cfg.objective.name} "
                "does not measure; use objective=expected_speedup"
            )
        context = table.contexts[0]
        full_s = table.draft_s(SkipSet(n), context)
        settings["cost"] = lambda skip: table.draft_s(skip, context) / full_s
    if settings["max_memory"] is not None:
        read = decoder.weight_bytes
        settings["memory"] = lambda skip: read(skip) / read(SkipSet(n))
    return Constraints(**settings)


def costs(cfg: DictConfig, loaded: Loaded) -> tuple[CostTable, Path, bool]:
    """The cost table of this model on this machine, its file, and whether it was measured just now.

    Raises:
        InputError: if `costs.path` names no table.
    """
    if cfg.costs.path:
        given = Path(cfg.costs.path)
        return CostTable.read(given), given, False
    wanted = OmegaConf.to_container(cfg.costs)
    assert isinstance(wanted, dict)
    measured: dict[str, Any] = {k: wanted[k] for k in ("contexts", "max_tokens", "repeats")}
    room = loaded.decoder.context_length - cfg.costs.max_tokens - 1
    measured["contexts"] = sorted({min(c, room) for c in measured["contexts"]})
    of = {k: loaded.facts[k] for k in ("weights", "dtype", "device", "threads", "attention", "n_packed")}
    of |= {"model": cfg.model.name, "machine": provenance.processor()}
    key = provenance.digest(str(sorted((of | measured).items())))[:8]
    path = Path(cfg.paths.outputs) / "profile" / f"{cfg.model.name}-{key}.json"
    if path.exists() and not cfg.costs.refresh:
        log.info("costs: %s, measured before (costs.refresh=true measures anew)", path)
        return CostTable.read(path), path, False
    log.warning("measuring what drafts cost here; the machine must be quiet (load %s)", provenance.load_average())
    table = measure(loaded.decoder, **measured, stopwatch=Stopwatch(loaded.decoder.device))
    path.parent.mkdir(parents=True, exist_ok=True)
    records.write_json(path, {"costs": table.as_dict(), "of": of | measured, "provenance": provenance.environment()})
    return table, path, True


def objective(
    cfg: DictConfig, loaded: Loaded, calibration: Sequence[Sequence[int]], *, table: CostTable | None
) -> Objective:
    """What the search maximises.

    Args:
        cfg: of the run.
        loaded: the model.
        calibration: token ids of the prompts.
        table: what drafts cost; None where the objective takes the time itself.
    """
    o, decoder = cfg.objective, loaded.decoder
    policy, watch = stop(cfg), Stopwatch(decoder.device)
    if o.name == "tokens_per_second":
        return TokensPerSecond(decoder, calibration, policy, o.max_new_tokens, watch)
    batches = references(cfg, loaded, calibration)
    if o.name == "matchness":
        return Matchness(decoder, batches, watch)
    if o.name not in _REPLAYED:
        raise unknown_name("objective", o.name, options("objective"))
    assert table is not None
    value, unit = _REPLAYED[o.name]
    return ReplayObjective(o.name, unit, value, decoder, batches, policy, table, watch, o.tune_stop)


def references(cfg: DictConfig, loaded: Loaded, calibration: Sequence[Sequence[int]]) -> list[ReferenceBatch]:
    """What the full model says on calibration prompts, and its keys and values of it."""
    o = cfg.objective
    ending = Ending(o.max_new_tokens)
    return refer(loaded.decoder, calibration, ending=ending, batch_starts=o.get("batch_starts", BATCH_STARTS))


_REPLAYED = {"expected_speedup": (expected_speedup, "x plain decoding"), "acceptance": (accepted_fraction, "accepted")}


def study(cfg: DictConfig, space: Space, journal: Path, *, sets: Sequence[SkipSet] | None, table: str) -> SearchStudy:
    """The study of a search, new or read back from its storage.

    Args:
        cfg: of the run.
        space: what is searched.
        journal: where trials are kept if the configuration names no storage for several workers.
        sets: what a searcher proposes that computes its sets beforehand.
        table: the digest of the cost table: values of other costs are not comparable.
    """
    same = ("model", "data", "stop", "objective", "constraints")
    identity = {key: provenance.digest(str(OmegaConf.to_container(cfg[key], resolve=True))) for key in same}
    identity |= {"searcher": cfg.searcher.name, "seed": cfg.searcher.seed, "costs": table}
    sampler = instance(cfg.searcher.sampler)
    make_sampler = sampler if sets is None else partial(sampler, sets=sets)
    where: dict[str, Any] = {"journal": journal}
    if cfg.storage:
        where = {"storage": cfg.storage, "sharing": Sharing(cfg.worker), "name": cfg.name}
    return SearchStudy(
        space,
        lambda seed: make_sampler(seed=seed),  # some of Optuna's take it by name alone
        seed=cfg.searcher.seed,
        identity=identity,
        encoding=cfg.searcher.encoding,
        **where,
    )


def arms(cfg: DictConfig, decoder: Decoder, ending: Ending) -> list[Arm]:
    """The arms of an evaluation, plain decoding first."""
    how, watch = sampling(cfg), Stopwatch(decoder.device)
    found: list[Arm] = [PlainArm(decoder, ending, how, watch)]
    if cfg.generate:
        found.append(GenerateArm(decoder, ending, how, watch))

    def add(name: str | None, text: str, policy: StopPolicy) -> None:
        chosen = skip(text, decoder.n_layers)
        rule = stop_name(policy)
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
                drafter(cfg, decoder, chosen, policy),
            )
        )

    add(cfg.arm, str(cfg.skip), stop(cfg))
    for name, settings in (cfg.arms or {}).items():
        unknown = set(settings) - {"skip", "stop"}
        if unknown or "skip" not in settings:
            raise InputError(
                f"arms.{name} has {sorted(settings)}; an arm has a skip and, if it is not the run's, a stop"
            )
        add(str(name), str(settings.skip), stop_by_name(settings.stop) if "stop" in settings else stop(cfg))
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
