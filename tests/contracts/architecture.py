"""What every architecture promises. A new one is a line in `tests/toys.py`, or inherits this class."""

# B rows, T tokens, V vocabulary

from __future__ import annotations

import copy
import itertools
import random
import re
from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from selfspec.drafters.chain import ModelDraft
from selfspec.engine.decode import Ending, autoregress, speculate
from selfspec.engine.forward import BoundForward
from selfspec.engine.trace import DecodeResult
from selfspec.errors import InputError
from selfspec.models.decoder import Decoder
from selfspec.skipping.skip_set import SkipSet
from selfspec.stopping import Adaptive, Fixed, StopPolicy, Threshold
from tests.toys import VOCAB, WINDOW

# Written without a look at the engine's adapters: a second opinion on where a sublayer ends.
_ATTN_OUTPUT = re.compile(
    r"\.(\d+)\.(?:self_attn|attn|attention|self_attention)\.(?:attention\.)?(?:o_proj|out_proj|c_proj|dense)\.(?:weight|bias)$"
)
_MLP_OUTPUT = re.compile(
    r"\.(\d+)\.(?:mlp\.(?:.*\.)?)?(?:down_proj|down_proj_bias|c_proj|dense_4h_to_h|fc2|fc_out)(?:\.weight|\.bias)?$"
)

# Norms, softmaxes or routers that compute in float32 inside a float64 model round to 1.2e-7 of numbers up to about 10,
# differently for one token and for several; a wrong position, mask or key moves these logits by more than 0.1.
ROUNDING = 1e-4

RULES: tuple[StopPolicy, ...] = (
    Fixed(3),
    Threshold(4, threshold=0.2),
    Adaptive(
        4,
        threshold=0.3,
        target_acceptance=0.6,
        step=0.2,
        smooth_acceptance=0.5,
        smooth_threshold=0.5,
        carry_over=False,
    ),
)
ENDING = Ending(max_new_tokens=6)


def prompt(n_tokens: int, *, seed: int = 0) -> list[int]:
    """Random token ids."""
    return torch.randint(VOCAB, (n_tokens,), generator=torch.Generator().manual_seed(seed)).tolist()


SHORT, MIDDLE, LONG = prompt(WINDOW - 3), prompt(WINDOW, seed=1), prompt(2 * WINDOW + 3, seed=2)


def counts(result: DecodeResult) -> list[tuple[int, int, int]]:
    """What happened in each round, without its seconds."""
    return [(r.drafted, r.accepted, r.committed) for r in result.rounds]


def run(
    decoder: Decoder, prompts: Sequence[list[int]], skip: SkipSet, rules: Sequence[StopPolicy]
) -> list[DecodeResult]:
    """Speculative decoding of `prompts` as one batch, each with its own stop rule."""
    stops = [rule.begin() for rule in rules]
    return speculate(decoder, prompts, drafter=ModelDraft(decoder.bind(skip)), stops=stops, ending=ENDING)


def without(model: PreTrainedModel, skip: SkipSet) -> PreTrainedModel:
    """The oracle: a copy whose skipped sublayers end in zero weights."""
    oracle = copy.deepcopy(model)
    for pattern, layers in ((_ATTN_OUTPUT, skip.attn), (_MLP_OUTPUT, skip.mlp)):
        emptied = set()
        for name, parameter in oracle.named_parameters():
            end = pattern.search(name)
            if end and int(end[1]) in layers:
                parameter.data.zero_()
                emptied.add(int(end[1]))
        assert emptied == layers, f"{type(model).__name__}: this test does not know where its sublayers end"
    return oracle


def single_sublayers(n_layers: int) -> Iterator[SkipSet]:
    """Every set of one."""
    for layer in range(n_layers):
        yield SkipSet(n_layers, attn=frozenset({layer}))
        yield SkipSet(n_layers, mlp=frozenset({layer}))


def random_sets(n_layers: int, n_sets: int, *, seed: str) -> Iterator[SkipSet]:
    """Sets of any size."""
    rng = random.Random(seed)
    for _ in range(n_sets):
        share = rng.random()
        yield SkipSet.from_bits([rng.random() < share for _ in range(2 * n_layers)])


class EssentialContract:
    """What is tried of every architecture in every run. Otherwise as `ArchitectureContract`."""

    n_random = 20  # skip sets, others for each kernel
    takes_batches = True  # of prompts of different lengths; if not, they are refused

    def make(self, attention: str) -> PreTrainedModel:
        """A small float64 model in eval mode with a vocabulary of `VOCAB`; the tests do not change it."""
        raise NotImplementedError

    @pytest.fixture(params=["eager", "sdpa"])
    def attention(self, request: pytest.FixtureRequest) -> str:
        """The attention kernel."""
        return str(request.param)

    @pytest.fixture
    def model(self, attention: str) -> PreTrainedModel:
        """The model under test."""
        return self.make(attention)

    @pytest.fixture
    def decoder(self, model: PreTrainedModel) -> Decoder:
        """The model, ready."""
        return Decoder(model)

    @torch.inference_mode()
    def test_skipping_nothing_gives_transformers_logits(self, model: PreTrainedModel, decoder: Decoder) -> None:
        ids_BT = torch.tensor([LONG])
        cache = decoder.new_cache(n_rows=1, capacity=len(LONG))
        logits_BTV = decoder.bind(SkipSet(decoder.n_layers))(ids_BT, starts=[0], cache=cache)
        assert torch.equal(logits_BTV, model(ids_BT).logits)

    def test_lossless_with_any_skip_set_and_stop_rule(self, decoder: Decoder, attention: str) -> None:
        n_layers = decoder.n_layers
        everything = SkipSet.from_bits([True] * (2 * n_layers))
        sets = [*single_sublayers(n_layers), everything, *random_sets(n_layers, self.n_random, seed=attention)]
        reference = {len(ids): autoregress(decoder, [ids], ending=ENDING)[0].tokens for ids in (SHORT, LONG)}
        assert len(set(reference[len(LONG)])) > 1, "the model repeats one token: this test proves nothing"
        n_drafted = n_accepted = 0
        # Three rules and two prompts: neighbours in the list differ in both.
        for skip, rule, ids in zip(sets, itertools.cycle(RULES), itertools.cycle((LONG, SHORT)), strict=False):
            result = run(decoder, [ids], skip, [rule])[0]
            assert result.tokens == reference[len(ids)], f"skip={skip} rule={rule} prompt of {len(ids)}"
            n_drafted, n_accepted = n_drafted + result.drafted, n_accepted + result.accepted
        assert 0 < n_accepted < n_drafted, "nothing was accepted, or nothing rejected: this test proves nothing"

    @torch.inference_mode()
    def test_rollback_leaves_no_trace_at_any_length(self, model: PreTrainedModel, decoder: Decoder) -> None:
        ids_BT = torch.tensor([LONG])
        scratch_BTV = model(ids_BT).logits
        other_BT = torch.tensor([prompt(len(LONG) + 4, seed=3)])
        draft = decoder.bind(SkipSet(decoder.n_layers, attn=frozenset({1})))
        cache = decoder.new_cache(n_rows=1, capacity=len(LONG) + 4)
        decoder.full(other_BT, starts=[0], cache=cache)

        def differs(logits_BTV: Tensor, start: int) -> bool:
            return bool((logits_BTV - scratch_BTV[:, start : start + logits_BTV.shape[1]]).abs().max() > ROUNDING)

        for start in range(len(LONG)):
            # One more token of the sequence; then a draft that goes astray; then, from there, the rest of the sequence.
            draft(other_BT[:, :3], starts=[start], cache=cache)
            assert not differs(decoder.full(ids_BT[:, start:], starts=[start], cache=cache), start), f"{start=}"
            decoder.full(other_BT[:, :4], starts=[start], cache=cache)
            assert not differs(decoder.full(ids_BT[:, start : start + 1], starts=[start], cache=cache), start), (
                f"{start=}"
            )


class ArchitectureContract(EssentialContract):
    """Inherit, name the subclass Test..., implement `make`; override `attention` if not both kernels are offered."""

    @pytest.mark.parametrize("ids", [SHORT, LONG], ids=["short", "long"])
    def test_plain_decoding_equals_generate(self, model: PreTrainedModel, decoder: Decoder, ids: list[int]) -> None:
        n_new = ENDING.max_new_tokens
        theirs = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=n_new)[0, len(ids) :].tolist()
        assert autoregress(decoder, [ids], ending=ENDING)[0].tokens == theirs

    @torch.inference_mode()
    def test_skipping_equals_zeroed_output_projections(self, model: PreTrainedModel, decoder: Decoder) -> None:
        ids_BT = torch.tensor([LONG])
        whole_BTV = model(ids_BT).logits
        n_layers = decoder.n_layers
        everything = SkipSet.from_bits([True] * (2 * n_layers))
        for skip in itertools.chain(single_sublayers(n_layers), [everything], random_sets(n_layers, 3, seed="oracle")):
            cache = decoder.new_cache(n_rows=1, capacity=len(LONG))
            logits_BTV = decoder.bind(skip)(ids_BT, starts=[0], cache=cache)
            assert torch.equal(logits_BTV, without(model, skip)(ids_BT).logits), f"skip={skip}"
            assert not len(skip) or (logits_BTV - whole_BTV).abs().max() > ROUNDING, f"skip={skip} changes nothing"

    def test_model_is_unchanged_and_weights_are_not_copied(self, model: PreTrainedModel, decoder: Decoder) -> None:
        ids_BT = torch.tensor([LONG])
        with torch.inference_mode():
            logits_before_BTV = model(ids_BT).logits
        before = {name: (t.data_ptr(), t.clone()) for name, t in model.state_dict().items()}
        skip = SkipSet(decoder.n_layers, attn=frozenset({0}), mlp=frozenset({1}))
        run(decoder, [SHORT], skip, [RULES[0]])

        after = model.state_dict()
        assert {name: t.data_ptr() for name, t in after.items()} == {name: place for name, (place, _) in before.items()}
        assert all(torch.equal(after[name], values) for name, (_, values) in before.items())
        with torch.inference_mode():
            assert torch.equal(model(ids_BT).logits, logits_before_BTV)

        draft = decoder.bind(skip)
        assert isinstance(draft, BoundForward)
        for ours, theirs in ((draft.module.parameters, model.parameters), (draft.module.buffers, model.buffers)):
            assert all(a is b for a, b in zip(ours(), theirs(), strict=True))

    def test_empty_skip_set_is_accepted_whole(self, decoder: Decoder) -> None:
        for ids, rule in ((SHORT, RULES[0]), (LONG, RULES[1]), (MIDDLE, RULES[2])):
            result = run(decoder, [ids], SkipSet(decoder.n_layers), [rule])[0]
            assert result.drafted > 0
            assert result.accepted == result.drafted
            assert result.tokens == autoregress(decoder, [ids], ending=ENDING)[0].tokens

    def test_ragged_batch_equals_each_prompt_alone(self, decoder: Decoder) -> None:
        prompts = [SHORT, LONG, MIDDLE]
        if not self.takes_batches:
            with pytest.raises(InputError, match="one at a time"):
                run(decoder, prompts, SkipSet(decoder.n_layers), RULES)
            return
        for skip in (SkipSet(decoder.n_layers), SkipSet(decoder.n_layers, attn=frozenset({0}), mlp=frozenset({1}))):
            alone = [run(decoder, [ids], skip, [rule])[0] for ids, rule in zip(prompts, RULES, strict=True)]
            together = run(decoder, prompts, skip, RULES)
            assert [r.tokens for r in together] == [r.tokens for r in alone], f"skip={skip}"
            assert [counts(r) for r in together] == [counts(r) for r in alone], f"skip={skip}"
