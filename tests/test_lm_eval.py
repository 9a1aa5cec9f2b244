"""lm-evaluation-harness gets the same answers and scores with a draft as without, in fewer passes of the model."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from selfspec.errors import InputError
from selfspec.skipping.skip_set import SkipSet
from selfspec.stopping import Fixed
from tests.toys import VOCAB, toy

lm_eval = pytest.importorskip("lm_eval")

from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from experiments.quality.lm_eval_model import DraftedLM  # noqa: E402

pytestmark = pytest.mark.slow

WORDS = ["[END]", *(f"w{i}" for i in range(1, VOCAB))]
QUESTIONS = ["w1 w2 w3", "w9 w8", "w5 w4 w5 w4 w5", "w40"]  # of different lengths: batches are padded
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{file}"}}}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
{more}
"""
GENERATES = 'generation_kwargs: {until: ["w7", "w20"], max_gen_toks: 16}\nmetric_list: [{metric: exact_match}]'
COMPARES = 'doc_to_choice: ["w3", "w11"]\nmetric_list: [{metric: acc}]'


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[END]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="[END]", pad_token="[END]")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> TaskManager:
    folder = tmp_path_factory.mktemp("tasks")
    rows = [{"question": question, "answer": "w3"} for question in QUESTIONS]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, kind, more in (("says", "generate_until", GENERATES), ("picks", "multiple_choice", COMPARES)):
        text = TASK.format(name=name, file=folder / "test.jsonl", kind=kind, more=more)
        (folder / f"{name}.yaml").write_text(text)
    return TaskManager(include_path=str(folder), include_defaults=False)


def evaluated(lm: Any, tasks: TaskManager, *names: str) -> tuple[dict[str, list[str]], dict[str, Any]]:
    found = lm_eval.simple_evaluate(
        lm, tasks=list(names), task_manager=tasks, log_samples=True, bootstrap_iters=0, cache_requests=False
    )
    # texts are equal; likelihoods differ by rounding where a batch is padded, and their scores do not
    answers = {name: [str(sample["resps"][0][0]) for sample in found["samples"][name]] for name in names[:1]}
    scores = {name: {k: v for k, v in found["results"][name].items() if "stderr" not in k} for name in names}
    return answers, scores


@pytest.mark.parametrize("batch_size", [1, 3])
def test_tasks_have_the_same_answers_and_scores_with_a_draft(
    batch_size: int, tasks: TaskManager, tokenizer: PreTrainedTokenizerFast
) -> None:
    # generate itself gives nan to the padded rows of this model in float64, so that plain decoding has no batches
    plain = HFLM(toy("llama"), tokenizer=tokenizer, max_length=64)
    draft = {"draft": SkipSet.parse("m1", 3), "stop": Fixed(3)}
    drafted = DraftedLM(toy("llama"), tokenizer=tokenizer, max_length=64, batch_size=batch_size, **draft)
    expected, found = (evaluated(lm, tasks, "says", "picks") for lm in (plain, drafted))
    assert found == expected
    assert len(set(map(len, found[0]["says"]))) > 1, "no answer ended at a stop sequence"


def test_several_drafted_tokens_are_verified_in_one_pass(
    tasks: TaskManager, tokenizer: PreTrainedTokenizerFast
) -> None:
    model, widths = toy("llama"), []
    model.register_forward_pre_hook(
        lambda _, args, kwargs: widths.append((kwargs.get("input_ids", *args)).shape[1]), with_kwargs=True
    )
    evaluated(DraftedLM(model, draft="m1", stop=Fixed(6), tokenizer=tokenizer, max_length=64), tasks, "says")
    assert 7 in widths  # six drafted tokens and the one before: no prompt is that long


def test_an_encoder_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    with torch.no_grad():
        model = T5ForConditionalGeneration(
            T5Config(vocab_size=VOCAB, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
        )
    with pytest.raises(InputError, match="has an encoder"):
        DraftedLM(model, draft="m1", tokenizer=tokenizer)
