"""The loop of every decode: draft, verify, commit."""

# B rows

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from selfspec.control.base import ControlState, Judged, Proposal, Standing
from selfspec.engine.cache import ClockCache
from selfspec.engine.protocols import Draft, Drafter, Kind, Output, Verdict, Verifier
from selfspec.engine.request import Request
from selfspec.engine.trace import Round
from selfspec.engine.tree import check_drafts, depth, read_drafts
from selfspec.measure.stopwatch import Stopwatch
from selfspec.models.decoder import Decoder

Listener = Callable[[int, list[int], list[Kind]], None]  # (row, committed tokens, what each is)


@dataclass(slots=True)
class Session:
    """The state that a schedule works on.

    Attributes:
        decoder: the target.
        drafter: proposes tokens.
        verifier: decides which are accepted.
        live: the requests that have not finished, in the order of the cache's rows.
        cache: the target's keys and values of these requests.
        watch: measures the seconds.
        tell: called with tokens when they are committed.
        control: decides how far each row drafts in each step; None: as far as its stop rule goes.
        longest: most tokens of a path, whatever the controller allows.
    """

    decoder: Decoder
    drafter: Drafter
    verifier: Verifier
    live: list[Request]
    cache: ClockCache
    watch: Stopwatch
    tell: Listener
    control: ControlState | None = None
    longest: int = sys.maxsize


class Sequential:
    """Drafts for all rows, verifies all drafts in one forward, then commits the accepted tokens."""

    def run(self, session: Session) -> None:
        """Decode in rounds until every request has finished."""
        end = session.watch.now()
        while session.live:
            end = play_round(session, end)


def play_round(session: Session, begin: float) -> float:
    """Draft, verify and commit once for all live rows; rows that have finished leave.

    Args:
        session: at least one of its rows is live.
        begin: when the round begins, by the session's watch.

    Returns:
        When it ended.
    """
    decoder, drafter, cache, watch = session.decoder, session.drafter, session.cache, session.watch
    rows = [request.row for request in session.live]
    standing = _limited(session)
    thresholds = [row.stop.threshold for row in rows]
    if session.control is not None and not any(row.limit for row in rows):
        drafts = [Draft(source=drafter.name) for _ in rows]
    else:
        with cache.guarded([len(row.ids) - 1 for row in rows], by=drafter.name):
            drafts = drafter.propose(rows, cache=cache)
        check_drafts(drafts, rows, n_vocab=decoder.n_vocab, by=drafter.name)
    if session.control is not None and session.control.cuts:
        drafts = _cut(session, standing, drafts)
    drafted_at = watch.now()
    output = read_drafts(decoder, rows, drafts, cache, hidden=drafter.needs.hidden)
    verdicts = session.verifier.judge(rows, drafts, output.logits_BTV)
    times = begin, drafted_at, watch.now()
    return _commit(session, drafts, verdicts, output, thresholds, times)


def _limited(session: Session) -> list[Standing]:
    """Set the limits of the live rows; returns what the controller saw of them, nothing without one."""
    # A round commits one token more than it accepts, so it never drafts the last one.
    rooms = [min(request.n_left - 1, session.longest) for request in session.live]
    control, drafter = session.control, session.drafter
    if control is None:
        for request, room in zip(session.live, rooms, strict=True):
            request.row.limit = room
        return []
    standing = [
        Standing(request.row.key, len(request.row.ids), room, drafter.name)
        for request, room in zip(session.live, rooms, strict=True)
    ]
    is_cut_later = control.cuts and getattr(drafter, "has_free_drafts", False)
    for request, room, limit in zip(session.live, rooms, control.limits(standing), strict=True):
        request.row.limit, request.row.paid_limit = room if is_cut_later else limit, limit
    return standing


def _cut(session: Session, standing: Sequence[Standing], drafts: Sequence[Draft]) -> list[Draft]:
    """The drafts up to the length that the controller keeps; only chains without forwards and chance are shortened."""
    proposals = [
        Proposal(
            _source(session.drafter, draft),
            depth(draft),
            can_cut=draft.n_forwards == 0 and draft.parents is None and draft.probabilities is None,
        )
        for draft in drafts
    ]
    assert session.control is not None
    lengths = session.control.keeps(standing, proposals)
    return [
        replace(draft, tokens=draft.tokens[:length], confidences=draft.confidences[:length])
        if proposal.can_cut and length < proposal.length
        else draft
        for draft, proposal, length in zip(drafts, proposals, lengths, strict=True)
    ]


def _source(drafter: Drafter, draft: Draft) -> str:
    """What a controller tracks a draft's acceptance under: the drafter, or the source of a draft without forwards."""
    is_free = draft.n_forwards == 0 and getattr(drafter, "has_free_drafts", False)
    return draft.source if is_free else drafter.name


def _commit(
    session: Session,
    drafts: Sequence[Draft],
    verdicts: Sequence[Verdict],
    output: Output,
    thresholds: Sequence[float | None],
    times: tuple[float, float, float],
) -> float:
    """Commit what stands of each row's draft, and let go of the rows that have finished.

    Args:
        session: its live rows are those of the round.
        drafts, verdicts, thresholds: of each row; the threshold is that which the stop rule drafted with.
        output: of the target on the drafts.
        times: when the round began, when it had drafted, and when it had verified.

    Returns:
        When the round ended.
    """
    drafter, cache, live = session.drafter, session.cache, session.live
    begin, drafted_at, verified_at = times
    share = 1 / len(live)
    judged: list[Judged] = []
    for b, (request, draft, verdict) in enumerate(zip(live, drafts, verdicts, strict=True)):
        cache.commit(b, len(request.row.ids), verdict.path)
        tokens = [*(draft.tokens[node] for node in verdict.path), verdict.token]
        n_committed = request.commit(tokens)
        stands = Verdict(verdict.path[:n_committed], verdict.token)  # tokens after the end of the sequence do not count
        request.rounds.append(
            Round(
                len(draft.tokens),
                stands.n_accepted,
                n_committed,
                (drafted_at - begin) * share,
                (verified_at - drafted_at) * share,
                thresholds[b],
                tuple(draft.confidences),
                draft.n_forwards,
                draft.source,
                draft.version,
            )
        )
        drafter.observe(request.row, draft, stands, _of_row(output, b, draft))
        if session.control is not None:
            source, longest = _source(drafter, draft), depth(draft)
            judged.append(Judged(request.row.key, source, longest, verdict.n_accepted, len(draft.tokens)))
        kinds: list[Kind] = [*(["accepted"] * verdict.n_accepted), verdict.kind(draft)]  # type: ignore[list-item]
        session.tell(request.index, tokens[:n_committed], kinds[:n_committed])
    if session.control is not None:
        session.control.observe(judged)
    going = [b for b, request in enumerate(live) if request.finish is None]
    going = cache.keep(going)
    end = session.watch.now()
    for request in live:
        request.total_s += (end - begin) * share
        if request.finish is not None:
            drafter.end(request.row)
            if session.control is not None:
                session.control.end(request.row.key)
    session.live = [live[b] for b in going]
    return end


def _of_row(output: Output, b: int, draft: Draft) -> Output:
    """The part of one row, without its padding."""
    n = 1 + len(draft.tokens)
    return Output(output.logits_BTV[b : b + 1, :n], {k: h[b : b + 1, :n] for k, h in output.hidden.items()})
