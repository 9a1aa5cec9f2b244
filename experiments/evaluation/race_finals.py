"""The end of a search: its best trials on calibration prompts that it has not seen, scored and then raced."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from omegaconf import DictConfig

from experiments.config.search_setup import Setup, objective_on
from experiments.terminal.progress import progress
from search.finals import Finalist, Raced, race, rescore
from search.point import Point
from search.replay.objectives import as_raced
from search.replay.rule_tuner import pausing
from selfspec.engine.decode import Ending
from selfspec.measure.stopwatch import Stopwatch
from selfspec.stopping import StopRule

log = logging.getLogger(__name__)


def finals(
    cfg: DictConfig, setup: Setup, best: Sequence[tuple[Point, float]], rules: Mapping[Point, dict[str, Any] | None]
) -> list[Raced]:
    """The race's results, the winner first.

    Args:
        cfg: of the search.
        setup: what it works on.
        best: its best points and their values.
        rules: the stop rule that was chosen for a point; None: the point's own.
    """
    prompts = {name: found for name, found in setup.fresh.items() if found}
    if len(prompts) < len(setup.prompts):
        prompts = dict(setup.prompts)
        log.warning("no calibration prompts are left for the finals: they run on those of the search")
    for point, value in best:
        log.info("finals: %s, %.3f in the search", point, value)
    objective = objective_on(cfg, setup.loaded, prompts, setup.drafts, setup.costs)
    entries = []
    for point, value in best:
        for drafts in setup.drafts.variants(point):
            spec, tuned = drafts(point), rules.get(point)
            rule = StopRule.from_dict(tuned) if tuned else spec.stop
            if cfg.pause and setup.costs is not None:
                rule = pausing(rule, spec.plan, setup.costs.for_plan(spec.plan), context=setup.context)
            spec = replace(spec, stop=rule)
            # Scored with the rule that it races with: one chosen anew would be chosen on what it is judged by.
            entries.append((Finalist(point, spec, value), as_raced(objective, spec)))
    finalists = rescore(entries, n_kept=cfg.finals.race)
    for f in finalists:
        value = f.score.value if f.score else float("nan")
        log.info("fresh prompts: %s -> %.3f %s", f.spec.plan, value, setup.objective.unit)
    ids = [p.ids for found in prompts.values() for p in found]
    decoder = setup.loaded.decoder
    with progress("race", len(ids)) as advance:
        return race(
            decoder,
            ids,
            finalists,
            ending=Ending(cfg.objective.max_new_tokens),
            stopwatch=Stopwatch(decoder.device),
            listener=lambda n_done: advance(),
        )
