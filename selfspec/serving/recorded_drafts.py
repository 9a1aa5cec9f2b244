"""What would be drafted after every token of an output, and how much of it is accepted: what a replay needs.

A round of real decoding shows one draft for several tokens. Here each round commits one token, so that a draft of full
length is seen at every position. With greedy decoding and a stop rule without memory, a shorter draft is the beginning
of it, so any lengths can be replayed.
"""

# B rows, T tokens, V vocabulary

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor

from selfspec.engine.decode import Ending, speculate
from selfspec.engine.protocols import Draft, Drafter, Row, Verdict, Verifier
from selfspec.engine.tree import depth
from selfspec.engine.verify import Exact
from selfspec.errors import InputError
from selfspec.measure.stopwatch import Stopwatch
from selfspec.models.decoder import Decoder
from selfspec.stopping import StopPolicy
from selfspec.stopping.base import RuleState


@dataclass(frozen=True, slots=True)
class RecordedDraft:
    """A draft after some token of an output.

    Attributes:
        length: tokens on its longest path.
        n_accepted: accepted tokens.
        n_nodes: its tokens, more than `length` for a tree.
        n_forwards: forwards that it took.
        source: what drafted it.
    """

    length: int
    n_accepted: int
    n_nodes: int
    n_forwards: int
    source: str

    def shortened(self, length: int) -> RecordedDraft:
        """The draft with at most `length` tokens on a path."""
        if length >= self.length:
            return self
        n_nodes = -(-self.n_nodes * length // self.length)  # of a tree in proportion
        return replace(
            self,
            length=length,
            n_accepted=min(self.n_accepted, length),
            n_nodes=n_nodes,
            n_forwards=min(self.n_forwards, length),
        )


@dataclass(frozen=True, slots=True)
class RecordedRequest:
    """A request whose output is known.

    Attributes:
        n_prompt: tokens of its prompt.
        tokens: its output.
        n_max: the most tokens that it might have had.
        drafts: the draft after each token of the output but the last.
    """

    n_prompt: int
    tokens: list[int]
    n_max: int
    drafts: Sequence[RecordedDraft]

    @property
    def n_tokens(self) -> int:
        """Tokens of its output."""
        return len(self.tokens)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, with the fields of the drafts in columns; `from_dict` is the inverse."""
        columns = {name: [getattr(d, name) for d in self.drafts] for name in RecordedDraft.__slots__}
        return {**{k: v for k, v in asdict(self).items() if k != "drafts"}, "drafts": columns}

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> RecordedRequest:
        """The request of `to_dict`."""
        columns = [body["drafts"][name] for name in RecordedDraft.__slots__]
        drafts = [RecordedDraft(*values) for values in zip(*columns, strict=True)]
        return cls(body["n_prompt"], body["tokens"], body["n_max"], drafts)


@dataclass(frozen=True, slots=True)
class Recording:
    """Recorded requests.

    Attributes:
        requests: in the order of their prompts.
        overhead_s: seconds of a step beside its forwards, on average.
    """

    requests: list[RecordedRequest]
    overhead_s: float


class DraftRecorder:
    """A verifier that commits one token a round, and keeps what the whole draft was worth.

    Attributes:
        seen: key of a row to its drafts in their order.
    """

    def __init__(self) -> None:
        self._exact: Verifier = Exact()
        self.seen: dict[int, list[RecordedDraft]] = {}

    def judge(self, rows: Sequence[Row], drafts: Sequence[Draft], logits_BTV: Tensor) -> list[Verdict]:
        """The target's next token of each row, without any accepted ones."""
        found = []
        for row, draft, verdict in zip(rows, drafts, self._exact.judge(rows, drafts, logits_BTV), strict=True):
            kept = RecordedDraft(depth(draft), verdict.n_accepted, len(draft.tokens), draft.n_forwards, draft.source)
            self.seen.setdefault(row.key, []).append(kept)
            found.append(Verdict([], draft.tokens[verdict.path[0]] if verdict.path else verdict.token))
        return found


def check_replayable(policy: StopPolicy) -> None:
    """Refuse a stop rule whose drafts depend on earlier rounds: a replay would have other drafts than it recorded.

    Raises:
        InputError: if its state observes rounds.
    """
    if type(policy.begin()).observe is not RuleState.observe:
        raise InputError(
            f"stop={type(policy).__name__.lower()} learns from rounds, and recorded drafts know none; take stop=fixed "
            "or stop=threshold, and let the controller decide"
        )


def record(
    decoder: Decoder,
    drafter: Drafter,
    prompts: Sequence[Sequence[int]],
    *,
    policy: StopPolicy,
    ending: Ending,
    stopwatch: Stopwatch | None = None,
) -> Recording:
    """The greedy outputs of prompts, decoded as one batch, with the draft after each of their tokens.

    Args:
        decoder: the target.
        drafter: proposes tokens.
        prompts: token ids.
        policy: the stop rule, whose longest draft is the longest that a replay can have.
        ending: when an output is over.
        stopwatch: measures the seconds.

    Raises:
        InputError: if the stop rule learns from rounds.
    """
    check_replayable(policy)
    recorder = DraftRecorder()
    results = speculate(
        decoder,
        prompts,
        drafter=drafter,
        stops=[policy.begin() for _ in prompts],
        ending=ending,
        verifier=recorder,
        stopwatch=stopwatch,
    )
    drafts = iter([recorder.seen[key] for key in sorted(recorder.seen)])  # keys rise with the prompts
    requests = [
        RecordedRequest(
            len(prompt),
            result.tokens,
            min(ending.max_new_tokens, decoder.context_length - len(prompt)),
            next(drafts) if result.rounds else [],
        )
        for prompt, result in zip(prompts, results, strict=True)
    ]
    # each row has its share of the seconds of a step
    forwards_s = sum(round_.draft_s + round_.verify_s for result in results for round_ in result.rounds)
    other_s = sum(result.total_s - result.prefill_s for result in results) - forwards_s
    n_steps = max(len(result.rounds) for result in results)
    return Recording(requests, max(0.0, other_s) / n_steps if n_steps else 0.0)


def acceptance_by_position(requests: Sequence[RecordedRequest]) -> tuple[float, ...]:
    """How often the token at each position of a draft is accepted if those before it are; over all recorded drafts.

    Positions that were never judged are left out; 0 for the first one if nothing was drafted at all.
    """
    found: list[float] = []
    drafts = [draft for request in requests for draft in request.drafts]
    for position in range(max((draft.length for draft in drafts), default=0)):
        judged = [d for d in drafts if d.length > position and d.n_accepted >= position]
        if not judged:
            break
        found.append(sum(d.n_accepted > position for d in judged) / len(judged))
    return tuple(found) or (0.0,)
