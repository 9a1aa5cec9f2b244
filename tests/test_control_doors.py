"""A controller at the doors: `decode`, `Speculator` and Hugging Face's `generate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import selfspec
from selfspec import Fixed, InputError, Speculator
from selfspec import control as controllers
from selfspec.control import Controller, Goodput, StepCosts
from selfspec.speculator import kept
from tests.commands import command
from tests.toys import toy

CHEAP = StepCosts((1.0, 0.1, 0.001, 0.001, 0.0))
DEAR = StepCosts((0.001, 0.001, 10.0, 10.0, 0.0))
IDS = torch.tensor([[1, 2, 3, 4], [9, 8, 7, 6]])
GREEDY: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False}


@pytest.fixture
def model() -> PreTrainedModel:
    return toy("llama")


def generated(model: PreTrainedModel, controller: Controller, costs: StepCosts | Path | None) -> tuple[list[int], int]:
    """The tokens of both rows, and how many were drafted."""
    speculator = kept(model, "m2", stop=Fixed(3), controller=controller, costs=costs)
    drafted, propose = 0, type(speculator.drafter).propose

    class Counting(type(speculator.drafter)):  # type: ignore[misc]
        def propose(self, rows, *, cache):  # type: ignore[no-untyped-def]
            nonlocal drafted
            drafts = propose(self, rows, cache=cache)
            drafted += sum(len(draft.tokens) for draft in drafts)
            return drafts

    state = speculator.control
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(speculator.drafter), "propose", Counting.propose)
        found = selfspec.generate(
            model,
            IDS,
            draft="m2",
            stop=Fixed(3),
            controller=controller,
            costs=costs,
            **GREEDY,
        )
    assert kept(model, "m2", stop=Fixed(3), controller=controller, costs=costs) is speculator
    assert speculator.control is not None and state in (None, speculator.control)  # it goes on from call to call
    return found.tolist(), drafted


def test_a_batch_of_generate_is_controlled_and_has_the_same_tokens(model: PreTrainedModel, tmp_path: Path) -> None:
    plain = model.generate(IDS, **GREEDY).tolist()
    assert generated(model, controllers.Fixed(0), None) == (plain, 0)
    found, drafted = generated(model, controllers.Fixed(2), None)
    assert found == plain and drafted > 0
    n_timed = 0
    for costs in (DEAR, CHEAP):
        file = tmp_path / "costs.json"
        file.write_text(json.dumps({"steps": costs.to_dict()}), encoding="utf-8")
        found, n_timed = generated(model, Goodput(explore=0.0), costs)
        assert found == plain
    assert n_timed > 0
    assert kept(model, "m2", controller=Goodput(), costs=file) is kept(model, "m2", controller=Goodput(), costs=file)


def test_a_controller_without_costs_or_with_those_of_elsewhere_is_refused(model: PreTrainedModel) -> None:
    def ask(costs: StepCosts | str | None) -> None:
        Speculator(model, "m2", stop=Fixed(3), controller=Goodput(), costs=costs)([[1, 2]], ending=selfspec.Ending(2))

    with pytest.raises(InputError, match=r"controller=Goodput decides by the seconds of a step, and has none"):
        ask(None)
    with pytest.raises(InputError, match=r"measured with device=cuda, and here it is cpu"):
        ask(StepCosts(CHEAP.verify, of={"device": "cuda"}))
    with pytest.raises(InputError, match=r"costs=nowhere.json holds no costs of a step"):
        ask("nowhere.json")


def test_decode_takes_a_controller(toy: list[str], empty_folder: Path) -> None:
    asked = *toy, "prompt=one two", "skip=a1", "stop=fixed", "max_new_tokens=8", "costs.repeats=1", "costs.contexts=[8]"
    off = command("decode", *asked, "controller=fixed", "controller.max_draft=0")
    assert off.status == 0 and "1.00 tokens per round" in off.out, off.err
    two = command("decode", *asked, "controller=fixed", "controller.max_draft=2", "costs.rows=[1]")
    assert two.status == 0 and "output identical" in two.out and "1.00 tokens per round" not in two.out, two.out
