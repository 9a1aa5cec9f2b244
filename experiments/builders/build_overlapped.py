"""From configuration to the arms that draft in another process while this one verifies."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from omegaconf import DictConfig

from experiments.evaluation.arms import Arm, DraftArm
from experiments.evaluation.overlapped import OverlappedArm
from selfspec.drafters.spec import DraftSpec
from selfspec.errors import InputError
from selfspec.overlapped import rates
from selfspec.overlapped.arithmetic import balanced_gamma
from selfspec.overlapped.process import ChildPartner, Places
from selfspec.overlapped.schedule import MOST, Overlapped, check_gamma

log = logging.getLogger(__name__)

PEARL = "pearl"
FIRST_GAMMA = 4  # with which the rates are measured before gamma is known; the default of PEARL's code


def overlapped_arms(cfg: DictConfig, in_turn: Sequence[Arm]) -> list[Arm]:
    """For each arm that drafts chains the same draft overlapped; none with schedule=sequential.

    Args:
        cfg: configuration of the run.
        in_turn: the arms that were asked for; the first drafting one is the run's own.

    Raises:
        InputError: if the run cannot be overlapped.
    """
    schedule = cfg.get("schedule")
    if schedule is None or schedule.name != PEARL:
        for key in set(schedule or ()) - {"name"}:
            raise InputError(f"schedule.{key} has no effect with schedule={schedule.name}; choose schedule=pearl")
        return []
    if cfg.batch > 1:
        raise InputError(f"schedule=pearl decodes one prompt at a time; use batch=1 instead of batch={cfg.batch}")
    if cfg.sampling.by_block:
        raise InputError("schedule=pearl tests token by token; set sampling.by_block=false")
    drafting = [arm for arm in in_turn if isinstance(arm, DraftArm) and arm.verifier is None]
    if not drafting:
        raise InputError("schedule=pearl overlaps drafts, and no arm of this run drafts; name one by skip= or arms=")
    return [
        _overlapped(schedule, arm, name=PEARL if i == 0 else f"{arm.name}, {PEARL}") for i, arm in enumerate(drafting)
    ]


def _overlapped(schedule: DictConfig, arm: DraftArm, *, name: str) -> OverlappedArm:
    given = schedule.gamma if isinstance(schedule.gamma, int) else None
    check_gamma(given)
    places = Places.of_machine(torch.get_num_threads(), draft_threads=schedule.draft_threads)
    if not schedule.pin:
        places = Places(places.verify_threads, places.draft_threads)
    spec = _chain(arm.name, arm.speculator.spec)
    partner = ChildPartner(arm.decoder, spec, places=places, timeout_s=schedule.timeout_s)
    beside = partial(rates.beside, places.verify_threads, places.verify_cores)
    measure = partial(
        rates.measure, arm.decoder, arm.speculator.drafter, partner, beside=beside, for_s=schedule.measure_s
    )
    log.warning("measuring how fast two processes are at once; the machine must be quiet")
    found = measure(gamma=given or FIRST_GAMMA)
    if given is None:
        gamma = balanced_gamma(found.verify_pair, found.draft_pair, most=MOST)
        found = found if gamma == found.gamma else measure(gamma=gamma)
        log.info("gamma %d (%s: %.1f ms a verification, %.1f ms a draft)", gamma, schedule.gamma, *_ms(found))
    overlapped = Overlapped(partner, gamma=None if schedule.gamma == "adaptive" else found.gamma, beside=beside)
    return OverlappedArm(
        decoder=arm.decoder,
        ending=arm.ending,
        sampling=arm.sampling,
        stopwatch=arm.stopwatch,
        name=name,
        skip=arm.skip,
        stop=f"gamma {schedule.gamma}",  # as asked for: a resumed run may measure another one
        spec=spec,
        overlapped=overlapped,
        partner=partner,
        rates=found,
    )


def _ms(found: rates.Rates) -> tuple[float, float]:
    return 1000 * found.verify_pair, 1000 * found.draft_pair


def _chain(name: str, spec: DraftSpec) -> DraftSpec:
    """The spec without the parts that draft without a forward.

    Raises:
        InputError: if nothing is left, or it drafts trees.
    """
    if spec.lookup == "only" or spec.tree is not None:
        what = "copies of the text" if spec.lookup == "only" else "trees"
        raise InputError(f"schedule=pearl overlaps chains, and arm {name!r} drafts {what}; leave that arm out")
    if spec.lookup is not None:
        log.warning("schedule=pearl leaves out the prompt lookup of %s: what it copies takes no time to overlap", name)
    return replace(spec, lookup=None, lookup_settings={})
