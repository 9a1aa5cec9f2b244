"""Replay any drafter: what the decoder would do with it, without verification.

The target's tokens are known (`references`), so a verdict is a comparison. The target's keys and values are copied over
those of the draft. The drafter itself runs as in a decode, so the counts of chains, trees and drafters with a memory
equal those of the decoder exactly. For chains of the model itself `chain_replay` is faster.
"""

# B rows

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from search.replay.references import Reference, ReferenceBatch
from selfspec.engine.cache import ClockCache
from selfspec.engine.protocols import Draft, Drafter, Output, Row, Verdict
from selfspec.engine.sampling import Chooser, Sampling
from selfspec.engine.trace import Round
from selfspec.engine.tree import check_drafts
from selfspec.engine.verify import judge_greedy
from selfspec.models.decoder import Decoder
from selfspec.stopping import StopPolicy, StopState

PAST_THE_END = -1  # the target's token after the end of the reference, where no drafted token is committed


@dataclass(slots=True)
class _Replayed:
    """One prompt that is being simulated."""

    row: Row
    reference: Reference
    in_batch: int
    hidden: Mapping[int, Tensor]  # of the whole text, [1, T, D] by layer; those that the drafter needs
    n_committed: int = 1
    rounds: list[Round] = field(default_factory=list)

    @property
    def n_left(self) -> int:
        """Number of tokens that may still follow, as the decoder counts them."""
        return self.reference.n_max - self.n_committed

    @property
    def is_over(self) -> bool:
        return self.n_committed >= len(self.reference.tokens)

    @property
    def next(self) -> int:
        """The next token of the reference."""
        return self.reference.tokens[self.n_committed]

    def judge(self, draft: Draft) -> Verdict:
        """The target's verdict on a draft."""
        known = self.reference.tokens[self.n_committed :]

        def target(node: int) -> int:
            path = draft.path(node)
            is_known = path == known[: len(path)] and len(path) < len(known)
            return known[len(path)] if is_known else PAST_THE_END

        return judge_greedy(draft, target)

    def commit(self, draft: Draft, verdict: Verdict) -> Verdict:
        """Record the round; returns the verdict, cut off at the end of the sequence."""
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

    def output(self, draft: Draft, stands: Verdict, start: int) -> Output:
        """What the drafter may observe: hidden states from the token at `start` on, nan for rejected nodes."""
        n_nodes, hidden = 1 + len(draft.tokens), {}
        for layer, states_1TD in self.hidden.items():
            found_1ND = states_1TD.new_full((1, n_nodes, states_1TD.shape[-1]), math.nan)
            at = [0, *(node + 1 for node in stands.path)]
            found_1ND[:, at] = states_1TD[:, start : start + len(at)]
            hidden[layer] = found_1ND
        return Output(torch.empty(1, n_nodes, 0), hidden)


@torch.inference_mode()
def simulate(
    decoder: Decoder,
    drafter: Drafter,
    batch: ReferenceBatch,
    stop: StopPolicy,
    *,
    after: StopState | None = None,
    sampling: Sampling | None = None,
    every_start: bool = False,
) -> tuple[list[list[Round]], list[StopState]]:
    """The rounds that `speculate` would make for every prompt of a batch, without seconds; and the rules' last states.

    Args:
        decoder: the target.
        drafter: any drafter; of hidden states it gets those of the accepted tokens.
        batch: references with the target's keys and values, which are not changed.
        stop: the stop rule, with a new state for each prompt.
        after: state of an earlier prompt, for `StopPolicy.begin`.
        sampling: how the drafter chooses tokens; None: greedily. A draft is judged by the reference in any case.
        every_start: commit one token of the reference after each draft, so that a draft begins after each token.

    Raises:
        DrafterError: if a draft is invalid.
    """
    everyone = []
    for b, reference in enumerate(batch.references):
        ids = [*reference.prompt, *reference.tokens[:1]]
        row = Row(b, ids, 0, stop.begin(after), Chooser(sampling or Sampling(), row=b))
        hidden = _hidden(decoder, reference, drafter.needs.hidden)
        of_prompt = {layer: states_1TD[:, : len(reference.prompt)] for layer, states_1TD in hidden.items()}
        drafter.begin(row, Output(torch.empty(1, 1, 0), of_prompt))
        everyone.append(_Replayed(row, reference, b, hidden))
    live = [one for one in everyone if not one.is_over]
    cache = _copied(batch.cache, [one.in_batch for one in live])
    while live:
        live = _round(decoder, drafter, batch, cache, live, every_start=every_start)
    return [one.rounds for one in everyone], [one.row.stop for one in everyone]


def _round(
    decoder: Decoder,
    drafter: Drafter,
    batch: ReferenceBatch,
    cache: ClockCache,
    live: list[_Replayed],
    *,
    every_start: bool,
) -> list[_Replayed]:
    """Run one round of every live prompt; returns the prompts that are not finished."""
    rows = [one.row for one in live]
    starts = [len(row.ids) - 1 for row in rows]
    for one in live:
        one.row.limit = one.n_left - 1
    with cache.guarded(starts, by=drafter.name):
        drafts = drafter.propose(rows, cache=cache)
    check_drafts(drafts, rows, n_vocab=decoder.n_vocab, by=drafter.name)
    for b, (one, draft) in enumerate(zip(live, drafts, strict=True)):
        verdict = Verdict([], one.next) if every_start else one.judge(draft)
        stands = one.commit(draft, verdict)
        _restore(cache, b, batch.cache, one.in_batch, starts[b], min(len(one.row.ids) - 1, batch.n_keys))
        drafter.observe(one.row, draft, stands, one.output(draft, stands, starts[b]))
        if one.is_over:
            drafter.end(one.row)
    going = [b for b, one in enumerate(live) if not one.is_over]
    if going:
        cache.keep(going)
    return [live[b] for b in going]


def _hidden(decoder: Decoder, reference: Reference, layers: Sequence[int]) -> Mapping[int, Tensor]:
    """The target's hidden states of a prompt and its answer, [1, T, D] by layer; without layers nothing is computed."""
    if not layers:
        return {}
    ids = [*reference.prompt, *reference.tokens]
    ids_1T = torch.tensor([ids], device=decoder.device)
    cache = decoder.new_cache(n_rows=1, capacity=len(ids))
    return decoder.full.output(ids_1T, starts=[0], cache=cache, n_logits=1, hidden=layers).hidden


def _copied(cache: ClockCache, rows: Sequence[int]) -> ClockCache:
    """A copy of these rows of a cache, to which a draft may write."""
    found = ClockCache(len(cache.layers), n_rows=len(rows), capacity=cache.capacity, device=cache.device)
    index = torch.tensor(list(rows))
    for old, new in zip(cache.layers, found.layers, strict=True):
        if old.is_initialized:
            new.keys, new.values = (t.index_select(0, index.to(t.device)) for t in (old.keys, old.values))
            new.dtype, new.device, new.is_initialized = old.dtype, old.device, True
    return found


def _restore(cache: ClockCache, row: int, full: ClockCache, full_row: int, start: int, end: int) -> None:
    """Overwrite the draft's keys and values of the committed tokens with those of the target."""
    for layer, known in zip(cache.layers, full.layers, strict=True):
        if known.is_initialized:
            layer.keys[row, :, start:end] = known.keys[full_row, :, start:end]
            layer.values[row, :, start:end] = known.values[full_row, :, start:end]
