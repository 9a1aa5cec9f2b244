"""From configuration to the arms of an evaluation: ways to decode, each with its own draft if its settings name one.

Fitted parts of a draft come from calibration prompts. They are fitted once for all arms, when the first arm needs them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from experiments.builders import build
from experiments.builders.build_control import AUTO, NONE, control
from experiments.builders.build_costs import costs, head_costs, measuring
from experiments.builders.build_online import around, facts_of, is_online, online_by_name, online_draft
from experiments.builders.build_overlapped import overlapped_arms
from experiments.builders.build_search import ALL
from experiments.config.composing import option
from experiments.evaluation import ablation
from experiments.evaluation.arms import GENERATE, PLAIN, Arm, DraftArm, GenerateArm, PlainArm, generation
from experiments.evaluation.draft_only import DraftOnlyArm
from experiments.evaluation.online_arm import OnlineArm
from experiments.results.locate_draft import locate_draft
from search.costs.head_costs import LEAST, round_costs
from search.costs.measure import check
from search.costs.table import CostTable
from search.draft_of_point import heads, remembered
from search.fitting.bridge_fitting import BridgeFitter
from search.fitting.continuations import Text, continued
from search.fitting.kept_fits import bridge_fitter
from search.online.swift import every_odd_layer
from search.replay import rule_tuner
from search.replay.chain_replay import draft_everything, find_lookup_proposals
from search.replay.chains import Chains
from search.replay.references import ReferenceBatch, decode_references
from selfspec.drafters.build import lookup_of
from selfspec.drafters.spec import DraftSpec
from selfspec.drafters.tree_shapes import TreeShape
from selfspec.engine.approximate import AmongBest, Lenient, Near
from selfspec.engine.decode import Ending
from selfspec.engine.sampling import Sampling
from selfspec.errors import InputError, check_count
from selfspec.measure.phases import Phases, unwatched
from selfspec.measure.stopwatch import Stopwatch
from selfspec.models.decoder import Decoder
from selfspec.models.load import Loaded
from selfspec.skipping.plan import BRIDGED, DraftPlan
from selfspec.skipping.plan import PLAIN as SKIP
from selfspec.skipping.rounding import check_kernel
from selfspec.skipping.skip_set import SkipSet
from selfspec.speculator import Speculator
from selfspec.stopping import Optimal, predictor_of, without_predictor
from selfspec.targets import TARGET

log = logging.getLogger(__name__)

_VERIFIED = (
    "stop",
    "lookup",
    "drafter",
    "tree",
    "controller",
    "online",
    "accept_top",
    "accept_distance",
)  # of arms that are verified
_OF_PLAN = {"unskipped", "draft", "head", "precision", "memory"}  # settings of an arm that change its plan
OWN = "own"  # the online searcher of the run's own arm: the settings of the group, as they were typed
N_TUNED_ON = 8  # prompts that tune a stop rule and fit no draft; chosen, not tuned


def arms(cfg: DictConfig, loaded: Loaded, ending: Ending, *, phase: Phases = unwatched) -> list[Arm]:
    """The arms of an evaluation, plain decoding first; `phase` is told how their drafts are fitted.

    Raises:
        InputError: if the settings of an arm are wrong, or two arms have the same name.
    """
    common = (loaded.decoder, ending, build.sampling(cfg), Stopwatch(loaded.decoder.device))
    found: list[Arm] = [PlainArm(*common), *([GenerateArm(*common)] if cfg.generate else [])]
    n_baselines = len(found)
    calibration, own = Calibration(cfg, loaded, phase), None
    asked = _asked(cfg, loaded)
    for name, settings in asked.items():
        if "generate" in settings:
            found.append(GenerateArm(*common, name=name, settings=_generate(cfg, name, settings)))
            continue
        _check(name, settings)
        found.append(_draft_arm(cfg, loaded, common, calibration, name, settings))
        if cfg.get("controls") and name == (cfg.arm or "") and isinstance(found[-1], DraftArm):
            own = found[-1].speculator.spec
    found += overlapped_arms(cfg, found[n_baselines:])
    if own is not None:
        for name, settings in _controls(str(cfg.skip), own, asked).items():
            found.append(_draft_arm(cfg, loaded, common, calibration, name, settings))
    names = [a.name for a in found]
    if len(set(names)) < len(names) or {PLAIN, GENERATE} & set(names[n_baselines:]):
        raise InputError(
            f"two arms have the same name: {', '.join(names)}; name them with arm=NAME or in arms={{NAME: ...}}"
        )
    return found


def _controls(skip: str, spec: DraftSpec, asked: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The arms that the run's own draft must beat, unless they were asked for.

    These are the same draft with nothing skipped, and its prompt lookup alone; of a draft with trained parts also its
    skip set with linear maps, which need no training.
    """
    others = [settings for settings in asked.values() if settings.get("skip") == skip]
    found: dict[str, dict[str, Any]] = {}
    if len(spec.skip) and not any(settings.get("unskipped") for settings in others):
        found["nothing skipped"] = {"skip": skip, "unskipped": True}
    if len(spec.skip) and spec.plan.kind == BRIDGED and not any("draft" in settings for settings in others):
        found["untrained linear maps"] = {"skip": skip, "draft": "linear"}
    if spec.lookup in ("front", "beside") and not any(settings.get("lookup") == "only" for settings in others):
        has_memory = spec.plan.memory is not None
        found["lookup and memory alone" if has_memory else "lookup alone"] = {"skip": skip, "lookup": "only"}
    return {name: settings for name, settings in found.items() if name not in asked}


def _draft_arm(
    cfg: DictConfig,
    loaded: Loaded,
    common: tuple[Decoder, Ending, Sampling, Stopwatch],
    calibration: Calibration,
    name: str,
    settings: Mapping[str, Any],
) -> Arm:
    """The arm of a draft, or of its text alone."""
    own, draft = (locate_draft(str(name), Path(cfg.paths.outputs)) for name in (cfg.skip, settings.get("skip", "none")))
    if settings.get("draft_only"):
        plan = _changed(build.plan(draft, loaded), settings, calibration)
        return DraftOnlyArm(*common, name=name or "draft alone", plan=plan)
    lookup = settings.get("lookup", cfg.lookup)
    if lookup == "searched":
        lookup = build.searched(draft if "lookup" in settings else own).get("lookup")
    asked = settings.get("stop")
    policy = build.stop(cfg, own) if asked is None else build.stop_by_name(asked, draft)
    if asked is None and (draft != own or _OF_PLAN & set(settings)) and predictor_of(policy) is not None:
        log.info("%s: its stop rule reads the confidence, since the run's predictor is for another draft", name)
        policy = without_predictor(policy)
    drafter = _drafter(cfg, settings, lookup)
    tree = _tree(cfg, settings, lookup, drafter)
    spec = build.spec(cfg, draft, loaded, policy, lookup=lookup, drafter=drafter, tree=tree)
    spec = replace(spec, plan=_changed(spec.plan, settings, calibration))
    if not rule_tuner.is_priced(spec) and settings.get("online") and not len(spec.skip):
        # the draft is not known yet: one that skips every odd layer stands for it
        half = every_odd_layer(spec.skip.n_layers)
        priced = calibration.priced(replace(spec, plan=replace(spec.plan, skip=half)))
        spec = replace(spec, tree=priced.tree, stop=priced.stop)
    elif not rule_tuner.is_priced(spec):
        spec = calibration.priced(spec)
    if settings.get("tune_stop"):
        spec = replace(spec, stop=calibration.tuned(name, spec))
    rule = build.stop_name(spec.stop)
    online = cfg.get("online") if settings.get("online") == OWN else None
    if settings.get("online") not in (None, OWN):
        online = online_by_name(settings["online"])
    verifier = _verifier(name, settings, is_greedy=not common[2].do_sample)
    lenient = f" (approximate: {verifier})" if verifier else ""
    if is_online(online):
        assert online is not None
        if settings.get("controller") or (cfg.get("controller") or {}).get("name") not in (None, AUTO, NONE):
            raise InputError(
                f"arms.{name} has a controller and online={online.name}; an online draft takes no controller"
            )
        arm = _online_arm(cfg, loaded, common, f"{name or f'online {online.name}'}{lenient}", spec, online)
        arm.verifier = verifier
        return arm
    name = f"{name or f'{_in_short(spec)}, {rule}'}{lenient}"
    speculator = Speculator(loaded.decoder, spec)
    speculator.control = control(
        cfg, loaded, speculator.drafter, asked=settings.get("controller"), phase=calibration.phase
    )
    return DraftArm(*common, name=name, skip=spec.skip, stop=rule, speculator=speculator, verifier=verifier)


def _online_arm(
    cfg: DictConfig,
    loaded: Loaded,
    common: tuple[Decoder, Ending, Sampling, Stopwatch],
    name: str,
    spec: DraftSpec,
    online: DictConfig,
) -> OnlineArm:
    """The arm of a draft that changes while it decodes, and begins with `spec`."""
    drafter = online_draft(cfg, online, loaded, spec, common[3])
    return OnlineArm(
        *common,
        name=name,
        skip=None,
        stop=build.stop_name(spec.stop),
        speculator=Speculator(loaded.decoder, around(online, spec), instead=drafter),
        online=facts_of(online),
    )


def _verifier(name: str, settings: Mapping[str, Any], *, is_greedy: bool) -> Lenient | None:
    """The approximate acceptance that an arm asks for; None: exact."""
    asked = {key: settings[key] for key in ("accept_top", "accept_distance") if settings.get(key) is not None}
    if len(asked) > 1 or (asked and not is_greedy):
        raise InputError(f"arms.{name} has {', '.join(asked)}; give one of them, in greedy decoding")
    if "accept_top" in asked:
        return AmongBest(asked["accept_top"])
    return Near(asked["accept_distance"]) if asked else None


def _asked(cfg: DictConfig, loaded: Loaded) -> dict[str, Any]:
    """Arm name to settings, without the baselines: the run's own arm (`` if unnamed), the ablation's, and others."""
    more = OmegaConf.to_container(cfg.arms) if cfg.arms else {}
    assert isinstance(more, dict)
    own: dict[str, Any] = {cfg.arm or "": {"skip": str(cfg.skip), "lookup": cfg.lookup}}
    if is_online(cfg.get("online")):
        own[cfg.arm or ""]["online"] = OWN
    if not cfg.ablation:
        return _joined(own, more)
    plan, has_int8 = build.plan(locate_draft(str(cfg.ablation), Path(cfg.paths.outputs)), loaded), True
    try:
        check_kernel("int8", loaded.decoder.device)
    except InputError as error:
        log.warning("the ablation has no step + int8: %s", error)
        has_int8 = False
    steps = ablation.steps(str(cfg.ablation), plan, has_int8=has_int8, trained=cfg.get("trained"))
    return _joined(own if str(cfg.skip) != "none" else {}, steps, more)


def _joined(*parts: Mapping[Any, Any]) -> dict[str, Any]:
    names = [str(name) for part in parts for name in part]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"two arms have the same name: {', '.join(twice)}; name them with arm=NAME or in arms=")
    return {str(name): settings for part in parts for name, settings in part.items()}


def _check(name: str, settings: Mapping[str, Any]) -> None:
    if not {"skip", "lookup"} & set(settings):
        raise InputError(
            f"arms.{name} has {', '.join(settings) or 'no settings'}; an arm has a skip or a lookup, or generate alone"
        )
    idle = [key for key in (*_VERIFIED, "tune_stop") if key in settings]
    if settings.get("draft_only") and idle:
        raise InputError(f"arms.{name} has draft_only, which nothing verifies; leave out its {', '.join(idle)}")


def _generate(cfg: DictConfig, name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of `generate` that an arm names."""
    asked = settings["generate"]
    if set(settings) != {"generate"} or not asked:
        raise InputError(
            f"arms.{name} has {dict(settings)}; an arm of transformers' own has generate alone, with its settings: "
            "{generate: {prompt_lookup_num_tokens: 10}}"
        )
    return generation(name, asked, batch=cfg.batch)


def _drafter(cfg: DictConfig, settings: Mapping[str, Any], lookup: str | None) -> dict[str, Any] | None:
    """The user's drafter of an arm: its own drafter, or else the run's if the arm drafts."""
    if "drafter" in settings:
        return build.drafter_by_name(str(settings["drafter"]))
    is_copy = lookup == "only" and "lookup" in settings
    return None if is_copy else build.own_drafter(cfg)


def _tree(
    cfg: DictConfig, settings: Mapping[str, Any], lookup: str | None, drafter: Mapping[str, Any] | None
) -> TreeShape | None:
    """The shape of an arm's drafts: its own shape, or else the run's if the built-in drafter drafts."""
    if "tree" in settings:
        return build.tree_by_name(str(settings["tree"]))
    return None if drafter or lookup == "only" else build.tree(cfg)


def _in_short(spec: DraftSpec) -> str:
    """A name for an arm without a name: `skip 5`, or the class of the user's drafter."""
    if spec.drafter:
        return str(spec.drafter[TARGET]).rpartition(".")[2]
    if spec.plan.trained is not None and spec.lookup != "only":
        return f"trained {spec.plan.trained.kind}"
    if spec.plan.kind == BRIDGED:
        return f"trained, skip {len(spec.skip)}"
    return f"skip {len(spec.skip)}" if len(spec.skip) else "skip nothing"


def _changed(plan: DraftPlan, settings: Mapping[str, Any], calibration: Calibration) -> DraftPlan:
    """The plan that an arm names; the arm's settings replace parts of the plan."""
    kind, head, precision = (settings.get(key) for key in ("draft", "head", "precision"))
    if settings.get("unskipped"):  # the control of a skip set: the draft without its skip set
        plan = replace(plan, skip=SkipSet(plan.skip.n_layers), bridges={}, kind=SKIP, trained=None, tuned={})
    if kind is not None:
        d = option("draft", kind)
        made = DraftPlan.from_skip_set(plan.skip)
        if d.kind != SKIP:
            made = calibration.fits.plan(plan.skip, kind=d.kind, merge=d.merge, rank=d.rank)
        plan = replace(plan, bridges=made.bridges, kind=made.kind, tuned={})
    if head is not None:
        plan = replace(plan, head=None if head == "full" else calibration.head(head))
    if "memory" in settings:
        n = settings["memory"]
        plan = replace(plan, memory=None if n is None else calibration.memory(n))
    return plan if precision is None else replace(plan, precision=precision)


class Calibration:
    """Data that arms are fitted on; each part is made when the first arm needs it."""

    def __init__(self, cfg: DictConfig, loaded: Loaded, phase: Phases) -> None:
        self._cfg, self._loaded, self._decoder, self.phase = cfg, loaded, loaded.decoder, phase
        self._how: dict[str, Any] = {"cache": build.cache(cfg, loaded), "phase": phase}

    @cached_property
    def prompts(self) -> list[list[int]]:
        """The calibration prompts of the run's data."""
        n_new = max(self._cfg.max_new_tokens, self._cfg.calibration.max_new_tokens)
        found = build.prompts(self._cfg, self._loaded, "calibration", n=ALL, seed=self._cfg.seed, max_new_tokens=n_new)
        return [p.ids for p in found]

    @cached_property
    def texts(self) -> list[Text]:
        """The full model's answers to the prompts; if the others suffice, without the prompts that tune a stop rule."""
        c = self._cfg.calibration
        rest = self.prompts[N_TUNED_ON:] or self.prompts
        return continued(self._decoder, rest, max_new_tokens=c.max_new_tokens, n_tokens=c.n_tokens, **self._how)

    @cached_property
    def fits(self) -> BridgeFitter:
        """The fitter of bridges."""
        return bridge_fitter(self._decoder, self.texts, n_tokens=self._cfg.calibration.n_tokens, **self._how)

    def head(self, n: int) -> Tensor:
        """The `n` tokens that a trimmed head scores; shape [n]."""
        check_count("head", n)
        return heads(self._decoder, self.texts, [n])[n]

    def memory(self, n: int) -> Tensor:
        """`n` tokens of the answers, which prompt lookup searches as well; fewer if the answers are shorter."""
        check_count("memory", n)
        return remembered(self.texts, n)

    @cached_property
    def costs(self) -> CostTable:
        """The costs of forwards on this machine."""
        table, *_ = costs(self._cfg, self._loaded, phase=self._how["phase"])
        return table

    @cached_property
    def references(self) -> list[ReferenceBatch]:
        """The reference answers that tune a stop rule."""
        ending = Ending(self._cfg.max_new_tokens)
        return decode_references(self._decoder, self.prompts[:N_TUNED_ON], ending=ending, **self._how)

    def priced(self, spec: DraftSpec) -> DraftSpec:
        """The spec with the measured costs of its draft in its tree."""
        context, draft_cost = len(self.prompts[0]), self._draft_cost(spec.plan)
        return rule_tuner.priced(spec, draft_cost=draft_cost, costs=self.costs, context=context)

    def tuned(self, name: str, spec: DraftSpec) -> Optimal:
        """The stop rule of a spec with the measured costs of its draft and a map from confidence to acceptance.

        A rule that reads a predictor gets the costs alone, since its probabilities are calibrated.

        Raises:
            InputError: if the rule uses no costs, or the draft has no costs.
        """
        rule, plan = spec.stop, spec.plan
        if isinstance(rule, Optimal) and rule.predictor is not None and spec.tree is None and spec.lookup != "only":
            step = rule_tuner.verify_cost(self.costs, rule.max_draft, context=len(self.prompts[0]))
            return replace(rule, draft_cost=max(LEAST, self._draft_cost(plan)), verify_cost=step)
        if not isinstance(rule, Optimal) or spec.lookup == "only" or not spec.is_plan:
            raise InputError(
                f"arms.{name}.tune_stop measures the costs of stop=optimal, and the arm has stop="
                f"{build.stop_name(rule)}, lookup={spec.lookup}; leave tune_stop out"
            )
        draft_cost = self._draft_cost(plan)
        forward, everywhere = self._decoder.bind(plan), []
        lookup = lookup_of(spec)
        for batch in self.references:
            chains = Chains(forward, batch, max_draft=rule.max_draft)
            lookup_proposals = find_lookup_proposals(batch.references, lookup) if lookup else {}
            draft_everything(chains, rule, lookup_proposals=lookup_proposals)
            everywhere.append(chains)
        found = rule_tuner.fitted(rule, everywhere, draft_cost=draft_cost, costs=self.costs)
        log.info("%s: draft_cost %.3f, verify_cost %.3f plain tokens", name, found.draft_cost, found.verify_cost)
        return found

    def _draft_cost(self, plan: DraftPlan) -> float:
        """The measured cost of a drafted token of a plan, in plain tokens."""
        if plan.trained is not None:
            table = head_costs(self._cfg, self._loaded, plan, self.costs, phase=self.phase)
            return round_costs(table, plan).draft
        watch = Stopwatch(self._decoder.device)
        ((_, cost),) = check(
            self._decoder, self.costs, [plan], stopwatch=watch, phase=self._how["phase"], **measuring(self._cfg)
        )
        return cost
