"""One simulation after another: each arm at each rate, with the model or from records; a row for each."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from selfspec.control import Controller, ControlState, Fixed, Oracle, StepCosts
from selfspec.engine.decode import Ending
from selfspec.engine.protocols import Drafter
from selfspec.measure.exactness import compare
from selfspec.measure.stopwatch import Stopwatch
from selfspec.models.decoder import Decoder
from selfspec.serving import (
    MeasuredTime,
    MemoryBound,
    ModelEngine,
    Order,
    RealTime,
    RecordedRequest,
    ReplayEngine,
    Serving,
    SimulatedTime,
    load_of,
    poisson,
    serve,
)
from selfspec.serving.latency import switching
from selfspec.serving.recorded_drafts import acceptance_by_position
from selfspec.stopping import StopPolicy

Engine = Literal["model", "replay"]
Cell = tuple[str, str, str]  # engine, load, arm
Row = dict[str, Any]
N_PARTS = 40  # of a switching trace
TRACE = "trace"  # the load that a trace gives


@dataclass(frozen=True, slots=True)
class Live:
    """What decodes for real.

    Attributes:
        decoder: the target.
        drafter: proposes tokens.
        prompts: token ids of the recorded requests, in their order.
        policy: the stop rule.
        ending: when an output is over.
        is_real: wait for the next request instead of skipping the wait.
    """

    decoder: Decoder
    drafter: Drafter
    prompts: Sequence[list[int]]
    policy: StopPolicy
    ending: Ending
    is_real: bool


@dataclass(frozen=True, slots=True)
class Study:
    """What is simulated.

    Attributes:
        requests: what was recorded; the requests of a simulation take them in turn.
        times: arrivals of the requests by load: a rate as text, or `trace`.
        rates: requests a second of each load; None: all at once, or those of the trace.
        arms: controllers by name; None: as far as the stop rule goes.
        costs: seconds of a step, with those of the draft, for controllers and replays.
        source: name of the drafter.
        has_free_drafts: see `BaseDrafter`.
        overhead_s: seconds of a replayed step beside its forwards.
        memory: bound of what is held at once.
        chunk: tokens of prompts that are read between two steps.
        live: what decodes for real; None: replays alone.
    """

    requests: Sequence[RecordedRequest]
    times: Mapping[str, Sequence[float]]
    rates: Mapping[str, float | None]
    arms: Mapping[str, Controller | None]
    costs: StepCosts
    source: str
    has_free_drafts: bool
    overhead_s: float
    memory: MemoryBound
    chunk: int
    live: Live | None = None

    def cells(self, engines: Sequence[Engine]) -> list[Cell]:
        """All simulations; the arms of a load follow each other, and each load begins with another arm."""
        names = list(self.arms)
        return [
            (engine, load, names[(i + first) % len(names)])
            for first, load in enumerate(self.times)
            for engine in engines
            for i in range(len(names))
        ]

    def run(self, cell: Cell) -> Row:
        """The row of a simulation."""
        engine, load, arm = cell
        return self._decoded(load, arm) if engine == "model" else self._replayed(load, arm)

    def _control(self, arm: str) -> ControlState | None:
        policy = self.arms[arm]
        return None if policy is None else policy.begin(self.costs)

    def _chosen(self, load: str) -> list[int]:
        """Which recorded request each request is."""
        return [i % len(self.requests) for i in range(len(self.times[load]))]

    def _replayed(self, load: str, arm: str) -> Row:
        time = SimulatedTime()
        requests = [self.requests[i] for i in self._chosen(load)]
        engine = ReplayEngine(
            requests,
            self.times[load],
            memory=self.memory,
            costs=self.costs,
            time=time,
            source=self.source,
            has_free_drafts=self.has_free_drafts,
            control=self._control(arm),
            overhead_s=self.overhead_s,
        )
        served = serve(engine, engine.arrivals, memory=self.memory, chunk=self.chunk, timeline=time)
        return self._row("replay", load, arm, served, sum(r.n_tokens for r in requests))

    def _decoded(self, load: str, arm: str) -> Row:
        live = self.live
        assert live is not None
        watch, chosen = Stopwatch(live.decoder.device), self._chosen(load)
        orders = [
            Order(at_s, live.prompts[i], live.policy.begin(), live.ending)
            for at_s, i in zip(self.times[load], chosen, strict=True)
        ]
        engine = ModelEngine(
            live.decoder, live.drafter, orders, memory=self.memory, control=self._control(arm), watch=watch
        )
        timeline = RealTime(watch) if live.is_real else MeasuredTime(watch)
        served = serve(engine, engine.arrivals, memory=self.memory, chunk=self.chunk, timeline=timeline)
        results = engine.results()
        verdicts = Counter(
            compare(live.decoder, live.prompts[i], self.requests[i].tokens, result.tokens).verdict
            for i, result in zip(chosen, results, strict=True)
        )
        return self._row("model", load, arm, served, sum(len(r.tokens) for r in results)) | {"verdicts": dict(verdicts)}

    def _row(self, engine: Engine, load: str, arm: str, served: Serving, n_tokens: int) -> Row:
        found = asdict(load_of(served, n_tokens))
        return {
            "engine": engine,
            "load": load,
            "rate": self.rates[load],
            "arm": arm,
            **{name: None if isinstance(v, float) and math.isnan(v) else v for name, v in found.items()},
            "switching": switching(served, N_PARTS),
        }


def arrivals(
    rates: Sequence[float | None], n: int, seed: int
) -> tuple[dict[str, list[float]], dict[str, float | None]]:
    """Times and rates of the loads that arrive at random, by the rate as text."""
    names = {"at once" if rate is None else f"{rate:.4g}/s": rate for rate in rates}
    return {name: poisson(n, rate=rate, seed=seed) for name, rate in names.items()}, names


def capacity(study: Study) -> float:
    """Requests a second that plain decoding serves, under the study's costs, if all arrive at once."""
    n = max(len(study.requests), 2 * study.memory.max_rows)
    plain = replace(study, times={"": [0.0] * n}, rates={"": None}, arms={"": Fixed(0)}, live=None)
    return float(plain.run(("replay", "", ""))["requests_per_s"])


def told_oracle(policy: Controller | None, requests: Sequence[RecordedRequest]) -> Controller | None:
    """An oracle that knows the recorded acceptance of each position; any other controller as it is."""
    if not isinstance(policy, Oracle) or policy != Oracle(max_draft=policy.max_draft):
        return policy
    return Oracle(acceptance_by_position(requests), policy.max_draft)


def left(cells: Sequence[Cell], rows: Collection[Mapping[str, Any]]) -> Iterator[Cell]:
    """The cells without a row."""
    done = {(row["engine"], row["load"], row["arm"]) for row in rows}
    yield from (cell for cell in cells if cell not in done)
