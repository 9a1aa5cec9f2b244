"""A plan changes the draft and nothing else: whatever stands in for what is skipped, the output is plain decoding's."""

from __future__ import annotations

import itertools
import pickle
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from selfspec.drafters.chain import ModelDraft
from selfspec.engine.decode import autoregress, speculate
from selfspec.errors import InputError
from selfspec.models.decoder import Decoder
from selfspec.skipping.bridges import Bridge
from selfspec.skipping.plan import DraftPlan, Sublayer, position, sublayer
from selfspec.skipping.plan_files import load_plan, save_plan
from selfspec.skipping.skip_set import SkipSet
from tests.contracts.architecture import ENDING, LONG, MIDDLE, RULES, SHORT, counts, random_sets, single_sublayers
from tests.toys import FAMILIES, VOCAB, every_family, toy

WIDTH = 32
FACTS: dict[str, Any] = {"weights": {"origin": "hub", "revision": "abc", "sha256": None}}
# One that helps no draft, one that drowns the stream, one whose squares overflow where a norm computes in float32.
SCALES = (0.3, 1e4, 1e30)


@cache
def decoder_of(family: str) -> Decoder:
    return Decoder(toy(family, FAMILIES[family].attentions[-1]))


def takes_bridge(decoder: Decoder, at: Sublayer) -> bool:
    return len(decoder.sublayers.attn if at[0] == "attn" else decoder.sublayers.mlp) == 1


def random_plan(decoder: Decoder, skip: SkipSet, kind: str, *, merge: bool, scale: float, seed: int) -> DraftPlan:
    """Bridges of noise at the skipped sublayers; with `merge` at the first of each run alone."""
    rng = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return scale * torch.randn(*shape, generator=rng, dtype=decoder.dtype)

    matrices: dict[str, Callable[[], tuple[Tensor, ...]]] = {
        "mean": lambda: (),
        "linear": lambda: (noise(WIDTH, WIDTH),),
        "lowrank": lambda: (noise(3, WIDTH), noise(WIDTH, 3)),
    }
    bits = skip.bits()
    places = [i for i, bit in enumerate(bits) if bit and not (merge and i and bits[i - 1])]
    bridges = {at: Bridge(noise(WIDTH), matrices[kind]()) for at in map(sublayer, places) if takes_bridge(decoder, at)}
    return DraftPlan(skip, bridges, kind=kind)


@pytest.mark.parametrize("family", every_family(also=("opt", "bloom")))  # sums of their own
def test_lossless_with_any_bridges_and_stop_rule(family: str) -> None:
    decoder = decoder_of(family)
    n = decoder.n_layers
    everything = SkipSet.from_bits([True] * (2 * n))
    sets = [everything, *random_sets(n, 9, seed=family), *single_sublayers(n)]
    reference = {len(ids): autoregress(decoder, [ids], ending=ENDING)[0].tokens for ids in (SHORT, LONG)}
    choices = itertools.cycle(itertools.product(("mean", "linear", "lowrank"), SCALES, (False, True)))
    seeds, n_rejected = random.Random(family), 0
    for skip, rule, ids, (kind, scale, merge) in zip(
        sets, itertools.cycle(RULES), itertools.cycle((LONG, SHORT)), choices, strict=False
    ):
        plan = random_plan(decoder, skip, kind, merge=merge, scale=scale, seed=seeds.randrange(2**31))
        drafter = ModelDraft(decoder.bind(plan))
        (result,) = speculate(decoder, [ids], drafter=drafter, stops=[rule.begin()], ending=ENDING)
        assert result.tokens == reference[len(ids)], f"plan={plan} scale={scale} rule={rule} prompt of {len(ids)}"
        n_rejected += result.drafted - result.accepted
    assert n_rejected, "nothing was rejected: this test proves nothing"


@pytest.mark.parametrize("scale", SCALES)
def test_ragged_batch_equals_each_prompt_alone(scale: float) -> None:
    decoder = decoder_of("llama")
    plan = random_plan(decoder, SkipSet.parse("a1,2 m0,1", 3), "linear", merge=True, scale=scale, seed=0)
    drafter = ModelDraft(decoder.bind(plan))
    prompts = [SHORT, LONG, MIDDLE]
    alone = [
        speculate(decoder, [ids], drafter=drafter, stops=[rule.begin()], ending=ENDING)[0]
        for ids, rule in zip(prompts, RULES, strict=True)
    ]
    together = speculate(decoder, prompts, drafter=drafter, stops=[rule.begin() for rule in RULES], ending=ENDING)
    assert [r.tokens for r in together] == [r.tokens for r in alone]
    assert [counts(r) for r in together] == [counts(r) for r in alone]


def test_a_plain_plan_is_its_skip_set() -> None:
    decoder, ids_BT = decoder_of("llama"), torch.tensor([LONG])
    for skip in random_sets(3, 5, seed="plain"):
        ours, theirs = (
            decoder.bind(draft)(ids_BT, starts=[0], cache=decoder.new_cache(n_rows=1, capacity=len(LONG)))
            for draft in (DraftPlan.from_skip_set(skip), skip)
        )
        assert torch.equal(ours, theirs), f"skip={skip}"
    assert decoder.bind(DraftPlan.from_skip_set(SkipSet(3))) is decoder.full


def test_a_plan_may_trim_the_head_alone() -> None:
    decoder = decoder_of("llama")
    (plain,) = autoregress(decoder, [LONG], ending=ENDING)
    some = torch.tensor(sorted({*plain.tokens[:3], 1, 2}))
    drafter = ModelDraft(decoder.bind(DraftPlan(SkipSet(3), head=some)))
    (result,) = speculate(decoder, [LONG], drafter=drafter, stops=[RULES[0].begin()], ending=ENDING)
    assert result.tokens == plain.tokens
    assert 0 < result.accepted < result.drafted


def test_plans_of_the_same_content_are_equal() -> None:
    decoder = decoder_of("llama")
    skip = SkipSet.parse("a1 m0", 3)

    def plan(seed: int = 0) -> DraftPlan:
        return random_plan(decoder, skip, "linear", merge=False, scale=1.0, seed=seed)

    one = plan()
    head = DraftPlan(skip, one.bridges, head=torch.arange(9), kind="linear")
    others = [
        plan(1),
        DraftPlan.from_skip_set(skip),
        head,
        DraftPlan(skip, one.bridges, head=torch.arange(1, 10), kind="linear"),
    ]
    assert one == plan() and hash(one) == hash(plan()) and one.digest() == plan().digest()
    assert len({one, plan(), *others}) == 5
    assert len({p.digest() for p in [one, *others]}) == 5
    assert pickle.loads(pickle.dumps(one)) == one


def test_sublayers_are_numbered_as_bits_are() -> None:
    for i in range(6):
        assert position(sublayer(i)) == i
        assert DraftPlan.from_skip_set(SkipSet.from_bits([j == i for j in range(6)])).skipped == [sublayer(i)]


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda b: DraftPlan(SkipSet.parse("a1", 3), {("mlp", 1): b}, kind="mean"), "m1, which is not skipped"),
        (lambda b: DraftPlan(SkipSet.parse("a1", 3), {("attn", 1): b}), "kind 'skip' has no bridges"),
        (lambda b: DraftPlan(SkipSet(3), kind="lineal"), "did you mean 'linear'"),
        (lambda b: DraftPlan(SkipSet(3), precision="int3"), "unknown precision"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(make: Callable[[Bridge], DraftPlan], why: str) -> None:
    with pytest.raises(InputError, match=why):
        make(Bridge(torch.zeros(WIDTH)))


# On disk


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    decoder = decoder_of("llama")
    plan = random_plan(decoder, SkipSet.parse("a1,2 m0,1", 3), "linear", merge=True, scale=1.0, seed=0)
    save_plan(tmp_path, plan, model="a toy", decoder=decoder, facts=FACTS, objective="none")
    return tmp_path / "plan.yaml"


@pytest.mark.parametrize("kind", ["skip", "mean", "linear", "lowrank"])
@pytest.mark.parametrize("head", [None, torch.arange(0, VOCAB, 2)], ids=["whole", "trimmed"])
def test_a_plan_comes_back_as_it_was_saved(kind: str, head: Tensor | None, tmp_path: Path) -> None:
    decoder, skip = decoder_of("llama"), SkipSet.parse("a1,2 m0", 3)
    plan = DraftPlan.from_skip_set(skip)
    if kind != "skip":
        plan = random_plan(decoder, skip, kind, merge=True, scale=1.0, seed=0)
    memory = None if head is None else torch.tensor([-1, 3, 5, -1, 7], dtype=torch.int32)
    plan = DraftPlan(skip, plan.bridges, head=head, kind=kind, memory=memory)
    save_plan(tmp_path / "mine.yaml", plan, model="a toy", decoder=decoder, facts=FACTS)
    assert load_plan(tmp_path / "mine.yaml", decoder, FACTS) == plan


def test_a_plan_from_before_there_were_memories_has_none(saved: Path) -> None:
    body = yaml.safe_load(saved.read_text())
    del body["memory_size"]
    saved.write_text(yaml.safe_dump(body))
    assert load_plan(saved, decoder_of("llama"), FACTS).memory is None


def test_plans_that_remember_other_texts_are_others() -> None:
    skip = SkipSet.parse("a1", 3)
    one, same, other, none = (
        DraftPlan(skip, memory=ids) for ids in (torch.arange(3), torch.arange(3), torch.arange(1, 4), None)
    )
    assert one == same
    assert one != other and one != none
    assert len({one, same, other, none}) == 3


def test_the_file_tells_a_reader_what_stands_where(saved: Path) -> None:
    body = yaml.safe_load(saved.read_text())
    assert (body["model"], body["skip"], body["kind"], body["objective"]) == ("a toy", "a1-2 m0-1", "linear", "none")
    assert body["bridges"] == [{"at": "m0", "for": ["m0", "a1", "m1", "a2"], "shapes": [[WIDTH], [WIDTH, WIDTH]]}]
    assert body["weights"] == {"revision": "abc", "sha256": None}


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("n_layers", 4, "n_layers=4, but this model has 3"),
        ("hidden_size", 64, "hidden_size=64, but this model has 32"),
        ("model_type", "qwen2", "model_type=qwen2, but this model has llama"),
        ("dtype", "bfloat16", "dtype=bfloat16, but this model has float64"),
        ("weights", {"revision": "xyz", "sha256": None}, "revision xyz, but this model has revision abc"),
        ("tensors", {"file": "plan.safetensors", "sha256": "0" * 64}, "of another plan"),
        ("tensors", {"file": "nowhere.safetensors", "sha256": "0" * 64}, "cannot read"),
        ("tensors", None, "not a whole plan"),
        ("skip", "a1", "bridge at m0, which is not skipped"),
        ("bridges", 3, "not a whole plan"),
    ],
)
def test_a_plan_for_something_else_is_refused_in_one_line(saved: Path, name: str, value: Any, why: str) -> None:
    body = yaml.safe_load(saved.read_text()) | {name: value}
    saved.write_text(yaml.safe_dump(body))
    with pytest.raises(InputError, match=why) as refusal:
        load_plan(saved, decoder_of("llama"), FACTS)
    assert "\n" not in str(refusal.value)


def test_changed_tensors_are_refused(saved: Path) -> None:
    beside = saved.with_suffix(".safetensors")
    data = beside.read_bytes()
    beside.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(InputError, match="of another plan"):
        load_plan(saved.parent, decoder_of("llama"), FACTS)


@pytest.mark.parametrize(("text", "why"), [("a: [", "not YAML"), ("a: 1", "it lacks n_layers"), ("", "not a plan")])
def test_a_file_that_is_no_plan_is_refused(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "plan.yaml").write_text(text)
    with pytest.raises(InputError, match=why):
        load_plan(tmp_path, decoder_of("llama"), FACTS)
    with pytest.raises(InputError, match="cannot read the plan"):
        load_plan(tmp_path / "none.yaml", decoder_of("llama"), FACTS)
