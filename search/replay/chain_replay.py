"""Replay rounds from chains: what the decoder would do with a draft and a stop rule, without verification.

The next round of a prompt begins where the last one ended. All possible starts are known in advance, so chains from
several of them grow in the same forward, which costs little more than one chain. Proposals of prompt lookup depend only
on the text, which is known as well, so such a round needs no chain. The counts equal those of the decoder exactly.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from search.replay.chains import Chain, Chains, Start
from search.replay.references import Reference
from selfspec.drafters.chain import LAYER_SKIP
from selfspec.drafters.lookup import LOOKUP, LookupDraft
from selfspec.engine.protocols import Draft
from selfspec.engine.trace import Round
from selfspec.engine.verify import judge_greedy
from selfspec.stopping import StopPolicy, StopState

MOST_AHEAD = 8  # largest number of chains of a prompt to grow at once
NOTHING: Mapping[Start, list[int]] = {}
SLACK = 0.05  # added to confidences, since a rule may later continue where it stops at first; chosen, not tuned


def find_lookup_proposals(references: Sequence[Reference], lookup: LookupDraft) -> dict[Start, list[int]]:
    """Proposals of prompt lookup by start of a round, for starts with a match."""
    found = {}
    for row, reference in enumerate(references):
        text = [*reference.prompt, *reference.tokens]
        for n in range(1, len(reference.tokens)):
            tokens = lookup.following(text[: len(reference.prompt) + n], reference.n_max - n - 1)
            if tokens:
                found[row, n] = tokens
    return found


def replay(
    chains: Chains,
    stop: StopPolicy,
    *,
    lookup_proposals: Mapping[Start, list[int]] = NOTHING,
    look_ahead: int | None = None,
) -> list[list[Round]]:
    """The rounds that `speculate` would make for every prompt, without seconds; the rule begins anew for each.

    Args:
        chains: chains of the draft; they grow where they are too short.
        stop: the stop rule; it drafts at most as many tokens as the chains may have.
        lookup_proposals: of `find_lookup_proposals`, for a lookup in front of the draft. The stop rule does not observe
            these rounds.
        look_ahead: number of chains of a prompt to grow at once; None: more of them if more of them will be used.
    """
    prompts = [_Prompt(row, r, stop.begin(), lookup_proposals) for row, r in enumerate(chains.batch.references)]
    for wanted in _wanted(prompts, chains, stop, look_ahead):
        chains.grow(wanted)
    return [prompt.rounds for prompt in prompts]


def replay_in_turn(
    chains: Chains,
    stop: StopPolicy,
    *,
    after: StopState | None = None,
    lookup_proposals: Mapping[Start, list[int]] = NOTHING,
) -> tuple[list[list[Round]], StopState]:
    """The rounds of `replay` with one state of the rule for all prompts, in order, as in a race; and its last state.

    Args:
        chains, stop, lookup_proposals: as in `replay`.
        after: state of the rule after earlier prompts; None: there are none, and the first prompt is replayed once as a
            warm-up that does not count, as in a race.
    """
    made, state = [], after
    for row in range(len(chains.batch.references)):
        for _ in range(2 if state is None else 1):
            state = stop.begin(state)
            prompt = _Prompt(row, chains.batch.references[row], state, lookup_proposals)
            for wanted in _wanted([prompt], chains, stop, None):
                chains.grow(wanted)
        made.append(prompt.rounds)
    assert state is not None, "a batch holds at least one prompt"
    return made, state


def _wanted(
    prompts: Sequence[_Prompt], chains: Chains, stop: StopPolicy, look_ahead: int | None
) -> Iterator[list[Start]]:
    """Make all rounds of these prompts; on the way, which chains must grow by a token before the next rounds."""
    while True:
        n_ahead = _worth_growing(prompts) if look_ahead is None else look_ahead
        wanted: list[Start] = []
        for prompt in prompts:
            if not prompt.advance(chains, stop):
                wanted.append(prompt.start)
                wanted += islice(_unfinished(prompt, chains, stop), n_ahead - 1)
        if not wanted:
            return
        yield wanted


def _worth_growing(prompts: Sequence[_Prompt]) -> int:
    """Number of chains of a prompt to grow at once: the one that is needed, and guesses.

    With r tokens in a round, one in r possible starts is used. Seconds of a replay with 1, 4 and 8 chains at once,
    measured on a CPU in bfloat16: 1.4, 2.3 and 2.8 at r = 3.6; 1.4, 1.2 and 1.8 at 2.1; 1.2, 0.9 and 0.7 at 1.7; 0.9,
    0.5 and 0.3 at 1.1. The formula is a compromise.
    """
    n_rounds = sum(len(p.rounds) for p in prompts)
    accepted = sum(r.accepted for p in prompts for r in p.rounds)
    if n_rounds < len(prompts) or not accepted:
        return 1 if not n_rounds else MOST_AHEAD
    return max(1, min(MOST_AHEAD, round(4 * n_rounds / accepted) - 1))


def draft_everything(chains: Chains, stop: StopPolicy, *, lookup_proposals: Container[Start] = ()) -> None:
    """Grow the chains as far as the rule would go and a little further, except where prompt lookup proposes."""
    starts = [start for start in chains.starts if start not in lookup_proposals]
    while wanted := [start for start in starts if _goes_on(chains[start], stop)]:
        chains.grow(wanted)


@dataclass(slots=True)
class _Prompt:
    """One prompt and its rounds so far."""

    row: int
    reference: Reference
    state: StopState
    lookup_proposals: Mapping[Start, list[int]]
    n_committed: int = 1
    rounds: list[Round] = field(default_factory=list)

    @property
    def start(self) -> Start:
        """Start of the next round."""
        return self.row, self.n_committed

    def advance(self, chains: Chains, stop: StopPolicy) -> bool:
        """Make the rounds whose chains are long enough; returns whether the prompt is finished."""
        while self.n_committed < len(self.reference.tokens):
            looked_up = self.lookup_proposals.get(self.start)
            if looked_up:
                self._make(looked_up, (), source=LOOKUP)
                continue
            chain = chains[self.start]
            limit = min(stop.max_draft, chain.limit)
            n_drafted = _n_drafted(chain, self.state, limit, stop.needs_confidence)
            if n_drafted is None:
                return False
            made = self._make(chain.tokens[:n_drafted], tuple(chain.confidences[:n_drafted]))
            self.state.observe(made.drafted, made.accepted)
        return True

    def _make(self, drafted: list[int], confidences: tuple[float, ...], *, source: str = LAYER_SKIP) -> Round:
        """Append the round of these drafted tokens; looked-up tokens need no forward."""
        known = self.reference.tokens[self.n_committed :]
        # -1 after the end of the reference: tokens drafted there are never committed.
        target = known + [-1] * (len(drafted) + 1 - len(known))
        n_accepted = judge_greedy(Draft(drafted), target).n_accepted
        n_committed = min(n_accepted + 1, len(known))
        n_forwards = 0 if source == LOOKUP else len(drafted)
        made = Round(len(drafted), n_accepted, n_committed, 0.0, 0.0, None, confidences, n_forwards, source)
        self.rounds.append(made)
        self.n_committed += n_committed
        return made


def _n_drafted(chain: Chain, state: StopState, limit: int, needs_confidence: bool) -> int | None:
    """Number of tokens that the rule drafts; None if the chain is too short to determine it."""
    if not state.begins():
        return 0
    n = 0
    while n < limit and (n == 0 or state.more(n, chain.confidences[n - 1] if needs_confidence else math.nan)):
        n += 1
        if n > len(chain.tokens):
            return None
    return n


def _unfinished(prompt: _Prompt, chains: Chains, stop: StopPolicy) -> Iterator[Start]:
    """Possible later starts of a prompt, nearest first, whose chains may need to grow."""
    for n in range(prompt.n_committed + 1, len(prompt.reference.tokens)):
        if (prompt.row, n) not in prompt.lookup_proposals and _goes_on(chains[prompt.row, n], stop):
            yield prompt.row, n


def _goes_on(chain: Chain, stop: StopPolicy) -> bool:
    """Whether a new state of the rule, with slack, would draft more tokens."""
    state, n = stop.begin(), len(chain.tokens)
    sure = (min(1.0, c + SLACK) for c in chain.confidences)
    return n < min(stop.max_draft, chain.limit) and all(state.more(i, c) for i, c in enumerate(sure, start=1))
