"""From configuration to what only a search needs: prompts of several data sets, costs, drafts, objective and study."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from experiments.config.build import check_count, instance, own_drafter, stop, tree
from experiments.config.build_space import choices, searched
from experiments.config.composing import option, options
from experiments.config.given_costs import check_parts, given_table
from search.costs.draft_tables import DraftCosts
from search.costs.measure import measure, measure_drafts
from search.costs.table import FORM, CostTable
from search.draft_of_point import FULL, Drafts, check_dimensions, continued, heads, remembered
from search.fitting.bridge_fitting import BridgeFitter, observe
from search.objective import Objective, TokensPerSecond
from search.replay.objectives import ReplayObjective, accepted_fraction, expected_speedup
from search.replay.parallel_agreement import ParallelAgreement
from search.replay.references import BATCH_STARTS, Reference, ReferenceBatch, decode_references
from search.space import Space
from search.study.study import SearchStudy
from search.study.workers import Sharing, agree, open_storage
from selfspec.engine.decode import Ending
from selfspec.errors import InputError, unknown_name
from selfspec.measure.stopwatch import Stopwatch
from selfspec.models.decoder import Decoder
from selfspec.models.load import Loaded
from selfspec.records import provenance, run_files
from selfspec.skipping.plan import PLAIN, Precision
from selfspec.skipping.rounding import check_kernel
from selfspec.skipping.skip_set import SkipSet
from selfspec.targets import TARGET, find_class

log = logging.getLogger(__name__)

NEEDS_COSTS = ("expected_speedup", "acceptance")
_REPLAYED = {"expected_speedup": (expected_speedup, "x plain decoding"), "acceptance": (accepted_fraction, "accepted")}


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
        other = cfg.copy()
        other.data = option("data", name)
        found.append(other)
    return found


def costs(cfg: DictConfig, loaded: Loaded) -> tuple[CostTable, Path, bool]:
    """The cost table, its file, and whether it was measured just now: of this machine, or as given for another device.

    Raises:
        InputError: if `costs.path` names no table.
    """
    of_device = given_table(cfg)
    if of_device is not None:
        return of_device, Path(f"costs={cfg.costs.name}"), False
    if cfg.costs.path:
        given = Path(cfg.costs.path)
        return CostTable.read(given), given, False
    wanted = OmegaConf.to_container(cfg.costs)
    assert isinstance(wanted, dict)
    measured: dict[str, Any] = {k: wanted[k] for k in ("contexts", "max_tokens", "repeats")}
    room = loaded.decoder.context_length - cfg.costs.max_tokens - 1
    measured["contexts"] = sorted({min(c, room) for c in measured["contexts"]})
    of = {k: loaded.facts[k] for k in ("weights", "dtype", "device", "threads", "attention", "n_packed")}
    of |= {"model": cfg.model.name, "machine": provenance.processor(), "form": FORM}
    key = provenance.digest(str(sorted((of | measured).items())))[:8]
    path = Path(cfg.paths.outputs) / "profile" / f"{cfg.model.name}-{key}.json"
    if path.exists() and not cfg.costs.refresh:
        log.info("costs: %s, measured before (costs.refresh=true measures anew)", path)
        return CostTable.read(path), path, False
    log.warning("measuring what drafts cost here; the machine must be quiet (load %s)", provenance.load_average())
    table = measure(loaded.decoder, **measured, stopwatch=Stopwatch(loaded.decoder.device))
    path.parent.mkdir(parents=True, exist_ok=True)
    run_files.write_json(path, {"costs": table.to_dict(), "of": of | measured, "provenance": provenance.environment()})
    return table, path, True


def check_lookup(cfg: DictConfig) -> None:
    """Refuse a lookup that a search has no use for, and a memory that nobody would look in."""
    if cfg.lookup not in (None, "front", "beside"):
        raise InputError(
            f"lookup={cfg.lookup}; in a search it is front (before the draft), beside (a branch of it) or null"
        )
    if cfg.memory and not any(choices(cfg, "lookup", cfg.lookup)):
        raise InputError(f"memory={cfg.memory} is for prompt lookup to look in; set lookup=front, or leave memory out")
    check_count("memory", cfg.memory)


def check_drafter(cfg: DictConfig) -> None:
    """Refuse an objective that replays drafts for a drafter that cannot be, and a shape for one that has its own.

    Raises:
        InputError: if that was asked for.
    """
    drafter, shape = own_drafter(cfg), tree(cfg)
    if drafter and shape:
        raise InputError(f"drafter={drafter[TARGET]} drafts as it likes; leave tree out")
    timed = cfg.objective.name == "tokens_per_second"
    is_replayable = not drafter or getattr(find_class(str(drafter[TARGET]), method="propose"), "is_replayable", False)
    if not timed and not is_replayable:
        raise InputError(
            f"drafter={(drafter or {})[TARGET]} cannot be replayed, as objective={cfg.objective.name} does; use "
            "objective=tokens_per_second"
        )
    if timed and not getattr(shape, "is_priced", True):
        raise InputError(
            "tree=best_first takes its costs from a table, which objective=tokens_per_second does not measure; give "
            "tree.draft_cost and tree.verify_cost"
        )
    if (drafter or shape) and (cfg.objective.name == "matchness" or cfg.objective.get("tune_stop")):
        what = "objective=matchness scores" if cfg.objective.name == "matchness" else "objective.tune_stop is for"
        raise InputError(f"{what} chains of the built-in drafter; leave {'drafter' if drafter else 'tree'} out")


def _kinds(cfg: DictConfig) -> list[str]:
    """The bridges that a draft of the search may have."""
    return choices(cfg, "draft", cfg.draft.kind)


def _sizes(cfg: DictConfig, name: str, own: int | None, *others: int) -> list[int]:
    """The sizes that a head or a memory of the search may have; the whole and none are no sizes."""
    found = [n for n in (*choices(cfg, name, own), *others) if n not in (None, 0, FULL)]
    for n in found:
        check_count(name, n)
    return list(dict.fromkeys(found))


def _heads(cfg: DictConfig) -> list[int]:
    return _sizes(cfg, "head", cfg.head.n, *(cfg.head.others if cfg.head.n is not None else ()))


def needs_texts(cfg: DictConfig) -> bool:
    """Whether the drafts are made of what the full model says: calibration prompts beyond those of the search."""
    return set(_kinds(cfg)) != {PLAIN} or bool(_heads(cfg) or _sizes(cfg, "memory", cfg.memory))


def is_plain(cfg: DictConfig) -> bool:
    """Whether a draft is nothing but the model without its skip set: no plan is needed to tell what it is."""
    return not needs_texts(cfg) and choices(cfg, "precision", cfg.precision) == ["same"]


def drafts(cfg: DictConfig, loaded: Loaded, prompts: Sequence[list[int]]) -> Drafts:
    """What a point means in this run; `prompts` are those that no draft is judged on.

    Raises:
        InputError: if there are none and the drafts are made of them, or a dimension has a value that cannot be.
    """
    for precision in choices(cfg, "precision", cfg.precision):
        if precision not in get_args(Precision):
            raise unknown_name("precision", str(precision), list(get_args(Precision)))
        if precision != "same":
            check_kernel(precision, loaded.decoder.device)
    if needs_texts(cfg) and not prompts:
        raise InputError(
            f"draft={cfg.draft.kind}, head.n={cfg.head.n} and memory={cfg.memory} are made from calibration prompts "
            "beyond those of the search and its finals, and none are left; give data with more of them, as by "
            "data.calibration_n where it has that"
        )
    d = cfg.draft
    made = Drafts(
        stop(cfg),
        d.kind,
        merge=d.merge,
        rank=d.rank,
        head=cfg.head.n,
        precision=cfg.precision,
        lookup=cfg.lookup,
        memory=cfg.memory,
        drafter=own_drafter(cfg),
        tree=tree(cfg),
        other_heads=tuple(cfg.head.others) if cfg.head.n is not None else (),
    )
    if not needs_texts(cfg):
        check_dimensions(made, searched(cfg))
        return made
    c = cfg.calibration
    check_count("calibration.n_tokens", c.n_tokens)
    check_count("head.n", cfg.head.n)
    memories = _sizes(cfg, "memory", cfg.memory)
    n_tokens = max(c.n_tokens, *memories, 0)
    texts = continued(loaded.decoder, prompts, max_new_tokens=c.max_new_tokens, n_tokens=n_tokens)
    made = replace(
        made,
        fits=None if set(_kinds(cfg)) == {PLAIN} else BridgeFitter(observe(loaded.decoder, texts, n_tokens=c.n_tokens)),
        heads=heads(loaded.decoder, texts, _heads(cfg)),
        memories={n: remembered(texts, n) for n in memories},
    )
    check_dimensions(made, searched(cfg))
    return made


def draft_costs(cfg: DictConfig, loaded: Loaded, made: Drafts, *, resumed: Path | None) -> DraftCosts | None:
    """What the drafts of the run cost; None where the objective takes the time itself.

    Args:
        cfg: of the run.
        loaded: the model.
        made: what a point is drafted with.
        resumed: the file in which the run that goes on has its tables.

    Raises:
        InputError: if the table is another device's and lacks a part of these drafts, which is not measured here then.
    """

    def measured(table: CostTable, name: str, head: Tensor | None, precision: Precision, has_maps: bool) -> CostTable:
        if given_table(cfg) is not None:
            check_parts(cfg, table, has_maps=has_maps, has_head=head is not None, is_rounded=precision != "same")
        elif has_maps or head is not None or precision != "same":
            watch, repeats = Stopwatch(loaded.decoder.device), cfg.costs.repeats
            settings: dict[str, Any] = {"head": head, "precision": precision, "repeats": repeats, "stopwatch": watch}
            table = measure_drafts(loaded.decoder, table, has_maps=has_maps, **settings)
        if cfg.storage:  # values of different tables could not be compared
            where = f"{cfg.name} costs" + (f", {name}" if name else "")
            table = CostTable.from_dict(agree(open_storage(cfg.storage), where, table.to_dict()))
        return table

    n_layers = loaded.decoder.n_layers
    own = made.outline(Space(n_layers, dimensions=searched(cfg)).point(SkipSet(n_layers)))
    is_known = resumed is not None and resumed.exists()
    if resumed is not None and is_known:
        table = CostTable.read(resumed)
    elif cfg.objective.name in NEEDS_COSTS:
        table, *_ = costs(cfg, loaded)
        has_maps = bool({"linear", "lowrank"} & set(_kinds(cfg)))
        table = measured(table, "", own.head, own.precision, has_maps)
    else:
        return None
    found = DraftCosts(
        table, own=own, measure=lambda name, head, precision: measured(table, name, head, precision, False)
    )
    if resumed is not None and is_known:
        found.recall(resumed)
    return found


def references(cfg: DictConfig, loaded: Loaded, calibration: Sequence[Sequence[int]]) -> list[ReferenceBatch]:
    """What the full model says on calibration prompts, and its keys and values of it."""
    o = cfg.objective
    ending = Ending(o.max_new_tokens)
    return decode_references(
        loaded.decoder, calibration, ending=ending, batch_starts=o.get("batch_starts", BATCH_STARTS)
    )


def objective(
    cfg: DictConfig,
    loaded: Loaded,
    calibration: Sequence[Sequence[int]],
    *,
    drafts: Drafts,
    costs: DraftCosts | None,
) -> Objective:
    """What the search maximises.

    Args:
        cfg: of the run.
        loaded: the model.
        calibration: token ids of the prompts.
        drafts: what a point is drafted with.
        costs: of drafts; None where the objective takes the time itself.
    """
    o, decoder = cfg.objective, loaded.decoder
    watch = Stopwatch(decoder.device)
    if o.name == "tokens_per_second":
        return TokensPerSecond(decoder, calibration, o.max_new_tokens, watch, drafts)
    batches = references(cfg, loaded, calibration)
    if o.name == "matchness":
        return ParallelAgreement(decoder, batches, watch, drafts)
    if o.name not in _REPLAYED:
        raise unknown_name("objective", o.name, options("objective"))
    assert costs is not None
    value, unit = _REPLAYED[o.name]
    return ReplayObjective(o.name, unit, value, decoder, batches, costs, watch, drafts, o.tune_stop)


def computed_sets(
    searcher: DictConfig, decoder: Decoder, references: Sequence[Reference], table: CostTable | None
) -> list[SkipSet]:
    """What a searcher proposes that computes its sets beforehand, from what the full model says on some prompts.

    Its function takes the model and those texts, and the cost table if it has a parameter `costs`.

    Raises:
        InputError: if it needs costs and the objective measures none.
    """
    compute = instance(searcher.computed)
    if "costs" not in inspect.signature(compute).parameters:
        return list(compute(decoder, references))
    if table is None:
        raise InputError(
            f"searcher={searcher.name} computes its sets from measured costs, which this objective does not measure; "
            "use objective=expected_speedup"
        )
    return list(compute(decoder, references, costs=table))


def study(
    cfg: DictConfig,
    space: Space,
    journal: Path,
    *,
    sets: Sequence[SkipSet] | None,
    table: str,
    weights: Mapping[str, Any] | None = None,
) -> SearchStudy:
    """The study of a search, new or read back from its storage.

    Args:
        cfg: of the run.
        space: what is searched.
        journal: where trials are kept if the configuration names no storage for several workers.
        sets: what a searcher proposes that computes its sets beforehand.
        table: the digest of the cost table: values of other costs are not comparable.
        weights: `Loaded.facts["weights"]`: a folder may hold another model than when the search began.
    """
    same = ("model", "data", "stop", "objective", "constraints", "draft", "head", "calibration")
    identity = {key: provenance.digest(str(OmegaConf.to_container(cfg[key], resolve=True))) for key in same}
    identity |= {"searcher": cfg.searcher.name, "seed": cfg.searcher.seed, "costs": table}
    identity |= {"lookup": cfg.lookup} if cfg.lookup else {}
    identity |= {"precision": cfg.precision} if cfg.precision != "same" else {}
    identity |= {"memory": str(cfg.memory)} if cfg.memory else {}
    drafter = own_drafter(cfg)
    identity |= {"drafter": provenance.digest(str(drafter))} if drafter else {}
    shape = tree(cfg)
    identity |= {"tree": provenance.digest(str(shape.to_dict()))} if shape else {}
    if weights and weights["origin"] == "path":  # others are pinned by the configuration and the hub's cache
        identity["weights"] = str(weights["sha256"])
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
