"""Logits that are no numbers end a prompt with a reason; they are neither tokens nor a fast model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from selfspec.drafters.chain import ModelDraft
from selfspec.engine.decode import Ending, autoregress, speculate
from selfspec.engine.protocols import Draft
from selfspec.engine.sampling import NO_NUMBER, Sampling, choices
from selfspec.engine.verify import judge_block, judge_sampled
from selfspec.errors import PromptError
from selfspec.models.decoder import Decoder
from selfspec.records import run_files
from selfspec.skipping.plan import DraftPlan
from selfspec.skipping.skip_set import SkipSet
from selfspec.stopping import Fixed
from tests import toys
from tests.commands import command

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("logits", "token"),
    [
        ([0.0, 3.0, 1.0], 1),
        ([0.0, NAN, 9.0], NO_NUMBER),
        ([NAN, NAN, NAN], NO_NUMBER),
        ([1.0, INF, 0.0], NO_NUMBER),
        ([-INF, 2.0, -INF], 1),
        ([-INF, -INF, -INF], 0),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_choice_is_marked_where_the_largest_logit_is_no_number(
    logits: list[float], token: int, dtype: torch.dtype
) -> None:
    assert choices(torch.tensor([logits, [5.0, 0.0, 0.0]], dtype=dtype)).tolist() == [token, 0]


def broken_head(value: float, at: slice | int = slice(None)) -> Decoder:
    model = toys.toy("qwen2")
    with torch.no_grad():
        model.get_output_embeddings().weight[at] = value  # type: ignore[operator, union-attr]
    return Decoder(model)


SAMPLED = Sampling(do_sample=True, temperature=0.8)
HOWS = [Sampling(), Sampling(repetition_penalty=1.1), SAMPLED, Sampling(do_sample=True, by_block=True)]


@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("how", HOWS, ids=["greedy", "penalty", "sampled", "block"])
def test_first_token_of_a_broken_head_is_refused(value: float, how: Sampling) -> None:
    with pytest.raises(PromptError, match="nan or infinite"):
        autoregress(broken_head(value, 9), [[1, 2, 3], [4, 5]], ending=Ending(4), sampling=how)


@pytest.mark.parametrize("how", HOWS, ids=["greedy", "penalty", "sampled", "block"])
def test_logits_that_break_later_are_refused_in_their_round(how: Sampling) -> None:
    """The embedding of every token but the prompt's is nan: the prompt is read well, the first answer is not."""
    model = toys.toy("llama")
    with torch.no_grad():
        model.get_input_embeddings().weight[4:] = NAN  # type: ignore[operator, union-attr]
        model.get_output_embeddings().weight[:4] *= 1e-3  # type: ignore[operator, union-attr]
    decoder = Decoder(model)
    draft = ModelDraft(decoder.bind(DraftPlan.from_skip_set(SkipSet.parse("a1", 3))))
    with pytest.raises(PromptError, match="nan or infinite"):
        speculate(decoder, [[1, 2, 3]], drafter=draft, stops=[Fixed(3).begin()], ending=Ending(9), sampling=how)


@pytest.mark.parametrize("judge", [judge_sampled, judge_block])
def test_nan_at_one_place_of_a_chain_does_not_accept_it(judge: Callable[..., Any]) -> None:
    rows = torch.full((3, 4), 0.25, dtype=torch.float64)
    rows[0] = torch.tensor([0.0, 1.0, 0.0, 0.0])
    rows[1] = NAN
    drafted = torch.tensor([0.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    draft = Draft([1, 1], probabilities=[drafted, drafted])
    with pytest.raises(PromptError):
        judge(draft, lambda node: rows[node + 1], torch.Generator().manual_seed(0))


@pytest.mark.parametrize("token", [toys.VOCAB, toys.VOCAB + 100, -1])
def test_token_beyond_the_vocabulary_is_named(token: int) -> None:
    with pytest.raises(PromptError, match=f"prompt 1 holds token {token}, but the model's vocabulary has {toys.VOCAB}"):
        autoregress(Decoder(toys.toy("llama")), [[1, 2], [3, token]], ending=Ending(2))


@pytest.fixture
def words(model_folder: Path, prompts_file: Path, empty_folder: Path) -> list[str]:
    shutil.copytree(model_folder, empty_folder / "m")
    return [
        "model=local",
        "model.path=m",
        "model.dtype=float64",
        "data=jsonl",
        f"data.path={prompts_file}",
        "threads=1",
    ]


def damage(name: str, edit: Callable[[Tensor], None]) -> None:
    file = Path("m/model.safetensors")
    tensors = {key: tensor.clone() for key, tensor in load_file(file).items()}
    edit(tensors[name])
    file.unlink()
    save_file(tensors, file, metadata={"format": "pt"})


def huge(weight: Tensor) -> None:
    weight[3, 3] = 1e305


def lost(weight: Tensor) -> None:
    weight[5] = NAN


@pytest.mark.parametrize(
    ("name", "edit"), [("model.layers.2.mlp.down_proj.weight", lost), ("model.layers.1.mlp.up_proj.weight", huge)]
)
@pytest.mark.parametrize("more", [[], ["sampling=sample"], ["batch=2"]])
def test_evaluation_of_a_broken_model_is_rows_with_their_reason(
    words: list[str], name: str, edit: Callable[[Tensor], None], more: list[str]
) -> None:
    damage(name, edit)
    ran = command("evaluate", *words, "skip=a0-3 m0-3", "stop=fixed", "max_new_tokens=5", *more)
    assert ran.status == 2, ran.out
    assert "no prompt could be decoded" in ran.error_lines[-1]
    assert "nan or infinite" in ran.error_lines[-1]
    (file,) = Path("outputs").rglob(run_files.RECORDS)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert {"nan or infinite" in str(row["error"]) for row in rows if row["arm"] != "generate"} == {True}


def test_search_on_a_broken_model_ends_in_one_line(words: list[str]) -> None:
    damage("model.norm.weight", lost)
    ran = command(
        "search", "draft=skip", *words, "searcher=random", "searcher.n_trials=3", "force=true", "objective.n_prompts=2"
    )
    assert ran.status == 2
    assert "nan or infinite" in ran.error_lines[-1]
