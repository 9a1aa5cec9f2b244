"""Prompts that must not meet: the same but for white space and Unicode form, and those that a search has seen."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.evaluation.unseen import unseen
from selfspec.data import Example, Jsonl, Source
from selfspec.data.gsm8k import gsm8k
from selfspec.data.same_prompts import example_digests, group_digests, same_digest
from selfspec.errors import InputError
from selfspec.skipping.skip_set import SkipSet
from selfspec.skipping.skip_set_files import NAME, save_skip_set
from tests.made_up import N_LAYERS, search_run

ALIKE: dict[str, Callable[[str], str]] = {
    "line feed behind": lambda text: f"{text}\n",
    "blanks around": lambda text: f"  {text} ",
    "hard blanks": lambda text: text.replace(" ", "\u00a0"),
    "carriage returns": lambda text: text.replace("\n", "\r\n"),
    "tabs": lambda text: text.replace(" ", "\t"),
    "decomposed": lambda text: text.replace("é", "e\u0301"),
    "wide": lambda text: text.replace("1", "\uff11"),
}
PROMPTS = [f"Café {n}1\nwhat now?" for n in range(20)]


def write(file: Path, prompts: list[str]) -> str:
    rows = [{"prompt": p, "question": p, "answer": f"{i}\n#### {i}"} for i, p in enumerate(prompts)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def met(calibration: list[Example], evaluation: list[Example], prompts: list[str]) -> set[str]:
    """The prompts of a file that are in both parts."""
    parts = ({same_digest(p) for e in part for p in prompts if p in e.prompt} for part in (calibration, evaluation))
    return set.intersection(*parts)


@pytest.mark.parametrize("change", ALIKE.values(), ids=ALIKE)
def test_prompts_that_look_alike_are_in_one_part(change: Callable[[str], str], tmp_path: Path) -> None:
    twins = [change(prompt) for prompt in PROMPTS]
    path = write(tmp_path / "a.jsonl", PROMPTS + twins)
    one = Jsonl(path)
    assert [len(one.examples(part)) for part in ("calibration", "evaluation")] == [20, 20]
    assert not met(one.examples("calibration"), one.examples("evaluation"), PROMPTS + twins)
    other = gsm8k(Source(path, calibration_n=10), shots=0)
    assert not met(other.examples("calibration"), other.examples("evaluation"), PROMPTS + twins)
    two = Source(write(tmp_path / "b.jsonl", PROMPTS[:10]), write(tmp_path / "c.jsonl", twins), calibration_n=32)
    assert len(gsm8k(two, shots=0).examples("calibration")) == 10


def test_parts_without_such_prompts_stay_as_they_were(tmp_path: Path) -> None:
    assert group_digests(PROMPTS) == {p: hashlib.sha256(p.encode()).hexdigest() for p in PROMPTS}
    assert Jsonl(write(tmp_path / "a.jsonl", PROMPTS)).version.startswith("1-")
    assert Jsonl(write(tmp_path / "b.jsonl", [*PROMPTS, f"{PROMPTS[0]} "])).version.startswith("2-")


def test_prompts_that_differ_in_case_alone_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        task = Jsonl(write(tmp_path / "a.jsonl", PROMPTS + [p.upper() for p in PROMPTS]))
    seen = {e.prompt.casefold() for e in task.examples("calibration")}
    n = sum(e.prompt.casefold() in seen for e in task.examples("evaluation"))
    assert n and f"{n} evaluation prompt(s) differ from a calibration prompt in nothing but case" in caplog.text


class TestUnseen:
    EXAMPLES = tuple(Example(str(i), prompt) for i, prompt in enumerate(PROMPTS))

    def search(self, outputs: Path, seen: list[str] | None) -> str:
        run = search_run(outputs)
        save_skip_set(run / NAME, SkipSet.parse("a1", N_LAYERS), model="toy", objective="", value=1.0)
        facts = json.loads((run / "provenance.json").read_text(encoding="utf-8"))
        facts["run"] |= {} if seen is None else {"seen": [same_digest(prompt) for prompt in seen]}
        (run / "provenance.json").write_text(json.dumps(facts), encoding="utf-8")
        return run.name

    def test_what_the_search_of_a_draft_has_seen_is_left_out(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        run = self.search(tmp_path, [f" {prompt}\n" for prompt in PROMPTS[:5]])
        for draft in (run, str(next(tmp_path.rglob(run))), str(next(tmp_path.rglob(run)) / NAME)):
            assert unseen(self.EXAMPLES, ["none", draft], tmp_path) == list(self.EXAMPLES[5:])
        assert "5 of 20 evaluation prompts are left out" in caplog.text

    def test_a_draft_of_no_search_has_seen_nothing(self, tmp_path: Path) -> None:
        run = self.search(tmp_path, None)  # of an earlier version
        for draft in ("none", "a1 m2", "llama-2-13b/swift", run, "nowhere/at/all"):
            assert unseen(self.EXAMPLES, [draft], tmp_path) == list(self.EXAMPLES)

    @pytest.mark.parametrize("shots", [0, 3])
    def test_a_question_is_seen_in_whatever_form_it_was_asked(self, shots: int, tmp_path: Path) -> None:
        path = write(tmp_path / "a.jsonl", PROMPTS)
        trained = gsm8k(Source(path, calibration_n=8), shots=shots, chat=True).examples("calibration")
        run = self.search(tmp_path, None)
        file = next(tmp_path.rglob(run)) / "provenance.json"
        facts = json.loads(file.read_text(encoding="utf-8"))
        facts["run"]["seen"] = [digest for example in trained for digest in example_digests(example)]
        file.write_text(json.dumps(facts), encoding="utf-8")
        asked = [
            e for s in (gsm8k(Source(path, calibration_n=1), shots=1), Jsonl(path)) for e in s.examples("evaluation")
        ]
        said = {e.content for e in trained}
        kept = unseen(asked, [run], tmp_path)
        assert len(said) == 8 - shots and kept == [e for e in asked if (e.content or e.prompt) not in said]
        assert len(kept) < len(asked)

    def test_nothing_is_left_is_told(self, tmp_path: Path) -> None:
        run = self.search(tmp_path, PROMPTS)
        with pytest.raises(InputError, match="made of all 20 evaluation prompts"):
            unseen(self.EXAMPLES, [run], tmp_path)
