"""The parts that a search tries one after another, without what the run has settled and what it cannot have.

A setting of the run is a decision: with `precision=int4` no other precision is tried. What cannot be here is left out,
and the log says so, so that `draft=auto` is a default for every device, drafter and shape of drafts.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from search.dimensions import Choice, Dimension
from search.draft_of_point import Drafts
from search.ladder import LOOKUP
from search.point import Value
from selfspec.errors import InputError
from selfspec.skipping.rounding import check_kernel

log = logging.getLogger(__name__)

Part = Mapping[str, Value]


@dataclass(frozen=True, slots=True)
class Laddered:
    """The settings of a space, with a ladder.

    Attributes:
        space: the dimensions in the form of the configuration.
        parts: values of dimensions to try, in order.
    """

    space: Mapping[str, Any]
    parts: Sequence[Part]


def laddered(cfg: DictConfig, drafts: Drafts) -> Laddered:
    """The space and the ladder of a configuration, without the parts of a draft that the run sets itself.

    A drafter of the user's own has no parts to try.
    """
    space: dict[str, Any] = OmegaConf.to_container(cfg.space) if cfg.get("space") else {}  # type: ignore[assignment]
    parts: list[Part] = [dict(part) for part in cfg.get("ladder") or ()]
    names = {name for part in parts for name in part}
    own = {"lookup": drafts.lookup, "memory": drafts.memory, "head": drafts.head}
    settled = {name for name, value in own.items() if value is not None}
    settled |= {"precision"} if drafts.precision != "same" else set()
    if drafts.drafter:
        settled = names
    settled &= names
    space = {name: _unconditional(body, settled) for name, body in space.items() if name not in settled}
    return Laddered(space, _without([{n: v for n, v in part.items() if n not in settled} for part in parts]))


def possible(
    dimensions: Sequence[Dimension], parts: Sequence[Part], *, drafts: Drafts, device: torch.device
) -> tuple[tuple[Dimension, ...], list[Part]]:
    """The dimensions and parts of a ladder without values that a draft cannot have on this device.

    These are precisions without a kernel, and lookup alone where the run's drafts are trees.
    """
    on_ladder = {(name, value) for part in parts for name, value in part.items()}
    without = {pair: why for pair in on_ladder if (why := _impossible(*pair, drafts=drafts, device=device))}
    for (name, value), why in sorted(without.items(), key=str):
        log.info("%s=%s is not tried: %s", name, value, why)
    found = []
    for d in dimensions:
        if isinstance(d.domain, Choice):
            values = tuple(v for v in d.domain.values if (d.name, v) not in without)
            when = {n: tuple(v for v in allowed if (n, v) not in without) for n, allowed in d.when.items()}
            d = replace(d, domain=Choice(values), when=when)
        found.append(d)
    return tuple(found), _without([p for p in parts if not without.keys() & set(p.items())])


def _impossible(name: str, value: Value, *, drafts: Drafts, device: torch.device) -> str | None:
    """Why a draft cannot have this value here; None if it can."""
    if name == LOOKUP and value == "only" and drafts.tree:
        return "it leaves no place for a tree"
    if name == "precision" and value in ("int8", "int4"):
        try:
            check_kernel(str(value), device)
        except InputError as error:
            return str(error)
    return None


def _unconditional(body: Any, settled: set[str]) -> Any:
    """An entry of the space without conditions on what is no dimension any more."""
    if not isinstance(body, Mapping) or not body.get("when"):
        return body
    return {**body, "when": {name: value for name, value in body["when"].items() if name not in settled}}


def _without(parts: Sequence[Part]) -> list[Part]:
    """The parts that add something, each once."""
    found: list[Part] = []
    for part in parts:
        if part and part not in found:
            found.append(part)
    return found
