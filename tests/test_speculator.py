"""What is bound once is kept while model, weights and draft are the same; a folder's draft runs as it was raced."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

import selfspec
from selfspec import Adaptive, DraftPlan, Ending, Fixed, InputError, SkipSet, Speculator
from selfspec.drafters.lookup import LookupDraft, joined
from selfspec.drafters.spec import DraftSpec
from selfspec.drafters.spec_files import save_spec
from selfspec.models.decoder import Decoder
from selfspec.speculator import MOST_KEPT, kept
from selfspec.stopping import PauseWhenUnprofitable, Threshold
from tests.toys import toy

PROMPTS = [[1, 2, 3, 4, 5], [9, 8, 7]]
ENDING = Ending(12)
LEARNING = Adaptive(4, 0.5, 0.9, 0.1, 0.5, 0.5, carry_over=True)


@pytest.fixture
def model() -> PreTrainedModel:
    return toy("llama")


def test_it_decodes_as_plain_decoding_does_alone_and_in_a_batch(model: PreTrainedModel) -> None:
    speculator = Speculator(model, "m2", stop=Fixed(3))
    plain = [selfspec.autoregress(speculator.decoder, [ids], ending=ENDING)[0].tokens for ids in PROMPTS]
    assert [speculator([ids], ending=ENDING)[0].tokens for ids in PROMPTS] == plain
    assert [r.tokens for r in speculator(PROMPTS, ending=ENDING)] == plain


def test_a_rule_that_carries_over_goes_on_from_call_to_call(model: PreTrainedModel) -> None:
    speculator = Speculator(model, "a0-2 m0-2", stop=LEARNING)
    first, second = (speculator(PROMPTS[:1], ending=ENDING)[0].rounds for _ in range(2))
    assert second[0].threshold == pytest.approx(0.5 + 0.05 * len([r for r in first if r.drafted]))
    both = speculator(PROMPTS, ending=ENDING)
    assert all(r.rounds[0].threshold > 0.5 for r in both if r.rounds), "a new row goes on from the last one there is"


def test_the_folder_of_a_search_runs_with_its_rule_pauses_and_lookup(model: PreTrainedModel, tmp_path: Path) -> None:
    decoder = Decoder(model)
    rule = PauseWhenUnprofitable(Threshold(5, 0.25), draft_cost=0.4, verify_cost=0.1)
    plan = DraftPlan(SkipSet.parse("a1 m2", 3), memory=joined([[1, 2, 3, 4]]))
    save_spec(tmp_path, DraftSpec(plan, rule, "front"), model="toy", decoder=decoder, facts={})
    speculator = Speculator(model, tmp_path)
    assert speculator.spec.stop == rule and isinstance(speculator.drafter, LookupDraft)
    assert Speculator(model, str(tmp_path), stop=Fixed(2), lookup=False).spec == DraftSpec(plan, Fixed(2), None)


def test_a_published_set_is_taken_by_name_and_anothers_is_refused(model: PreTrainedModel) -> None:
    with pytest.raises(InputError, match="40 layers"):
        Speculator(model, "llama-2-13b/swift")
    with pytest.raises(InputError, match="did you mean"):
        Speculator(model, "llama-2-13b/swif")


def test_the_same_call_finds_what_it_made_before(model: PreTrainedModel, tmp_path: Path) -> None:
    made = kept(model, "m2", stop=Fixed(3))
    assert kept(model, "m2", stop=Fixed(3)) is made
    assert kept(model, SkipSet.parse("m2", 3), stop=Fixed(3)) is kept(model, SkipSet.parse("m2", 3), stop=Fixed(3))
    assert kept(model, "m2", stop=Fixed(2)) is not made and kept(model, "m1", stop=Fixed(3)) is not made
    assert kept(model, "m2", stop=Fixed(3)).decoder is made.decoder
    save_spec(
        tmp_path,
        DraftSpec(DraftPlan.from_skip_set(SkipSet.parse("m2", 3)), Fixed(3)),
        model="toy",
        decoder=made.decoder,
        facts={},
    )
    from_file = kept(model, tmp_path)
    assert kept(model, tmp_path) is from_file
    for n in range(MOST_KEPT):
        kept(model, "m2", stop=Fixed(10 + n))
    assert kept(model, tmp_path) is not from_file, "the longest unused is dropped"


def test_weights_that_were_written_to_are_bound_anew(model: PreTrainedModel) -> None:
    made = kept(model, replace(DraftPlan.from_skip_set(SkipSet.parse("m2", 3)), head=torch.arange(0, 64, 2)))
    with torch.no_grad():
        model.lm_head.weight.mul_(-1)
    again = kept(model, made.spec.plan)
    assert again is not made
    ids = torch.tensor(PROMPTS[:1])
    settings = {"max_new_tokens": 12, "do_sample": False}
    assert torch.equal(selfspec.generate(model, ids, draft=made.spec.plan, **settings), model.generate(ids, **settings))


def test_what_is_kept_goes_with_the_model_and_not_with_its_copies() -> None:
    model = toy("llama")
    made = weakref.ref(kept(model, "m2"))
    assert copy.deepcopy(model).__dict__["_selfspec_kept"].decoder is None
    assert pickle.loads(pickle.dumps(model.__dict__["_selfspec_kept"])).decoder is None
    del model
    gc.collect()
    assert made() is None


def test_a_second_call_of_the_door_binds_nothing(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    ids, settings = torch.tensor(PROMPTS[:1]), {"max_new_tokens": 8, "do_sample": False}
    first = selfspec.generate(model, ids, draft="m2", **settings)
    monkeypatch.setattr(Decoder, "bind", lambda *args: pytest.fail("bound again"))
    assert torch.equal(selfspec.generate(model, ids, draft="m2", **settings), first)
