"""Serves recorded requests: the same decisions as with the model, under the costs of any device, without a model."""

from __future__ import annotations

from collections.abc import Sequence

from selfspec.control.base import ControlState, Judged, Proposal, Standing
from selfspec.control.step_costs import StepCosts
from selfspec.engine.slots import compacted
from selfspec.serving.arrivals import Arrival
from selfspec.serving.loop import MemoryBound, Reading, ServedStep
from selfspec.serving.recorded_drafts import RecordedDraft, RecordedRequest
from selfspec.serving.timeline import SimulatedTime

NOTHING = RecordedDraft(0, 0, 0, 0, "")


class ReplayEngine:
    """An engine of `loop.serve` that takes drafts from records and seconds from costs.

    Args:
        requests: what was recorded.
        times: when each of them arrives, in seconds.
        memory: its margin bounds the length of drafts.
        costs: seconds of a step.
        time: is told the seconds.
        source: name of the drafter, which controllers track acceptance under.
        has_free_drafts: see `BaseDrafter`.
        control: decides how far each row drafts in each step; None: as far as was recorded.
        overhead_s: seconds of a step beside its forwards.
    """

    def __init__(
        self,
        requests: Sequence[RecordedRequest],
        times: Sequence[float],
        *,
        memory: MemoryBound,
        costs: StepCosts,
        time: SimulatedTime,
        source: str,
        has_free_drafts: bool = False,
        control: ControlState | None = None,
        overhead_s: float = 0.0,
    ) -> None:
        self.arrivals = [Arrival(at_s, r.n_prompt, r.n_max) for at_s, r in zip(times, requests, strict=True)]
        self._requests, self._costs, self._time, self._control = requests, costs, time, control
        self._source, self._has_free, self._overhead_s, self._longest = (
            source,
            has_free_drafts,
            overhead_s,
            memory.margin,
        )
        self._n_done = [0] * len(requests)  # tokens of the output so far
        self._live: list[int] = []
        self._opened, self._n_read = 0, 0

    def reserve(self, n_slots: int, capacity: int) -> None:
        """Nothing is held."""

    def open(self, index: int) -> None:
        """See `Engine`."""
        self._opened, self._n_read = index, 0

    def read(self, n_tokens: int) -> Reading:
        """Spend the seconds of reading a piece of the prompt."""
        request = self._requests[self._opened]
        self._time.spend(self._costs.prefill_s(n_tokens, self._n_read))
        self._n_read += n_tokens
        if self._n_read < request.n_prompt:
            return "reading"
        self._n_done[self._opened] = 1
        if request.n_tokens == 1:
            return "finished"
        self._live.append(self._opened)
        return "joined"

    def step(self) -> ServedStep:
        """Spend the seconds of a step, and commit what was accepted."""
        standing = [Standing(i, self._context(i), min(self._room(i), self._longest), self._source) for i in self._live]
        drafts, n_drafting = self._drafts(standing)
        n_forwards = max(draft.n_forwards for draft in drafts)
        forward_s, row_s = self._costs.draft or (0.0, 0.0)
        n_new = 1 + max(draft.n_nodes for draft in drafts)
        context = sum(row.context - 1 for row in standing) / len(standing)
        verify_s = self._costs.verify_s(len(standing), n_new, context)
        self._time.spend(n_forwards * (forward_s + row_s * n_drafting) + verify_s + self._overhead_s)
        before = sum(self._n_done[i] for i in self._live)
        finished = [i for i, draft in zip(self._live, drafts, strict=True) if self._commit(i, draft)]
        committed = sum(self._n_done[i] for i in self._live) - before
        self._observe(drafts, finished)
        found = ServedStep(
            n_rows=len(drafts),
            longest=max(draft.n_nodes for draft in drafts),
            drafted=sum(draft.n_nodes for draft in drafts),
            verified=sum(draft.n_nodes + 1 for draft in drafts),
            committed=committed,
            n_forwards=n_forwards,
            finished=finished,
        )
        going = [b for b, i in enumerate(self._live) if i not in finished]
        self._live = [self._live[b] for b in compacted(going)]  # in the order of the model's rows
        return found

    def _context(self, i: int) -> int:
        return self._requests[i].n_prompt + self._n_done[i]

    def _room(self, i: int) -> int:
        return self._requests[i].n_max - self._n_done[i] - 1

    def _commit(self, i: int, draft: RecordedDraft) -> bool:
        """Add the accepted tokens and one more; whether the request is finished."""
        n_tokens = self._requests[i].n_tokens
        self._n_done[i] = min(n_tokens, self._n_done[i] + draft.n_accepted + 1)
        return self._n_done[i] == n_tokens

    def _is_free(self, draft: RecordedDraft) -> bool:
        return self._has_free and draft.n_forwards == 0

    def _drafts(self, standing: Sequence[Standing]) -> tuple[list[RecordedDraft], int]:
        """The draft of each row as the controller lets it be, and how many rows a forward of the draft reads."""
        control = self._control
        limits = [row.room for row in standing] if control is None else control.limits(standing)
        cuts = control is not None and control.cuts and self._has_free
        drafts = []
        for row, limit in zip(standing, limits, strict=True):
            draft = self._requests[row.key].drafts[self._n_done[row.key] - 1]
            length = row.room if cuts and self._is_free(draft) else limit
            drafts.append(draft.shortened(length) if length else NOTHING)
        n_drafting = sum(draft.n_forwards > 0 for draft in drafts)
        if control is not None and control.cuts:
            proposals = [
                Proposal(self._tracked(d), d.length, can_cut=d.n_forwards == 0 and d.n_nodes == d.length)
                for d in drafts
            ]
            kept = control.keeps(standing, proposals)
            drafts = [
                draft.shortened(length) if proposal.can_cut else draft
                for draft, proposal, length in zip(drafts, proposals, kept, strict=True)
            ]
        return drafts, n_drafting

    def _tracked(self, draft: RecordedDraft) -> str:
        return draft.source if self._is_free(draft) else self._source

    def _observe(self, drafts: Sequence[RecordedDraft], finished: Sequence[int]) -> None:
        if self._control is None:
            return
        rows = zip(self._live, drafts, strict=True)
        self._control.observe([Judged(i, self._tracked(d), d.length, d.n_accepted, d.n_nodes) for i, d in rows])
        for i in finished:
            self._control.end(i)
