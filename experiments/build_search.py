"""From configuration to what only a search needs: prompts of several data sets, costs, drafts, objective and study."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, get_args

from omegaconf import DictConfig, OmegaConf

from experiments.build import check_count, instance, stop
from experiments.composing import option, options
from search.constraints import Constraints
from search.cost import FORM, CostTable, measure, measure_drafts
from search.drafts import Drafts, continued
from search.drafts import drafts as make_drafts
from search.expected import ReplayObjective, accepted_fraction, expected_speedup
from search.matchness import Matchness
from search.objective import Objective, TokensPerSecond
from search.reference import BATCH_STARTS, Reference, ReferenceBatch, refer
from search.shared import Sharing
from search.space import Space
from search.study import SearchStudy
from selfspec import provenance, records
from selfspec.decode import Ending
from selfspec.errors import InputError, unknown_name
from selfspec.load import Loaded
from selfspec.lookup import LookupDraft, Memory
from selfspec.model import Decoder
from selfspec.plan import PLAIN, Precision
from selfspec.quantised import check_kernel
from selfspec.skip import SkipSet
from selfspec.timing import Stopwatch

log = logging.getLogger(__name__)

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


def constraints(cfg: DictConfig, loaded: Loaded, table: CostTable | None, made: Drafts) -> Constraints:
    """What a skip set must be; caps are on the drafts that sets stand for."""
    settings: dict[str, Any] = {str(k): v for k, v in cfg.constraints.items()}
    decoder = loaded.decoder
    if settings["max_cost"] is not None:
        if table is None:
            raise InputError(
                f"constraints.max_cost={settings['max_cost']} needs a cost table, which objective={cfg.objective.name} "
                "does not measure; use objective=expected_speedup"
            )
        settings["cost"] = cache(lambda skip: table.draft_cost(made.outline(skip), table.contexts[0]))
    if settings["max_memory"] is not None:
        whole = decoder.weight_bytes(SkipSet(decoder.n_layers))
        settings["memory"] = cache(lambda skip: decoder.weight_bytes(made.outline(skip)) / whole)
    return Constraints(**settings)


def costs(cfg: DictConfig, loaded: Loaded) -> tuple[CostTable, Path, bool]:
    """The cost table of this model on this machine, its file, and whether it was measured just now.

    Raises:
        InputError: if `costs.path` names no table.
    """
    if cfg.costs.get("table"):  # of another device, in a file of conf/costs
        table = OmegaConf.to_container(cfg.costs.table)
        assert isinstance(table, dict)
        return CostTable.of({str(k): v for k, v in table.items()}), Path(f"costs={cfg.costs.name}"), False
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
    records.write_json(path, {"costs": table.as_dict(), "of": of | measured, "provenance": provenance.environment()})
    return table, path, True


def check_lookup(cfg: DictConfig) -> None:
    """Refuse a lookup that a search has no use for, and a memory that nobody would look in."""
    if cfg.lookup not in (None, "front"):
        raise InputError(f"lookup={cfg.lookup}; in a search it is front (before the draft) or null")
    if cfg.memory and not cfg.lookup:
        raise InputError(f"memory={cfg.memory} is for prompt lookup to look in; set lookup=front, or leave memory out")
    check_count("memory", cfg.memory)


def lookup(cfg: DictConfig, drafts: Drafts) -> LookupDraft | None:
    """Prompt lookup in front of every draft of the search; None: none."""
    return LookupDraft(memory=Memory.of(drafts.memory)) if cfg.lookup else None


def needs_texts(cfg: DictConfig) -> bool:
    """Whether the drafts are made of what the full model says: calibration prompts beyond those of the search."""
    return cfg.draft.kind != PLAIN or cfg.head.n is not None or cfg.memory is not None


def is_plain(cfg: DictConfig) -> bool:
    """Whether a draft is nothing but the model without its skip set: no plan is needed to tell what it is."""
    return not needs_texts(cfg) and cfg.precision == "same"


def drafts(cfg: DictConfig, loaded: Loaded, prompts: Sequence[list[int]]) -> Drafts:
    """What a skip set means in this run; `prompts` are those that no draft is judged on.

    Raises:
        InputError: if there are none and the drafts are made of them.
    """
    if cfg.precision not in get_args(Precision):
        raise unknown_name("precision", cfg.precision, list(get_args(Precision)))
    if cfg.precision != "same":
        check_kernel(cfg.precision, loaded.decoder.device)
    if not needs_texts(cfg):
        return Drafts(precision=cfg.precision)
    if not prompts:
        raise InputError(
            f"draft={cfg.draft.kind}, head.n={cfg.head.n} and memory={cfg.memory} are made from calibration prompts "
            "beyond those of the search and its finals, and none are left; give data with more of them, as by "
            "data.calibration_n where it has that"
        )
    c = cfg.calibration
    check_count("calibration.n_tokens", c.n_tokens)
    check_count("head.n", cfg.head.n)
    n_tokens = max(c.n_tokens, cfg.memory or 0)
    texts = continued(loaded.decoder, prompts, max_new_tokens=c.max_new_tokens, n_tokens=n_tokens)
    d = cfg.draft
    return make_drafts(
        loaded.decoder,
        texts,
        kind=d.kind,
        merge=d.merge,
        rank=d.rank,
        n_tokens=c.n_tokens,
        n_scored=cfg.head.n,
        other_sizes=tuple(cfg.head.others),
        precision=cfg.precision,
        n_remembered=cfg.memory,
    )


def draft_costs(cfg: DictConfig, loaded: Loaded, table: CostTable, made: Drafts) -> CostTable:
    """The table with what these drafts' bridges and head cost, and what their precision saves."""
    has_maps = made.kind in ("linear", "lowrank")
    if not has_maps and made.head is None and made.precision == "same":
        return table
    return measure_drafts(
        loaded.decoder,
        table,
        has_maps=has_maps,
        head=made.head,
        precision=made.precision,
        repeats=cfg.costs.repeats,
        stopwatch=Stopwatch(loaded.decoder.device),
    )


def references(cfg: DictConfig, loaded: Loaded, calibration: Sequence[Sequence[int]]) -> list[ReferenceBatch]:
    """What the full model says on calibration prompts, and its keys and values of it."""
    o = cfg.objective
    ending = Ending(o.max_new_tokens)
    return refer(loaded.decoder, calibration, ending=ending, batch_starts=o.get("batch_starts", BATCH_STARTS))


def objective(
    cfg: DictConfig,
    loaded: Loaded,
    calibration: Sequence[Sequence[int]],
    *,
    drafts: Drafts,
    table: CostTable | None,
) -> Objective:
    """What the search maximises.

    Args:
        cfg: of the run.
        loaded: the model.
        calibration: token ids of the prompts.
        drafts: what a skip set means.
        table: what drafts cost; None where the objective takes the time itself.
    """
    o, decoder = cfg.objective, loaded.decoder
    policy, watch, behind = stop(cfg), Stopwatch(decoder.device), lookup(cfg, drafts)
    if o.name == "tokens_per_second":
        return TokensPerSecond(decoder, calibration, policy, o.max_new_tokens, watch, drafts, behind)
    batches = references(cfg, loaded, calibration)
    if o.name == "matchness":
        return Matchness(decoder, batches, watch, drafts)
    if o.name not in _REPLAYED:
        raise unknown_name("objective", o.name, options("objective"))
    assert table is not None
    value, unit = _REPLAYED[o.name]
    return ReplayObjective(o.name, unit, value, decoder, batches, policy, table, watch, drafts, o.tune_stop, behind)


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
