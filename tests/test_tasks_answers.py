"""Spec-Bench's answer format: every number of it is one of the run's rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from experiments.evaluation.specbench_export import answers
from selfspec.errors import InputError
from selfspec.records import run_files
from tests.commands import command

STARTED = "2026-01-02T03:04:05Z"


def row(question: int, arm: str = "skip 3", **more: Any) -> dict[str, Any]:
    """A row of an evaluation: six tokens in two rounds after that of the prompt."""
    counts = {"n_tokens": 6, "total_s": 0.5, "round_accepted": [2, 1], "text": f" answer {question} "}
    return {"prompt_id": str(question), "category": "qa", "arm": arm, **counts, **more}


def of(rows: list[dict[str, Any]], arm: str = "skip 3") -> list[dict[str, Any]]:
    return answers(rows, arm=arm, model_id="m", started=STARTED)


class TestAnswers:
    def test_fields_are_those_of_spec_bench(self) -> None:
        (answer,) = of([row(321)])
        assert answer == {
            "question_id": 321,
            "category": "qa",
            "answer_id": answer["answer_id"],
            "model_id": "m",
            "choices": [
                {
                    "index": 0,
                    "turns": ["answer 321"],
                    "decoding_steps": [2],
                    "new_tokens": [6],
                    "wall_time": [0.5],
                    "accept_lengths": [3, 2],
                }
            ],
            "tstamp": 1767323045.0,
        }

    def test_questions_come_in_the_order_of_their_numbers(self) -> None:
        assert [a["question_id"] for a in of([row(401), row(81), row(321)])] == [81, 321, 401]

    def test_turns_are_places_in_lists_and_samples_are_choices(self) -> None:
        rows = [row(81, turn=t, sample=s, n_tokens=10 * s + t) for t in (1, 0) for s in (1, 0)]
        (answer,) = of(rows)
        assert [c["index"] for c in answer["choices"]] == [0, 1]
        assert [c["new_tokens"] for c in answer["choices"]] == [[0, 1], [10, 11]]
        assert [c["accept_lengths"] for c in answer["choices"]] == [[3, 2, 3, 2]] * 2

    def test_plain_decoding_gives_one_token_in_each_step(self) -> None:
        (answer,) = of([row(321, "plain", round_accepted=[])], "plain")
        assert answer["choices"][0]["accept_lengths"] == [1] * 6
        assert answer["choices"][0]["decoding_steps"] == [6]

    @pytest.mark.parametrize(("question", "kind"), [(81, "writing"), (111, "math"), (160, "humanities")])
    def test_kinds_of_mt_bench_get_their_own_names_back(self, question: int, kind: str) -> None:
        assert of([row(question, category="mt_bench")])[0]["category"] == kind

    def test_a_question_that_failed_is_left_out_and_told(self, caplog: pytest.LogCaptureFixture) -> None:
        failed = {"prompt_id": "81", "category": "qa", "arm": "skip 3", "turn": 1, "error": "out of memory"}
        assert [a["question_id"] for a in of([row(81), failed, row(321)])] == [321]
        assert "left out 1 question(s) that failed: [81]" in caplog.text

    def test_of_one_row_written_twice_the_later_counts(self) -> None:
        (answer,) = of([row(321, n_tokens=1), row(321, n_tokens=2)])
        assert answer["choices"][0]["new_tokens"] == [2]

    def test_an_arm_that_is_not_there_is_told(self) -> None:
        with pytest.raises(InputError, match="unknown arm 'other'; available: skip 3"):
            of([row(321)], "other")

    def test_a_run_of_other_prompts_is_told(self) -> None:
        with pytest.raises(InputError, match="'HumanEval/0' is no question of Spec-Bench"):
            of([row(321) | {"prompt_id": "HumanEval/0"}])


def test_answers_of_a_run_are_its_rows(toy: list[str], empty_folder: Path) -> None:
    questions = [
        {"question_id": k, "category": "writing" if k < 85 else "qa", "turns": [f"q {k}", "more"][: 1 + (k < 85)]}
        for k in range(81, 89)
    ]
    (empty_folder / "question.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions), encoding="utf-8")
    data = (
        "data=specbench",
        "data.name=another",
        "data.path=question.jsonl",
        "data.calibration_n=2",
        "max_new_tokens=8",
    )
    words = [word for word in toy if not word.startswith("data")]
    ran = command("evaluate", *words, *data, "skip=a1 m2", "arm=mine", "generate=false", "controls=false")
    assert ran.status == 0, ran.err
    assert sorted(path.name for path in (ran.run / "answers").iterdir()) == ["mine.jsonl", "plain.jsonl"]
    found = [json.loads(line) for line in (ran.run / "answers" / "mine.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = [r for r in run_files.read_rows(ran.run / run_files.RECORDS) if r["arm"] == "mine"]
    assert len(found) == 6 and {a["model_id"] for a in found} == {"local mine"}
    assert all(len(a["choices"][0]["turns"]) == 1 + (a["category"] == "writing") for a in found)
    assert sum(sum(a["choices"][0]["new_tokens"]) for a in found) == sum(r["n_tokens"] for r in rows)
    assert sum(sum(a["choices"][0]["wall_time"]) for a in found) == pytest.approx(sum(r["total_s"] for r in rows))
