"""Requests that come and go have the outputs that each has alone; a replay does what the model does."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from selfspec.control import Controller, Fixed, Goodput, SmartSpec, StepCosts
from selfspec.drafters.build import build_drafter
from selfspec.drafters.spec import DraftSpec
from selfspec.drafters.tree_shapes import ExpandRerank
from selfspec.engine.cache import ClockCache
from selfspec.engine.decode import Ending, autoregress, speculate
from selfspec.engine.protocols import BaseDrafter, Draft, Drafter, Row
from selfspec.engine.sampling import Sampling
from selfspec.errors import InputError
from selfspec.measure.stopwatch import Stopwatch
from selfspec.models.decoder import Decoder
from selfspec.serving import (
    Arrival,
    MeasuredTime,
    MemoryBound,
    ModelEngine,
    Order,
    ReplayEngine,
    Serving,
    SimulatedTime,
    load_of,
    poisson,
    read_trace,
    serve,
)
from selfspec.serving.latency import percentile, switching
from selfspec.serving.recorded_drafts import RecordedRequest, acceptance_by_position, record
from selfspec.skipping.plan import DraftPlan
from selfspec.skipping.skip_set import SkipSet
from selfspec.stopping import Fixed as Always
from selfspec.stopping import PauseWhenUnprofitable
from tests.test_heads import copying
from tests.toys import toy

COSTS = StepCosts((0.1, 0.01, 0.0, 0.02, 0.0), (0.1, 0.03))  # of `Toy`
CHEAP = StepCosts((0.1, 0.01, 0.0, 0.001, 0.0), (0.01, 0.001))  # by which drafting pays
N_NEW, N_DRAFTED = 8, 4
EVER = Ending(N_NEW, frozenset())
DRAWN = Sampling(do_sample=True, temperature=1.3, top_k=20, seed=5)


def prompts_of(n: int, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(1, 60) for _ in range(rng.randrange(1, 20))] for _ in range(n)]


class Toy:
    """A toy on a clock of its own: a forward takes 0.1 s, 0.01 for each row and 0.02 for each of their tokens."""

    def __init__(self, family: str = "llama") -> None:
        self.now = 0.0
        self.decoder = Decoder(toy(family))
        self.watch = Stopwatch(clock=lambda: self.now)

        def spend(_: object, args: tuple[Tensor], output: object) -> None:
            n_rows, n_tokens = args[0].shape[:2]
            self.now += 0.1 + 0.01 * n_rows + 0.02 * n_rows * n_tokens

        # a head reads embeddings as well, which takes time here too
        self.decoder.model.get_input_embeddings().register_forward_hook(spend)  # type: ignore[operator]

    def drafter(self, kind: str = "skip", **how: Any) -> Drafter:
        plan = DraftPlan.from_skip_set(SkipSet.parse("a1 m2", self.decoder.n_layers))
        shape = ExpandRerank(width=2, max_depth=3, max_nodes=6)
        spec = {
            "skip": DraftSpec(plan, Always(N_DRAFTED)),
            "front": DraftSpec(plan, Always(N_DRAFTED), "front"),
            "beside": DraftSpec(plan, Always(N_DRAFTED), "beside", sample_draft=False),
            "only": DraftSpec(plan, Always(N_DRAFTED), "only"),
            "tree": DraftSpec(plan, Always(N_DRAFTED), tree=shape, sample_draft=False),
            "head": DraftSpec(copying(self.decoder), Always(N_DRAFTED)),
            "head tree": DraftSpec(copying(self.decoder), Always(N_DRAFTED), tree=shape, sample_draft=False),
        }
        return build_drafter(spec[kind], self.decoder)

    def engine(
        self,
        times: Sequence[float],
        prompts: Sequence[list[int]],
        memory: MemoryBound,
        kind: str = "skip",
        *,
        ending: Ending = EVER,
        sampling: Sampling | None = None,
        policy: Controller | None = None,
    ) -> ModelEngine:
        orders = [
            Order(at_s, prompt, Always(N_DRAFTED).begin(), ending, sampling or Sampling())
            for at_s, prompt in zip(times, prompts, strict=True)
        ]
        control = policy.begin(CHEAP) if policy else None
        return ModelEngine(self.decoder, self.drafter(kind), orders, memory=memory, control=control, watch=self.watch)

    def serve(self, engine: ModelEngine, memory: MemoryBound, chunk: int = 6) -> Serving:
        return serve(engine, engine.arrivals, memory=memory, chunk=chunk, timeline=MeasuredTime(self.watch))


THREE = MemoryBound(3, 3 * 64, margin=16)


def times_of(n: int, seed: int, span_s: float = 6.0) -> list[float]:
    rng = random.Random(seed)
    return sorted(rng.uniform(0, span_s) for _ in range(n))


@pytest.mark.parametrize(
    ("family", "kind", "policy", "chunk"),
    [
        ("llama", "skip", None, 3),
        ("mistral-window", "front", Goodput(), 100),
        ("gpt2", "skip", SmartSpec(), 3),
        ("llama", "beside", Goodput(), 5),
        ("llama", "tree", Goodput(), 100),
        ("llama", "head", None, 3),
        ("llama", "head tree", Goodput(), 5),
    ],
)
def test_outputs_do_not_depend_on_who_shares_the_batch(
    family: str, kind: str, policy: Controller | None, chunk: int
) -> None:
    model, prompts = Toy(family), prompts_of(6)
    first = autoregress(model.decoder, prompts, ending=EVER)
    # one ends at its first token, and one before the others
    ending = Ending(N_NEW, frozenset({first[0].tokens[4], first[1].tokens[0]}))
    plain = [result.tokens for result in autoregress(model.decoder, prompts, ending=ending)]
    engine = model.engine(times_of(6, 0, span_s=1.0), prompts, THREE, kind, ending=ending, policy=policy)
    found = model.serve(engine, THREE, chunk=chunk)
    assert [r.tokens for r in engine.results()] == plain
    assert max(step.n_rows for *_, step in found.steps) > 1  # they did share
    assert sum(r.drafted for r in engine.results()) > 0


def test_a_sampled_request_draws_what_it_draws_alone() -> None:
    model, prompts = Toy(), prompts_of(4)
    engine = model.engine(times_of(4, 0, span_s=1.0), prompts, THREE, sampling=DRAWN)
    model.serve(engine, THREE)
    alone = [
        speculate(
            model.decoder,
            [prompt],
            drafter=model.drafter(),
            stops=[Always(N_DRAFTED).begin()],
            ending=EVER,
            sampling=DRAWN,
            first_row=i,
        )[0].tokens
        for i, prompt in enumerate(prompts)
    ]
    assert [r.tokens for r in engine.results()] == alone


def test_what_is_held_stays_below_the_bound_and_slots_are_used_again() -> None:
    model = Toy()
    prompts = [[7] * n for n in (2, 40, 3, 2, 30, 2, 2, 5, 2, 3)]
    memory = MemoryBound(4, 150, margin=8)

    class Watching(ModelEngine):
        held: list[int]

        def step(self) -> Any:
            self.held.append(self.n_tokens_held)
            rows = self._session.cache
            buffers = {tuple(layer.keys.shape[i] for i in (0, 2)) for layer in rows.layers}
            assert buffers == {(len(self._session.live), rows.capacity)}
            return super().step()

    engine = model.engine([0.0] * len(prompts), prompts, memory)
    engine.__class__, engine.held = Watching, []  # type: ignore[attr-defined]
    found = model.serve(engine, memory, chunk=100)
    assert 100 < max(engine.held) <= 150  # type: ignore[attr-defined]
    sizes = [step.n_rows for *_, step in found.steps]
    assert max(sizes) == 4 and 2 in sizes  # the long prompts have one neighbour at most
    assert engine.results()[1].tokens == autoregress(model.decoder, [prompts[1]], ending=EVER)[0].tokens


def test_a_long_prompt_is_read_between_the_steps_of_others() -> None:
    model = Toy()
    engine = model.engine([0.0, 0.5], [[3, 4], [5] * 40], THREE)
    found = model.serve(engine, THREE, chunk=5)
    during = [s for s in found.steps if found.requests[1].begun_s <= s[0] <= found.requests[1].first_s]
    assert len(during) >= 4 and all(step.n_rows == 1 for *_, step in during)
    first, second = found.requests
    assert first.at_s <= first.begun_s < first.first_s < first.end_s and second.begun_s >= 0.5


def replayed(
    model: Toy, requests: Sequence[RecordedRequest], times: Sequence[float], kind: str, policy: Controller | None
) -> Serving:
    time, drafter = SimulatedTime(), model.drafter(kind)
    costs = COSTS if kind != "only" else StepCosts(COSTS.verify)
    engine = ReplayEngine(
        requests,
        times,
        memory=THREE,
        costs=costs,
        time=time,
        source=drafter.name,
        has_free_drafts=getattr(drafter, "has_free_drafts", False),
        control=policy.begin(CHEAP) if policy else None,
    )
    return serve(engine, engine.arrivals, memory=THREE, chunk=6, timeline=time)


@pytest.mark.parametrize(
    ("kind", "policy"),
    [
        *(("skip", policy) for policy in (None, Fixed(0), Fixed(2), SmartSpec(), Goodput())),
        *(("front", policy) for policy in (None, Fixed(2), Goodput())),
        ("only", Goodput()),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_replay_does_what_the_model_does_at_the_same_times(kind: str, policy: Controller | None) -> None:
    model = Toy()
    prompts, times = prompts_of(5, seed=3), times_of(5, 2, span_s=2.0)
    requests = record(model.decoder, model.drafter(kind), prompts, policy=Always(N_DRAFTED), ending=EVER).requests
    requests = [RecordedRequest.from_dict(json.loads(json.dumps(r.to_dict()))) for r in requests]
    engine = model.engine(times, prompts, THREE, kind, policy=policy)
    real, again = model.serve(engine, THREE), replayed(model, requests, times, kind, policy)
    assert [step for *_, step in again.steps] == [step for *_, step in real.steps]
    assert [r.end_s for r in again.requests] == pytest.approx([r.end_s for r in real.requests])
    assert [r.first_s for r in again.requests] == pytest.approx([r.first_s for r in real.requests])


def test_records_show_the_acceptance_of_each_position() -> None:
    model, prompts = Toy(), prompts_of(3)
    whole = build_drafter(
        DraftSpec(DraftPlan.from_skip_set(SkipSet(model.decoder.n_layers)), Always(N_DRAFTED)), model.decoder
    )
    right = record(model.decoder, whole, prompts, policy=Always(N_DRAFTED), ending=EVER).requests
    assert acceptance_by_position(right) == (1.0,) * N_DRAFTED  # nothing is skipped
    assert [len(r.drafts) for r in right] == [N_NEW - 1] * 3
    assert [d.length for d in right[0].drafts] == [4, 4, 4, 3, 2, 1, 0]
    skipping = record(model.decoder, model.drafter(), prompts, policy=Always(N_DRAFTED), ending=EVER).requests
    assert 0 < acceptance_by_position(skipping)[0] < 1
    with pytest.raises(
        InputError, match="stop=pausewhenunprofitable learns from rounds, and recorded drafts know none"
    ):
        record(model.decoder, whole, prompts, policy=PauseWhenUnprofitable(Always(4), 0.5, 0.1), ending=EVER)


def test_the_figures_of_a_load() -> None:
    model = Toy()
    engine = model.engine(times_of(8, 0), prompts_of(8), THREE)
    found = model.serve(engine, THREE)
    load = load_of(found, 8 * N_NEW)
    ends = [r.end_s for r in found.requests]
    assert load.tokens_per_s == pytest.approx(8 * N_NEW / (max(ends) - found.requests[0].at_s))
    assert load.latency_s == pytest.approx(sum(r.end_s - r.at_s for r in found.requests) / 8)
    assert 0 < load.first_token_s < load.latency_p50_s <= load.latency_p99_s and load.verified_per_s > 0
    assert percentile([3, 1, 2, 4], 0.5) == 2 and percentile([1, 2], 0.99) == 2
    parts = switching(found, 5)
    assert len(parts) == 5 and all(0 < part["rows"] <= 3 for part in parts)


def test_requests_arrive_at_random_at_a_rate() -> None:
    times = poisson(2000, rate=4.0, seed=1)
    assert times[0] == 0 and times == sorted(times) and times[-1] == pytest.approx(500, rel=0.1)
    assert poisson(3, rate=8.0, seed=1) == pytest.approx([t / 2 for t in times[:3]])
    assert poisson(3, rate=None, seed=1) == [0, 0, 0]
    with pytest.raises(InputError, match="rate=0; requests arrive at a rate above 0"):
        poisson(3, rate=0, seed=1)


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        (['{"at_s": 1, "prompt": "a"}', '{"at_s": 0.5, "prompt": "b"}'], "line 2: at_s=0.5 is before 1.0 of the line"),
        (['{"at_s": 1}'], "line 1 is not"),
        (["[1]"], "line 1 is not"),
        (['{"at_s": "now", "prompt": "a"}'], "line 1: at_s is a number of seconds from 0 on"),
        (['{"at_s": NaN, "prompt": "a"}'], "line 1: at_s is a number of seconds from 0 on"),
        (["", " "], "holds no request"),
    ],
)
def test_a_wrong_trace_is_told_in_one_line(lines: list[str], why: str, tmp_path: Path) -> None:
    file = tmp_path / "trace.jsonl"
    file.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(InputError, match=why) as told:
        read_trace(file)
    assert "\n" not in str(told.value)
    file.write_text('{"at_s": 0, "prompt": "a"}\n{"at_s": 2.5, "prompt": "b"}\n', encoding="utf-8")
    assert read_trace(file) == [(0.0, "a"), (2.5, "b")]


def test_what_can_never_be_served_is_refused_before_anything_is() -> None:
    model = Toy()
    for memory, why in (
        (
            MemoryBound(2, 40, margin=8),
            "request 1 needs room for 46 tokens .30 of its prompt, 8 new ones, memory.margin=8",
        ),
        (MemoryBound(2, 5, margin=8), "request 0 needs room for 18 tokens"),
    ):
        engine = model.engine([0, 0], [[1, 2], [3] * 30], memory)
        with pytest.raises(InputError, match=why):
            model.serve(engine, memory)
    with pytest.raises(InputError, match=r"memory.max_rows=0; it is a whole number from 1 on"):
        MemoryBound(0, 100)
    engine = model.engine([1.0, 0.5], [[1], [2]], THREE)
    with pytest.raises(InputError, match="in the order of their arrival"):
        model.serve(engine, THREE)
    with pytest.raises(InputError, match="chunk=0"):
        model.serve(engine, THREE, chunk=0)
    assert MemoryBound(2, 100).need(Arrival(0.0, 3, 4)) == 39


class Wide(BaseDrafter):
    """Drafts eight siblings."""

    def propose(self, rows: Sequence[Row], *, cache: ClockCache) -> list[Draft]:
        return [Draft(list(range(8)), [-1] * 8) if row.limit else Draft() for row in rows]


def test_a_tree_that_outgrows_the_margin_is_told() -> None:
    model, memory = Toy(), MemoryBound(1, 100, margin=2)
    order = Order(0.0, [3] * 20, Always(N_DRAFTED).begin(), EVER)
    engine = ModelEngine(model.decoder, Wide(), [order], memory=memory, watch=model.watch)
    with pytest.raises(InputError, match=r"give the rows more room behind their end \(memory.margin\)"):
        model.serve(engine, memory)
