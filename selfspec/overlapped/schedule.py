"""Overlapped decoding: a partner drafts the next block while the target verifies what was drafted before."""

# T tokens, V vocabulary

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from selfspec.engine.cache import ClockCache
from selfspec.engine.protocols import BaseDrafter, Draft, Kind, Needs, Output, Row
from selfspec.engine.request import Request
from selfspec.engine.schedule import Session
from selfspec.engine.trace import Round
from selfspec.engine.verify import Exact
from selfspec.errors import InputError
from selfspec.measure.stopwatch import Stopwatch
from selfspec.overlapped.partner import Partner
from selfspec.overlapped.state import Drafted, advance, judge

MOST = 16  # tokens of the longest block; chosen, not tuned


@dataclass(slots=True)
class _Wait:
    """Waits for the partner, and counts the seconds."""

    partner: Partner
    watch: Stopwatch
    seconds: float = 0.0

    def first(self) -> Drafted | None:
        begin = self.watch.now()
        found = self.partner.first()
        self.seconds += self.watch.now() - begin
        return found

    def block(self, *, is_whole: bool) -> list[Drafted]:
        begin = self.watch.now()
        found = self.partner.block(is_whole=is_whole)
        self.seconds += self.watch.now() - begin
        return found


class Overlapped(BaseDrafter):
    """Schedule and drafter of `speculate` at once, for one row at a time: `speculate(drafter=it, schedule=it)`.

    Args:
        partner: drafts at the same time.
        gamma: tokens of a block; None (adaptive): as many as the partner drafts while a verification runs.
        beside: a context for the seconds in which both run, such as `processes.beside`.

    Raises:
        InputError: if gamma is less than 1.
    """

    def __init__(
        self,
        partner: Partner,
        *,
        gamma: int | None = 4,
        beside: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        check_gamma(gamma)
        self.partner, self.gamma, self._beside = partner, gamma, beside
        self._prompt: Output | None = None

    @property
    def name(self) -> str:
        """Name of the partner's drafter."""
        return self.partner.name

    @property
    def needs(self) -> Needs:
        """Hidden states that the partner's drafter needs."""
        return Needs(hidden=self.partner.hidden)

    def begin(self, row: Row, prompt: Output) -> None:
        """Keep the hidden states of the prompt for the partner."""
        self._prompt = prompt

    def propose(self, rows: Sequence[Row], *, cache: ClockCache) -> list[Draft]:
        """Not called: the partner drafts.

        Raises:
            InputError: always.
        """
        raise InputError("an overlapped drafter is its own schedule; give it as schedule= too")

    def run(self, session: Session) -> None:
        """Decode the row of the session.

        Raises:
            InputError: if there are several rows, a controller, or a verifier that is not exact token by token.
        """
        verifier = session.verifier
        if len(session.live) != 1:
            raise InputError(f"{len(session.live)} prompts at once; overlapped decoding takes one, use batch=1")
        if session.control is not None:
            raise InputError("overlapped decoding drafts blocks of gamma tokens; leave out the controller")
        if not isinstance(verifier, Exact) or verifier.by_block:
            raise InputError("overlapped decoding tests token by token and exactly; leave by_block and accept_* out")
        request, watch, partner = session.live[0], session.watch, self.partner
        assert self._prompt is not None, "the overlapped drafter of this schedule drafts"
        begin = watch.now()
        cache = partner.open(request.row, session.cache, self._prompt) if partner.is_there else session.cache
        self._prompt = None
        request.total_s += watch.now() - begin
        try:
            with self._beside() if partner.is_there else nullcontext():
                self._decode(session, request, cache)
        finally:
            partner.close()

    def _decode(self, session: Session, request: Request, cache: ClockCache) -> None:
        row, watch, decoder, partner = request.row, session.watch, session.decoder, self.partner
        pending: tuple[Drafted, ...] = ()
        end = watch.now()
        while request.finish is None:
            begin, start = end, len(row.ids) - 1
            waited = _Wait(partner, watch)
            # no more than the tokens that are left once the pending ones stand
            n = min(self.gamma or MOST, request.n_left - len(pending))
            tokens = [drafted.token for drafted in pending]
            partner.ask(row.ids, tokens, n)
            ids_1T = torch.tensor([[row.ids[-1], *tokens]], device=decoder.device)
            output = decoder.full.output(ids_1T, starts=[start], cache=cache, hidden=self.needs.hidden)
            partner.tell(start, output.hidden)
            outcome = judge(row, pending, output.logits_BTV[0], waited.first)
            block = waited.block(is_whole=self.gamma is not None) if outcome.token is None else []
            committed, left = advance(pending, block, outcome)
            n_committed = request.commit(committed)
            end = watch.now()
            n_stands = min(outcome.n_accepted, n_committed)
            request.rounds.append(
                Round(
                    drafted=max(len(pending), outcome.n_tested),
                    accepted=n_stands,
                    committed=n_committed,
                    draft_s=waited.seconds,
                    verify_s=end - begin - waited.seconds,
                    n_forwards=len(block),
                    source=partner.name,
                )
            )
            is_rejected = outcome.n_tested > outcome.n_accepted
            kinds: list[Kind] = ["accepted"] * outcome.n_accepted
            kinds += [] if outcome.token is None else ["correction" if is_rejected else "bonus"]
            session.tell(request.index, committed[:n_committed], kinds[:n_committed])
            request.total_s += end - begin
            pending = left
        session.live = []


def check_gamma(gamma: int | None) -> None:
    """Refuse blocks of an impossible length; None is adaptive.

    Raises:
        InputError: if it is less than 1 or more than `MOST`.
    """
    if gamma is not None and not 1 <= gamma <= MOST:
        raise InputError(f"gamma={gamma}; a block has 1 to {MOST} tokens, or is adaptive")
