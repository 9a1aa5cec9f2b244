"""The entry point to graphs: a decoder whose forwards are recorded, and plain decoding that does not wait for the host.

`speculate` and `autoregress` take a `GraphedDecoder` like any other decoder. Its method `drafter` gives the draft of a
skip set or plan as one recorded chain. On CUDA the recordings are CUDA graphs. Elsewhere a `Tape` replays them, which
is no faster than the model and serves tests.
"""

# B rows, K tokens of a stretch

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from selfspec.engine.cache import ClockCache
from selfspec.engine.decode import Ending
from selfspec.engine.forward import BoundForward
from selfspec.engine.sampling import check_choice, choices
from selfspec.engine.trace import DecodeResult, Finish, Round
from selfspec.errors import InputError
from selfspec.measure.stopwatch import Stopwatch
from selfspec.models.decoder import Decoder
from selfspec.recorded.fused import fused
from selfspec.recorded.recording import CudaGraphs, Recorder, Tape
from selfspec.recorded.static_cache import StaticCaches
from selfspec.recorded.static_chain import StaticChain
from selfspec.recorded.static_forward import Stage, StaticForward
from selfspec.skipping.plan import DraftPlan
from selfspec.skipping.skip_set import SkipSet

STRETCH = 8  # tokens of plain decoding in one recording; chosen, not tuned


class GraphedDecoder(Decoder):
    """A decoder whose full forward and drafts are `StaticForward`s that share one stage.

    Args:
        decoder: decoder of the model; it is not changed.
        recorder: the recorder; None: CUDA graphs on CUDA, a tape elsewhere.
        compile_pieces: compile the model's small operations (`fused`), which takes some tens of seconds once.

    Attributes:
        stage: the recorder and the buffers.
        plain: the full forward as a chain, for plain decoding.

    Raises:
        InputError: if the model's forward cannot be recorded.
    """

    def __init__(self, decoder: Decoder, *, recorder: Recorder | None = None, compile_pieces: bool = False) -> None:
        self.__dict__.update(decoder.__dict__)
        own: Recorder = CudaGraphs(device=decoder.device) if decoder.device.type == "cuda" else Tape()
        self.stage = Stage(own if recorder is None else recorder, StaticCaches())
        eager = decoder.full
        if not isinstance(eager, BoundForward):
            raise InputError("the decoder's full forward is recorded, or replaced, already; give the plain decoder")
        recorded = eager
        if compile_pieces:
            # Prompts run the model's own code: their lengths differ, and each would compile the pieces again.
            self.model = fused(decoder.model, decoder.sublayers)
            recorded = replace(eager, module=self.model)
        self.full: Any = StaticForward(eager, self.stage, recorded=recorded)
        self.plain = StaticChain(self.full, needs_confidence=False)

    def bind(self, draft: SkipSet | DraftPlan) -> Any:
        """The forward of a draft in fixed shapes; its recordings live as long as it does."""
        bound = super().bind(draft)
        return StaticForward(bound, self.stage) if isinstance(bound, BoundForward) else bound

    def drafter(self, draft: SkipSet | DraftPlan, *, needs_confidence: bool = True, sample: bool = True) -> StaticChain:
        """A drafter that replays one recorded chain in each round."""
        return StaticChain(self.bind(draft), needs_confidence=needs_confidence, sample=sample)

    @torch.inference_mode()
    def autoregress(
        self, prompts: Sequence[Sequence[int]], *, ending: Ending, stopwatch: Stopwatch | None = None
    ) -> list[DecodeResult]:
        """Plain greedy decoding, one prompt after another: the device runs `STRETCH` tokens ahead of the host.

        The tokens equal those of `decode.autoregress`. Tokens that the device decoded after the end are dropped. A
        criterion is called for every token, but later than the token is decoded. Each token gets an equal share of the
        seconds.
        """
        watch = stopwatch or Stopwatch(self.device)
        return [self._one(list(prompt), ending, watch) for prompt in prompts]

    def _one(self, prompt: list[int], ending: Ending, watch: Stopwatch) -> DecodeResult:
        begin = watch.now()
        room = self.context_length - len(prompt)
        if not prompt or room < 1:
            raise InputError(
                f"a prompt has {len(prompt)} tokens, and the model's context holds {self.context_length}; "
                + ("shorten it" if prompt else "give it at least one token")
            )
        n_max = min(ending.max_new_tokens, room)
        eos_ids = self.eos_ids if ending.eos_ids is None else ending.eos_ids
        cache = self.new_cache(n_rows=1, capacity=len(prompt) + n_max)
        ids_1T = torch.tensor([prompt], device=self.device)
        logits_V = self.full.bound(ids_1T, starts=[0], cache=cache, n_logits=1)[0, -1]
        tokens = [check_choice(int(choices(logits_V)))]
        prefill_s = watch.now() - begin
        finish = _finish(prompt, tokens, n_max, eos_ids, ending)
        if finish is None:
            for token in self._stream(cache, len(prompt), tokens[0], n_max):
                tokens.append(token)
                finish = _finish(prompt, tokens, n_max, eos_ids, ending)
                if finish is not None:
                    break
        assert finish is not None
        total_s = watch.now() - begin
        each_s = (total_s - prefill_s) / max(1, len(tokens) - 1)
        return DecodeResult(tokens, [Round(0, 0, 1, 0.0, each_s) for _ in tokens[1:]], prefill_s, total_s, finish)

    def _stream(self, cache: ClockCache, start: int, token: int, n_max: int) -> Iterator[int]:
        """Yield the tokens after `token` at `start`; they are read from the device while the next stretch runs."""
        static = self.full.caches_for(cache, n_tokens=start + n_max)
        ids_B1 = torch.tensor([[token]])
        waiting: Callable[[], list[int]] | None = None
        for at in range(start, start + n_max - 1, STRETCH):
            found_K = self.plain.play(ids_B1, [at], STRETCH, static)[
                0, 0
            ].long()  # a copy, since the next replay overwrites the output
            ids_B1 = found_K[-1:].unsqueeze(0)
            if waiting is not None:
                yield from waiting()
            waiting = _reading(found_K)
        if waiting is not None:
            yield from waiting()


def _reading(tokens_K: Tensor) -> Callable[[], list[int]]:
    """Start to copy tokens to the host; a call of the result waits for them."""
    if tokens_K.device.type != "cuda":
        return tokens_K.tolist
    on_host_K = torch.empty(tokens_K.shape, dtype=tokens_K.dtype, pin_memory=True)
    on_host_K.copy_(tokens_K, non_blocking=True)
    arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
    arrived.record()

    def read() -> list[int]:
        arrived.synchronize()
        tokens: list[int] = on_host_K.tolist()
        return tokens

    return read


def _finish(prompt: list[int], tokens: list[int], n_max: int, eos_ids: frozenset[int], ending: Ending) -> Finish | None:
    """The reason why the last of `tokens` ends the sequence; None if it does not."""
    if tokens[-1] in eos_ids:
        return "eos"
    if ending.criterion is not None and ending.criterion([*prompt, *tokens]):
        return "stop"
    return "length" if len(tokens) == n_max else None
