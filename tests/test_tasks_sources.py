"""Data sets of the hub and of files: the parts never share a prompt, shots are never decoded, damage is told."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from selfspec.data import HumanEval, Jsonl, Source, Split, Task
from selfspec.data.cnndm import cnndm
from selfspec.data.gsm8k import gsm8k
from selfspec.data.mbpp import mbpp
from selfspec.data.mtbench import KINDS, mtbench
from selfspec.data.specbench import specbench
from selfspec.data.xsum import xsum
from selfspec.errors import InputError
from tests.commands import command
from tests.contracts.task import PARTS, TaskContract

CONF = Path(__file__).parents[1] / "conf" / "data"
DATA = Path(os.environ.get("SELFSPEC_DATA", Path(__file__).parents[2] / "shared" / "data"))
N = 12

Make = Callable[..., Split]


def row_of(name: str, k: int) -> dict[str, Any]:
    """The k-th row of an invented data set, with the fields that the real one has."""
    match name:
        case "cnndm":
            return {"article": f"article {k}", "highlights": f"first {k}\nsecond {k}", "id": f"{k}"}
        case "xsum":
            return {"document": f"article {k}", "summary": f"summary {k}", "id": f"{k}"}
        case "gsm8k":
            return {"question": f"question {k}?", "answer": f"It is {k}.\n#### {k}"}
        case "mbpp":
            code = f"def f{k}():\n    return {k}"
            return {"task_id": k, "text": f"Return {k}.", "code": code, "test_list": [f"assert f{k}() == {k}"]}
        case _:
            kind = KINDS[k % len(KINDS)]
            return {
                "question_id": k,
                "category": kind,
                "turns": [f"question {k}", f"and {k}?"],
                "reference": ["a", "b"],
            }


MAKES: dict[str, Make] = {
    "cnndm": cnndm,
    "xsum": xsum,
    "gsm8k": partial(gsm8k, shots=2),
    "mbpp": mbpp,
    "mtbench": mtbench,
    "specbench": specbench,
}
SHOWN = ("cnndm", "xsum", "gsm8k", "mbpp")
TEXT_FIELDS = {"cnndm": "highlights", "xsum": "document", "gsm8k": "answer", "mbpp": "code"}


def write(file: Path, rows: list[dict[str, Any]] | list[str]) -> str:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(file)


def numbered(name: str, start: int, n: int = N) -> list[dict[str, Any]]:
    return [row_of(name, k) for k in range(start, start + n)]


def real(name: str) -> str:
    if not (DATA / name).is_file():
        pytest.skip(f"no {name} in the data folder (set SELFSPEC_DATA to name one)")
    return str(DATA / name)


def told(call: Callable[[], Any]) -> str:
    """The one line that a mistake gets."""
    with pytest.raises(InputError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("name", MAKES)
class TestSingleFileContract(TaskContract):
    @pytest.fixture(autouse=True)
    def file(self, tmp_path: Path, name: str, chat: bool) -> None:
        options = {"chat": chat} if name in SHOWN else {}
        path = write(tmp_path / "rows.jsonl", numbered(name, 0))
        self.make = partial(MAKES[name], Source(path, calibration_n=5), **options)  # type: ignore[method-assign]


@pytest.mark.parametrize("name", SHOWN)
class TestTwoFilesContract(TaskContract):
    @pytest.fixture(autouse=True)
    def files(self, tmp_path: Path, name: str) -> None:
        train, test = write(tmp_path / "a.jsonl", numbered(name, 0)), write(tmp_path / "b.jsonl", numbered(name, 6))
        self.make = partial(MAKES[name], Source(test, train, calibration_n=5))  # type: ignore[method-assign]


class TestFolderContract(TaskContract):
    @pytest.fixture(autouse=True)
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
        write(tmp_path / "set" / "train.jsonl", numbered("cnndm", 0))
        write(tmp_path / "set" / "test.jsonl", numbered("cnndm", 100))
        self.make = partial(cnndm, Source(str(tmp_path / "set"), calibration_n=5))  # type: ignore[method-assign]


class TestParts:
    @pytest.mark.parametrize("seed", [0, 1, 42])
    @pytest.mark.parametrize("n_shots", [0, 1, 4])
    def test_the_part_of_a_prompt_depends_on_no_seed_order_or_shots(
        self, tmp_path: Path, seed: int, n_shots: int
    ) -> None:
        rows = numbered("xsum", 0)
        expected = xsum(Source(write(tmp_path / "a.jsonl", rows), calibration_n=5), shots=0)
        task = xsum(Source(write(tmp_path / "b.jsonl", rows[::-1]), calibration_n=5, seed=seed), shots=n_shots)
        assert {e.reference for e in task.examples("evaluation")} == {e.reference for e in expected.evaluation}

    def test_rows_that_repeat_a_text_never_straddle_the_parts(self, tmp_path: Path) -> None:
        rows = [row_of("xsum", k % 4) for k in range(20)]
        task = xsum(Source(write(tmp_path / "a.jsonl", rows), calibration_n=2))
        calibration, evaluation = ({e.prompt for e in task.examples(part)} for part in PARTS)
        assert len(calibration) == len(evaluation) == 2 and not calibration & evaluation

    def test_evaluated_text_is_neither_a_shot_nor_calibrated_on(self, tmp_path: Path) -> None:
        train = write(tmp_path / "train.jsonl", numbered("xsum", 0, 9))
        test = write(tmp_path / "test.jsonl", numbered("xsum", 0, 6))
        task = xsum(Source(test, train, calibration_n=9, evaluation_n=2), shots=1)
        assert task.facts()["shots"] and {int(s.split("-")[1]) for s in task.facts()["shots"]} <= {7, 8, 9}
        assert {e.reference for e in task.calibration} < {f"summary {k}" for k in (6, 7, 8)}

    def test_what_is_shown_is_asked_in_no_part(self, tmp_path: Path) -> None:
        task = cnndm(Source(write(tmp_path / "a.jsonl", numbered("cnndm", 0)), calibration_n=5), shots=2)
        shown = task.facts()["shots"]
        assert len(shown) == 2
        assert not set(shown) & {e.id for part in PARTS for e in task.examples(part)}
        assert [len(task.examples(part)) for part in PARTS] == [3, 7]

    def test_a_smaller_choice_begins_the_larger_one(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.jsonl", numbered("xsum", 0))
        few, all_ = (xsum(Source(path, calibration_n=5, evaluation_n=n)).evaluation for n in (3, None))
        assert few == all_[:3] and len(all_) == 7

    def test_version_names_the_prompts(self, tmp_path: Path) -> None:
        source = Source(write(tmp_path / "a.jsonl", numbered("xsum", 0)), calibration_n=5)
        assert xsum(source).version == xsum(source).version
        assert len({xsum(source).version, xsum(source, shots=1).version, xsum(source, chat=True).version}) == 3

    def test_the_category_is_kept_and_eight_kinds_weigh_as_one_task(self, tmp_path: Path) -> None:
        rows = [
            *numbered("specbench", 81),
            {"question_id": 481, "category": "rag", "turns": ["q"], "reference": [["x", "y"]]},
        ]
        task = specbench(Source(write(tmp_path / "a.jsonl", rows), calibration_n=0))
        found = {e.id: e for e in task.evaluation}
        assert {e.category for e in task.evaluation} == {"mt_bench", "rag"}
        assert found["81"].extra == {"category": KINDS[81 % 8]} and found["81"].turns == ("and 81?",)
        assert found["481"].references == ("x", "y") and found["481"].turns == ()

    def test_one_task_of_spec_bench_has_the_parts_of_all(self, tmp_path: Path) -> None:
        rows = [*numbered("specbench", 81)]
        rows += [
            {"question_id": 500 + i, "category": "rag", "turns": [f"q{i}"], "reference": [["x"]]} for i in range(9)
        ]
        source = Source(write(tmp_path / "a.jsonl", rows), calibration_n=8)
        every, one = specbench(source), specbench(source, only="rag")
        for part in ("calibration", "evaluation"):
            assert one.examples(part) == [e for e in every.examples(part) if e.category == "rag"]  # type: ignore[arg-type]
        assert one.facts()["only"] == "rag" and "only" not in every.facts()
        assert "unknown task of Spec-Bench 'rags'" in told(lambda: specbench(source, only="rags"))


class TestHub:
    @pytest.fixture(autouse=True)
    def hub_that_answers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("selfspec.hub.hub_answers", lambda: True)

    @pytest.fixture
    def asked(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
        """The hub, holding splits of forty rows; what was asked of it."""
        import datasets

        found: list[tuple[Any, ...]] = []

        def load(path: str, name: str | None = None, *, split: str) -> datasets.Dataset:
            found.append((path, name, split))
            names = {"cnn_dailymail": "cnndm", "mt_bench_prompts": "mtbench"}
            short = path.partition("/")[2]
            if split not in ("train", "test"):
                raise ValueError(f'Unknown split "{split}". Should be one of ["train", "test"].')
            return datasets.Dataset.from_list(numbered(names.get(short, short), 1000 * (split == "train"), 40))

        monkeypatch.setattr(datasets, "load_dataset", load)
        return found

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("cnndm", ("abisee/cnn_dailymail", "3.0.0")),
            ("xsum", ("EdinburghNLP/xsum", None)),
            ("gsm8k", ("openai/gsm8k", "main")),
            ("mbpp", ("google-research-datasets/mbpp", "full")),
        ],
    )
    def test_test_is_evaluated_and_train_calibrates(
        self, asked: list[tuple[Any, ...]], name: str, expected: tuple[Any, ...]
    ) -> None:
        task = MAKES[name](Source(calibration_n=6))
        assert asked == [(*expected, "test"), (*expected, "train")]
        assert len(task.examples("evaluation")) == 40
        assert len(task.examples("calibration")) == 6 - len(task.facts()["shots"])

    def test_rows_and_shots_are_those_of_the_published_shuffle(self, asked: list[tuple[Any, ...]]) -> None:
        import datasets

        rows = {s: datasets.load_dataset("x/cnndm", split=s).shuffle(seed=42) for s in ("train", "test")}
        task = cnndm(Source(evaluation_n=10))
        shot = rows["train"][0]
        shown = f"Article: {shot['article']}\nSummary: {shot['highlights'].replace(chr(10), '')}\n"
        expected = [f"{shown}Article: {rows['test'][k]['article']}\nSummary:" for k in range(10)]
        assert [e.prompt for e in task.examples("evaluation")] == expected

    def test_the_only_split_of_mt_bench_is_divided(self, asked: list[tuple[Any, ...]]) -> None:
        task = mtbench(Source(calibration_n=16))
        assert asked == [("HuggingFaceH4/mt_bench_prompts", None, "train")]
        assert [len(task.examples(part)) for part in PARTS] == [16, 24]

    def test_fields_as_the_hub_names_them_in_mt_bench(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import datasets

        row = {"prompt": ["one", "two"], "prompt_id": 5, "category": "math", "reference": []}
        monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_list([row]))
        (example,) = mtbench(Source(calibration_n=0)).examples("evaluation")
        assert (example.id, example.prompt, example.turns, example.reference) == ("5", "one", ("two",), None)

    def test_unknown_split_is_told(self, asked: list[tuple[Any, ...]]) -> None:
        message = told(lambda: xsum(Source(split="dev")))
        assert "dev" in message and "test" in message and "data.split=" in message

    def test_evaluating_on_the_split_that_calibrates_is_refused(self, asked: list[tuple[Any, ...]]) -> None:
        assert "data.split=train" in told(lambda: gsm8k(Source(split="train")))
        assert asked == []

    @pytest.mark.parametrize("error", ["ConnectionError", "DatasetNotFoundError", "OSError"])
    def test_hub_out_of_reach_is_told(self, monkeypatch: pytest.MonkeyPatch, error: str) -> None:
        import datasets

        kind = getattr(datasets.exceptions, error, None) or {"OSError": OSError}.get(error, ConnectionError)

        def load(*_: Any, **__: Any) -> None:
            raise kind("Couldn't reach it\non the Hub")

        monkeypatch.setattr(datasets, "load_dataset", load)
        message = told(lambda: cnndm(Source()))
        assert "abisee/cnn_dailymail" in message and "Couldn't reach it on the Hub" in message
        assert "data.path=FILE" in message

    def test_a_set_that_is_not_on_the_hub_asks_for_its_file(self) -> None:
        assert "data.path=FILE" in told(lambda: specbench(Source()))


# JSON of half a character, in each field that some data set reads
HALF = json.dumps(
    dict.fromkeys(("prompt", "question", "document", "task_id", "canonical_solution", "summary", "answer"), "\ud83d")
    | {"turns": ["\ud83d", "b"], "question_id": 1, "category": "writing"}
)


class TestDamage:
    @pytest.mark.parametrize("name", SHOWN)
    @pytest.mark.parametrize("damage", ["gone", "empty", "null", "number"])
    def test_row_without_its_text_is_told_by_line_and_field(self, tmp_path: Path, name: str, damage: str) -> None:
        rows, field = numbered(name, 0), TEXT_FIELDS[name]
        rows[3] |= {field: {"empty": " ", "null": None, "number": 3}.get(damage)}
        if damage == "gone":
            del rows[3][field]
        path = write(tmp_path / "a.jsonl", rows)
        message = told(lambda: MAKES[name](Source(path, calibration_n=5)))
        assert f"{path} line 4" in message and f"'{field}'" in message and "data.repair=true" in message

    @pytest.mark.parametrize("turns", [None, "text", [], ["a", 1], ["a", " "]])
    def test_question_without_turns_is_told(self, tmp_path: Path, turns: Any) -> None:
        path = write(tmp_path / "a.jsonl", [row_of("specbench", 1) | {"turns": turns}])
        assert "line 1 has no list of texts in its field 'turns'" in told(lambda: specbench(Source(path)))

    def test_mbpp_without_tests_is_told(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.jsonl", [row_of("mbpp", 1) | {"test_list": []}])
        assert "line 1 has no list of tests" in told(lambda: mbpp(Source(path)))

    def test_corrupted_line_is_told_by_its_number(self, tmp_path: Path) -> None:
        rows = [json.dumps(row) for row in numbered("xsum", 0)]
        path = write(tmp_path / "a.jsonl", [*rows[:4], rows[4][:20], *rows[5:]])
        assert f"{path} line 5 is not JSON" in told(lambda: xsum(Source(path)))

    @pytest.mark.parametrize("text", [HALF, '{"prompt": 1' + "0" * 5000 + "}", "[" * 100_000, '{"a": ' + "[" * 5000])
    @pytest.mark.parametrize("name", ["jsonl", "humaneval", "xsum", "gsm8k", "mtbench"])
    def test_whatever_is_wrong_with_a_line_is_its_damage(self, name: str, text: str, tmp_path: Path) -> None:
        own: dict[str, Any] = {"jsonl": Jsonl, "humaneval": partial(HumanEval, calibration_n=2)}
        problems = [{"task_id": str(k), "prompt": f"def f{k}():", "canonical_solution": " "} for k in range(N)]
        lines = [json.dumps(row) for row in (problems if name in own else numbered(name, 0))]
        path = write(tmp_path / "a.jsonl", [*lines[:2], text, *lines[2:]])

        def make(repair: bool) -> Task:
            source = Source(path, calibration_n=5, repair=repair)
            made: Task = own[name](path, repair=repair) if name in own else MAKES[name](source)
            return made

        message = told(lambda: make(False))
        assert f"{path} line 3" in message and "data.repair=true" in message
        assert {example.id for part in PARTS for example in make(True).examples(part)}

    @pytest.mark.parametrize("field", ["id", "prompt"])
    def test_half_a_character_counts_where_it_is_read(self, field: str, tmp_path: Path) -> None:
        rows = [{"id": str(i), "prompt": f"p{i}", "answer": "\ud83d", "other": "\ud83d"} for i in range(4)]
        Jsonl(str(write(tmp_path / "a.jsonl", rows)), id_field="id", reference_field="answer")
        rows[1][field] = "x \ud83d y"
        message = told(lambda: Jsonl(str(write(tmp_path / "a.jsonl", rows)), id_field="id"))
        assert f"line 2: its {field} holds \\ud83d, half of a character" in message

    def test_repair_keeps_the_good_rows_and_says_how_many_it_left_out(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        rows = [json.dumps(row) for row in numbered("xsum", 0)]
        path = write(tmp_path / "a.jsonl", [*rows[:4], rows[4][:20], '{"document": "a"}', *rows[6:]])
        with caplog.at_level(logging.WARNING):
            task = xsum(Source(path, calibration_n=5, repair=True))
        assert sum(len(task.examples(part)) for part in PARTS) == N - 2
        assert task.facts()["n_left_out"] == 2
        assert "left out 2 bad row(s)" in caplog.text and "line 5" in caplog.text and "line 6" in caplog.text

    def test_repair_of_nothing_but_damage_is_told(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.jsonl", ["{", "["])
        assert "holds no prompt of xsum" in told(lambda: xsum(Source(path, repair=True)))

    def test_file_of_another_set_is_told(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.jsonl", numbered("gsm8k", 0))
        assert "has no field 'article'" in told(lambda: cnndm(Source(path)))

    def test_repeated_question_is_told(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.jsonl", [row_of("specbench", 1), row_of("specbench", 1)])
        assert "repeats the id '1'" in told(lambda: specbench(Source(path)))

    def test_calibration_file_that_holds_only_what_is_evaluated_is_told(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.jsonl", numbered("xsum", 0))
        assert "besides those of the evaluation part" in told(lambda: xsum(Source(path, path)))

    def test_part_that_is_empty_is_an_error_only_when_asked_for(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.jsonl", numbered("xsum", 0))
        for n, part in ((0, "calibration"), (N, "evaluation")):
            task = xsum(Source(path, calibration_n=n))
            assert f"asked for the {part} part of xsum, which is empty" in told(lambda t=task, p=part: t.examples(p))

    @pytest.mark.parametrize(
        ("options", "piece"),
        [
            ({"calibration_n": -1}, "data.calibration_n="),
            ({"calibration_n": "all"}, "data.calibration_n="),
            ({"evaluation_n": 0}, "data.evaluation_n="),
        ],
    )
    def test_impossible_counts_are_told(self, tmp_path: Path, options: dict[str, Any], piece: str) -> None:
        path = write(tmp_path / "a.jsonl", numbered("xsum", 0))
        assert piece in told(lambda: xsum(Source(path, **options)))

    @pytest.mark.parametrize("n_shots", [-1, 6, 0.5])
    def test_more_shots_than_calibration_prompts_are_told(self, tmp_path: Path, n_shots: Any) -> None:
        path = write(tmp_path / "a.jsonl", numbered("xsum", 0))
        assert f"asked to show {n_shots} example(s)" in told(lambda: xsum(Source(path, calibration_n=5), shots=n_shots))


class TestRealFiles:
    def test_cnndm_reads_the_eighty_articles_of_spec_bench(self) -> None:
        task = cnndm(Source(real("specbench.jsonl"), calibration_n=20))
        assert [len(task.examples(part)) for part in PARTS] == [19, 60]
        assert all(241 <= int(e.id) <= 320 and e.reference for part in PARTS for e in task.examples(part))
        assert not any("Summarize:" in e.prompt for e in task.evaluation)

    def test_xsum(self) -> None:
        task = xsum(Source(real("xsum_200.jsonl"), calibration_n=40))
        assert [len(task.examples(part)) for part in PARTS] == [40, 160]

    def test_gsm8k_evaluates_on_test_and_calibrates_on_train(self) -> None:
        task = gsm8k(Source(real("gsm8k_test.jsonl"), real("gsm8k_train300.jsonl"), calibration_n=100), shots=5)
        assert [len(task.examples(part)) for part in PARTS] == [95, 1319]
        assert all("####" in (e.reference or "") for e in task.evaluation)

    def test_spec_bench_has_480_questions_of_six_tasks(self) -> None:
        task = specbench(Source(real("specbench.jsonl"), calibration_n=48))
        examples = [e for part in PARTS for e in task.examples(part)]
        assert len(examples) == 480 and len(task.evaluation) == 432
        assert {c: sum(e.category == c for e in examples) for c in {e.category for e in examples}} == dict.fromkeys(
            ("mt_bench", "translation", "summarization", "qa", "math_reasoning", "rag"), 80
        )
        assert all(len(e.turns) == (e.category == "mt_bench") for e in examples)

    def test_mt_bench_is_the_first_eighty_of_spec_bench(self) -> None:
        task = mtbench(Source(real("specbench.jsonl"), calibration_n=16))
        examples = [e for part in PARTS for e in task.examples(part)]
        assert {int(e.id) for e in examples} == set(range(81, 161)) and all(len(e.turns) == 1 for e in examples)


def test_a_damaged_file_ends_a_command_with_one_line(toy: list[str], empty_folder: Path) -> None:
    write(empty_folder / "a.jsonl", [*numbered("xsum", 0), "{"])
    words = [word for word in toy if not word.startswith("data")]
    ran = command("evaluate", *words, "data=xsum", "data.path=a.jsonl", "skip=a1")
    assert ran.status != 0
    assert [line for line in ran.error_lines if "a.jsonl line 13 is not JSON" in line] == ran.error_lines


@pytest.mark.parametrize("name", MAKES)
def test_each_yaml_says_when_to_choose_it_and_builds_its_task(tmp_path: Path, name: str) -> None:
    file = CONF / f"{name}.yaml"
    assert file.read_text().startswith("# Choose this")
    cfg = OmegaConf.load(file)
    cfg.merge_with({"path": write(tmp_path / "a.jsonl", numbered(name, 0)), "calibration_n": 6})
    task: Task = instantiate(cfg.task)
    assert (task.name, cfg.name) == (name, name)
    assert task.examples("evaluation")
    assert {"source", "split", "order_seed", "shots", "n_left_out"} <= task.facts().keys()
