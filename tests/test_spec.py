"""A draft spec survives being written down, and the builder makes of it what was written out by hand before."""

from __future__ import annotations

import copy
import hashlib
import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save

from selfspec.drafters.build import build_drafter, lookup_of
from selfspec.drafters.chain import Drafter, ModelDraft, NoDraft
from selfspec.drafters.lookup import LookupDraft, joined
from selfspec.drafters.spec import DraftSpec
from selfspec.drafters.spec_files import find_draft, load_spec, save_spec
from selfspec.drafters.tree_drafter import TreeDraft
from selfspec.drafters.tree_shapes import comb
from selfspec.engine.decode import Ending, autoregress, speculate
from selfspec.engine.forward import Forward
from selfspec.errors import InputError
from selfspec.models.decoder import Decoder
from selfspec.skipping.bridges import Bridge
from selfspec.skipping.plan import DraftPlan
from selfspec.skipping.plan_files import load_plan
from selfspec.skipping.skip_set import SkipSet
from selfspec.skipping.skip_set_files import load_skip_set, save_skip_set
from selfspec.stopping import Adaptive, Fixed, PauseWhenUnprofitable, Threshold
from tests.toys import toy

FACTS: dict[str, Any] = {"weights": {"origin": "hub", "revision": "abc", "sha256": None}}
SKIP = SkipSet.parse("a1 m0-1", 3)
RULE = Threshold(4, 0.3)
SHAPE = comb((2, 2, 1))
PROMPTS = [[1, 2, 3, 1, 2, 3, 1, 2], [9, 8, 7, 6, 5]]
ENDING = Ending(24)


class Own(NoDraft):
    """A user's drafter that takes everything, and a setting."""

    def __init__(self, decoder: Decoder, spec: DraftSpec, forward: Forward, *, width: int = 1) -> None:
        self.given = decoder, spec, forward, width


class Frugal(NoDraft):
    """A user's drafter that takes nothing."""


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return Decoder(toy("llama-tied"))


def full_plan(decoder: Decoder) -> DraftPlan:
    width = int(decoder.config.hidden_size)
    bridge = Bridge(torch.full((width,), 0.01, dtype=decoder.dtype), (torch.eye(width, dtype=decoder.dtype) * 0.1,))
    memory = joined([[3, 1, 2, 9, 8, 7], [6, 5, 4]])
    return DraftPlan(SKIP, {("attn", 1): bridge}, torch.arange(20), "linear", "int8", memory)


def specs(decoder: Decoder) -> list[DraftSpec]:
    plain, full = DraftPlan.from_skip_set(SKIP), full_plan(decoder)
    return [
        DraftSpec(plain, RULE),
        DraftSpec(plain, PauseWhenUnprofitable(RULE, 0.5, 0.1), "front"),
        DraftSpec(full, Adaptive(6, 0.6, 0.9, 0.01, 0.5, 0.9, True), "front", {"max_ngram": 3, "min_ngram": 1}),
        DraftSpec(plain, RULE, "only", sample_draft=False),
        DraftSpec(plain, RULE, tree=SHAPE),
        DraftSpec(plain, RULE, drafter={"_target_": "tests.test_spec.Own", "width": 3}),
    ]


def test_what_is_written_down_is_read_back(decoder: Decoder) -> None:
    for spec in specs(decoder):
        body = yaml.safe_load(yaml.safe_dump(spec.to_dict()))
        again = DraftSpec.from_dict(body, spec.plan.tensors())
        assert again == spec and hash(again) == hash(spec) and again.digest() == spec.digest(), spec
        assert again.settings() == spec.settings()
        assert pickle.loads(pickle.dumps(spec)) == spec


def test_specs_are_equal_by_what_they_hold(decoder: Decoder) -> None:
    different = [*specs(decoder), replace(specs(decoder)[0], stop=Threshold(4, 0.4))]
    assert len({s.digest() for s in different}) == len(set(different)) == len(different)
    assert specs(decoder) == specs(decoder)


def test_a_spec_is_read_at_a_glance(decoder: Decoder) -> None:
    assert [str(s) for s in specs(decoder)[:1] + specs(decoder)[2:4] + specs(decoder)[5:]] == [
        "a1 m0-1; stop threshold",
        "a1 m0-1, linear at a1, head of 20, int8, memory of 11; lookup front; stop adaptive",
        "lookup only; stop threshold",
        "a1 m0-1; drafter Own; stop threshold",
    ]


def test_files_hold_it_all_and_refuse_other_weights(decoder: Decoder, tmp_path: Path) -> None:
    for i, spec in enumerate(specs(decoder)):
        folder = tmp_path / str(i)
        folder.mkdir()
        save_spec(folder, spec, model="toy", decoder=decoder, facts=FACTS, run="r", date="d")
        assert load_spec(folder, decoder, FACTS) == spec
        assert load_spec(folder / "plan.yaml", decoder) == spec
        assert load_plan(folder, decoder, FACTS) == spec.plan, "what reads plans reads it"
        with pytest.raises(InputError, match="weights"):
            load_spec(folder, decoder, {"weights": {"revision": "xyz", "sha256": None}})
        with pytest.raises(InputError, match="dtype=float64"):
            load_spec(folder, Decoder(copy.deepcopy(toy("llama-tied")).float()), FACTS)


OLD_PLAN = """\
model: toy
model_type: llama
n_layers: 3
hidden_size: 32
dtype: float64
weights: {revision: abc, sha256: null}
skip: a1
kind: mean
precision: same
bridges:
- at: a1
  for: [a1]
  shapes:
  - [32]
head_size: 4
memory_size: null
tensors: {file: plan.safetensors, sha256: SUM}
run: 20260101T000000Z-0
date: '2026-01-01T00:00:00Z'
stop:
  name: paying
  rule: {name: threshold, max_draft: 3, threshold: 0.4}
  draft_cost: 0.5
  verify_cost: 0.1
  window: 16
  credit: 1.2
  pause: 8
  longest_pause: 256
  least: 1.25
lookup: front
lookup_settings: {asked: 8, reach: 32, known: 0.5, max_tokens: 4}
fresh_value: 1.2
speedup: 1.1
"""

OLD_SKIP_SET = """\
model: toy
n_layers: 3
attn: [1]
mlp: [0, 2]
skip: a1 m0,2
objective: expected_speedup
value: 1.2
unit: x plain decoding
data: mini
run: 20260101T000000Z-0
date: '2026-01-01T00:00:00Z'
stop: {name: fixed, max_draft: 3}
lookup: null
"""


def test_files_of_earlier_runs_are_read(decoder: Decoder, tmp_path: Path) -> None:
    bias, head = torch.full((32,), 0.5, dtype=torch.float64), torch.tensor([1, 2, 5, 9])
    data = save({"a1.0": bias, "head": head})
    (tmp_path / "plan.safetensors").write_bytes(data)
    (tmp_path / "plan.yaml").write_text(OLD_PLAN.replace("SUM", hashlib.sha256(data).hexdigest()))
    (tmp_path / "skip_set.yaml").write_text(OLD_SKIP_SET)
    skip = SkipSet.parse("a1", 3)
    plan = DraftPlan(skip, {("attn", 1): Bridge(bias)}, head, "mean")
    rule = PauseWhenUnprofitable(Threshold(3, 0.4), draft_cost=0.5, verify_cost=0.1, min_gain=1.25)
    lookup = {"window": 8, "reach_tokens": 32, "min_hit_rate": 0.5, "max_tokens": 4}
    expected = DraftSpec(plan, rule, "front", lookup)
    spec = load_spec(tmp_path, decoder, FACTS)
    assert spec == expected
    found = lookup_of(spec)
    assert found is not None and (found.window, found.reach_tokens, found.min_hit_rate) == (8, 32, 0.5)
    bare = DraftSpec(DraftPlan.from_skip_set(SkipSet.parse("a1 m0,2", 3)), Fixed(3))
    assert load_spec(tmp_path / "skip_set.yaml", decoder) == bare
    assert load_spec(tmp_path / "skip_set.yaml", decoder, stop=RULE) == replace(bare, stop=RULE)
    (tmp_path / "plan.yaml").unlink()
    assert load_spec(tmp_path, decoder, FACTS) == bare
    assert load_skip_set(tmp_path) == bare.skip


def test_whatever_names_a_draft_names_a_spec(decoder: Decoder) -> None:
    written = load_spec("a1 m0-1", decoder, default_stop=RULE)
    assert written == DraftSpec(DraftPlan.from_skip_set(SKIP), RULE)
    assert load_spec("none", decoder, stop=RULE).skip == SkipSet(3)
    for wrong, piece in (("a1 m9", "layers 0..2"), ("a1 nonsense", "nonsense"), ("no/such", "no/such")):
        with pytest.raises(InputError, match=piece):
            load_spec(wrong, decoder, stop=RULE)
    with pytest.raises(InputError, match="when to stop"):
        load_spec("a1", decoder)


def test_a_name_tells_the_kind_of_draft_before_a_model_is_there(decoder: Decoder, tmp_path: Path) -> None:
    save_skip_set(tmp_path / "mine.yaml", SKIP, model="toy", value=1.2)
    save_skip_set(tmp_path / "skip_set.yaml", SKIP, model="toy", value=1.3)
    both = tmp_path / "both"
    both.mkdir()
    save_skip_set(both / "skip_set.yaml", SKIP, model="toy", value=1.4)
    save_spec(both, DraftSpec(DraftPlan.from_skip_set(SKIP), RULE), model="toy", decoder=decoder, facts={})
    names = ["a1 m0-1", "none", "llama-2-13b/swift", tmp_path / "mine.yaml", tmp_path, both, both / "plan.yaml"]
    found = [find_draft(name) for name in names]
    kinds = ["written", "written", "published", "skip_set", "skip_set", "plan", "plan"]
    assert [draft.kind for draft in found] == kinds
    assert [draft.skip(40 if draft.kind == "published" else 3) for draft in found[3:]] == [SKIP] * 4
    assert [draft.settings.get("value") for draft in found[3:]] == [1.2, 1.3, 1.4, 1.4]
    assert found[5].settings["stop"] == RULE.to_dict()
    with pytest.raises(InputError, match="layers of its model"):
        found[0].skip()


def test_a_plan_takes_nothing_from_the_skip_set_of_another_draft(decoder: Decoder, tmp_path: Path) -> None:
    save_spec(tmp_path, DraftSpec(DraftPlan.from_skip_set(SKIP), RULE), model="toy", decoder=decoder, facts={})
    save_skip_set(tmp_path / "skip_set.yaml", SkipSet(3), model="toy", value=1.4)
    assert "value" not in find_draft(tmp_path).settings


@pytest.mark.parametrize("name", ["llama-2-13b/swif", "no/such", "nonsense", "found/skip_set.yaml"])
def test_a_name_of_nothing_is_one_line_with_the_nearest_name(name: str) -> None:
    with pytest.raises(InputError, match=f"unknown draft '{name}': no such file or folder") as refusal:
        find_draft(name)
    assert "\n" not in str(refusal.value)
    assert ("did you mean 'llama-2-13b/swift'" in str(refusal.value)) == name.startswith("llama")


@pytest.mark.parametrize(
    ("parts", "piece"),
    [
        ({"lookup": "behind"}, "lookup=behind"),
        ({"lookup_settings": {"max_tokens": 3}}, "without lookup"),
        ({"drafter": {"width": 3}}, "_target_"),
        ({"tree": comb((2, 1)), "lookup": "only"}, "no place for a tree"),
        ({"drafter": {"_target_": "a.B"}, "lookup": "only"}, "no place for drafter a.B"),
    ],
)
def test_parts_that_do_not_go_together_are_refused(parts: dict[str, Any], piece: str) -> None:
    with pytest.raises(InputError, match=piece):
        DraftSpec(DraftPlan.from_skip_set(SKIP), RULE, **parts)


def counted(decoder: Decoder, drafter: Drafter, rule: Threshold) -> list[tuple[list[int], Sequence[tuple[int, int]]]]:
    found = []
    for ids in PROMPTS:
        (r,) = speculate(decoder, [ids], drafter=drafter, stops=[rule.begin()], ending=ENDING)
        found.append((r.tokens, [(x.drafted, x.accepted) for x in r.rounds]))
    return found


def test_the_builder_drafts_as_parts_put_together_by_hand(decoder: Decoder) -> None:
    plain = [autoregress(decoder, [ids], ending=ENDING)[0].tokens for ids in PROMPTS]
    plan = full_plan(decoder)
    model = ModelDraft(decoder.bind(plan))
    memory = lookup_of(DraftSpec(plan, RULE, "front"))
    assert memory is not None
    by_hand: list[tuple[DraftSpec, Drafter]] = [
        (DraftSpec(plan, RULE), model),
        (DraftSpec(plan, RULE, "front"), LookupDraft(model, memory=memory.memory)),
        (DraftSpec(plan, RULE, "only"), LookupDraft(memory=memory.memory)),
        (DraftSpec(plan, RULE, tree=SHAPE), TreeDraft(decoder.bind(plan), SHAPE)),
        (DraftSpec(plan, RULE, "front", {"max_tokens": 2}), LookupDraft(model, memory=memory.memory, max_tokens=2)),
    ]
    counts = []
    for spec, drafter in by_hand:
        found = counted(decoder, build_drafter(spec, decoder), RULE)
        assert found == counted(decoder, drafter, RULE), spec
        assert [tokens for tokens, _ in found] == plain
        counts.append(found)
    assert counts[0] != counts[1] != counts[2], "lookup made no difference: this test proves nothing"


def test_drafters_of_one_memory_share_its_index(decoder: Decoder) -> None:
    plan = full_plan(decoder)
    other = DraftPlan(SkipSet(3), memory=plan.memory)
    one, two = (lookup_of(DraftSpec(p, RULE, "front")) for p in (plan, other))
    assert one is not None and two is not None and one.memory is two.memory


def test_a_users_drafter_gets_what_its_signature_names(decoder: Decoder) -> None:
    spec = DraftSpec(DraftPlan.from_skip_set(SKIP), RULE, drafter={"_target_": "tests.test_spec.Own", "width": 3})
    drafter = build_drafter(spec, decoder)
    assert isinstance(drafter, Own) and drafter.given[:2] == (decoder, spec) and drafter.given[3] == 3
    frugal = replace(spec, drafter={"_target_": "tests.test_spec.Frugal"})
    assert isinstance(build_drafter(frugal, decoder), Frugal)
    behind = build_drafter(replace(frugal, lookup="front"), decoder)
    assert isinstance(behind, LookupDraft) and isinstance(behind.inner, Frugal)


@pytest.mark.parametrize(
    ("drafter", "piece"),
    [
        ({"_target_": "tests.test_spec.Missing"}, "tests.test_spec.Missing cannot be imported"),
        ({"_target_": "no_such_module.Own"}, "no_such_module"),
        ({"_target_": "nothing"}, "nothing"),
        ({"_target_": "tests.test_spec.Own", "depth": 3}, "cannot be made"),
        ({"_target_": "tests.test_spec.counted"}, "not a class with a method propose"),
    ],
)
def test_a_users_drafter_that_cannot_be_made_is_one_line(drafter: dict[str, Any], piece: str, decoder: Decoder) -> None:
    with pytest.raises(InputError, match=piece) as refusal:
        build_drafter(DraftSpec(DraftPlan.from_skip_set(SKIP), RULE, drafter=drafter), decoder)
    assert "\n" not in str(refusal.value)
