"""The draft spec: one value with everything that decoding with a draft needs.

Search, race, arms, cost table, replay, `decode` and the Hugging Face functions turn it into a drafter with
`build_drafter`. It holds settings and tensors; of the model it knows only the number of layers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from torch import Tensor

from selfspec.drafters.tree_shapes import TreeShape, shape_from
from selfspec.errors import InputError
from selfspec.skipping.plan import DraftPlan
from selfspec.skipping.skip_set import SkipSet
from selfspec.stopping import StopPolicy, StopRule, predictor_of
from selfspec.targets import TARGET

Lookup = Literal["front", "beside", "only"]

# Settings of prompt lookup in files written before 2026-11-28, and their names now.
FORMER_LOOKUP = {"asked": "window", "reach": "reach_tokens", "known": "min_hit_rate"}


@dataclass(frozen=True, slots=True, eq=False)
class DraftSpec:
    """Everything that defines a draft; specs of the same content are equal.

    Attributes:
        plan: skip set, bridges, head, precision, and the memory that prompt lookup searches.
        stop: rule that ends a draft.
        lookup: prompt lookup before the draft (`front`), as a branch beside it (`beside`) or instead of it (`only`);
            None: no lookup.
        lookup_settings: settings of `LookupDraft` that differ from the default, by name.
        tree: shape of the draft; None: a chain.
        sample_draft: when sampling, draw drafted tokens from the draft's distribution; otherwise take its maximum.
        drafter: `{"_target_": "module.Class", **settings}` of a user's own drafter; None: the model without its skip
            set.

    Raises:
        InputError: if `lookup` is unknown, or if one part has no effect beside another.
    """

    plan: DraftPlan
    stop: StopPolicy
    lookup: Lookup | None = None
    lookup_settings: Mapping[str, int | float] = field(default_factory=dict)
    tree: TreeShape | None = None
    sample_draft: bool = True
    drafter: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.lookup not in (None, *get_args(Lookup)):
            raise InputError(
                f"lookup={self.lookup}; it is front (before the draft), beside (a branch of it), only (instead of it) "
                "or null"
            )
        if self.lookup is None and self.lookup_settings:
            raise InputError(f"lookup settings {dict(self.lookup_settings)} without lookup; set lookup=front")
        if self.drafter is not None and not isinstance(self.drafter.get(TARGET), str):
            raise InputError(f"the drafter {dict(self.drafter)} names no class; give it {TARGET}: module.Class")
        if self.lookup == "only" and self.drafter is not None:
            raise InputError(
                f"lookup=only leaves no place for drafter {self.drafter[TARGET]}; use front, or no drafter"
            )
        if self.plan.trained is not None and self.drafter is not None:
            raise InputError(
                f"the trained head {self.plan.trained.kind} drafts itself; leave out drafter {self.drafter[TARGET]}"
            )
        if self.lookup == "only" and self.tree is not None:
            raise InputError("lookup=only leaves no place for a tree; use front or beside, or tree=chain")

    @property
    def skip(self) -> SkipSet:
        """The sublayers that the draft skips."""
        return self.plan.skip

    @property
    def is_plan(self) -> bool:
        """Whether it is a chain of the built-in drafter, which a cost table describes and a replay can grow."""
        is_built_in = self.drafter is None and self.plan.trained is None
        return is_built_in and self.tree is None and self.lookup != "beside" and predictor_of(self.stop) is None

    def settings(self) -> dict[str, Any]:
        """Everything except the plan, for YAML; rare parts only if they differ from the default."""
        found: dict[str, Any] = {"stop": self.stop.to_dict(), "lookup": self.lookup}
        if self.lookup_settings:
            found["lookup_settings"] = dict(self.lookup_settings)
        if self.tree is not None:
            found["tree"] = self.tree.to_dict()
        if not self.sample_draft:
            found["sample_draft"] = False
        if self.drafter is not None:
            found["drafter"] = dict(self.drafter)
        return found

    @classmethod
    def from_settings(
        cls, plan: DraftPlan, settings: Mapping[str, Any], *, stop: StopPolicy | None = None
    ) -> DraftSpec:
        """The spec of a plan and of `settings()`; further keys are ignored.

        Args:
            plan: plan of the draft.
            settings: the result of `settings()`, or a file's content; earlier names are understood.
            stop: stop rule to use instead of the one in `settings`, which is then not read.

        Raises:
            InputError: if there is no stop rule, or a setting is invalid.
        """
        if stop is None and "stop" not in settings:
            raise InputError(f"nothing says when to stop drafting with {plan}; give a stop rule")
        tree = settings.get("tree")
        return cls(
            plan,
            StopRule.from_dict(settings["stop"]) if stop is None else stop,
            settings.get("lookup"),
            {FORMER_LOOKUP.get(k, k): v for k, v in (settings.get("lookup_settings") or {}).items()},
            None if tree is None else shape_from(tree),
            settings.get("sample_draft", True),
            settings.get("drafter"),
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything except the tensors of the plan (`plan.tensors()`), for YAML."""
        return {**self.plan.to_dict(), **self.settings()}

    @classmethod
    def from_dict(cls, body: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> DraftSpec:
        """The spec of `to_dict` and of the plan's tensors.

        Raises:
            InputError: if a value is invalid.
            AttributeError, KeyError, IndexError, TypeError, ValueError: if a part is missing or malformed.
        """
        return cls.from_settings(DraftPlan.from_dict(body, tensors or {}), body)

    def digest(self) -> str:
        """The first 12 hexadecimal digits of the SHA-256 of all it holds; reads all weights."""
        text = json.dumps(self.settings(), sort_keys=True, default=str)
        return hashlib.sha256(f"{self.plan.digest()} {text}".encode()).hexdigest()[:12]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, DraftSpec):
            return NotImplemented
        return self is other or (hash(self) == hash(other) and self.digest() == other.digest())

    def __hash__(self) -> int:
        return hash((self.plan, self.lookup, self.sample_draft))

    def __str__(self) -> str:
        parts = [] if self.lookup == "only" else [str(self.plan)]
        parts += [f"lookup {self.lookup}"] if self.lookup else []
        parts += [f"tree {type(self.tree).__name__}"] if self.tree is not None else []
        parts += [f"drafter {str(self.drafter[TARGET]).rpartition('.')[2]}"] if self.drafter else []
        return "; ".join([*parts, f"stop {type(self.stop).__name__.lower()}"])
