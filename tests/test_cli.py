"""The command line: a mistake is one line, what runs leaves whole run folders, free text arrives as it was typed."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiments.cli import USAGE
from experiments.config.composing import as_config
from experiments.config.kinds import from_word
from experiments.config.sweep_words import as_typed, for_hydra
from selfspec.skipping.skip_set import SkipSet
from selfspec.skipping.skip_set_files import NAME, save_skip_set
from tests.commands import N_LAYERS, Ran, command, write_model, write_prompts

VERBS = ("decode", "search", "evaluate", "report")
SCRIPT = Path(sys.executable).with_name("selfspec")


pytestmark = pytest.mark.usefixtures("empty_folder")


def assert_told(ran: Ran, *pieces: str) -> None:
    """One line that holds the pieces, exit status 2, and no run was begun."""
    assert ran.status == 2, ran
    assert len(ran.error_lines) == 1 and ran.error_lines[0].startswith("selfspec: "), ran.err
    assert [piece for piece in pieces if piece not in ran.err] == [], ran.err
    assert "Traceback" not in ran.err and ran.out == ""
    assert [path for path in Path().rglob("*") if path.is_file()] == []


class TestMistakes:
    """Found before a model is loaded."""

    @pytest.mark.parametrize(
        ("words", "pieces"),
        [
            ("serach", ["unknown verb 'serach'", "did you mean 'search'?"]),
            (
                "search searcher=tpee",
                ["unknown searcher 'tpee'", "did you mean 'tpe'?", "available: anneal, clasp, cmaes,"],
            ),
            ("search searcher=tpe,gp", ["unknown searcher 'tpe,gp'"]),
            ("decode model=smollm-135m", ["unknown model 'smollm-135m'", "did you mean 'smollm2-135m'?"]),
            ("decode model=_base", ["unknown model '_base'"]),
            ("evaluate data=humanevil", ["did you mean 'humaneval'?"]),
            ("evaluate stop=adaptve", ["did you mean 'adaptive'?"]),
            (
                "search searcher.n_trails=3",
                ["'searcher.n_trails'", "did you mean 'searcher.n_trials'?"],
            ),
            ("evaluate max_new_token=3", ["did you mean 'max_new_tokens'?"]),
            ("search stop=fixed stop.threshold=0.5", ["unknown setting 'stop.threshold'"]),
            ("report searcher=tpe", ["searcher"]),
            ("search searcher.n_trials=0", ["searcher.n_trials=0", "at least 1 trial"]),
            ("search searcher.n_trials=ten", ["searcher.n_trials=ten", "whole number"]),
            ("search searcher.n_trials=2.5", ["searcher.n_trials=2.5", "whole number"]),
            ("evaluate stop.max_draft=true", ["stop.max_draft=true", "whole number"]),
            ("evaluate stop.threshold=high", ["stop.threshold=high", "a number"]),
            ("evaluate generate=maybe", ["generate=maybe", "true or false"]),
            ("evaluate skip", ["cannot read 'skip'", "key=value"]),
            ("evaluate lookup=frnt", ["unknown lookup 'frnt'", "did you mean 'front'?", "available: beside,"]),
            ("search lookup=only", ["unknown lookup 'only'", "available: beside, front"]),
            ("search precision=int9", ["unknown precision 'int9'", "available: int4, int8, same"]),
            ("search constraints.only=mpl", ["unknown constraints.only 'mpl'", "did you mean 'mlp'?"]),
            ("report format=markdown", ["unknown format 'markdown'", "available: csv, html, latex, md"]),
            ("report preset=papr", ["did you mean 'paper'?"]),
            ("search model.pth=x", ["unknown setting 'model.pth'", "did you mean 'model.path'?"]),
            ("search finals.n_prompt=3", ["did you mean 'finals.n_prompts'?"]),
            ("evaluate seed=null", ["seed=null", "a whole number; its default is 0"]),
            ("evaluate samples=0", ["samples=0", "a whole number from 1 on"]),
            ("search starts=nothing", ["starts=nothing", "a list"]),
            ("search prune=3", ["prune=3", "settings"]),
            ("search stop=fixed +stop.treshold=1", ["unknown setting 'stop.treshold'", "available: stop.max_draft"]),
            ("evaluate ~seed", ["~seed", "cannot be left out"]),
            ("evaluate stop=null", ["unknown stop rule 'null'"]),
            ("evaluate arms={a:{lookup:frnt}}", ["unknown arms.a.lookup 'frnt'", "did you mean 'front'?"]),
            ('evaluate stop_strings=["x"', ["cannot read", "at its end"]),
            ("search resume=nowhere", ["resume=nowhere"]),
            ("decode", ["decode needs a prompt"]),
            ("report", ["no run"]),
            ("report runs=nothing-like-it", ["nothing-like-it"]),
        ],
    )
    def test_is_one_line_that_says_what_to_do(self, words: str, pieces: list[str]) -> None:
        assert_told(command(*words.split()), *pieces)

    def test_a_sweep_is_checked_name_by_name(self) -> None:
        assert_told(command("search", "-m", "searcher=tpe,gpp"), "unknown searcher 'gpp'", "did you mean 'gp'?")
        assert_told(command("search", "-m", "searcher=choice(tpe,gpp)"), "unknown searcher 'gpp'")

    def test_a_sweep_knows_the_settings_of_the_groups_it_chooses(self) -> None:
        ran = command("search", "-m", "data=jsonl", "data.path=/nowhere", "searcher.n_trials=0,-1")
        assert ran.status == 1 and ran.err.count("at least 1 trial") == 4, ran.err  # at once, and listed at the end

    def test_a_word_that_is_no_text_is_told(self) -> None:
        for verb in ("decode", "evaluate", "runs"):
            assert_told(command(verb, "prompt=a \udcff b"), "'prompt=a \\udcff b': it is not UTF-8")

    def test_an_unwritable_output_folder_is_refused_before_the_model_loads(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        for verb in ("search", "evaluate"):
            told = command(verb, "model=local", "model.path=/nowhere", f"paths.outputs={tmp_path}/file/below")
            assert_told(told, "cannot write to", "paths.outputs=FOLDER")
        assert_told(command("evaluate", "-m", "n=1,2", f"paths.outputs={tmp_path}/file/below"), "cannot write to")


class TestMistakesOnAModel:
    @pytest.mark.parametrize(
        ("skip", "pieces"),
        [
            ("a99", ["layer 99", f"0..{N_LAYERS - 1}"]),
            ("found/skip_set.yaml", ["no such file or folder"]),
            ("a" + ",".join(["1"] * 200) + "x", ["cannot read '1x'"]),
        ],
        ids=["layer", "file", "longer than a file name"],
    )
    def test_a_skip_set_that_does_not_fit_is_told(self, skip: str, pieces: list[str], toy: list[str]) -> None:
        assert_told(command("evaluate", *toy, f"skip={skip}"), *pieces)

    def test_decode_tells_it_too(self, toy: list[str]) -> None:
        assert_told(command("decode", *toy, "prompt=hi", "max_new_tokens=4", "skip=a99"), "layer 99")

    def test_a_skip_set_for_another_model_is_told_with_both_sizes(self, toy: list[str], tmp_path: Path) -> None:
        save_skip_set(tmp_path / NAME, SkipSet(6), model="other")
        assert_told(command("evaluate", *toy, f"skip={tmp_path}"), "other of 6 layers", f"{N_LAYERS}")

    def test_data_without_rows_is_told(self, toy: list[str], tmp_path: Path) -> None:
        empty = write_prompts(tmp_path / "empty.jsonl", [])
        assert_told(command("evaluate", *toy, f"data.path={empty}"), "empty.jsonl", "no rows")

    def test_a_prompt_longer_than_the_context_is_told_by_id(self, toy: list[str], tmp_path: Path) -> None:
        file = write_prompts(tmp_path / "long.jsonl", ["x" * 500, "y" * 500])
        assert_told(command("evaluate", *toy, f"data.path={file}"), "prompt 'line-", "50", "context of 96")
        assert_told(command("decode", *toy, f"prompt={'x' * 500}"), "50", "context of 96")

    def test_a_part_of_the_data_without_prompts_is_told(self, toy: list[str]) -> None:
        assert_told(command("search", "draft=skip", *toy, "data.calibration_fraction=0"), "calibration part", "empty")

    def test_a_model_folder_without_weights_is_told(self, toy: list[str], model_folder: Path, tmp_path: Path) -> None:
        shutil.copy(model_folder / "config.json", tmp_path)
        assert_told(command("search", "draft=skip", *toy, f"model.path={tmp_path}"), str(tmp_path), "*.safetensors")

    def test_a_tokenizer_without_a_chat_template_is_told(
        self, toy: list[str], model_folder: Path, tmp_path: Path
    ) -> None:
        bare = tmp_path / "bare"
        shutil.copytree(model_folder, bare)
        (bare / "chat_template.jinja").unlink()
        assert_told(command("evaluate", *toy, f"model.path={bare}"), "data.chat=false")

    @pytest.mark.parametrize(
        ("arms", "piece"),
        [
            ("{plain: {skip: none}}", "same name"),
            ("{a: {skpi: a1}}", "arms.a"),
            ("{a: {stop: fixed}}", "arms.a"),
            ("{a: {skip: a1, stop: fixd}}", "did you mean 'fixed'?"),
            ("{a: a1}", "arms.a"),
        ],
    )
    def test_an_arm_that_is_none_is_told(self, arms: str, piece: str, toy: list[str]) -> None:
        assert_told(command("evaluate", *toy, f"arms={arms}"), piece)

    def test_asking_for_no_tokens_is_told(self, toy: list[str]) -> None:
        assert_told(command("evaluate", *toy, "max_new_tokens=0"), "max_new_tokens=0")
        assert_told(command("search", "draft=skip", *toy, "objective.max_new_tokens=0"), "max_new_tokens=0")

    def test_a_search_with_nothing_to_time_says_so(self, toy: list[str]) -> None:
        words = "objective.max_new_tokens=1", "searcher.n_trials=2"
        for objective in ("expected_speedup", "matchness", "tokens_per_second"):
            ran = command("search", "draft=skip", *toy, f"objective={objective}", *words)
            assert ran.status == 2 and "ended at its first token" in ran.error_lines[-1], ran.err


def _typed(text: str) -> Any:
    """What a program gets that reads a setting of free text."""
    return as_config({"prompt": from_word(text, str, "prompt")}).prompt


def _any_texts() -> list[str]:
    rng = random.Random(0)
    pieces = [*"a '\"\\${},[]()=:\n#", "${a}", "\\\\"]
    return ["a" + "".join(rng.choices(pieces, k=rng.randint(1, 9))) for _ in range(500)]


class TestFreeText:
    @pytest.mark.parametrize(
        "text",
        [
            *("a, b", "x=1", "[1, 2]", "{a: b}", "(a)", "f(x, y)", "a1,3 m2", "  spaces  ", "100%", "#1", "tab\there"),
            *("it's", 'say "hi"', "'", '"', "'a' or 'b'", '"a", b', "\\", "a\\", "a\\\\", "\\'", "a\\' b", "C:\\new\\"),
            *("${model.name}", "\\${x}", "\\\\${x}", "$", "${", "${}", "a ${ b \\", "two\nlines", "12", "true", "1e3"),
            *("näë 東京 🙂", "null and void", "~", "@", "!important", "-5", "*", "?", "1_0", "0x1", ""),
        ],
    )
    def test_arrives_as_it_was_typed(self, text: str) -> None:
        assert _typed(text) == text

    def test_any_text_arrives_as_it_was_typed(self) -> None:
        assert [text for text in _any_texts() if _typed(text) != text] == []

    @pytest.mark.parametrize(
        ("quoted", "text"),
        [("'a, b'", "a, b"), ('"a\\n"', "a\n"), ("'a\\n'", "a\\n"), ("'it\\'s'", "it's"), ("'null'", "null")],
    )
    def test_in_quotes_arrives_without_them(self, quoted: str, text: str) -> None:
        assert _typed(quoted) == text

    def test_goes_through_hydra_as_it_was_typed(self) -> None:
        texts = [text for text in _any_texts() if len(text) > 1]
        assert as_typed(for_hydra("decode", [f"prompt={text}" for text in texts])) == [f"prompt={t}" for t in texts]

    def test_a_sweep_keeps_the_commas_inside_each_skip_set(self) -> None:
        words = for_hydra("evaluate", ["-m", "skip=a1,3 m2", "skip=none,a1", "name=1_0,'a, b'", "stop=fixed,paper"])
        assert words[2:] == ["++skip='a1,3 m2'", "++skip='none','a1'", "++name='1_0','\\'a, b\\''", "stop=fixed,paper"]

    def test_a_prompt_reaches_the_verb_as_typed(self, toy: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        got: list[Any] = []
        verb: Callable[..., Any] = lambda cfg, overrides, say: got.append(cfg.prompt)  # noqa: E731
        monkeypatch.setattr("experiments.verbs.decode.decode", verb)
        text = """it's "${HOME}", [x] = {\\}"""
        assert command("decode", *toy, f"prompt={text}").status == 0
        assert got == [text]


class TestProcess:
    """What only a process of its own can show."""

    def test_without_a_word_it_says_what_there_is(self) -> None:
        done = subprocess.run([SCRIPT], capture_output=True, text=True, check=True)
        assert done.stdout == USAGE and done.stderr == ""
        assert [verb for verb in VERBS if f"\n  {verb} " not in done.stdout] == []

    def test_a_mistake_is_one_line_and_exit_status_2(self) -> None:
        done = subprocess.run([SCRIPT, "serach"], capture_output=True, text=True)
        assert_told(Ran(done.returncode, done.stdout, done.stderr), "did you mean 'search'?")

    def test_an_answer_is_all_that_standard_output_holds(self, toy: list[str]) -> None:
        words = ["decode", *toy, "prompt=hi", "skip=a1", "max_new_tokens=6"]
        done = subprocess.run([SCRIPT, *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "output identical" in done.stdout
        assert done.stderr == "dtype float64 (asked for), device cpu, 1 threads\n"
        assert list(Path().iterdir()) == []


def test_another_number_of_layers_needs_no_setting(toy: list[str], tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", n_layers=2)
    ran = command("decode", *toy, f"model.path={folder}", "prompt=hi", "skip=a1 m0", "max_new_tokens=4")
    assert ran.status == 0 and "output identical" in ran.out


@pytest.mark.parametrize("word", ["n=ten", "n=0", "n=-1", "n=true", "threads=ten", "threads=-1", "threads=0.5"])
def test_a_count_that_is_none_is_told(word: str, model_folder: Path, prompts_file: Path, tmp_path: Path) -> None:
    toy = ["model=local", f"model.path={model_folder}", "data=jsonl", f"data.path={prompts_file}"]
    told = command("evaluate", *toy, f"paths.outputs={tmp_path}", word)
    assert told.status == 2
    assert f"{word} was asked for, but it must be a whole number from 1 " in told.error_lines[-1]
    assert not (tmp_path / "evaluate").exists()


def test_repair_is_a_flag_too(toy: list[str], tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.jsonl"
    rows = [json.dumps({"id": str(i), "prompt": f"one two {i}"}) for i in range(40)]
    damaged.write_text("\n".join([*rows[:3], '{"id": "half', *rows[3:]]) + "\n", encoding="utf-8")
    words = [*toy, f"data.path={damaged}", f"paths.outputs={tmp_path}", "n=2", "max_new_tokens=2", "generate=false"]
    refused, repaired = command("evaluate", *words), command("evaluate", *words, "--repair")
    assert refused.status == 2 and "line 4" in refused.err and "data.repair=true" in refused.err
    assert repaired.status == 0, repaired.err
    assert "data.repair=true" in (repaired.run / "overrides.txt").read_text(encoding="utf-8")
