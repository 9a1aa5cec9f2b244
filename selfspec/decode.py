"""Draft, verify, commit: the file to read.

`speculate` decodes prompts with any drafter; `autoregress` is the same loop with a drafter that proposes nothing, so
that baseline and method differ in what they propose and in nothing else.
"""

# B rows, T tokens, V vocabulary

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from selfspec.cache import ClockCache
from selfspec.draft import Drafter, DraftRow, NoDraft, Proposal
from selfspec.errors import InputError
from selfspec.mask import check_batches
from selfspec.model import Decoder
from selfspec.sampling import Chooser, Sampling, draw, largest
from selfspec.stop import Fixed, StopState
from selfspec.timing import Stopwatch
from selfspec.trace import DecodeResult, Finish, Round
from selfspec.verify import Verdict, judge_greedy, judge_sampled

Kind = Literal["accepted", "correction", "bonus"]  # the first token, which the prompt gives, is a bonus
Listener = Callable[[int, list[int], list[Kind]], None]  # (row, committed tokens, what each is)
Criterion = Callable[[list[int]], bool]  # (prompt and output so far) -> end here


@dataclass(frozen=True, slots=True)
class Ending:
    """When a sequence is over.

    Attributes:
        max_new_tokens: the most tokens to add, at least 1; fewer where the model's context ends.
        eos_ids: ids that end it; None: the model's own.
        criterion: called with all ids after each committed token; true ends the sequence there.
    """

    max_new_tokens: int
    eos_ids: frozenset[int] | None = None
    criterion: Criterion | None = None

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise InputError(f"max_new_tokens={self.max_new_tokens}; ask for at least 1 token")


@dataclass(slots=True)
class _Row:
    """One prompt on its way."""

    index: int
    ids: list[int]
    n_prompt: int
    n_max: int  # of new tokens
    eos_ids: frozenset[int]
    criterion: Criterion | None
    chooser: Chooser
    stop: StopState
    rounds: list[Round] = field(default_factory=list)
    prefill_s: float = 0.0
    total_s: float = 0.0
    finish: Finish | None = None

    @property
    def n_left(self) -> int:
        return self.n_max - (len(self.ids) - self.n_prompt)

    def commit(self, tokens: Sequence[int]) -> int:
        """Append tokens up to the first that ends the sequence; returns how many became output."""
        for n, token in enumerate(tokens, start=1):
            self.ids.append(token)
            if token in self.eos_ids:
                self.finish = "eos"
            elif self.criterion is not None and self.criterion(self.ids):
                self.finish = "stop"
            elif self.n_left == 0:
                self.finish = "length"
            if self.finish:
                return n
        return len(tokens)

    def result(self) -> DecodeResult:
        assert self.finish is not None
        return DecodeResult(self.ids[self.n_prompt :], self.rounds, self.prefill_s, self.total_s, self.finish)


def autoregress(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    ending: Ending,
    sampling: Sampling | None = None,
    first_row: int = 0,
    listener: Listener | None = None,
    stopwatch: Stopwatch | None = None,
) -> list[DecodeResult]:
    """Plain decoding: one full forward a token. Arguments as in `speculate`."""
    return speculate(
        decoder,
        prompts,
        drafter=NoDraft(),
        stops=[Fixed(1).begin() for _ in prompts],
        ending=ending,
        sampling=sampling,
        first_row=first_row,
        listener=listener,
        stopwatch=stopwatch,
    )


@torch.inference_mode()
def speculate(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    drafter: Drafter,
    stops: Sequence[StopState],
    ending: Ending,
    sampling: Sampling | None = None,
    first_row: int = 0,
    listener: Listener | None = None,
    stopwatch: Stopwatch | None = None,
) -> list[DecodeResult]:
    """The target's own output for each prompt, in fewer passes of the target.

    Args:
        decoder: the target.
        prompts: token ids, at least one each; decoded together, rows finish when they finish.
        drafter: proposes tokens.
        stops: a fresh state of the stop rule for each prompt.
        ending: when a sequence is over.
        sampling: how tokens are chosen; greedy if None.
        first_row: number of the first prompt; prompt i draws from the streams of row first_row + i, so that an output
            does not depend on what it was decoded together with.
        listener: told of committed tokens as they are committed.
        stopwatch: where seconds come from.

    Raises:
        InputError: if a prompt is empty or leaves no room in the model's context.
    """
    if len(prompts) > 1:
        check_batches(decoder.config)
    watch = stopwatch or Stopwatch(decoder.device)
    rows = [
        _begin(decoder, i, prompt, stop, ending, Chooser(sampling or Sampling(), row=first_row + i))
        for i, (prompt, stop) in enumerate(zip(prompts, stops, strict=True))
    ]
    tell = listener or (lambda row, tokens, kinds: None)
    caches = [_prefill(decoder, row, watch, tell) for row in rows]
    live = [row for row in rows if row.finish is None]
    cache = ClockCache.stack([c for c, row in zip(caches, rows, strict=True) if row.finish is None]) if live else None
    del caches
    end = watch.now()
    for row in rows:
        row.total_s = row.prefill_s
    while live:
        assert cache is not None
        begin, share = end, 1 / len(live)
        thresholds = [row.stop.threshold for row in live]
        # A round commits one token more than it accepts, so it never drafts the last one.
        drafting = [DraftRow(row.ids, row.n_left - 1, row.stop, row.chooser) for row in live]
        proposals = drafter.propose(drafting, cache=cache)
        drafted = watch.now()
        logits_BTV = _verify(decoder, live, proposals, cache)
        verdicts = _judge(live, proposals, logits_BTV)
        verified = watch.now()
        for row, proposal, verdict, threshold in zip(live, proposals, verdicts, thresholds, strict=True):
            n_drafted, n_accepted = len(proposal.tokens), verdict.n_accepted
            tokens = [*proposal.tokens[:n_accepted], verdict.token]
            n_committed = row.commit(tokens)
            n_accepted = min(n_accepted, n_committed)  # what lies behind the end is nobody's
            row.rounds.append(
                Round(
                    n_drafted,
                    n_accepted,
                    n_committed,
                    (drafted - begin) * share,
                    (verified - drafted) * share,
                    threshold,
                    tuple(proposal.confidences),
                )
            )
            if not proposal.looked_up:
                row.stop.observe(n_drafted, n_accepted)
            kinds: list[Kind] = [*(["accepted"] * verdict.n_accepted), verdict.kind(n_drafted)]  # type: ignore[list-item]
            tell(row.index, tokens[:n_committed], kinds[:n_committed])
        going = [b for b, row in enumerate(live) if row.finish is None]
        if going:
            cache.keep(going)
        end = watch.now()
        for row in live:
            row.total_s += (end - begin) * share
        live = [live[b] for b in going]
    return [row.result() for row in rows]


def _begin(
    decoder: Decoder, index: int, prompt: Sequence[int], stop: StopState, ending: Ending, chooser: Chooser
) -> _Row:
    room = decoder.context_length - len(prompt)
    if not prompt or room < 1:
        raise InputError(
            f"prompt {index} has {len(prompt)} tokens, and the model's context holds {decoder.context_length}; "
            + ("shorten it" if prompt else "give it at least one token")
        )
    return _Row(
        index=index,
        ids=list(prompt),
        n_prompt=len(prompt),
        n_max=min(ending.max_new_tokens, room),
        eos_ids=decoder.eos_ids if ending.eos_ids is None else ending.eos_ids,
        criterion=ending.criterion,
        chooser=chooser,
        stop=stop,
    )


def _prefill(decoder: Decoder, row: _Row, watch: Stopwatch, tell: Listener) -> ClockCache:
    """The full model on the prompt, which gives the first token."""
    begin = watch.now()
    cache = decoder.new_cache(n_rows=1, capacity=row.n_prompt + row.n_max)
    ids_1T = torch.tensor([row.ids], device=decoder.device)
    logits_V = decoder.full(ids_1T, starts=[0], cache=cache, n_logits=1)[0, -1]
    token = _choose(row, row.ids, logits_V)
    row.commit([token])
    row.prefill_s = watch.now() - begin
    tell(row.index, [token], ["bonus"])
    return cache


def _choose(row: _Row, ids: Sequence[int], logits_V: Tensor) -> int:
    if row.chooser.do_sample:
        return draw(row.chooser.probabilities(ids, logits_V), row.chooser.target_rng)
    return row.chooser.greedy(ids, logits_V)


def _verify(decoder: Decoder, live: Sequence[_Row], proposals: Sequence[Proposal], cache: ClockCache) -> Tensor:
    """The full model on [last token, drafted tokens] of each row, [B, T, V]; short rows are padded at the end.

    What padding writes lies behind its row's clock, where the next forward overwrites it.
    """
    n_new = 1 + max(len(p.tokens) for p in proposals)
    starts = [len(row.ids) - 1 for row in live]
    padded = [
        [row.ids[-1], *p.tokens] + [0] * (n_new - 1 - len(p.tokens)) for row, p in zip(live, proposals, strict=True)
    ]
    return decoder.full(torch.tensor(padded, device=decoder.device), starts=starts, cache=cache)


def _judge(live: Sequence[_Row], proposals: Sequence[Proposal], logits_BTV: Tensor) -> list[Verdict]:
    if all(row.chooser.is_plain_greedy for row in live):
        chosen = largest(logits_BTV).tolist()
        return [judge_greedy(p.tokens, tokens) for p, tokens in zip(proposals, chosen, strict=True)]
    return [_judge_row(row, p, logits_TV) for row, p, logits_TV in zip(live, proposals, logits_BTV, strict=True)]


def _judge_row(row: _Row, proposal: Proposal, logits_TV: Tensor) -> Verdict:
    def after(i: int) -> list[int]:
        return row.ids + proposal.tokens[:i]

    if row.chooser.do_sample:
        return judge_sampled(
            proposal.tokens,
            proposal.probabilities,
            lambda i: row.chooser.probabilities(after(i), logits_TV[i]),
            row.chooser.target_rng,
        )
    target = [row.chooser.greedy(after(i), logits_TV[i]) for i in range(len(proposal.tokens) + 1)]
    return judge_greedy(proposal.tokens, target)
