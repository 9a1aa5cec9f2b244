"""evaluate decodes prompts together and writes what it would write for each alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from selfspec.records.run_files import RECORDS, read_rows
from tests.commands import command

COUNTS = ("prompt_id", "arm", "tokens", "finish", "drafted", "accepted", "committed", "round_drafted", "round_accepted")


def evaluated(folder: Path, outputs: Path, prompts: Path, *words: str) -> list[dict[str, Any]]:
    ran = command(
        "evaluate",
        "model=local",
        f"model.path={folder}",
        "model.dtype=float64",
        "data=jsonl",
        f"data.path={prompts}",
        f"paths.outputs={outputs}",
        "max_new_tokens=12",
        "skip=a1 m2",
        "stop=threshold",
        "stop.threshold=0.05",
        *words,
    )
    assert ran.status == 0, ran.err
    return read_rows(ran.run / RECORDS)


@pytest.mark.parametrize("sampling", ["greedy", "sample"])
def test_a_batch_gives_what_each_prompt_gives_alone(
    sampling: str, model_folder: Path, prompts_file: Path, tmp_path: Path
) -> None:
    def rows(batch: int) -> list[list[Any]]:
        found = evaluated(
            model_folder, tmp_path, prompts_file, f"sampling={sampling}", "generate=false", f"batch={batch}"
        )
        assert {row["batch"] for row in found} <= {batch, 1, 2, 3, 4}
        return sorted([row[field] for field in COUNTS] for row in found)

    assert rows(1) == rows(3) == rows(4)


def test_seconds_of_a_batch_are_shared(model_folder: Path, prompts_file: Path, tmp_path: Path) -> None:
    found = evaluated(model_folder, tmp_path, prompts_file, "batch=4")
    for row in found:
        assert row["total_s"] > 0
        if row["arm"] == "generate":
            assert row["prefill_s"] is None  # of a batch it is not known
        else:
            assert row["draft_s"] + row["verify_s"] + row["prefill_s"] <= row["total_s"] * 1.001


def test_a_batch_of_none_is_refused(model_folder: Path, prompts_file: Path, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="batch=0 was asked for, but it must be a whole number from 1 on"):
        evaluated(model_folder, tmp_path, prompts_file, "batch=0")


def test_a_stop_string_ends_every_arm_at_the_same_token(model_folder: Path, prompts_file: Path, tmp_path: Path) -> None:
    free = evaluated(model_folder, tmp_path, prompts_file)
    letter = next(c for c in free[0]["text"][3:] if c.isascii() and c.isalpha())
    stopped = evaluated(model_folder, tmp_path, prompts_file, f"stop_strings=[{letter}]")
    assert {row["verdict"] for row in stopped} <= {"baseline", "identical"}
    mine = [row for row in stopped if row["prompt_id"] == free[0]["prompt_id"]]
    assert all(row["text"].endswith(letter) and row["n_tokens"] < free[0]["n_tokens"] for row in mine)
