"""Build a drafter from a draft spec; every caller uses this one builder."""

from __future__ import annotations

import inspect
from dataclasses import replace
from functools import lru_cache
from typing import Any

from torch import Tensor

from selfspec.acceptance.files import Predictors, check_fits, fingerprint, load_predictors
from selfspec.acceptance.scorer import PredictorScorer, Scorer
from selfspec.drafters.chain import LAYER_SKIP, ChainDraft, ModelDraft
from selfspec.drafters.lookup import LOOKUP, LookupDraft, Memory
from selfspec.drafters.lookup_cut import LookupCut
from selfspec.drafters.merged import MergedDraft
from selfspec.drafters.spec import DraftSpec
from selfspec.drafters.tree_drafter import LevelDraft, TreeDraft
from selfspec.engine.protocols import Drafter
from selfspec.errors import InputError
from selfspec.heads.build import build_head_draft
from selfspec.models.decoder import Decoder
from selfspec.stopping import StopRule, predictor_of
from selfspec.targets import TARGET, find_class

N_MEMORIES = 4  # memories whose index is kept, so that their drafters share it; chosen, not tuned


def build_drafter(
    spec: DraftSpec, decoder: Decoder, *, scorer: Scorer | None = None, instead: Drafter | None = None
) -> Drafter:
    """The drafter of `spec`; the caller begins the stop rule for each row.

    A user's own drafter is made as `Class(decoder=decoder, spec=spec, forward=decoder.bind(spec.plan), **settings)`.
    Of the first three, it gets those that its signature names.

    Args:
        spec: the draft.
        decoder: the target.
        scorer: judges the draft's tokens in place of the predictor that the stop rule names.
        instead: drafts in the place of the plan, behind or beside the spec's prompt lookup; None: the plan drafts.

    Raises:
        InputError: if the plan is for another model, or the user's drafter cannot be made.
    """
    drafter: Drafter
    predictors = None if scorer is not None else predictors_of(spec, decoder)
    lookup = lookup_of(spec, predictors)
    # Looked-up tokens are point masses, so the draft in the same tree must be one as well.
    sample = spec.sample_draft and spec.lookup != "beside"
    if spec.lookup == "only":
        assert lookup is not None
        return lookup
    if instead is not None:
        if predictors is not None:
            raise InputError(
                f"stop.predictor={predictor_of(spec.stop)} is for one draft, and online= changes the draft"
            )
        drafter = instead
    elif spec.drafter is not None:
        if predictors is not None or scorer is not None:
            raise InputError(f"a predictor scores the drafts of this package, and not those of {_name(spec)}")
        drafter = _own(spec, decoder)
    elif spec.plan.trained is not None:
        rule = spec.stop
        head = build_head_draft(
            spec.plan, decoder, tree=spec.tree, sample=sample, needs_confidence=rule.needs_confidence
        )
        if isinstance(head, ChainDraft):
            head.evidence = rule.evidence
        if predictors is not None or scorer is not None:
            if not isinstance(head, ChainDraft | LevelDraft):
                raise InputError(f"{head.name} refines its tokens after it has chosen them; it takes no predictor")
            head.scorer = scorer or _scorer(predictors, head.name, spec, decoder)
            if isinstance(head, LevelDraft):
                head.check()
        elif not isinstance(head, ChainDraft) and rule.evidence != "probability" and spec.tree is None:
            raise InputError(f"{head.name} gives no {rule.evidence} of its tokens; choose another stop rule")
        drafter = head
    elif spec.tree is not None:
        # Siblings that cannot be drawn are point masses, which are as exact.
        is_drawn = sample and spec.tree.is_fixed
        scorer = scorer or _scorer(predictors, LAYER_SKIP, spec, decoder)
        drafter = TreeDraft(decoder.bind(spec.plan), spec.tree, is_drawn, scorer=scorer)
    else:
        forward, rule = decoder.bind(spec.plan), spec.stop
        scorer = scorer or _scorer(predictors, LAYER_SKIP, spec, decoder)
        drafter = ModelDraft(forward, sample, rule.needs_confidence, evidence=rule.evidence, scorer=scorer)
    if spec.lookup == "beside":
        assert lookup is not None
        return MergedDraft(lookup, drafter)
    return drafter if lookup is None else replace(lookup, inner=drafter)


def lookup_of(spec: DraftSpec, predictors: Predictors | None = None) -> LookupDraft | None:
    """The prompt lookup of a spec, without an inner drafter; None if the spec has no lookup."""
    if spec.lookup is None:
        return None
    memory = None if spec.plan.memory is None else _memory(spec.plan.memory)
    predictor = predictors.of(LOOKUP) if predictors else None
    cut = None
    if predictor is not None:
        assert isinstance(spec.stop, StopRule), "it names a predictor"
        cut = LookupCut(predictor, spec.stop.free())
    return LookupDraft(memory=memory, cut=cut, **_settings(spec))


def predictors_of(spec: DraftSpec, decoder: Decoder) -> Predictors | None:
    """The predictors that the stop rule of a spec reads; None if it reads none.

    Raises:
        InputError: if there are none at its path, or they are for another draft.
    """
    path = predictor_of(spec.stop)
    if path is None:
        return None
    found = load_predictors(path)
    check_fits(path, found, draft=spec.plan.digest(), model=fingerprint(decoder), is_tree=spec.tree is not None)
    return found


def _scorer(found: Predictors | None, source: str, spec: DraftSpec, decoder: Decoder) -> Scorer | None:
    """What scores the tokens of a source."""
    if found is None:
        return None
    predictor = found.of(source)
    if predictor is None:
        raise InputError(
            f"stop.predictor={predictor_of(spec.stop)} has predictors of {', '.join(found.by_source) or 'nothing'}, "
            f"not of {source}; train it with the draft that you use"
        )
    return PredictorScorer(predictor, decoder.device)


def _name(spec: DraftSpec) -> str:
    assert spec.drafter is not None
    return f"drafter {spec.drafter[TARGET]}"


def _settings(spec: DraftSpec) -> dict[str, Any]:
    known = {name for name in inspect.signature(LookupDraft).parameters if name not in ("inner", "memory", "cut")}
    for name in spec.lookup_settings.keys() - known:
        raise InputError(f"prompt lookup has no setting {name!r}; it has {', '.join(sorted(known))}")
    return dict(spec.lookup_settings)


@lru_cache(maxsize=N_MEMORIES)  # keyed by the tensor's identity
def _memory(ids_N: Tensor) -> Memory:
    return Memory(ids_N)


def _own(spec: DraftSpec, decoder: Decoder) -> Drafter:
    """The drafter of a user's own class."""
    assert spec.drafter is not None
    target = str(spec.drafter[TARGET])
    # only a class with `propose` is called, since a spec may come from a file of somebody else
    made = find_class(target, method="propose")
    settings = {key: value for key, value in spec.drafter.items() if key != TARGET}
    try:
        taken = inspect.signature(made).parameters
        given: dict[str, Any] = {"decoder": decoder, "spec": spec}
        given |= {"forward": decoder.bind(spec.plan)} if "forward" in taken else {}
        drafter: Drafter = made(**{key: value for key, value in given.items() if key in taken}, **settings)
    except TypeError as error:
        raise InputError(f"the drafter {target} cannot be made of {settings} ({error})") from None
    return drafter
