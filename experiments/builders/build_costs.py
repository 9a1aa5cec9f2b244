"""From configuration to the costs of drafts: a table of this machine, kept in the cache, or of another device.

A table of another device is never completed with measurements of this machine: mixed seconds predict the speed of
neither.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from experiments.builders import build
from search.costs.draft_tables import DraftCosts
from search.costs.head_costs import measure_head
from search.costs.measure import measure, measure_drafts
from search.costs.table import FORM, CostTable
from search.dimensions import Dimension
from search.draft_of_point import Drafts
from search.goal import Goal
from search.space import Space
from search.study.workers import agree, open_storage
from selfspec.errors import InputError
from selfspec.measure.phases import Phases, unwatched
from selfspec.measure.stopwatch import Stopwatch
from selfspec.models.load import Loaded
from selfspec.records import provenance
from selfspec.records.content_cache import ContentCache
from selfspec.skipping.plan import DraftPlan
from selfspec.skipping.skip_set import SkipSet

log = logging.getLogger(__name__)

MAPS = {"linear", "lowrank"}  # bridges with a matrix
KIND = "costs"  # of entries of the cache


def given_table(cfg: DictConfig) -> CostTable | None:
    """The table in the configuration; None if the costs are measured on this machine."""
    if not cfg.costs.get("table"):
        return None
    table = OmegaConf.to_container(cfg.costs.table)
    assert isinstance(table, dict)
    return CostTable.from_dict({str(key): value for key, value in table.items()})


def check_given(cfg: DictConfig, drafts: Drafts, dimensions: Sequence[Dimension], goal: Goal) -> None:
    """Refuse a search whose costs the given table does not know, before a model is loaded.

    The function warns if the table names another model, or if the finals race on another device.

    Raises:
        InputError: if the objective does not use costs, or drafts have parts that the table lacks.
    """
    table = given_table(cfg)
    if table is None:
        return
    if not goal.uses_costs:
        raise InputError(f"{_of(cfg)} has no effect: objective={goal.name} uses no costs; leave it out")
    _check_parts(
        cfg,
        table,
        has_maps=bool(MAPS & set(drafts.kinds(dimensions))),
        has_head=bool(drafts.head_sizes(dimensions)),
        is_rounded=drafts.precisions(dimensions) != ["same"],
    )
    if cfg.costs.name.rpartition("/")[2] != cfg.model.name:  # h100/smollm2-135m: the device, then the model
        log.warning(
            "%s, and the run's model is %s: right only if the two models have the same shape", _of(cfg), cfg.model.name
        )
    if cfg.finals.top:
        log.warning("%s, but the finals race by this machine's clock; finals.top=0 leaves them out", _of(cfg))


def _check_parts(cfg: DictConfig, table: CostTable, *, has_maps: bool, has_head: bool, is_rounded: bool) -> None:
    """Refuse drafts with parts that have no seconds in the given table."""
    knows_rounded = any((table.attn_saved_s, table.mlp_saved_s, table.head_saved_s))
    for part, setting, is_wanted, is_known in (
        ("a bridge with a matrix costs", "draft=linear and lowrank", has_maps, table.map_s > 0),
        ("a trimmed head saves", "head", has_head, table.head_saved_s != 0),
        ("rounded weights save", "precision", is_rounded, knows_rounded),
    ):
        if is_wanted and not is_known:
            raise InputError(
                f"{_of(cfg)} and does not hold what {part} there; leave {setting} out (draft=skip has none "
                "of these), or search on that device with costs=default"
            )


def _of(cfg: DictConfig) -> str:
    device = cfg.costs.get("device") or "another device"
    return f"costs={cfg.costs.name} is of {device}"


def costs(cfg: DictConfig, loaded: Loaded, *, phase: Phases = unwatched) -> tuple[CostTable, Path | None, bool]:
    """The cost table, its file if it has one, and whether this call measured it.

    The table is that of `costs.path`, of another device, or of this machine, where it is measured once and kept.

    Raises:
        InputError: if the file `costs.path` holds no table.
    """
    of_device = given_table(cfg)
    if of_device is not None:
        return of_device, Path(f"costs={cfg.costs.name}"), False
    if cfg.costs.path:
        given = Path(cfg.costs.path)
        return CostTable.read(given), given, False
    cache, of = build.cache(cfg, loaded), place_and_time(cfg, loaded)
    path = cache.path(KIND, of) if cache else None
    table = _found(cfg, cache, of)
    if table is not None:
        log.info("costs: %s, measured before (costs.refresh=true measures anew)", path)
        return table, path, False
    log.warning("measuring what drafts cost here; the machine must be quiet (load %s)", provenance.load_average())
    table = measure(
        loaded.decoder,
        contexts=of["contexts"],
        max_tokens=cfg.costs.max_tokens,
        stopwatch=Stopwatch(loaded.decoder.device),
        phase=phase,
        **measuring(cfg),
    )
    _keep(cache, of, table)
    return table, path, True


def place_and_time(cfg: DictConfig, loaded: Loaded) -> dict[str, Any]:
    """What determines the seconds of a table, besides the model."""
    room = loaded.decoder.context_length - cfg.costs.max_tokens - 1
    return {
        "contexts": sorted({min(int(c), room) for c in cfg.costs.contexts}),
        "max_tokens": cfg.costs.max_tokens,
        "repeats": cfg.costs.repeats,
        "max_s": cfg.costs.get("max_s"),
        "machine": provenance.processor(),
        "threads": loaded.facts["threads"],
        "form": FORM,
    }


def measuring(cfg: DictConfig) -> dict[str, Any]:
    """`repeats` and `max_s` of a measurement; configurations of earlier runs have no limit of seconds."""
    max_s = cfg.costs.get("max_s")
    return {"repeats": cfg.costs.repeats, **({} if max_s is None else {"max_s": float(max_s)})}


def _found(cfg: DictConfig, cache: ContentCache | None, of: Mapping[str, Any]) -> CostTable | None:
    """The table in the cache; None if it must be measured.

    Raises:
        InputError: if it holds impossible times.
    """
    entry = cache.get(KIND, of) if cache and not cfg.costs.refresh else None
    if not cache or entry is None:
        return None
    table = CostTable.from_dict(entry.body["costs"])
    table.check(str(cache.path(KIND, of)))
    return table


def _keep(cache: ContentCache | None, of: Mapping[str, Any], table: CostTable) -> None:
    if cache:
        cache.put(KIND, of, {"costs": table.to_dict(), "provenance": provenance.environment()})


def draft_costs(
    cfg: DictConfig,
    loaded: Loaded,
    drafts: Drafts,
    dimensions: Sequence[Dimension],
    *,
    kept: Path | None = None,
    phase: Phases = unwatched,
) -> DraftCosts:
    """The costs of the drafts of a search.

    Args:
        cfg: configuration of the run.
        loaded: the model.
        drafts: settings of the drafts that points of the space share.
        dimensions: dimensions of the search space.
        kept: file with the tables of a resumed run.
        phase: is told how a measurement goes on.

    Raises:
        InputError: if a table of another device lacks a part of these drafts; this machine cannot measure it then.
    """
    n_layers = loaded.decoder.n_layers
    own = drafts.outline(Space(n_layers, dimensions=tuple(dimensions)).point(SkipSet(n_layers)))
    with_parts = partial(_with_parts, cfg=cfg, loaded=loaded, phase=phase)
    if kept is not None and kept.exists():
        table = CostTable.read(kept)
    else:
        has_maps = bool(MAPS & set(drafts.kinds(dimensions)))
        table = with_parts("", own, costs(cfg, loaded, phase=phase)[0], has_maps=has_maps)
    found = DraftCosts(table, own=own, measure=partial(with_parts, table=table))
    if kept is not None and kept.exists():
        found.recall(kept)
    return found


def head_costs(
    cfg: DictConfig, loaded: Loaded, plan: DraftPlan, table: CostTable, *, phase: Phases = unwatched
) -> CostTable:
    """The table for drafts of a plan that was trained, measured here once and kept.

    Raises:
        InputError: if the table is of another device.
    """
    if given_table(cfg) is not None:
        raise InputError(
            f"{_of(cfg)} and does not hold what a trained head costs there; train and search heads with costs=default"
        )
    measure_it = partial(measure_head, plan=plan)
    return _measured(
        cfg,
        loaded,
        plan,
        table,
        phase,
        measure_it,
        trained=str(plan.trained.to_dict() if plan.trained else plan.digest()),
    )


def _with_parts(
    name: str,
    plan: DraftPlan,
    table: CostTable,
    *,
    cfg: DictConfig,
    loaded: Loaded,
    phase: Phases,
    has_maps: bool = False,
) -> CostTable:
    """The table with the costs of a draft's maps, head, precision or trained head; all workers of a search share it."""
    has_head, is_rounded = plan.head is not None, plan.precision != "same"
    if plan.trained is not None:
        table = head_costs(cfg, loaded, plan, table, phase=phase)
    elif given_table(cfg) is not None:
        _check_parts(cfg, table, has_maps=has_maps, has_head=has_head, is_rounded=is_rounded)
    elif has_maps or has_head or is_rounded:
        measure_it = partial(measure_drafts, has_maps=has_maps, head=plan.head, precision=plan.precision)
        table = _measured(cfg, loaded, plan, table, phase, measure_it, has_maps=has_maps)
    if cfg.storage:  # values from different tables cannot be compared
        where = f"{cfg.name} costs" + (f", {name}" if name else "")
        table = CostTable.from_dict(agree(open_storage(cfg.storage), where, table.to_dict()))
    return table


def _measured(
    cfg: DictConfig,
    loaded: Loaded,
    plan: DraftPlan,
    table: CostTable,
    phase: Phases,
    measure_it: Callable[..., CostTable],
    **what: Any,
) -> CostTable:
    """The table of `measure_it` for a plan, found in the cache or measured and kept there.

    Args:
        cfg: configuration of the run.
        loaded: the model.
        plan: whose head and precision, together with `what`, determine the result.
        table: costs of the target's forwards.
        phase: is told how the measurement goes on.
        measure_it: makes the table.
        what: further parts of the key.
    """
    cache = build.cache(cfg, loaded)
    ids = None if plan.head is None else provenance.digest(str(plan.head.tolist()))
    of = {**place_and_time(cfg, loaded), "base": provenance.digest(table.text)}
    of |= {**what, "head": ids, "precision": plan.precision}
    known = _found(cfg, cache, of)
    if known is not None:
        return known
    watch = Stopwatch(loaded.decoder.device)
    found = measure_it(loaded.decoder, table, stopwatch=watch, phase=phase, **measuring(cfg))
    _keep(cache, of, found)
    return found
