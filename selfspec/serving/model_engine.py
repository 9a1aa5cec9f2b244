"""Serves requests with the model: prompts are read in pieces into slots of one cache; steps draft and verify."""

# T tokens of a prompt, or of a piece of it

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from selfspec.control.base import ControlState
from selfspec.engine.decode import Ending, choose, new_request
from selfspec.engine.forward import BoundForward
from selfspec.engine.masks import check_batches
from selfspec.engine.protocols import Drafter, Output, Verifier
from selfspec.engine.request import Request
from selfspec.engine.sampling import Chooser, Sampling
from selfspec.engine.schedule import Session, play_round
from selfspec.engine.slots import SlotCache
from selfspec.engine.trace import DecodeResult
from selfspec.engine.verify import Exact
from selfspec.errors import InputError
from selfspec.measure.stopwatch import Stopwatch
from selfspec.models.decoder import Decoder
from selfspec.serving.arrivals import Arrival
from selfspec.serving.loop import MemoryBound, Reading, ServedStep
from selfspec.stopping import StopState


@dataclass(frozen=True, slots=True)
class Order:
    """What a request asks for.

    Attributes:
        at_s: when it arrives, in seconds.
        prompt: token ids.
        stop: fresh state of the stop rule.
        ending: when its output is over.
        sampling: how its tokens are chosen; its random streams are those of the row of its index.
    """

    at_s: float
    prompt: Sequence[int]
    stop: StopState
    ending: Ending
    sampling: Sampling = field(default_factory=Sampling)


class ModelEngine:
    """An engine of `loop.serve`: each request's output is that of decoding it alone.

    Args:
        decoder: the target.
        drafter: proposes tokens.
        orders: the requests.
        memory: its margin bounds the length of drafts.
        control: decides how far each row drafts in each step; None: as far as the stop rules go.
        watch: measures the seconds.
        verifier: decides which tokens are accepted; None: `verify.Exact`.

    Attributes:
        arrivals: the requests as the loop knows them.

    Raises:
        InputError: if the model takes no batches or its forwards are recorded, or a prompt is empty or too long.
        PromptError: if a prompt holds an id outside the vocabulary.
    """

    def __init__(
        self,
        decoder: Decoder,
        drafter: Drafter,
        orders: Sequence[Order],
        *,
        memory: MemoryBound,
        control: ControlState | None = None,
        watch: Stopwatch | None = None,
        verifier: Verifier | None = None,
    ) -> None:
        if memory.max_rows > 1:
            check_batches(decoder.config)
        if not isinstance(decoder.full, BoundForward):
            raise InputError(
                "requests that come and go need a decoder whose forwards are not recorded; give the plain one"
            )
        self.requests = [
            new_request(decoder, i, order.prompt, order.stop, order.ending, Chooser(order.sampling, row=i))
            for i, order in enumerate(orders)
        ]
        self.arrivals = [Arrival(o.at_s, r.n_prompt, r.n_max) for o, r in zip(orders, self.requests, strict=True)]
        self._slots = SlotCache(decoder.n_layers, device=decoder.device)
        self._session = Session(
            decoder,
            drafter,
            verifier or Exact(by_block=any(order.sampling.by_block for order in orders)),
            [],
            self._slots,
            watch or Stopwatch(decoder.device),
            lambda row, tokens, kinds: None,
            control,
            memory.margin,
        )
        self._opened: Request | None = None
        self._hidden: list[dict[int, Any]] = []  # of the pieces of the opened prompt, by layer

    def results(self) -> list[DecodeResult]:
        """The results of the requests, all of which have finished."""
        return [request.result() for request in self.requests]

    @property
    def n_tokens_held(self) -> int:
        """Tokens whose keys and values are allocated."""
        return self._slots.n_tokens

    def reserve(self, n_slots: int, capacity: int) -> None:
        """Reallocate the slots."""
        self._slots.reserve(n_slots, capacity)

    def open(self, index: int) -> None:
        """Open a slot for the prompt."""
        self._slots.open()
        self._opened, self._hidden = self.requests[index], []

    @torch.inference_mode()
    def read(self, n_tokens: int) -> Reading:
        """Read a piece of the prompt with one forward of one row."""
        session, request = self._session, self._opened
        assert request is not None
        decoder, drafter, row, begin = session.decoder, session.drafter, request.row, session.watch.now()
        cache, layers = self._slots.opened, drafter.needs.hidden
        n_read = cache.clocks[0]
        n_now = n_read + n_tokens
        ids_1T = torch.tensor([row.ids[n_read:n_now]], device=decoder.device)
        output = decoder.full.output(ids_1T, starts=[n_read], cache=cache, n_logits=1, hidden=layers)
        cache.clocks = [n_now]
        self._hidden.append(dict(output.hidden))
        reading: Reading = "reading"
        if n_now == request.n_prompt:
            reading = self._begin(request, output)
        spent = session.watch.now() - begin
        request.prefill_s += spent
        request.total_s += spent
        return reading

    def _begin(self, request: Request, last: Output) -> Reading:
        """The first token of a request, with which it joins the batch or ends."""
        drafter, self._opened = self._session.drafter, None
        request.commit([choose(request.row, last.logits_BTV[0, -1])])
        if request.finish is not None:
            self._slots.close()
            return "finished"
        layers = drafter.needs.hidden
        hidden = {layer: torch.cat([piece[layer] for piece in self._hidden], 1) for layer in layers}
        drafter.begin(request.row, Output(last.logits_BTV, hidden))
        self._slots.join()
        self._session.live.append(request)
        return "joined"

    @torch.inference_mode()
    def step(self) -> ServedStep:
        """One round of all rows."""
        session, live = self._session, list(self._session.live)
        play_round(session, session.watch.now())
        rounds = [request.rounds[-1] for request in live]
        return ServedStep(
            n_rows=len(live),
            longest=max(r.drafted for r in rounds),
            drafted=sum(r.drafted for r in rounds),
            verified=sum(r.drafted + 1 for r in rounds),
            committed=sum(r.committed for r in rounds),
            n_forwards=max(r.n_forwards for r in rounds),
            finished=[request.index for request in live if request.finish is not None],
        )
