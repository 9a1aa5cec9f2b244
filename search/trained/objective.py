"""The value of a draft that is trained: its expected speedup on held-out texts after a few steps.

A draft without anything to train, such as the linear maps of a skip set, is judged as it is.
"""

# V tokens that the draft scores

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from search.point import Value
from selfspec.heads.modules import Trainable
from selfspec.models.decoder import Decoder
from selfspec.records.run_files import write_json
from selfspec.skipping.plan import DraftPlan
from selfspec.training.heldout import HeldOut, RoundCosts
from selfspec.training.store import Store
from selfspec.training.trainer import Trainer, Training

COSTS = "costs.json"  # beside the checkpoint of a training
Settings = Mapping[str, Value]
ShouldContinue = Callable[[int, float], bool]  # step and expected speedup -> whether to train on
CostsOf = Callable[[DraftPlan], RoundCosts]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A draft that may be trained.

    Attributes:
        module: what is trained, as it is before training.
        base: head, precision and memory of the draft; `module.into(base)` is its plan.
        vocabulary_V: ids of the tokens that it scores, in rising order.
        how: settings of its training; None: it is used as it is.
        controls: by name the drafts that show what its parts are worth: nothing skipped, and maps without training.
    """

    module: Trainable
    base: DraftPlan
    vocabulary_V: Tensor
    how: Training | None
    controls: Mapping[str, DraftPlan] = field(default_factory=dict)

    @property
    def plan(self) -> DraftPlan:
        """The plan, with the module as it is now."""
        return self.module.into(self.base)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a training came to.

    Attributes:
        plan: the draft.
        costs: of its rounds.
        held: acceptance on held-out texts.
        untrained: expected speedup before training; None if that was not looked at.
        steps, seconds: of training.
        pruned: whether it was ended early.
    """

    plan: DraftPlan
    costs: RoundCosts
    held: HeldOut
    untrained: float | None
    steps: int = 0
    seconds: float = 0.0
    pruned: bool = False

    @property
    def value(self) -> float:
        """The expected speedup over plain decoding, without lookup."""
        return self.costs.best(self.held)[0]

    def to_dict(self) -> dict[str, Any]:
        """The figures, in the form of a trial's row."""
        value, length = self.costs.best(self.held)
        n_rounds = self.held.n
        accepted = round((self.held.tokens_per_round(length) - 1) * n_rounds)
        return {
            "value": value,
            "skip": str(self.plan.skip),
            "attn": sorted(self.plan.skip.attn),
            "mlp": sorted(self.plan.skip.mlp),
            "draft_cost": self.costs.draft,
            "draft_length": length,
            "n_rounds": n_rounds,
            "n_tokens": accepted + n_rounds,
            "drafted": length * n_rounds,
            "accepted": accepted,
            "acceptance": accepted / (length * n_rounds),
            "conditional": list(self.held.conditional),
            "untrained": self.untrained,
            "steps": self.steps,
            "seconds": self.seconds,
        }


class TrainingObjective:
    """Trains drafts for a while and judges them.

    Args:
        decoder: the target.
        stores: its texts.
        make: from the settings of a point to its draft, always the same.
        costs: measures what a round with a draft costs.
    """

    def __init__(
        self, decoder: Decoder, stores: Sequence[Store], make: Callable[[Settings], Candidate], costs: CostsOf
    ) -> None:
        self.decoder, self.stores, self.make, self._costs = decoder, stores, make, costs

    def __call__(
        self,
        settings: Settings,
        *,
        folder: Path | None = None,
        should_continue: ShouldContinue | None = None,
        **changed: Any,
    ) -> Outcome:
        """Train the draft of a point, or go on with its training in the folder.

        Args:
            settings: the point.
            folder: where its checkpoint and costs lie; None: nowhere.
            should_continue: is asked at each look at the held-out texts.
            **changed: settings of the training that differ from those of the candidate.

        Raises:
            InputError: if there is no such draft, or its loss is not finite.
        """
        found = self.make(settings)
        costs = self._kept_costs(found.plan, folder)
        how = replace(found.how or Training(), **changed)
        trainer = Trainer(self.decoder, found.module, self.stores, found.vocabulary_V, how, costs, folder)
        if found.how is None:
            held = trainer.check()
            return Outcome(found.plan, costs, held, costs.best(held)[0])

        def told(row: Mapping[str, Any]) -> None:
            if "conditional" in row and should_continue and not should_continue(row["step"], trainer.progress.best):
                raise _Ended

        is_pruned = False
        try:
            held = trainer.run(told)
        except _Ended:
            is_pruned = True
            held = trainer.best()
        p = trainer.progress
        return Outcome(found.plan, costs, held, p.untrained, p.step, p.seconds, is_pruned)

    def _kept_costs(self, plan: DraftPlan, folder: Path | None) -> RoundCosts:
        """The costs of the plan's rounds; a training that goes on has those that it began with."""
        file = None if folder is None else folder / COSTS
        if file is not None and file.is_file():
            body = json.loads(file.read_text(encoding="utf-8"))
            return RoundCosts(body["draft"], tuple(body["verify"]))
        costs = self._costs(plan)
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, asdict(costs))
        return costs


class _Ended(Exception):  # noqa: N818 - the end of a training is no error
    """The training is not worth going on with."""
