"""Any drafter, replayed: what the real decoder would do with it, without verifying anything.

What the target says is known (`reference`), so a verdict is a comparison, and the target's keys and values are copied
back over what the draft wrote. The drafter itself runs as it does in a decode, so that trees, chains and drafters with
a memory all count as they would there, to the integer. Drafters whose chains can be grown side by side have a faster
way (`replay`).
"""

# B rows

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from search.replay.references import Reference, ReferenceBatch
from selfspec.engine.cache import ClockCache
from selfspec.engine.protocols import Draft, Drafter, Output, Row, Verdict
from selfspec.engine.sampling import Chooser, Sampling
from selfspec.engine.trace import Round
from selfspec.engine.tree import check_drafts
from selfspec.engine.verify import judge_greedy
from selfspec.errors import InputError
from selfspec.models.decoder import Decoder
from selfspec.stopping import StopPolicy, StopState

PAST_THE_END = -1  # what the target says there: nothing that is drafted there is ever committed


@dataclass(slots=True)
class _Replayed:
    """One prompt on its way through a simulation."""

    row: Row
    reference: Reference
    in_batch: int
    n_committed: int = 1
    rounds: list[Round] = field(default_factory=list)

    @property
    def n_left(self) -> int:
        """Tokens that might still come, as the decoder counts them."""
        return self.reference.n_max - self.n_committed

    @property
    def is_over(self) -> bool:
        return self.n_committed >= len(self.reference.tokens)

    def judge(self, draft: Draft) -> Verdict:
        """The verdict of the target on a draft."""
        known = self.reference.tokens[self.n_committed :]

        def target(node: int) -> int:
            path = draft.path(node)
            is_known = path == known[: len(path)] and len(path) < len(known)
            return known[len(path)] if is_known else PAST_THE_END

        return judge_greedy(draft, target)

    def commit(self, draft: Draft, verdict: Verdict) -> Verdict:
        """Take the round in; the verdict as far as it became output."""
        known = self.reference.tokens[self.n_committed :]
        n_committed = min(verdict.n_accepted + 1, len(known))
        stands = Verdict(verdict.path[:n_committed], verdict.token)
        self.rounds.append(
            Round(
                *(len(draft.tokens), stands.n_accepted, n_committed, 0.0, 0.0, None),
                tuple(draft.confidences),
                draft.n_forwards,
                draft.source,
            )
        )
        self.row.ids += known[:n_committed]
        self.n_committed += n_committed
        return stands


@torch.inference_mode()
def simulate(
    decoder: Decoder, drafter: Drafter, batch: ReferenceBatch, stop: StopPolicy, *, after: StopState | None = None
) -> tuple[list[list[Round]], list[StopState]]:
    """The rounds that `speculate` would make of every prompt of a batch, without seconds; and the rules' last states.

    Args:
        decoder: the target.
        drafter: any that wants nothing of the target's hidden states.
        batch: what the target says, and its keys and values of it, which are left as they are.
        stop: the rule, begun afresh for each prompt.
        after: a state that each prompt's rule goes on from, see `StopPolicy.begin`.

    Raises:
        InputError: if the drafter wants hidden states.
        DrafterError: if it proposes what no drafter may.
    """
    if drafter.needs.hidden:
        raise InputError(
            f"drafter {drafter.name} needs the target's hidden states, which a replay does not have; use "
            "objective=tokens_per_second"
        )
    everyone = []
    for b, reference in enumerate(batch.references):
        ids = [*reference.prompt, *reference.tokens[:1]]
        row = Row(b, ids, 0, stop.begin(after), Chooser(Sampling()))
        drafter.begin(row, Output(torch.empty(1, 1, 0)))
        everyone.append(_Replayed(row, reference, b))
    live = [one for one in everyone if not one.is_over]
    cache = _copied(batch.cache, [one.in_batch for one in live])
    while live:
        live = _round(decoder, drafter, batch, cache, live)
    return [one.rounds for one in everyone], [one.row.stop for one in everyone]


def _round(
    decoder: Decoder, drafter: Drafter, batch: ReferenceBatch, cache: ClockCache, live: list[_Replayed]
) -> list[_Replayed]:
    """One round of every live prompt; those that go on."""
    rows = [one.row for one in live]
    starts = [len(row.ids) - 1 for row in rows]
    for one in live:
        one.row.limit = one.n_left - 1
    with cache.guarded(starts, by=drafter.name):
        drafts = drafter.propose(rows, cache=cache)
    check_drafts(drafts, rows, n_vocab=decoder.n_vocab, by=drafter.name)
    for b, (one, draft) in enumerate(zip(live, drafts, strict=True)):
        stands = one.commit(draft, one.judge(draft))
        _restore(cache, b, batch.cache, one.in_batch, starts[b], min(len(one.row.ids) - 1, batch.n_keys))
        drafter.observe(one.row, draft, stands, Output(torch.empty(1, len(draft.tokens) + 1, 0)))
        if one.is_over:
            drafter.end(one.row)
    going = [b for b, one in enumerate(live) if not one.is_over]
    if going:
        cache.keep(going)
    return [live[b] for b in going]


def _copied(cache: ClockCache, rows: Sequence[int]) -> ClockCache:
    """These rows of a cache in another one, which a draft may write to."""
    found = ClockCache(len(cache.layers), n_rows=len(rows), capacity=cache.capacity, device=cache.device)
    index = torch.tensor(list(rows))
    for old, new in zip(cache.layers, found.layers, strict=True):
        if old.is_initialized:
            new.keys, new.values = (t.index_select(0, index.to(t.device)) for t in (old.keys, old.values))
            new.dtype, new.device, new.is_initialized = old.dtype, old.device, True
    return found


def _restore(cache: ClockCache, row: int, full: ClockCache, full_row: int, start: int, end: int) -> None:
    """Put the target's keys and values of the committed tokens back where the draft wrote its own."""
    for layer, known in zip(cache.layers, full.layers, strict=True):
        if known.is_initialized:
            layer.keys[row, :, start:end] = known.keys[full_row, :, start:end]
            layer.values[row, :, start:end] = known.values[full_row, :, start:end]
