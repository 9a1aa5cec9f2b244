"""From configuration to the controller of an arm, and to the costs of a batch's steps on this machine."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from experiments.builders import build, build_costs
from experiments.config import kinds
from experiments.config.composing import as_config, option
from experiments.config.schema_groups import Built
from search.costs.batch import measure_steps
from selfspec.control import Controller, ControlState, StepCosts
from selfspec.control.measured import measure_drafting
from selfspec.engine.protocols import Drafter
from selfspec.errors import InputError
from selfspec.measure.phases import Phases, unwatched
from selfspec.measure.stopwatch import Stopwatch
from selfspec.models.load import Loaded
from selfspec.records import provenance
from selfspec.targets import TARGET

log = logging.getLogger(__name__)

AUTO, NONE = "auto", "none"
KIND = "step_costs"  # of entries of the cache
STEPS = "steps"  # key of a file of costs
FORM = 2  # version of the measurement
SHARE = 0.25  # of the seconds of a cost table
Asked = str | Mapping[str, Mapping[str, Any]]  # a controller by name, or with settings of its own
ANY = StepCosts((1.0, 0.0, 0.0, 0.0, 0.0))  # for a controller that reads no costs


def control(
    cfg: DictConfig, loaded: Loaded, drafter: Drafter, *, asked: Asked | None = None, phase: Phases = unwatched
) -> ControlState | None:
    """The state of the controller of an arm; None if its drafts go as far as the stop rule lets them.

    Args:
        cfg: configuration of the run.
        loaded: the model.
        drafter: drafts for the arm; its forwards are timed.
        asked: name of the arm's own controller; None: that of the run.
        phase: is told how costs are measured.

    Raises:
        InputError: if the controller cannot be made, or needs costs that are of another device.
    """
    settings = cfg.get("controller") if asked is None else _settings(asked)
    name, batch = None if settings is None else settings.get("name"), cfg.get("batch", 1)
    if settings is None or name == NONE or (name == AUTO and batch == 1):
        return None
    policy = _made(option("controller", "goodput") if name == AUTO else settings)
    if not policy.reads_costs:
        return policy.begin(ANY)
    costs = step_costs(cfg, loaded, may_measure=name != AUTO, phase=phase)
    if costs is None:
        log.info(
            "batch=%d: drafts go as far as the stop rule lets them, which may be slower than plain decoding; `selfspec "
            "profile` measures what batches cost here, and controller=goodput decides by it",
            batch,
        )
        return None
    drafting = measure_drafting(
        loaded.decoder,
        drafter,
        n_rows=batch,
        context=build_costs.place_and_time(cfg, loaded)["contexts"][0],
        stopwatch=Stopwatch(loaded.decoder.device),
    )
    return policy.begin(costs.drafting(drafting))


def by_name(asked: Asked) -> Controller | None:
    """The controller of a name, with the settings of its file or with given ones: `{fixed: {max_draft: 2}}`.

    Returns:
        None for `none`: drafts go as far as the stop rule lets them.

    Raises:
        InputError: if there is no such controller, or it has other settings.
    """
    settings = _settings(asked)
    if settings.get("name") == NONE:
        return None
    return _made(option("controller", "goodput") if settings.get("name") == AUTO else settings)


def _settings(asked: Asked) -> DictConfig:
    named = {asked: {}} if isinstance(asked, str) else dict(asked)
    if len(named) != 1:
        raise InputError(f"controller={named} names {len(named)} controllers; give one, as {{fixed: {{max_draft: 2}}}}")
    ((name, changed),) = named.items()
    settings = OmegaConf.to_container(OmegaConf.merge(option("controller", name), dict(changed)))
    return as_config(kinds.read(settings, Built, f"controller.{name}"))


def _made(settings: DictConfig) -> Controller:
    found = build.instance(settings)
    if not isinstance(found, Controller):
        raise InputError(
            f"controller: {settings.get(TARGET)} is not a controller; it must inherit from selfspec.control.Controller"
        )
    return Controller.from_dict(found.to_dict())  # lists of the configuration become tuples


def step_costs(cfg: DictConfig, loaded: Loaded, *, may_measure: bool, phase: Phases = unwatched) -> StepCosts | None:
    """The costs of a batch's steps: those beside the table `costs.path`, or this machine's, measured once and kept.

    Args:
        cfg: configuration of the run.
        loaded: the model.
        may_measure: measure them if they are unknown, and refuse to go on without them.
        phase: is told how they are measured.

    Returns:
        None if they are unknown and may not be measured, or if `costs.rows` is empty.

    Raises:
        InputError: if they are of another device, or `costs.path` does not hold them.
    """
    here, rows = _here(loaded), list(cfg.costs.get("rows") or ())
    if build_costs.given_table(cfg) is not None:
        if not may_measure:
            return None
        raise InputError(
            f"costs={cfg.costs.name} is of another device, and a controller decides by this machine's seconds; take "
            "costs=default, or controller=none"
        )
    if cfg.costs.path:
        found = beside(Path(cfg.costs.path))
        if found is None and may_measure:
            raise InputError(f"{cfg.costs.path} holds no costs of batches; `selfspec profile` measures them")
        if found is not None:
            found.check_device(here)
        return found
    cache = build.cache(cfg, loaded)
    of = {**build_costs.place_and_time(cfg, loaded), "rows": rows, "form": FORM}
    entry = cache.get(KIND, of) if cache and not (cfg.costs.refresh and may_measure) else None
    if entry is not None:
        return StepCosts.from_dict(entry.body[STEPS])
    if not may_measure or not rows:
        return None
    log.warning("measuring what batches cost here; the machine must be quiet (load %s)", provenance.load_average())
    how = build_costs.measuring(cfg)
    if "max_s" in how:
        how["max_s"] *= SHARE
    found = measure_steps(
        loaded.decoder,
        rows=sorted(rows),
        contexts=of["contexts"],
        stopwatch=Stopwatch(loaded.decoder.device),
        of=here,
        phase=phase,
        **how,
    )
    if cache:
        cache.put(KIND, of, {STEPS: found.to_dict(), "provenance": provenance.environment()})
    return found


def _here(loaded: Loaded) -> dict[str, Any]:
    """What the seconds are of."""
    facts = {name: str(loaded.facts[name]) for name in ("model_type", "dtype", "device", "attention", "threads")}
    return facts | {"machine": provenance.processor()}


def beside(path: Path) -> StepCosts | None:
    try:
        body = json.loads(path.read_text(encoding="utf-8")).get(STEPS)
        return None if body is None else StepCosts.from_dict(body)
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not a cost table ({error}); `selfspec profile` makes one") from None
