"""Quality: measures that can be checked by hand, and numbers of a run that follow from its rows."""

from __future__ import annotations

import itertools
import json
import math
import os
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from experiments.quality import last_number
from experiments.quality.code import Problem, pass_at_k
from experiments.quality.cut import cut
from experiments.quality.judge import assess, measure, quality_rows, quality_table, summary, write_quality
from experiments.quality.rouge import rouge
from selfspec.data import Example
from selfspec.errors import InputError

DATA = Path(os.environ.get("SELFSPEC_DATA", Path(__file__).parents[2] / "shared" / "data"))
HUMANEVAL = {"prompt": 'def f():\n    """One."""\n', "test": "def check(f):\n    assert f() == 1", "entry_point": "f"}


def block(*lines: str, fence: str = "```", indent: str = "", language: str = "python") -> str:
    return "\n".join(f"{indent}{line}" for line in (f"{fence}{language}", *lines, fence)) + "\n"


RIGHT = ("def f():", "    return 1")
# chat answers that solve HUMANEVAL
FOUND = {
    "shell first": block("pip install numpy", language="bash") + block(*RIGHT),
    "signature first": block("def f():", '    """One."""') + block(*RIGHT),
    "signature behind": block(*RIGHT) + block("def f():", '    """One."""'),
    "example first": block("n = f()", "print(n)") + block("1", language="") + block(*RIGHT),
    "example behind": block(*RIGHT) + block("assert f() == 1"),
    "draft first": block("def f():", "    return 0") + "Better:\n" + block(*RIGHT),
    "in a list": "1. So:\n\n" + block(*RIGHT, indent="   "),
    "behind a bullet": "- ```python\n  def f():\n      return 1\n  ```\nDone.",
    "indented by four": block(*RIGHT, indent="    "),
    "tildes": block(*RIGHT, fence="~~~"),
    "carriage returns": block(*RIGHT).replace("\n", "\r\n"),
    "backticks in a line": "Use ``` here, as ```x```.\n" + block(*RIGHT),
    "fence in a docstring": block(
        "def f():", '    """One.', "    ```", "    f()", "    ```", '    """', "    return 1"
    ),
    "only a fence in a docstring": 'def f():\n    """One.\n\n    ```\n    f()\n    ```\n    """\n    return 1',
    "a block that uses others": block("import math")
    + block("def h():", "    return math.floor(1.5)")
    + block("def g():", "    return h()")
    + block("def f():", "    return g()"),
    "a block that imports another": block("def g():", "    return 1")
    + block("from helper import g", "def f():", "    return g()"),
    "prose": "Sure\n\nIt's easy:\n\ndef f():\n    return 1\n\nThat's it.",
    "a block without a fence": "So:\n\n    def f():\n        return 1\n\nDone.",
    "the body alone": "The body:\n\n    return 1\n\nDone.",
    "the body, dedented": "x = 1\nreturn x",
    "the body in a block": block("x = 1", "return x"),
    "the body, its first line dedented": "x = 1\n    return x",
    "cut off in an example": "```python\ndef f():\n    return 1\n\nprint(f(",
    "a value": block("f = lambda: 1"),
    "tabs": block("def f():", "\treturn 1"),
}


def answer(prompt: str, arm: str, text: str, **more: Any) -> dict[str, Any]:
    return {"prompt_id": prompt, "arm": arm, "text": text, "error": None, **more}


class TestRouge:
    def test_counts_shared_words_pairs_and_the_longest_common_sequence(self) -> None:
        scores = rouge("the cat sat", ["the cat slept here"])
        # 2 of 3 and 2 of 4 words; 1 of 2 and 1 of 3 pairs; the sequence `the cat`
        assert scores == pytest.approx({"rouge1": 4 / 7, "rouge2": 2 / 5, "rougeL": 4 / 7})

    def test_words_are_stemmed(self) -> None:
        assert rouge("a dog running", ["a dog runs"])["rouge2"] == 1

    def test_the_best_reference_counts(self) -> None:
        assert rouge("one two", ["three four", "one two"])["rouge2"] == 1

    def test_the_next_article_that_a_model_makes_up_does_not_count(self) -> None:
        assert rouge("one two\nArticle: three four five", ["one two"])["rouge1"] == 1

    def test_an_empty_answer_is_worth_nothing(self) -> None:
        assert set(rouge("", ["one two"]).values()) == {0}


class TestGsm8k:
    @pytest.mark.parametrize(
        ("text", "number"),
        [
            ("6 - 2 = 4, so the answer is 1,234.", "1234"),
            ("It costs $18.00", "18"),
            ("so -3", "-3"),
            ("#### 7\nThis took 2 steps.", "7"),
            ("She has 5.\n\nQuestion: what of 9?", "5"),
            ("no number", None),
            ("#### none, of 3", "3"),
            ("#### Step 1: add\n3 + 4 = 7\n#### Answer\n#### 7", "7"),
            ("#### Step 1\n5\n#### Answer: 7", "7"),
            ("####\n7\nThis took 2 steps.", "7"),
            ("#### \u22123", "-3"),  # a minus
            ("so it is \u20133.", "-3"),  # a dash
            ("#### - $3", "-3"),
            ("pages 2\u20133, or 5-3", "3"),
            ("#### 3 + 4 = 7", "7"),
            ("#### 7 (since x = 3)", "7"),
            ("#### **x = 7**", "7"),
            ("#### 1/2", "0.5"),
            ("#### 12 345 apples", "12345"),
            ("#### 1\u00a0000", "1000"),
            (r"The answer is \boxed{\$1{,}800}. It took 3 steps.", "1800"),
            (r"\boxed{x = \frac{1}{4}}, in 3 steps", "0.25"),
            ("", None),
        ],
    )
    def test_the_final_number_is_found(self, text: str, number: str | None) -> None:
        assert last_number.final_number(text) == (None if number is None else Decimal(number))

    def test_numbers_are_compared_by_value(self) -> None:
        assert last_number.is_right("... = 2,125.0", "2000 + 125 = <<2000+125=2125>>2125\n#### 2,125")
        assert not last_number.is_right("... = 2126", "#### 2,125")
        assert not last_number.is_right("", "#### 0")

    def test_a_reference_without_its_number_is_told(self) -> None:
        with pytest.raises(InputError, match="no number after ####"):
            last_number.is_right("4", "the answer is 4")

    @pytest.mark.skipif(not (DATA / "gsm8k_test.jsonl").is_file(), reason="no local GSM8K")
    def test_every_published_solution_answers_its_own_question(self) -> None:
        lines = (DATA / "gsm8k_test.jsonl").read_text(encoding="utf-8").splitlines()
        solutions = [json.loads(line)["answer"] for line in lines]
        assert len(solutions) == 1319
        assert [s for s in solutions if not last_number.is_right(s, s)] == []
        assert [s for s in solutions if last_number.is_right(f"{last_number.wanted(s) + 1}", s)] == []


class TestPassAtK:
    @pytest.mark.parametrize(("n", "n_passed", "k"), [(5, 2, 1), (5, 2, 3), (5, 0, 2), (5, 5, 5), (6, 4, 3)])
    def test_is_the_fraction_of_choices_of_k_tries_that_hold_a_pass(self, n: int, n_passed: int, k: int) -> None:
        choices = list(itertools.combinations([i < n_passed for i in range(n)], k))
        assert pass_at_k(n, n_passed, k) == pytest.approx(sum(map(any, choices)) / len(choices))

    def test_more_tries_than_there_are_cannot_be_estimated(self) -> None:
        for n, n_passed, k in ((3, 1, 4), (3, 4, 1), (3, 1, 0)):
            with pytest.raises(ValueError, match="pass@"):
                pass_at_k(n, n_passed, k)


class TestPrograms:
    """Run here, since they are written here."""

    @pytest.mark.parametrize(
        ("text", "chat", "is_right"),
        [
            ("    return 1\n\ndef g():\n    return", False, True),  # a second function that was not finished
            ("    return 1\nprint(f() / 0)", False, True),
            ("\treturn 1", False, True),
            ("    return 1\n```\nThat is it.", False, True),
            ("    return 2", False, False),
            ("Sure!\n```python\ndef f():\n    return 1\n```\nIt returns 1.", True, True),
            ("```\n    return 1\n```", True, True),
            ("```python\ndef f():\n    return 1", True, True),
            ("def f():\n    return 1", True, True),
            ("I cannot.", True, False),
        ],
    )
    def test_an_answer_passes_as_far_as_it_belongs_to_the_function(self, text: str, chat: bool, is_right: bool) -> None:
        problem = Problem.of(HUMANEVAL)
        assert problem is not None
        assert runs(problem.program(text, chat=chat)) is is_right

    @pytest.mark.parametrize("text", FOUND.values(), ids=FOUND)
    def test_the_function_is_found_among_other_blocks(self, text: str) -> None:
        problem = Problem.of(HUMANEVAL)
        assert problem is not None
        assert runs(problem.program(text, chat=True)), problem.program(text, chat=True)

    @pytest.mark.parametrize(
        "text", ["", "```", "(\n" * 100, "-" * 100_000 + "1", "return x\n" * 500, "\0", "def f(\n" * 300]
    )
    def test_what_is_no_code_fails_at_once(self, text: str) -> None:
        problem = Problem.of(HUMANEVAL)
        assert problem is not None
        assert not runs(problem.program(text, chat=True))

    def test_each_function_that_a_test_of_mbpp_calls_is_found(self) -> None:
        problem = Problem.of({"test_list": ["assert len(f()) == g()"]})
        assert problem is not None and problem.names == {"f", "g"}
        assert runs(
            problem.program(f"{block('def g():', '    return 0')}\n{block('def f():', '    return []')}", chat=True)
        )

    def test_a_function_of_mbpp_is_tested_by_its_asserts_and_keeps_its_helpers(self) -> None:
        problem = Problem.of({"test_list": ["assert f() == 1", "assert f() < 2"], "test_setup_code": "import math"})
        assert problem is not None
        assert runs(problem.program("def g():\n    return 1\ndef f():\n    return g()\n[DONE]\n\nYou are", chat=False))
        assert not runs(problem.program("def f():\n    return 2\n[DONE]", chat=False))

    def test_a_row_without_tests_is_no_problem(self) -> None:
        assert Problem.of({"prompt": "def f():\n"}) is None


def runs(source: str) -> bool:
    try:
        exec(source, {})
    except (Exception, MemoryError):
        return False
    return True


def test_a_text_is_cut_at_the_first_stop_wherever_it_stands_in_the_list() -> None:
    assert cut("one two three", ["three", "two"]) == "one "
    assert cut("one", ["two"]) == "one" and cut("one", []) == "one"


class TestOfARun:
    EXAMPLES = (Example("p1", "?", "a b c"), Example("p2", "?", "d e f"))

    def rows(self) -> list[dict[str, Any]]:
        return [
            answer("p1", "plain", "a b c"),
            answer("p2", "plain", "nothing of it"),
            answer("p1", "odd", "a b c"),
            {"prompt_id": "p2", "arm": "odd", "error": "out of memory"},
        ]

    def test_each_answer_has_a_row_per_number_and_a_failed_prompt_none(self, tmp_path: Path) -> None:
        write_quality(tmp_path, measure("rouge", self.EXAMPLES), self.EXAMPLES, self.rows())
        rows = quality_rows(tmp_path)
        keys = sorted((r["prompt_id"], r["arm"]) for r in rows if r["metric"] == "rouge2")
        assert keys == [("p1", "odd"), ("p1", "plain"), ("p2", "plain")]
        found = {q.arm: q for q in summary(rows) if q.metric == "rouge2"}
        assert (found["plain"].value, found["plain"].n_prompts) == (0.5, 2)
        assert 0 <= found["plain"].low <= 0.5 <= found["plain"].high <= 1
        assert found["odd"].value == 1
        assert math.isnan(found["odd"].low)  # one prompt says nothing of the others
        assert "| plain | rouge2 | 0.500 [" in quality_table(summary(rows))

    def test_a_run_that_was_not_judged_has_no_quality(self, tmp_path: Path) -> None:
        write_quality(tmp_path, measure(None, self.EXAMPLES), self.EXAMPLES, self.rows())
        assert quality_rows(tmp_path) == []
        assert list(tmp_path.iterdir()) == []

    def test_what_two_arms_both_say_is_judged_once(self) -> None:
        asked: list[str] = []

        def judge(answers: Any) -> list[dict[str, Any]]:
            asked.extend(text for _, text in answers)
            return [{"length": float(len(text)), "reason": "so it is"} for _, text in answers]

        rows = assess(judge, self.EXAMPLES, self.rows())
        assert sorted(asked) == ["a b c", "nothing of it"]
        assert [(r["arm"], r["value"], r["reason"]) for r in rows if r["prompt_id"] == "p1"] == [
            ("plain", 5.0, "so it is"),
            ("odd", 5.0, "so it is"),
        ]

    def test_a_row_written_twice_counts_once_and_a_later_turn_not_at_all(self) -> None:
        rows = [answer("p1", "plain", "x"), answer("p1", "plain", "a b c"), answer("p1", "plain", "y", turn=1)]
        judge = measure("rouge", self.EXAMPLES)
        assert judge is not None
        assert [r["value"] for r in assess(judge, self.EXAMPLES, rows)] == [1.0] * 3

    def test_samples_of_one_prompt_are_averaged_before_prompts_are(self) -> None:
        rows = [
            {"prompt_id": "p1", "arm": "a", "sample": 0, "metric": "exact_match", "value": 1.0},
            {"prompt_id": "p1", "arm": "a", "sample": 1, "metric": "exact_match", "value": 0.0},
            {"prompt_id": "p2", "arm": "a", "sample": 0, "metric": "exact_match", "value": 1.0},
        ]
        (found,) = summary(rows)
        assert (found.value, found.n_prompts, found.n_samples) == (0.75, 2, 3)

    def test_pass_at_k_needs_k_samples_of_every_prompt(self) -> None:
        rows = [
            {"prompt_id": p, "arm": "a", "sample": i, "metric": "passed", "value": float(i < n_passed)}
            for p, n_passed in (("p1", 1), ("p2", 5))
            for i in range(10)
        ]
        assert {q.metric: q.value for q in summary(rows)} == {"pass@1": pytest.approx(0.3), "pass@10": 1.0}
        assert [q.metric for q in summary(rows[:-1])] == ["pass@1"]


class TestMistakes:
    def told(self, metric: str, example: Example, *pieces: str, **more: Any) -> None:
        with pytest.raises(InputError) as error:
            measure(metric, [example], **more)
        assert "\n" not in str(error.value)
        assert [piece for piece in pieces if piece not in str(error.value)] == [], error.value

    def test_an_unknown_metric_is_told(self) -> None:
        self.told("rogue", Example("p", "?", "a"), "unknown data.metric 'rogue'", "did you mean 'rouge'")

    def test_a_missing_reference_is_told_before_the_run(self) -> None:
        self.told("rouge", Example("p", "?"), "prompt 'p' has no reference", "data.metric=null")
        self.told("gsm8k", Example("p", "?", "four"), "no number after ####")

    def test_code_without_tests_is_told_before_the_run(self) -> None:
        self.told("pass", Example("p", "?", "a"), "prompt 'p' has no tests", may_run_code=True)

    def test_code_is_not_run_unless_it_was_allowed(self, caplog: pytest.LogCaptureFixture) -> None:
        assert measure("pass", [Example("p", "?", extra=HUMANEVAL)]) is None
        assert "allow_code_execution=true" in caplog.text

    def test_quality_can_be_left_out(self) -> None:
        assert measure(None, [Example("p", "?")]) is None
