"""What is judged is what was written: spaces of an answer, and what stands behind a thought."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from experiments.dashboard.token_sources import pieces
from experiments.quality.judge import MEASURES, assess
from experiments.verbs.decode import _Stream
from selfspec import hf
from selfspec.answer_text import context, opens_thought, text_after, without_thoughts
from selfspec.data.prompts import encode_turns
from selfspec.data.task import Example
from selfspec.errors import InputError
from selfspec.records import run_files
from tests import toys
from tests.commands import command

PROMPTS = ["a", "def g(y):\n    if y:", "the sum", "x =", "naïve", "tab\t"]
ANSWERS = [" b", "    return 2", "  ", "\n  - one", ".", "é", " été", "then  two"]


def sentencepiece_like() -> Any:
    """Of characters, as transformers builds Llama's and Mistral's: one leading space is the tokenizer's own."""
    letters = sorted(set("".join(PROMPTS + ANSWERS)) - {" ", "é"})
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    vocab = {token: i for i, token in enumerate(["<unk>", "<s>", "▁", *letters, *bytes_])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return sentencepiece_like()


def ids_of(tokenizer: Any, prompt: str, answer: str) -> tuple[list[int], list[int]]:
    before, whole = tokenizer(prompt).input_ids, tokenizer(prompt + answer).input_ids
    assert whole[: len(before)] == before
    return before, whole[len(before) :]


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("answer", ANSWERS)
def test_answer_keeps_its_spaces(tokenizer: Any, prompt: str, answer: str) -> None:
    before, ids = ids_of(tokenizer, prompt, answer)
    assert text_after(tokenizer, before, ids) == answer
    assert text_after(tokenizer, context(tokenizer, before), ids) == answer
    assert text_after(tokenizer, context(tokenizer, [1] * 40 + before + [1] * 20), ids) == answer


def test_answer_may_complete_the_last_character_of_its_prompt(tokenizer: Any) -> None:
    ids = tokenizer("xé").input_ids
    assert text_after(tokenizer, ids[:-1], ids[-1:]) == "é"


@pytest.mark.parametrize("answer", ANSWERS)
def test_pieces_of_a_row_are_its_text(tokenizer: Any, answer: str) -> None:
    _, ids = ids_of(tokenizer, "go", answer)
    found = pieces({"tokens": ids}, tokenizer)
    assert "".join(found) == answer


class Console:
    def __init__(self) -> None:
        self.text = ""

    def print(self, what: Any, end: str = "\n") -> None:
        self.text += str(what) + end


def test_streamed_answer_keeps_its_spaces(tokenizer: Any) -> None:
    before, ids = ids_of(tokenizer, "x =", "  été  one")
    console = Console()
    stream = _Stream(tokenizer, console, before)  # type: ignore[arg-type]
    for token in ids:
        stream.put(0, [token], ["accepted"])
    stream.end()
    assert console.text == "  été  one\n"


def test_text_that_the_door_returns_follows_its_prompt(tokenizer: Any) -> None:
    model = toys.build("llama", vocab_size=len(tokenizer), num_hidden_layers=2)
    for prompt in ("one", "x =", "the"):
        text = hf.generate(model, prompt, draft="a1", tokenizer=tokenizer, max_new_tokens=12, do_sample=False)
        ids = hf.generate(model, tokenizer(prompt).input_ids, draft="a1", max_new_tokens=12, do_sample=False)
        whole = tokenizer.decode(ids[0], skip_special_tokens=True)
        assert whole == tokenizer.decode(tokenizer(prompt).input_ids, skip_special_tokens=True) + text


@pytest.mark.parametrize(
    ("text", "begins", "answer"),
    [
        ("plain", False, "plain"),
        ("<think>7 or 8?</think>\n\n8", False, "\n\n8"),
        ("7 or 8?</think> 8", False, " 8"),
        ("so 7 then 8", True, ""),
        ("<thinking>\nQuestion: 9", False, ""),
        ("[THINK]1[/THINK]2[THINK]3[/THINK]4", False, "24"),
        ("It is 5. <think>or 6", False, "It is 5. "),
        ("I said</think>5", True, "5"),
    ],
)
def test_thoughts_are_no_answer(text: str, begins: bool, answer: str) -> None:
    assert without_thoughts(text, begins_in_thought=begins) == answer


@pytest.mark.parametrize(
    ("prompt", "opens"),
    [
        ("<user>3+4?<assistant><think>\n", True),
        ("<think>\n\n</think>\n\n", False),
        ("<think> is a tag", False),
        ("", 0),
    ],
)
def test_prompt_that_opens_a_thought_is_told(prompt: str, opens: bool) -> None:
    assert opens_thought(prompt) == opens


@pytest.mark.parametrize(
    ("row", "value"),
    [
        ({"text": "<think>#### 12\nno, more</think>It is #### 15"}, 1.0),
        ({"text": "<think>#### 15 it is"}, 0.0),
        ({"text": "a\nQuestion: b</think>#### 15"}, 1.0),
        ({"text": "5 and 10 are 15", "begins_in_thought": True}, 0.0),
        ({"text": "5 and 10 are 15"}, 1.0),
    ],
)
def test_metrics_see_the_answer_alone(row: dict[str, Any], value: float) -> None:
    example = Example("p", "5 + 10?", reference="#### 15")
    (found,) = assess(MEASURES["gsm8k"], [example], [{"prompt_id": "p", "arm": "plain", **row}])
    assert found["value"] == value


THINKING = (
    "{% for m in messages %}{{ m['content'] }}{% endfor %} A:"
    "{% if mood is defined %}{{ mood }}{% endif %}"
    "{% if not enable_thinking | default(true) %}<think></think>{% endif %}"
)


def test_template_arguments_reach_the_template_or_are_refused(tokenizer: Any) -> None:
    tokenizer.chat_template = THINKING
    plain = encode_turns(tokenizer, ["x"], chat=True)
    assert encode_turns(tokenizer, ["x"], chat=True, template={"enable_thinking": True}) == plain
    longer = encode_turns(tokenizer, ["x"], chat=True, template={"enable_thinking": False, "mood": "one"})
    assert len(longer) > len(plain)
    with pytest.raises(InputError, match="sets enable_thinkin, but this model's chat template takes no such"):
        encode_turns(tokenizer, ["x"], chat=True, template={"enable_thinkin": False})
    with pytest.raises(InputError, match=r"data\.chat=false asks without the chat template"):
        encode_turns(tokenizer, ["x"], chat=False, template={"mood": "one"})


def test_template_arguments_are_settings_and_stand_in_provenance(
    model_folder: Path, prompts_file: Path, empty_folder: Path
) -> None:
    import shutil

    shutil.copytree(model_folder, "m")
    (Path("m") / "chat_template.jinja").write_text(THINKING)
    words = ["model=local", "model.path=m", "model.dtype=float64", "data=jsonl", f"data.path={prompts_file}"]
    more = ["threads=1", "n=1", "max_new_tokens=4", "generate=false"]
    counts = []
    for template in ("null", "{mood: solemn}"):
        ran = command("evaluate", *words, *more, f"data.template={template}")
        assert ran.status == 0, ran.err
        counts.append(run_files.read_rows(ran.run / run_files.RECORDS)[0]["n_prompt_tokens"])
    assert counts[1] == counts[0] + len("solemn")
    assert json.loads((ran.run / run_files.PROVENANCE).read_text())["run"]["template"] == {"mood": "solemn"}
    assert command("evaluate", *words, *more, "data.template={mod: x}").status == 2
