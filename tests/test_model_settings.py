"""What a model's folder says of decoding: its generation config, its ends, its chat template."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from experiments.evaluation.arms import GenerateArm
from selfspec.engine.decode import Ending, autoregress
from selfspec.engine.sampling import Sampling
from selfspec.measure.stopwatch import Stopwatch
from selfspec.models.decoder import Decoder
from selfspec.records import run_files
from tests import toys
from tests.commands import command

IDS = [3, 1, 4, 1, 5]


@pytest.mark.parametrize(
    "settings",
    [
        {"no_repeat_ngram_size": 1},
        {"suppress_tokens": list(range(0, 60, 2))},
        {"begin_suppress_tokens": list(range(1, 60, 2))},
        {"min_length": 70},
        {"sequence_bias": [[[7], 30.0]]},
        {"forced_eos_token_id": 2},
        {"guidance_scale": 2.5},
        {"num_beams": 2, "early_stopping": True},
        {"stop_strings": ["a"]},
        {"prompt_lookup_num_tokens": 3},
        {"output_logits": True, "return_dict_in_generate": True},
        {"repetition_penalty": 1.7},
        {"do_sample": True, "temperature": 3.0},
        {"max_time": 1e-9},
        {"max_length": 7},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_generate_arm_does_what_the_run_says_and_nothing_else(settings: dict[str, Any]) -> None:
    model = toys.toy("llama", eos_token_id=9)
    decoder = Decoder(model)
    (expected,) = autoregress(decoder, [IDS], ending=Ending(24))
    of_model = model.generation_config = GenerationConfig(eos_token_id=9, **settings)
    (found,) = GenerateArm(decoder, Ending(24), Sampling(), Stopwatch(torch.device("cpu")))([IDS])
    assert found.tokens == expected.tokens
    assert model.generation_config is of_model


def test_sampling_of_the_generate_arm_is_that_of_the_run() -> None:
    model = toys.toy("llama")
    arm = GenerateArm(Decoder(model), Ending(24), Sampling(do_sample=True, seed=3), Stopwatch(torch.device("cpu")))
    (expected,) = arm([IDS])
    model.generation_config = GenerationConfig(min_p=0.9, typical_p=0.2, epsilon_cutoff=0.5)
    (found,) = arm([IDS])
    assert found.tokens == expected.tokens


@pytest.fixture
def words(model_folder: Path, prompts_file: Path, empty_folder: Path) -> list[str]:
    shutil.copytree(model_folder, empty_folder / "m")
    return [
        *("model=local", "model.path=m", "model.dtype=float64", "data=jsonl", f"data.path={prompts_file}", "threads=1"),
        *("n=3", "max_new_tokens=5"),
    ]


def configure(name: str, **settings: Any) -> None:
    file = Path("m") / name
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def test_settings_of_the_model_that_a_run_does_not_use_are_told(words: list[str]) -> None:
    assert "are not:" not in command("evaluate", *words).err
    configure("generation_config.json", no_repeat_ngram_size=3, top_k=7, do_sample=True)
    ran = command("evaluate", *words)
    assert ran.status == 0, ran.err
    assert "these are not: do_sample=True, no_repeat_ngram_size=3, top_k=7" in ran.err


def test_end_token_of_the_tokenizer_that_ends_nothing_is_told(words: list[str]) -> None:
    assert "does not end an answer" not in command("evaluate", *words).err
    configure("generation_config.json", eos_token_id=[17, 40])
    ran = command("evaluate", *words)
    assert "end token 0 (<eos>) does not end an answer" in ran.err
    assert "[17, 40]" in ran.err


def tick() -> None:
    """A template whose text is another at every rendering."""
    (Path("m") / "chat_template.jinja").write_text(
        "{{ strftime_now('%f') }}{% for m in messages %}{{ m['content'] }}{% endfor %} A:"
    )


def test_a_conversation_is_rendered_once_for_all_arms_and_sittings(words: list[str]) -> None:
    tick()
    ran = command("evaluate", *words, "skip=a1 m2")
    assert ran.status == 0, ran.err
    rows = run_files.read_rows(ran.run / run_files.RECORDS)
    assert {row["verdict"] for row in rows if row["arm"] != "plain"} == {"identical"}
    kept = run_files.read_rows(ran.run / run_files.PROMPTS)
    assert len(kept) == 3
    lines = (ran.run / run_files.RECORDS).read_bytes().splitlines(keepends=True)
    (ran.run / run_files.RECORDS).write_bytes(b"".join(lines[:4]))
    (ran.run / run_files.SUMMARY).unlink()
    resumed = command("evaluate", f"resume={ran.run}")
    assert resumed.status == 0, resumed.err
    assert run_files.read_rows(ran.run / run_files.PROMPTS) == kept
    again = {(row["prompt_id"], row["arm"]): row["tokens"] for row in run_files.read_rows(ran.run / run_files.RECORDS)}
    assert again == {(row["prompt_id"], row["arm"]): row["tokens"] for row in rows}
