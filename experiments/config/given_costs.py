"""A cost table of another device, given by the configuration (`costs=h100/NAME`): what it can and cannot be used for.

Nothing of it may be measured on this machine: a table of two machines' seconds would predict the speed of neither.
"""

from __future__ import annotations

import logging

from omegaconf import DictConfig, OmegaConf

from experiments.config.build_space import choices
from search.costs.table import CostTable
from search.draft_of_point import FULL
from selfspec.errors import InputError

log = logging.getLogger(__name__)


def given_table(cfg: DictConfig) -> CostTable | None:
    """The table in the configuration; None: the costs are this machine's."""
    if not cfg.costs.get("table"):
        return None
    table = OmegaConf.to_container(cfg.costs.table)
    assert isinstance(table, dict)
    return CostTable.from_dict({str(key): value for key, value in table.items()})


def check_given(cfg: DictConfig, *, is_used: bool) -> None:
    """Refuse, before a model is loaded, a search that the given table does not know the costs of.

    Warns where it is of a model of another name, and where the finals would race on another device than it is of.

    Raises:
        InputError: if the objective does not use costs, or drafts have parts that the table lacks.
    """
    table = given_table(cfg)
    if table is None:
        return
    if not is_used:
        raise InputError(f"{_of(cfg)} has no effect: objective={cfg.objective.name} uses no costs; leave it out")
    check_parts(
        cfg,
        table,
        has_maps=bool({"linear", "lowrank"} & set(choices(cfg, "draft", cfg.draft.kind))),
        has_head=bool(set(choices(cfg, "head", cfg.head.n)) - {None, FULL}),
        is_rounded=choices(cfg, "precision", cfg.precision) != ["same"],
    )
    if cfg.costs.name.rpartition("/")[2] != cfg.model.name:  # h100/smollm2-135m: the device, then the model
        log.warning(
            "%s, and the run's model is %s: right only if the two models have the same shape", _of(cfg), cfg.model.name
        )
    if cfg.finals.top:
        log.warning("%s, but the finals race by this machine's clock; finals.top=0 leaves them out", _of(cfg))


def check_parts(cfg: DictConfig, table: CostTable, *, has_maps: bool, has_head: bool, is_rounded: bool) -> None:
    """Refuse drafts whose parts the given table holds no seconds of.

    Raises:
        InputError: for the first such part.
    """
    knows_rounded = any((table.attn_saved_s, table.mlp_saved_s, table.head_saved_s))
    for part, setting, is_wanted, is_known in (
        ("a bridge with a matrix costs", "draft=linear and lowrank", has_maps, table.map_s > 0),
        ("a trimmed head saves", "head", has_head, table.head_saved_s != 0),
        ("rounded weights save", "precision", is_rounded, knows_rounded),
    ):
        if is_wanted and not is_known:
            raise InputError(
                f"{_of(cfg)} and does not hold what {part} there; leave {setting} out, or search on that device with "
                "costs=default"
            )


def _of(cfg: DictConfig) -> str:
    device = cfg.costs.get("device") or "another device"
    return f"costs={cfg.costs.name} is of {device}"
