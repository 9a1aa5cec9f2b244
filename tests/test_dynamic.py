"""Searching by hidden states: a draft's states are the real draft's, and the programs find what they claim to."""

# B texts, P positions of a text, D width

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from search.costs.table import CostTable
from search.fitting import hidden_states_runner
from search.fitting.hidden_states_runner import HiddenStateRunner, cosines
from search.samplers.clasp import clasp, solve_layers
from search.samplers.knapsack import knapsack, solve, units
from selfspec.errors import InputError
from selfspec.models.decoder import Decoder
from selfspec.skipping.skip_set import SkipSet
from tests.contracts.architecture import LONG, MIDDLE, ROUNDING, SHORT, random_sets, without
from tests.toys import FAMILIES, every_kernel, toy

N_POSITIONS = 3
EVERYTHING_GOES = -1.0
COSTS = CostTable((64,), (2.0,), 3.0, 1.0, (16.0,), (16.0, 17.0))
OF_THEIR_OWN = [name for name, family in FAMILIES.items() if not family.takes_batches]
KERNELS = every_kernel(name for name, family in FAMILIES.items() if family.takes_batches)


@dataclass(frozen=True, slots=True)
class Written:
    """A text for which nobody asks whether the model would write it."""

    prompt: Sequence[int]
    tokens: Sequence[int]


TEXTS = [Written(SHORT, MIDDLE), Written(LONG, SHORT), Written([7], [5])]


@cache
def decoder_of(family: str, kernel: str = "eager") -> Decoder:
    return Decoder(toy(family, kernel))


@cache
def llama_stream(n_positions: int = N_POSITIONS) -> HiddenStateRunner:
    return HiddenStateRunner(decoder_of("llama"), TEXTS, n_positions=n_positions)


def states_of(stream: HiddenStateRunner, skip: SkipSet) -> Tensor:
    """The draft's states behind the last layer, [1, B, P, D]."""
    states = stream.start()
    for i in range(skip.n_layers):
        states = stream.run(i, states, attn=i not in skip.attn, mlp=i not in skip.mlp)
    return states


@torch.inference_mode()
def drafted(decoder: Decoder, skip: SkipSet, stream: HiddenStateRunner) -> tuple[Tensor, Tensor]:
    """The same from the real draft, one token at a time behind the full model's keys and values; and what it says."""
    seen: list[Tensor] = []
    layers = decoder.model.get_submodule(decoder.sublayers.path)
    # A copy has the hooks of the model that it was copied from.
    hook = layers.get_submodule(str(decoder.n_layers - 1)).register_forward_hook(
        lambda module, args, out: seen.append(out if isinstance(out, Tensor) else out[0])
    )
    said = []
    try:
        draft = decoder.bind(skip)
        for text, positions in zip(TEXTS, stream.positions_BP.tolist(), strict=True):
            ids = [*text.prompt, *text.tokens]
            for p in positions:
                cache = decoder.new_cache(n_rows=1, capacity=len(ids))
                if p:
                    decoder.full(torch.tensor([ids[:p]]), starts=[0], cache=cache, n_logits=1)
                    seen.pop()
                said.append(draft(torch.tensor([[ids[p]]]), starts=[p], cache=cache).argmax())
    finally:
        hook.remove()
    shape = (1, len(TEXTS), -1)
    return torch.cat(seen).reshape(*shape, seen[0].shape[-1]), torch.stack(said).reshape(shape)


@torch.inference_mode()
def cosine_of(stream: HiddenStateRunner, skip: SkipSet) -> float:
    """With the full model, behind the last layer."""
    (found,) = cosines(states_of(stream, skip), states_of(stream, SkipSet(skip.n_layers))[0])
    return found


class TestStream:
    @pytest.mark.parametrize(("family", "kernel"), KERNELS)
    def test_a_drafts_states_are_the_real_drafts(self, family: str, kernel: str) -> None:
        decoder = decoder_of(family, kernel)
        stream = HiddenStateRunner(decoder, TEXTS, n_positions=N_POSITIONS)
        for skip in (SkipSet(decoder.n_layers), *random_sets(decoder.n_layers, 4, seed=family)):
            states, (real, said) = states_of(stream, skip), drafted(decoder, skip, stream)
            # In the unit of the states themselves: those of some families grow to hundreds.
            difference = (states - real).abs().max() / real.abs().max()
            assert difference < ROUNDING, f"skip={skip}"
            assert torch.equal(stream.says(states), said), f"skip={skip}"

    @pytest.mark.parametrize("queries", [1, 9, 40, 512])
    def test_drafts_that_pass_a_layer_together_do_not_see_each_other(
        self, queries: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(hidden_states_runner, "MAX_QUERIES", queries)
        stream = HiddenStateRunner(decoder_of("llama"), TEXTS, n_positions=N_POSITIONS)
        noise = torch.randn(7, *stream.start().shape[1:], generator=torch.Generator().manual_seed(0)).double()
        for kinds in ((True, True), (True, False), (False, True), (False, False)):
            attn, mlp = kinds
            together = stream.run(1, noise, attn=attn, mlp=mlp)
            alone = torch.cat([stream.run(1, one[None], attn=attn, mlp=mlp) for one in noise])
            assert (together - alone).abs().max() < ROUNDING, kinds

    def test_the_model_is_left_as_it_was(self) -> None:
        decoder = Decoder(toy("llama"))

        def inside() -> dict[tuple[str, str], Any]:
            attributes = [(n, k, v) for n, m in decoder.model.named_modules() for k, v in m.__dict__.items()]
            return {(n, k): dict(v) if isinstance(v, dict) else v for n, k, v in attributes}

        before = inside()
        knapsack(decoder, TEXTS, costs=COSTS, least_cosine=EVERYTHING_GOES)
        assert inside() == before

    def test_positions_are_those_whose_next_token_is_the_models_own(self) -> None:
        stream = llama_stream(100)
        for text, positions in zip(TEXTS, stream.positions_BP.tolist(), strict=True):
            first = len(text.prompt) - 1
            assert set(positions) == set(range(first, first + len(text.tokens)))

    @pytest.mark.parametrize("family", OF_THEIR_OWN)
    def test_a_model_that_makes_its_own_masks_is_refused_by_name(self, family: str) -> None:
        decoder = decoder_of(family)
        with pytest.raises(InputError, match=decoder.config.model_type) as refusal:
            HiddenStateRunner(decoder, TEXTS, n_positions=1)
        assert "\n" not in str(refusal.value)

    @pytest.mark.parametrize(
        ("texts", "n_positions", "why"),
        [([], 1, "0 of 0"), ([Written([1], [])], 1, "1 of 1"), ([Written([], [1])], 1, "1 of 1"), (TEXTS, 0, "at 1")],
    )
    def test_nothing_to_compare_is_refused(self, texts: list[Written], n_positions: int, why: str) -> None:
        with pytest.raises(InputError, match=why):
            HiddenStateRunner(decoder_of("llama"), texts, n_positions=n_positions)


class TestUnits:
    @pytest.mark.parametrize(
        ("attn_s", "mlp_s", "found"),
        [(1, 1, (1, 1)), (2, 1, (2, 1)), (1.02, 2, (1, 2)), (3, 2.2, (4, 3)), (1, 90, (1, 5)), (90, -1, (5, 1))],
    )
    def test_are_the_nearest_small_ratio(self, attn_s: float, mlp_s: float, found: tuple[int, int]) -> None:
        assert units(replace(COSTS, attn_s=(attn_s,), mlp_s=mlp_s), 64, largest=5) == found

    def test_follow_the_context(self) -> None:
        costs = replace(COSTS, contexts=(100, 200), attn_s=(1.0, 2.0), mlp_s=3.0)
        assert [units(costs, n, largest=5) for n in (100, 200, 300)] == [(1, 3), (2, 3), (1, 1)]

    @pytest.mark.parametrize("changes", [{"attn_s": (0.0,), "mlp_s": -0.1}, {"largest": 0}])
    def test_costs_of_nothing_are_refused(self, changes: dict[str, Any]) -> None:
        largest = changes.pop("largest", 5)
        with pytest.raises(InputError, match="cannot be put into units"):
            units(replace(COSTS, **changes), 64, largest=largest)


class TestKnapsack:
    ATTN, MLP = units(COSTS, 64, largest=5)

    def saving(self, skip: SkipSet) -> int:
        return self.ATTN * len(skip.attn) + self.MLP * len(skip.mlp)

    @pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "gpt-neox", "opt-post-norm"])
    def test_the_cosine_of_a_set_is_that_of_its_real_draft(self, family: str) -> None:
        decoder = decoder_of(family)
        stream = HiddenStateRunner(decoder, TEXTS, n_positions=N_POSITIONS)
        full, _ = drafted(decoder, SkipSet(3), stream)
        drafts = solve(stream, attn=self.ATTN, mlp=self.MLP, keep_ends=False, least_cosine=EVERYTHING_GOES)
        for bits, cosine, saved in zip(drafts.bits, drafts.cosines, drafts.saved, strict=True):
            skip = SkipSet.from_bits(bits)
            real, _ = drafted(decoder, skip, stream)
            assert cosine == pytest.approx(cosines(real, full[0])[0], abs=ROUNDING), f"skip={skip}"
            assert saved == self.saving(skip), f"skip={skip}"

    @pytest.mark.parametrize("family", ["llama", "gpt-neox", "qwen2", "gpt2"])
    def test_sets_are_better_than_others_that_save_as_much(self, family: str) -> None:
        """By brute force over all 64; no set can be better than the best one, and on average they beat chance."""
        stream = HiddenStateRunner(decoder_of(family), TEXTS, n_positions=N_POSITIONS)
        every = [SkipSet.from_bits(bits) for bits in itertools.product((False, True), repeat=6)]
        values: dict[int, list[float]] = {}
        for skip in every:
            values.setdefault(self.saving(skip), []).append(cosine_of(stream, skip))
        drafts = solve(stream, attn=self.ATTN, mlp=self.MLP, keep_ends=False, least_cosine=EVERYTHING_GOES)
        found = dict(zip(drafts.saved, drafts.cosines, strict=True))
        assert found.keys() == values.keys()
        assert all(found[s] <= max(values[s]) + ROUNDING for s in found)
        choices = [s for s in found if len(values[s]) > 1]
        chance = [sum(values[s]) / len(values[s]) for s in choices]
        assert sum(found[s] for s in choices) > sum(chance)

    def test_sublayers_that_add_nothing_are_found(self) -> None:
        planted = SkipSet.parse("a1 m0,2", 3)
        decoder = Decoder(without(toy("llama"), planted))
        found = knapsack(decoder, TEXTS, costs=COSTS, keep_ends=False, least_cosine=1 - ROUNDING)
        # Each part of the planted set, once for every saving: a1 saves 2, each MLP 3.
        assert [self.saving(skip) for skip in found] == [2, 3, 5, 6, 8]
        assert all(skip.attn <= planted.attn and skip.mlp <= planted.mlp for skip in found)
        assert found[-1] == planted

    def test_sets_are_distinct_and_the_cheapest_draft_is_last(self) -> None:
        found = knapsack(decoder_of("llama"), TEXTS, costs=COSTS, keep_ends=False, least_cosine=EVERYTHING_GOES)
        savings = [self.saving(skip) for skip in found]
        assert savings == sorted(set(savings)) and savings[0] > 0

    def test_the_first_and_the_last_layer_are_kept_unless_told_otherwise(self) -> None:
        found = knapsack(decoder_of("llama"), TEXTS, costs=COSTS, least_cosine=EVERYTHING_GOES)
        assert [str(skip) for skip in found] == ["a1", "m1", "a1 m1"]

    def test_no_draft_survives_a_sublayer_that_takes_it_too_far(self) -> None:
        stream = llama_stream()
        drafts = solve(stream, attn=self.ATTN, mlp=self.MLP, keep_ends=False, least_cosine=0.8)
        assert drafts.bits[0] == (False,) * 6
        assert all(c >= 0.8 for c in drafts.cosines)
        strict = solve(stream, attn=self.ATTN, mlp=self.MLP, keep_ends=False, least_cosine=1.1)
        assert [SkipSet.from_bits(bits) for bits in strict.bits] == [SkipSet(3)]

    def test_two_runs_find_the_same(self) -> None:
        sets = [knapsack(decoder_of("llama"), TEXTS, costs=COSTS, least_cosine=EVERYTHING_GOES) for _ in range(2)]
        assert sets[0] == sets[1]


class TestClasp:
    @pytest.mark.parametrize("family", ["llama", "gpt-neox", "opt-post-norm"])
    def test_the_cosine_of_a_set_is_that_of_its_real_draft(self, family: str) -> None:
        decoder = decoder_of(family)
        stream = HiddenStateRunner(decoder, TEXTS, n_positions=N_POSITIONS)
        full, _ = drafted(decoder, SkipSet(3), stream)
        drafts = solve_layers(stream, keep_ends=False)
        assert drafts.saved == [0, 1, 2, 3]
        for bits, cosine in zip(drafts.bits, drafts.cosines, strict=True):
            skip = SkipSet.from_bits(bits)
            real, _ = drafted(decoder, skip, stream)
            assert cosine == pytest.approx(cosines(real, full[0])[0], abs=ROUNDING), f"skip={skip}"

    def test_layers_that_add_nothing_are_found(self) -> None:
        rng = random.Random(0)
        for layers in (rng.sample(range(6), n) for n in (1, 2, 3)):
            planted = SkipSet(6, frozenset(layers), frozenset(layers))
            decoder = Decoder(without(toy("llama", num_hidden_layers=6), planted))
            assert clasp(decoder, TEXTS)[len(layers) - 1] == planted

    def test_gives_one_set_of_whole_layers_for_each_number(self) -> None:
        decoder = Decoder(toy("llama", num_hidden_layers=6))
        for keep_ends, most in ((False, 5), (True, 4)):
            found = clasp(decoder, TEXTS, keep_ends=keep_ends)
            assert [len(skip.attn) for skip in found] == list(range(1, most + 1))
            assert all(skip.attn == skip.mlp for skip in found)
            assert not keep_ends or not any({0, 5} & skip.attn for skip in found)
