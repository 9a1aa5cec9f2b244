"""Run folders that were damaged by hand: lists show them with the reason, other commands refuse them in one line."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from experiments.results.find_runs import list_runs
from experiments.results.run_writer import open_folder, reopen_folder
from selfspec.errors import InputError
from selfspec.records import run_files
from tests.commands import Ran, command
from tests.made_up import evaluate_run, search_run

NESTED, LATIN = "[" * 50_000, b'{"a": "\xff"}'
FACTS = ("provenance.json", "summary.json")
WRONG: tuple[Any, ...] = (5, "x", [1], {"a": 1}, True)


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    """A whole search, and a search and an evaluation to be damaged."""
    folder = tmp_path / "outputs"
    for path in (search_run(folder, seed=7), search_run(folder, seed=1, n_trials=4), evaluate_run(folder)):
        (path / "overrides.txt").write_text("a=b\n", encoding="utf-8")
    return folder


def damaged(outputs: Path) -> list[Path]:
    return [next(outputs.glob("search/*/*00000001")), next(outputs.glob("evaluate/*/*"))]


def put(outputs: Path, name: str, text: str | bytes) -> None:
    for run in damaged(outputs):
        if (run / name).exists() or name == "config.yaml":
            (run / name).write_bytes(text if isinstance(text, bytes) else text.encode())


def edit(outputs: Path, name: str, *keys: str, value: Any) -> None:
    """Change a value in the JSON objects of a file."""
    for run in damaged(outputs):
        if (run / name).exists():
            lines = (run / name).read_text(encoding="utf-8").splitlines()
            changed = []
            for line in lines:
                whole = part = json.loads(line)
                for key in keys[:-1]:
                    part = part.setdefault(key, {})
                part[keys[-1]] = value
                changed.append(json.dumps(whole))
            (run / name).write_text("".join(f"{line}\n" for line in changed), encoding="utf-8")


def in_one_line(ran: Ran) -> bool:
    return ran.status in (0, 2) and (ran.status == 0 or len(ran.err.splitlines()) == 1)


def assert_told(outputs: Path) -> None:
    """Every command ends well, and the list has every run, with its problem if it has one."""
    place = f"paths.outputs={outputs}"
    listed = command("runs", "list", "--json", place)
    assert listed.status == 0 and len(json.loads(listed.out)) == 3, listed
    assert command("runs", "list", place).status == 0
    words = [("runs", "show", str(run)) for run in damaged(outputs)]
    for some in [*words, ("runs", "compare", "a1", "a2", "--layers", "16")]:
        assert in_one_line(ran := command(*some, place)), (some, ran)


@pytest.mark.parametrize(
    "text", ['{"a": ', "", "[]", "null", NESTED, LATIN, '{"a": "\\ud83d"}', '{"a": 1' + "0" * 5000 + "}"]
)
@pytest.mark.parametrize("name", FACTS)
def test_a_file_of_facts_that_is_none_is_told(name: str, text: str | bytes, outputs: Path) -> None:
    put(outputs, name, text)
    assert_told(outputs)


@pytest.mark.parametrize("name", [*FACTS, "trials.jsonl", "records.jsonl"])
def test_a_folder_in_the_place_of_a_file_is_told(name: str, outputs: Path) -> None:
    for run in damaged(outputs):
        if (run / name).exists():
            (run / name).unlink()
            (run / name).mkdir()
    assert_told(outputs)


@pytest.mark.parametrize(
    "keys",
    [
        *(("provenance.json", key) for key in ("load_before", "resumed", "packages", "code", "started", "run")),
        *(("provenance.json", "run", key) for key in ("arms", "model", "data", "n_layers", "searcher", "objective")),
        *(("summary.json", key) for key in ("winner", "best", "verdict", "predicted", "unit")),
        *(("summary.json", "winner", key) for key in ("skip", "speedup", "in_doubt", "fresh_value", "n_prompts")),
    ],
)
def test_a_fact_of_the_wrong_kind_is_told(keys: tuple[str, ...], outputs: Path) -> None:
    for value in WRONG:
        edit(outputs, *keys, value=value)
        for run in list_runs(None, outputs):
            assert run.is_readable or run.problem
    assert_told(outputs)


@pytest.mark.parametrize("name", ["trials.jsonl", "records.jsonl"])
@pytest.mark.parametrize("text", [NESTED + "\n", LATIN + b"\n", b'{"schema": 1}\n', b'{"schema": 1, "number": null}\n'])
def test_a_row_that_is_none_is_told(name: str, text: str | bytes, outputs: Path) -> None:
    put(outputs, name, text)
    assert_told(outputs)


@pytest.mark.parametrize("key", ["value", "accepted", "draft_cost", "total_s", "drafted", "verdict", "skip", "stop"])
def test_a_field_of_the_wrong_kind_is_told(key: str, outputs: Path) -> None:
    for name in ("trials.jsonl", "records.jsonl"):
        edit(outputs, name, key, value=None)
    assert_told(outputs)
    for name in ("trials.jsonl", "records.jsonl"):
        edit(outputs, name, key, value="x")
    assert_told(outputs)


@pytest.mark.parametrize("name", ["config.yaml", "overrides.txt"])
@pytest.mark.parametrize("text", [b"\xff\xfe", "[" * 400, "[1]", "a\0b", "a: 1" + "0" * 5000])
def test_settings_that_are_none_are_told(name: str, text: str | bytes, outputs: Path) -> None:
    put(outputs, name, text)
    assert_told(outputs)
    assert in_one_line(command("report", f"paths.outputs={outputs}", f"runs={outputs}/search/**"))


def of(verb: str, outputs: Path) -> Path:
    return next(outputs.glob(f"{verb}/*/*"))


@pytest.mark.parametrize(("verb", "other"), [("search", "evaluate"), ("evaluate", "search")])
class TestResume:
    """Everything here is refused before a model is loaded."""

    def told(self, verb: str, run: Path) -> str:
        ran = command(verb, f"resume={run}")
        assert ran.status == 2 and len(ran.err.splitlines()) == 1, ran
        return ran.err

    def test_of_a_run_of_another_verb_is_refused(self, verb: str, other: str, outputs: Path) -> None:
        (of(other, outputs) / "config.yaml").write_text("name: x\n", encoding="utf-8")
        assert f"no run of {verb} there" in self.told(verb, of(other, outputs))

    @pytest.mark.parametrize("text", ["", "[1]", "a: [", "a: &x [*x]", "[" * 400, "a\0b", "searcher: {}\nsamples: 1\n"])
    def test_with_damaged_settings_is_refused(self, text: str, verb: str, other: str, outputs: Path) -> None:
        (of(verb, outputs) / "config.yaml").write_text(text, encoding="utf-8")
        assert "config.yaml" in self.told(verb, of(verb, outputs))

    @pytest.mark.parametrize("text", [None, "", '{"run": ', "{}", NESTED])
    def test_without_its_facts_is_refused(self, text: str | None, verb: str, other: str, outputs: Path) -> None:
        (of(verb, outputs) / "config.yaml").write_text("searcher: {}\nsamples: 1\n", encoding="utf-8")
        file = of(verb, outputs) / "provenance.json"
        file.unlink() if text is None else file.write_text(text, encoding="utf-8")
        assert "provenance.json" in self.told(verb, of(verb, outputs))

    def test_that_is_refused_leaves_the_run_finished(self, verb: str, other: str, outputs: Path) -> None:
        (of(verb, outputs) / "config.yaml").write_text("searcher: {}\nsamples: 1\n", encoding="utf-8")
        self.told(verb, of(verb, outputs))
        assert (of(verb, outputs) / "summary.json").exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
@pytest.mark.parametrize("name", ["config.yaml", "provenance.json", "table.md", "summary.json"])
def test_a_full_disk_is_one_line(number: int, name: str, outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = run_files.write_bytes

    def full(path: Path, data: bytes) -> None:
        if path.name == name:
            raise OSError(number, os.strerror(number), str(path))
        write(path, data)

    monkeypatch.setattr(run_files, "write_bytes", full)
    ran = command("report", f"paths.outputs={outputs}", f"runs={outputs}/evaluate/**")
    assert ran.status == 2 and len(ran.err.splitlines()) == 1 and os.strerror(number) in ran.err, ran
    left = {file.name for folder in outputs.glob("report/*/*") for file in folder.iterdir()}
    assert not left or "provenance.json" in left, "a folder without its facts looks like a run and is none"


def test_one_writer_has_a_run_folder_at_a_time(outputs: Path) -> None:
    refused = pytest.raises(InputError, match=f"is being written by process {os.getpid()} on")
    opened = open_folder(outputs, "report", "x", config="", overrides=[], facts={})
    with opened as folder, refused, reopen_folder(folder.path):
        pass
    with reopen_folder(folder.path):  # the first has ended
        pass
