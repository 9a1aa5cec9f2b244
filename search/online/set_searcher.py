"""The common part of searchers that choose skip sets: when they search, what drafts meanwhile, and what is kept."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from search.online.tried import Progress, Tried
from selfspec.drafters.build import build_drafter
from selfspec.drafters.chain import NoDraft
from selfspec.drafters.online import Chosen, OnlineBase
from selfspec.drafters.spec import DraftSpec
from selfspec.engine.cache import ClockCache
from selfspec.engine.masks import check_trees
from selfspec.engine.protocols import Draft, Output, Row, Verdict
from selfspec.errors import InputError
from selfspec.measure.stopwatch import Stopwatch
from selfspec.models.decoder import Decoder
from selfspec.skipping.plan import PLAIN, DraftPlan
from selfspec.skipping.skip_set import SkipSet


@dataclass(frozen=True, slots=True)
class Tools:
    """What a searcher works with.

    Attributes:
        decoder: the target.
        spec: the draft to begin with: its plan, whose head and precision further drafts keep; its stop rule and tree.
        stopwatch: measures the seconds.
        arms: further drafts by name, for a portfolio.
    """

    decoder: Decoder
    spec: DraftSpec
    stopwatch: Stopwatch
    arms: Mapping[str, DraftSpec] = field(default_factory=dict)


class SetSearcher(OnlineBase, ABC):
    """Searches skip sets while decoding; a subclass scores and chooses them in `improve`.

    Args:
        tools: model, first draft and clock.
        start: the first set, unless the draft of `tools` skips something; None: nothing is drafted at first.

    Attributes:
        objective: name of the values.
        skip: the set in use; None: nothing is drafted.
        value: its value when it was scored last; None: never.
        progress: how far the stream has come.
        seconds: seconds of all rounds since this session began, the search in them included.

    Raises:
        InputError: if the model takes no explicit mask, or the draft is none of the model's own layers.
    """

    objective: ClassVar[str] = "matchness"

    def __init__(self, tools: Tools, *, start: SkipSet | None) -> None:
        super().__init__()
        check_trees(tools.decoder.config)
        plan = tools.spec.plan
        if plan.trained is not None or tools.spec.drafter is not None:
            raise InputError(
                f"an online search of skip sets drafts with the model's own layers, not with {tools.spec}; name a skip "
                "set or none, or make this draft an arm of online=portfolio"
            )
        self.decoder, self.spec, self.watch = tools.decoder, tools.spec, tools.stopwatch
        self.progress = Progress()
        self.seconds = 0.0
        self._began: float | None = None  # begin of the round
        self.prompts: dict[int, int] = {}  # length of each live row's prompt, by key
        self.value: float | None = None
        self.skip: SkipSet | None = None
        self.use(plan.skip if len(plan.skip) else start)

    @abstractmethod
    def improve(self, rows: Sequence[Row], cache: ClockCache) -> None:
        """Search, now that a round is about to begin; cheap if it is no time to search."""

    def plan_of(self, skip: SkipSet) -> DraftPlan:
        """The plan of a set: the first draft itself, or a set without bridges in its head and precision."""
        plan = self.spec.plan
        return plan if skip == plan.skip else replace(plan, skip=skip, bridges={}, kind=PLAIN, tuned={})

    def use(self, skip: SkipSet | None, *, version: str | None = None) -> None:
        """Draft with this set from now on; None or the empty set: draft nothing."""
        self.skip = skip
        if skip is None or not len(skip):
            self.chosen = Chosen(NoDraft(), "plain")
            return
        spec = replace(self.spec, plan=self.plan_of(skip), lookup=None, lookup_settings={})
        drafter = build_drafter(spec, self.decoder)
        self.chosen = Chosen(drafter, f"set {len(self.progress.trials)}" if version is None else version)

    def begin(self, row: Row, prompt: Output) -> None:
        """Note where the row's answer begins."""
        super().begin(row, prompt)
        self.prompts[row.key] = len(row.ids) - 1  # its first token is committed

    def ask(self, rows: Sequence[Row], *, cache: ClockCache) -> Chosen:
        """The drafter in use, after a step of the search if it is time for one."""
        if self.is_learning and any(row.limit for row in rows):
            self._began = began = self.watch.now()
            self.improve(rows, cache)
            self.progress.spent_s += self.watch.now() - began
        return self.chosen

    def tell(self, row: Row, draft: Draft, verdict: Verdict, target: Output) -> None:
        """Count the round."""
        super().tell(row, draft, verdict, target)
        if self._began is not None:  # of the first row of a batch; the others follow at once
            self.seconds += self.watch.now() - self._began
            self._began = None
        if self.is_learning:
            self.progress.n_rounds += 1
            self.progress.n_tokens += len(verdict.path) + 1

    def end(self, row: Row) -> None:
        """Forget the row."""
        super().end(row)
        self.prompts.pop(row.key, None)

    def state(self) -> dict[str, Any]:
        """What was learnt, as plain values without the trials; `restore` takes it."""
        skip = None if self.skip is None else str(self.skip)
        return {"skip": skip, "value": self.value, "version": self.chosen.version, **self.progress.to_dict()}

    def restore(self, state: Mapping[str, Any], trials: Sequence[Tried]) -> None:
        """Go on from `state()` and the trials of a stream that was cut off."""
        self.progress.restore(state)
        self.progress.trials[:] = trials
        self.value = state["value"]
        self.use(self._read(state["skip"]), version=state["version"])

    def begin_from(self, state: Mapping[str, Any]) -> None:
        """Begin a new stream with what another one has learnt: its set, which is scored again before it is trusted.

        Raises:
            InputError: if it was learnt on a model of other layers.
        """
        self.use(self._read(state["skip"]), version="learnt")

    def _read(self, skip: str | None) -> SkipSet | None:
        return None if skip is None else SkipSet.parse(skip, self.decoder.n_layers)
