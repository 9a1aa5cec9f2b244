"""The end of a search: its best trials on calibration prompts that it has not seen, scored and then raced."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig

from experiments import build, build_search
from experiments.progress import progress
from experiments.setup import Setup, objective_on
from search.expected import with_rule
from search.finals import Finalist, Raced, race, rescore
from search.tune import paying
from selfspec.decode import Ending
from selfspec.skip import SkipSet
from selfspec.stop import StopPolicy, StopRule
from selfspec.timing import Stopwatch

log = logging.getLogger(__name__)


def finals(
    cfg: DictConfig, setup: Setup, best: Sequence[tuple[SkipSet, float]], rules: Mapping[str, dict[str, Any] | None]
) -> list[Raced]:
    """The race's results, the winner first.

    Args:
        cfg: of the search.
        setup: what it works on.
        best: its best sets and their values.
        rules: the stop rule that was chosen for a set, by the set as it is written; None for the run's.
    """
    prompts = {name: found for name, found in setup.fresh.items() if found}
    if len(prompts) < len(setup.prompts):
        prompts = dict(setup.prompts)
        log.warning("no calibration prompts are left for the finals: they run on those of the search")
    for skip, value in best:
        log.info("finals: %s, %.3f in the search", skip, value)
    entries = []
    for drafts in setup.drafts.variants():
        table = setup.costs
        if table is not None and drafts is not setup.drafts:  # another head costs something else
            table = build_search.draft_costs(cfg, setup.loaded, table, drafts)
        objective = objective_on(cfg, setup.loaded, prompts, drafts, table)
        for skip, value in best:
            plan, rule = drafts(skip), _rule(cfg, rules.get(str(skip)))
            if cfg.pause and table is not None:
                rule = paying(rule, plan, table, context=setup.context)
            # Scored with the rule that it races with: one chosen anew would be chosen on what it is judged by.
            entries.append((Finalist(skip, plan, rule, value), with_rule(objective, rule)))
    finalists = rescore(entries, n_kept=cfg.finals.race)
    for f in finalists:
        value = f.score.value if f.score else float("nan")
        log.info("fresh prompts: %s -> %.3f %s", f.plan, value, setup.objective.unit)
    ids = [p.ids for found in prompts.values() for p in found]
    decoder = setup.loaded.decoder
    with progress("race", len(ids)) as advance:
        return race(
            decoder,
            ids,
            finalists,
            ending=Ending(cfg.objective.max_new_tokens),
            stopwatch=Stopwatch(decoder.device),
            lookup=build_search.lookup(cfg, setup.drafts),
            listener=lambda n_done: advance(),
        )


def _rule(cfg: DictConfig, tuned: dict[str, Any] | None) -> StopPolicy:
    """The stop rule of a finalist: the run's, or what was chosen for its skip set."""
    return StopRule.from_dict(tuned) if tuned else build.stop(cfg)
