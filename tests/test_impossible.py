"""Cost tables, plans and skip sets that cannot be are refused in one line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from search.costs.table import CostTable
from search.importance import Importance, predict
from selfspec.errors import InputError
from selfspec.models.decoder import Decoder
from selfspec.records.run_files import read_rows
from selfspec.skipping.bridges import Bridge
from selfspec.skipping.plan import DraftPlan, sublayer
from selfspec.skipping.plan_files import load_plan, save_plan
from selfspec.skipping.skip_set import SkipSet
from tests import toys
from tests.commands import command
from tests.test_importance import CONTEXT, N_LAYERS, K, row
from tests.test_importance import COSTS as GOOD

NAN, INF = float("nan"), float("inf")
SHAPE = {"attn_s": (1e-4, 1.2e-4), "contexts": (64, 74), "full_s": (1e-2, 1.1e-2), "verify_s": (1e-2, 1.2e-2)}
TABLE = CostTable(**SHAPE, mlp_s=2e-4, base_s=1e-3)  # type: ignore[arg-type]


def test_costs_before_the_first_measured_context_are_those_at_it() -> None:
    steep = replace(TABLE, attn_s=(1e-4, 3e-3))
    assert steep.draft_s(SkipSet(4), 3) == steep.draft_s(SkipSet(4), 64) > 0
    assert steep.plain_s(1) == steep.plain_s(64)
    assert steep.draft_s(SkipSet(4), 200) > steep.draft_s(SkipSet(4), 74)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mlp_s": -1e-5}, "mlp_s takes"),
        ({"base_s": NAN}, "base_s takes"),
        ({"attn_s": (1e-4, -1e-6)}, "attn_s at 74 takes"),
        ({"full_s": (0.0, 1e-2)}, "full_s at 64 takes"),
        ({"verify_s": (1e-2, INF)}, "verify_s of 2 takes"),
        ({"overhead_s": -1.0}, "overhead_s takes"),
    ],
)
def test_table_with_a_time_that_cannot_be_is_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    file = tmp_path / "costs.json"
    file.write_text(json.dumps({"costs": replace(TABLE, **change).to_dict()}))
    with pytest.raises(InputError, match=f"{said}.*measure again") as error:
        CostTable.read(file)
    assert str(file) in str(error.value)


def test_table_is_looked_at_where_it_is_asked() -> None:
    TABLE.check("t", n_layers=4, contexts=(5, 90))
    falling = replace(TABLE, full_s=(1e-2, 9e-3))
    assert falling.plain_s(5000) == 9e-3  # more context never costs less
    lost = replace(TABLE, interaction_s=((0.0,) * 9, (-1e-4,) * 9))
    lost.check("t", n_layers=4, contexts=(5, 90))
    with pytest.raises(InputError, match=r"a drafted token with skip=.* after 900 takes"):
        lost.check("t", n_layers=4, contexts=(5, 900))
    free = replace(TABLE, head_saved_s=0.0, interaction_s=((-2e-3,) * 9, (-2e-3,) * 9))
    with pytest.raises(InputError, match=r"a drafted token with skip=.* after"):
        free.check("t", n_layers=4)


def test_prediction_beyond_the_longest_round_is_refused() -> None:
    rows = [row("none", 0.99), *(row(f"{kind}{i}", 0.99) for kind in "am" for i in range(N_LAYERS))]
    importance = Importance.from_rows(rows, N_LAYERS)
    predict(importance, GOOD, context=CONTEXT, max_draft=K)
    free = replace(GOOD, base_s=1e-4, verify_s=tuple(0.05 * s for s in GOOD.verify_s))
    with pytest.raises(InputError, match=rf"a round of {K} drafted tokens gives at most {K + 1}; .*measure again"):
        predict(importance, free, context=CONTEXT, max_draft=K)


def test_search_by_a_table_that_cannot_be_ends_in_one_line(toy: list[str], empty_folder: Path) -> None:
    made = command("profile", *toy, "costs.contexts=[8,24]", "costs.max_tokens=6", "costs.repeats=2")
    assert made.status == 0, made.err
    (file,) = Path("outputs/cache/costs").glob("*.json")
    body = json.loads(file.read_text())
    body["costs"]["mlp_s"] = -3e-6
    Path("mine.json").write_text(json.dumps(body))
    ran = command("search", "draft=skip", *toy, "searcher.n_trials=3", "objective.n_prompts=2", "costs.path=mine.json")
    assert ran.status == 2
    assert "mine.json: mlp_s takes -3e-06 s, which is impossible" in ran.error_lines[-1]


FACTS: dict[str, Any] = {"weights": {"revision": "abc", "sha256": None}}


def saved(folder: Path, decoder: Decoder, *, bias: Tensor | None = None, **parts: Any) -> Path:
    skip = SkipSet.parse("a1 m2", decoder.n_layers)
    bridge = Bridge(torch.zeros(32, dtype=torch.float64) if bias is None else bias)
    plan = DraftPlan(skip, {sublayer(2): bridge}, kind="mean", **parts)
    save_plan(folder, plan, model="toy", decoder=decoder, facts=FACTS)
    return folder / "plan.yaml"


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"bias": torch.full((32,), -INF, dtype=torch.float64)}, "a1.0 holds nan or infinite"),
        ({"bias": torch.tensor([0.0] * 31 + [NAN], dtype=torch.float64)}, "a1.0 holds nan or infinite"),
        ({"memory": torch.tensor([3, toys.VOCAB, 5])}, f"memory holds token {toys.VOCAB}, but"),
        ({"memory": torch.tensor([3, -7, 5])}, "memory holds token -7, but"),
        ({"head": torch.tensor([-1, 5])}, "head holds token -1, but"),
        ({"memory": torch.tensor([3.0, 4.0])}, "memory is not a list of token ids"),
        ({"memory": torch.tensor([[3, 4], [5, 6]])}, "memory is not a list of token ids"),
        ({"head": torch.tensor([3, 4, 500])}, "head holds token 500, but"),
        ({"head": torch.tensor([True, False])}, "head is not a list of token ids"),
    ],
)
def test_plan_whose_sum_is_right_and_whose_tensors_cannot_be_is_refused(
    tmp_path: Path, parts: dict[str, Any], said: str
) -> None:
    decoder = Decoder(toys.toy("llama"))
    file = saved(tmp_path, decoder, **parts)
    with pytest.raises(InputError, match=said):
        load_plan(file, decoder, FACTS)


@pytest.mark.parametrize("name", ["head", "memory"])
def test_size_that_a_plan_states_is_compared(tmp_path: Path, name: str) -> None:
    decoder = Decoder(toys.toy("llama"))
    file = saved(tmp_path, decoder, **{name: torch.tensor([3, 9, 11])})
    load_plan(file, decoder, FACTS)
    file.write_text(file.read_text().replace(f"{name}_size: 3", f"{name}_size: 5"))
    with pytest.raises(InputError, match=f"says {name}_size=5, but its {name} holds 3"):
        load_plan(file, decoder, FACTS)


def test_plan_of_endless_brackets_is_no_yaml(tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text("{a: " * 30_000)
    with pytest.raises(InputError, match="is not YAML"):
        load_plan(tmp_path, Decoder(toys.toy("llama")), FACTS)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("m" + "9" * 6000, "cannot read 'm9999"),
        ("a1-" + "1" * 5000, "cannot read 'a1-1111"),
        ("x1," * 4000 + "a1", "cannot read 'x1'"),
        ("none m1", "names sublayers and none"),
        ("a2,none", "names sublayers and none"),
        ("m0,,1", "has a comma with nothing"),
        ("m0, ,a1", "has a comma with nothing"),
        (",a1", "has a comma with nothing"),
        ("a1,", "has a comma with nothing"),
        ("m２", "cannot read 'm２'"),
        ("a٣", "cannot read"),
    ],
)
def test_an_unreadable_skip_set_is_refused_and_quoted_in_short(text: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as error:
        SkipSet.parse(text, 4)
    assert len(str(error.value)) < 600


def test_written_set_goes_before_a_folder_of_its_name(toy: list[str], empty_folder: Path) -> None:
    Path("m2").mkdir()
    ran = command("evaluate", *toy, "skip=m2", "n=1", "max_new_tokens=4", "generate=false", "controls=false")
    assert ran.status == 0, ran.err
    assert {row["skip"] for row in read_rows(ran.run / "records.jsonl")} == {None, "m2"}


def test_a_table_with_earlier_names_of_its_parts_is_read(tmp_path: Path) -> None:
    table = replace(TABLE, overhead_s=0.25, interaction_s=((0.5,) * 9,) * len(TABLE.contexts))
    body = table.to_dict()
    body = {"round_s": body.pop("overhead_s"), "beside_s": body.pop("interaction_s"), **body}
    (tmp_path / "costs.json").write_text(json.dumps({"costs": body}))
    assert CostTable.read(tmp_path / "costs.json") == table
