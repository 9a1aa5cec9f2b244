"""Prompts as models see them: the published forms to the letter, and a clip that never touches the instruction."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from selfspec.data import Example, Source, Split
from selfspec.data.cnndm import cnndm
from selfspec.data.gsm8k import gsm8k
from selfspec.data.mbpp import mbpp
from selfspec.data.prompts import encode, encode_turns, fit
from selfspec.data.xsum import xsum
from selfspec.errors import InputError

ROWS: dict[str, list[dict[str, Any]]] = {
    "cnndm": [{"article": f"Text {k}.", "highlights": f"One {k} .\nTwo {k} ."} for k in range(2)],
    "xsum": [{"document": f"Text {k}.", "summary": f"Sum {k}."} for k in range(2)],
    "gsm8k": [{"question": f"What is {k}?", "answer": f"It is {k}.\n#### {k}"} for k in range(2)],
    "mbpp": [
        {"text": f"Return {k}.", "code": f"def f():\n    return {k}", "test_list": [f"assert f() == {k}", "assert f"]}
        for k in range(2)
    ],
}
MBPP = "You are an expert Python programmer, and here is your task: "
TESTS = "Your code should pass these tests:"
FORMS: dict[tuple[str, bool], tuple[str, str]] = {  # the shot, and the question
    ("cnndm", False): ("Article: Text 0.\nSummary: One 0 .Two 0 .\n", "Article: Text 1.\nSummary:"),
    ("xsum", False): ("Article: Text 0.\nSummary: Sum 0.\n", "Article: Text 1.\nSummary:"),
    ("cnndm", True): (
        "Summarise this article in a few sentences.\n\nArticle: Text 0.\n\nSummary: One 0 .Two 0 .\n\n",
        "Summarise this article in a few sentences.\n\nArticle: Text 1.\n\nSummary:",
    ),
    ("xsum", True): (
        "Summarise this article in one sentence.\n\nArticle: Text 0.\n\nSummary: Sum 0.\n\n",
        "Summarise this article in one sentence.\n\nArticle: Text 1.\n\nSummary:",
    ),
    ("gsm8k", False): ("Question: What is 0?\nAnswer: It is 0.\n#### 0\n\n", "Question: What is 1?\nAnswer:"),
    ("gsm8k", True): (
        "What is 0?\nReason step by step. End with #### and the answer.\nIt is 0.\n#### 0\n\n",
        "What is 1?\nReason step by step. End with #### and the answer.",
    ),
    ("mbpp", False): (
        f"{MBPP}Return 0. {TESTS}\n\nassert f() == 0\nassert f\n[BEGIN]\ndef f():\n    return 0\n[DONE]\n\n",
        f"{MBPP}Return 1. {TESTS}\n\nassert f() == 1\nassert f\n[BEGIN]\n",
    ),
    ("mbpp", True): (
        f"{MBPP}Return 0. {TESTS}\n\nassert f() == 0\nassert f\nAnswer with the code alone.\n"
        "def f():\n    return 0\n\n",
        f"{MBPP}Return 1. {TESTS}\n\nassert f() == 1\nassert f\nAnswer with the code alone.",
    ),
}
MAKES: dict[str, Callable[..., Split]] = {"cnndm": cnndm, "xsum": xsum, "gsm8k": gsm8k, "mbpp": mbpp}
ARTICLE = "word " * 20


@pytest.fixture(scope="module")
def tokenizer(model_folder: Path) -> Any:
    """One token for each byte, and a chat template that ends in " A:"."""
    return AutoTokenizer.from_pretrained(model_folder)


def source(tmp_path: Path, name: str) -> Source:
    files = []
    for k in range(2):
        files.append(tmp_path / f"{k}.jsonl")
        files[k].write_text(json.dumps(ROWS[name][k]) + "\n", encoding="utf-8")
    return Source(str(files[1]), str(files[0]), calibration_n=1)


def articles(n: int = 1, *, shots: str = "", article: str = ARTICLE) -> list[Example]:
    before, after = f"{shots}Article: ", "\nSummary:"
    clip = len(before), len(before) + len(article)
    return [Example(f"a{k}", f"{before}{article}{after}", clip=clip) for k in range(n)]


@pytest.mark.parametrize(("name", "chat"), FORMS)
class TestForm:
    def test_question_without_a_shot(self, tmp_path: Path, name: str, chat: bool) -> None:
        (example,) = MAKES[name](source(tmp_path, name), shots=0, chat=chat).examples("evaluation")
        assert example.prompt == FORMS[name, chat][1]

    def test_question_after_a_shot(self, tmp_path: Path, name: str, chat: bool) -> None:
        (example,) = MAKES[name](source(tmp_path, name), shots=1, chat=chat).examples("evaluation")
        assert example.prompt == "".join(FORMS[name, chat])

    def test_only_the_article_of_the_question_may_be_cut(self, tmp_path: Path, name: str, chat: bool) -> None:
        (example,) = MAKES[name](source(tmp_path, name), shots=1, chat=chat).examples("evaluation")
        if name in ("cnndm", "xsum"):
            assert example.clip is not None
            assert example.prompt[slice(*example.clip)] == "Text 1."
        else:
            assert example.clip is None


@pytest.mark.parametrize("chat", [False, True])
class TestClip:
    def test_instruction_shots_and_beginning_stay_and_the_room_is_used(self, tokenizer: Any, chat: bool) -> None:
        (example,) = articles(shots="Article: s\nSummary: t\n")
        room = len(encode_turns(tokenizer, [example.prompt], chat=chat)) - 12
        (cut,) = fit(tokenizer, [example], chat=chat, context_length=room + 7, max_new_tokens=7)
        n_words = cut.prompt.count("word")
        assert cut.prompt == f"Article: s\nSummary: t\nArticle: {('word ' * n_words).rstrip()}\nSummary:"
        assert room - len("word ") < len(encode_turns(tokenizer, [cut.prompt], chat=chat)) <= room

    def test_clip_of_the_cut_example_is_what_is_left_of_the_article(self, tokenizer: Any, chat: bool) -> None:
        (cut,) = fit(tokenizer, articles(), chat=chat, context_length=80, max_new_tokens=10)
        assert cut.clip is not None
        assert set(cut.prompt[slice(*cut.clip)].split()) == {"word"}
        assert fit(tokenizer, [cut], chat=chat, context_length=80, max_new_tokens=10) == [cut]

    def test_what_fits_is_left_alone(self, tokenizer: Any, chat: bool) -> None:
        examples = articles(2)
        assert fit(tokenizer, examples, chat=chat, context_length=500, max_new_tokens=7) == examples

    def test_ids_are_those_of_the_cut_text(self, tokenizer: Any, chat: bool) -> None:
        settings: dict[str, Any] = {"chat": chat, "context_length": 80, "max_new_tokens": 10}
        (prompt,) = encode(tokenizer, articles(), **settings)
        assert prompt.ids == encode_turns(tokenizer, [fit(tokenizer, articles(), **settings)[0].prompt], chat=chat)
        assert len(prompt.ids) <= 70

    def test_how_many_were_cut_is_told(self, tokenizer: Any, chat: bool, caplog: pytest.LogCaptureFixture) -> None:
        examples = [*articles(2), Example("short", "short")]
        fit(tokenizer, examples, chat=chat, context_length=80, max_new_tokens=10)
        assert "2 of 3 prompts: text cut at its end, for a prompt of at most 70 tokens" in caplog.text

    def test_prompt_that_may_not_be_cut_is_refused(self, tokenizer: Any, chat: bool) -> None:
        (example,) = articles()
        with pytest.raises(InputError, match="no room"):
            encode(tokenizer, [replace(example, clip=None)], chat=chat, context_length=80, max_new_tokens=10)

    def test_article_of_which_not_one_word_fits_is_refused(self, tokenizer: Any, chat: bool) -> None:
        with pytest.raises(InputError, match="no room"):
            encode(tokenizer, articles(), chat=chat, context_length=25, max_new_tokens=10)


class TestConversation:
    def test_a_later_turn_follows_the_answer_in_the_chat_template(self, tokenizer: Any) -> None:
        ids = encode_turns(tokenizer, ["one", "answer", "two"], chat=True)
        assert tokenizer.decode(ids) == "oneanswertwo A:"

    def test_a_later_turn_follows_an_empty_line_in_raw_text(self, tokenizer: Any) -> None:
        assert tokenizer.decode(encode_turns(tokenizer, ["one", "answer", "two"], chat=False)) == "one\n\nanswer\n\ntwo"
