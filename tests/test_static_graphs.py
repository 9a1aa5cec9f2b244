"""Recordings and static buffers: shapes, staleness, eviction, and caches that take turns."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from selfspec.engine.cache import ClockCache
from selfspec.engine.decode import Ending, autoregress
from selfspec.errors import InputError
from selfspec.models.decoder import Decoder
from selfspec.recorded.graphed import GraphedDecoder
from selfspec.recorded.recording import CudaGraphs, Program, Tape
from selfspec.recorded.static_cache import StaticCaches, key_bucket
from selfspec.skipping.skip_set import SkipSet
from tests.contracts.architecture import LONG, ROUNDING, SHORT
from tests.toys import toy


@cache
def decoders(family: str = "llama", attention: str = "sdpa") -> tuple[Decoder, GraphedDecoder]:
    decoder = Decoder(toy(family, attention))
    return decoder, GraphedDecoder(decoder)


def doubling(buffer: Tensor, weight: Tensor) -> Program:
    return Program({"x": buffer}, lambda: (buffer * weight,), lambda: (weight,))


@torch.inference_mode()
def filled(decoder: Decoder, ids: list[int], *, capacity: int = 60) -> ClockCache:
    cache = decoder.new_cache(n_rows=1, capacity=capacity)
    decoder.full(torch.tensor([ids]), starts=[0], cache=cache, n_logits=1)
    return cache


@torch.inference_mode()
def forward(decoder: Any, ids: list[int], start: int, cache: ClockCache) -> Tensor:
    logits: Tensor = decoder.full(torch.tensor([ids]), starts=[start], cache=cache)
    return logits


# Recordings


def test_a_tape_replays_operations_and_not_python() -> None:
    tape, factor, x = Tape(), [2.0], torch.zeros(3)
    program = Program({"x": x}, lambda: (x * factor[0],))
    for value in (1.0, 5.0):
        (found,) = tape.play("k", lambda: program, {"x": torch.full((3,), value)})
        assert found.tolist() == [2 * value] * 3
        factor[0] = 7.0  # a graph would not see it, so neither may the tape


def test_a_tape_refuses_a_host_that_waits() -> None:
    x = torch.zeros(3)
    program = Program({"x": x}, lambda: (x + x.sum().item(),))
    with pytest.raises(RuntimeError, match="reads from the device"):
        Tape().play("k", lambda: program, {"x": x})


def test_a_weight_that_has_moved_makes_a_recording_stale() -> None:
    tape, weight = Tape(), torch.nn.Parameter(torch.ones(3), requires_grad=False)
    x = torch.zeros(3)
    tape.play("k", lambda: doubling(x, weight), {"x": x})
    weight.data = torch.full((3,), 9.0)
    with pytest.raises(RuntimeError, match="stale"):
        tape.play("k", lambda: doubling(x, weight), {"x": x})


def test_inputs_of_another_shape_or_dtype_are_refused() -> None:
    tape, x = Tape(), torch.zeros(3)
    tape.play("k", lambda: doubling(x, torch.ones(3)), {"x": x})
    for other in (torch.zeros(4), torch.zeros(3).double()):
        with pytest.raises(RuntimeError, match="a recording takes x as"):
            tape.play("k", lambda: doubling(x, torch.ones(3)), {"x": other})


def test_the_recording_unused_for_longest_is_dropped() -> None:
    tape = Tape(max_recordings=2)
    for key in ("a", "b", "a", "c", "a", "b"):
        x = torch.zeros(3)
        tape.play(key, lambda x=x: doubling(x, torch.ones(3)), {"x": torch.ones(3)})
    assert (len(tape), tape.n_recorded) == (2, 4)  # b was made twice


# Static forwards


@pytest.mark.parametrize("n_new", [1, 3, 7, 10, 13, 40])
def test_padding_to_a_recorded_shape_changes_nothing(n_new: int) -> None:
    decoder, graphed = decoders()
    ids = (LONG * 3)[:n_new]
    expected = forward(decoder, ids, len(LONG), filled(decoder, LONG))
    found = forward(graphed, ids, len(LONG), filled(graphed, LONG))
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, atol=ROUNDING)


def test_recordings_are_shared_by_prompts_and_positions_of_a_bucket() -> None:
    decoder, _ = decoders()
    graphed = GraphedDecoder(decoder)
    recorder: Any = graphed.stage.recorder
    autoregress(graphed, [SHORT], ending=Ending(20))
    n = recorder.n_recorded
    autoregress(graphed, [LONG], ending=Ending(20))
    assert n == recorder.n_recorded == 1
    # Beyond the first bucket of keys there is one more.
    autoregress(graphed, [(LONG * 6)[:110]], ending=Ending(18))
    assert recorder.n_recorded == 2
    assert [key_bucket(n) for n in (1, 128, 129, 600)] == [128, 128, 256, 1024]


def test_rollback_is_setting_the_clock() -> None:
    decoder, graphed = decoders()
    cache = filled(graphed, LONG)
    forward(graphed, SHORT, len(LONG), cache)
    found = forward(graphed, [7, 8], len(LONG), cache)
    assert torch.allclose(found, forward(decoder, [7, 8], len(LONG), filled(decoder, LONG)), atol=ROUNDING)


def test_caches_take_turns_in_the_buffers_and_none_is_lost() -> None:
    decoder, graphed = decoders()
    first, second = filled(graphed, LONG), filled(graphed, SHORT)
    expected = [forward(decoder, [3], len(p), filled(decoder, p)) for p in (LONG, SHORT)]
    for _ in range(2):
        for held, p, wanted in ((first, LONG, expected[0]), (second, SHORT, expected[1])):
            assert torch.allclose(forward(graphed, [3], len(p), held), wanted, atol=ROUNDING)
            # A plain forward finds the same keys: the buffers are the cache's own.
            assert torch.allclose(forward(decoder, [3], len(p), held), wanted, atol=ROUNDING)


def test_a_cache_that_grows_moves_to_longer_buffers() -> None:
    decoder, graphed = decoders()
    cache = filled(graphed, SHORT, capacity=len(SHORT) + 1)
    forward(graphed, [3], len(SHORT), cache)
    ids = (LONG * 9)[:100]
    for i in range(0, 100, 50):
        found = forward(graphed, ids[i : i + 50], len(SHORT) + i, cache)
    expected = forward(decoder, [*SHORT, *ids], 0, decoder.new_cache(n_rows=1, capacity=200))
    assert torch.allclose(found, expected[:, -50:], atol=ROUNDING)


def test_dropped_buffers_take_their_recordings_along() -> None:
    decoder, _ = decoders()
    graphed = GraphedDecoder(decoder)
    graphed.stage.caches._max_caches = 1
    recorder: Any = graphed.stage.recorder
    expected = [autoregress(decoder, ps, ending=Ending(9)) for ps in ([LONG], [LONG, SHORT])]
    for _ in range(2):
        for prompts, wanted in zip(([LONG], [LONG, SHORT]), expected, strict=True):
            found = autoregress(graphed, prompts, ending=Ending(9))
            assert [r.tokens for r in found] == [r.tokens for r in wanted]
            assert len(graphed.stage.caches) == 1
    assert len(recorder) < recorder.n_recorded


def test_a_draft_that_is_bound_anew_leaves_no_recording_behind() -> None:
    decoder, _ = decoders()
    graphed = GraphedDecoder(decoder)
    recorder: Any = graphed.stage.recorder
    cache = filled(graphed, LONG)
    for text in ("a1", "m1", "a1 m2"):
        draft = graphed.bind(SkipSet.parse(text, decoder.n_layers))
        with torch.inference_mode():
            found = draft(torch.tensor([[5]]), starts=[len(LONG)], cache=cache)
            expected = decoder.bind(SkipSet.parse(text, decoder.n_layers))
            wanted = expected(torch.tensor([[5]]), starts=[len(LONG)], cache=filled(decoder, LONG))
        assert torch.allclose(found, wanted, atol=ROUNDING)
        assert len(recorder) == 1
        draft.forget()
        assert len(recorder) == 0
        del draft


def test_a_forgotten_forward_is_collected_with_its_recordings() -> None:
    decoder, _ = decoders()
    graphed = GraphedDecoder(decoder)
    draft = graphed.bind(SkipSet.parse("a1", decoder.n_layers))
    draft(torch.tensor([[5]]), starts=[len(LONG)], cache=filled(graphed, LONG))
    del draft
    assert len(graphed.stage.recorder) == 0  # type: ignore[arg-type]


@pytest.mark.parametrize(("family", "attention"), [("llama", "sdpa"), ("gemma3", "eager"), ("mistral-window", "sdpa")])
@torch.inference_mode()
def test_a_tree_is_scored_as_the_plain_forward_scores_it(family: str, attention: str) -> None:
    decoder, graphed = decoders(family, attention)
    n = len(LONG)
    ids, positions = torch.tensor([[3, 4, 5, 9]]), torch.tensor([[n, n + 1, n + 2, n + 1]])
    seen = torch.zeros(1, 4, n + 4, dtype=torch.bool)
    seen[:, :, : n + 1] = True
    seen[0, 1, n + 1] = seen[0, 2, n + 1] = seen[0, 2, n + 2] = seen[0, 3, n + 3] = True
    keys = torch.tensor([[*range(n), n, n + 1, n + 2, n + 1]])
    found = []
    for one in (decoder, graphed):
        cache = filled(one, LONG)
        cache.set([n], 4)
        found.append(
            one.full.tree(ids, positions_BT=positions, seen_BTS=seen, key_positions_BS=keys, cache=cache)  # type: ignore[attr-defined]
        )
    assert torch.allclose(found[0], found[1], atol=ROUNDING)


def test_what_cannot_be_recorded_is_refused() -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    with pytest.raises(InputError, match="rope_type=dynamic"):
        GraphedDecoder(Decoder(toy("llama", rope_parameters=rope)))
    with pytest.raises(InputError, match="masks of their own"):
        GraphedDecoder(Decoder(toy("bloom")))
    with pytest.raises(InputError, match="recorded, or replaced, already"):
        GraphedDecoder(decoders()[1])


def test_a_cache_whose_layers_never_ran_is_not_held() -> None:
    decoder, _ = decoders()
    assert StaticCaches().holding(decoder.new_cache(n_rows=1, capacity=9), n_tokens=9) is None


# On a GPU

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.gpu
@needs_gpu
def test_cuda_graphs_give_the_plain_tokens() -> None:
    model: Any = toy("llama", "sdpa").float().to("cuda")
    decoder = Decoder(model)
    graphed = GraphedDecoder(decoder)
    assert isinstance(graphed.stage.recorder, CudaGraphs)
    expected = [autoregress(decoder, [p], ending=Ending(40))[0].tokens for p in (LONG, SHORT)]
    assert [r.tokens for r in graphed.autoregress([LONG, SHORT], ending=Ending(40))] == expected
    assert [r.tokens for r in autoregress(graphed, [LONG, SHORT], ending=Ending(40))] == expected
