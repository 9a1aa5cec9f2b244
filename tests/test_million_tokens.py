"""The script that counts differences over many tokens: a killed run goes on, and a wrong output is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scripts import million_tokens
from selfspec.engine.decode import autoregress
from selfspec.engine.trace import DecodeResult
from selfspec.records.run_files import read_rows
from tests.toys import VOCAB


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(million_tokens, "N_PROMPTS", 2)
    monkeypatch.setattr(million_tokens, "N_NEW", 16)


def test_a_killed_count_goes_on_to_the_same_lines(tmp_path: Path) -> None:
    file = tmp_path / "tokens.jsonl"
    assert million_tokens.main([str(file), "--tokens", "150"]) == 0
    whole = file.read_bytes()
    assert sum(row["tokens"] for row in read_rows(file)) >= 150
    file.write_bytes(whole[: len(whole) // 2])
    assert million_tokens.main([str(file), "--tokens", "150"]) == 0
    assert file.read_bytes() == whole


def test_a_wrong_output_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*args: Any, **settings: Any) -> list[DecodeResult]:
        plain = autoregress(*args, **settings)
        return [replace(r, tokens=[(r.tokens[0] + 1) % VOCAB, *r.tokens[1:]]) for r in plain]

    monkeypatch.setattr(million_tokens, "autoregress", wrong)
    assert million_tokens.main([str(tmp_path / "tokens.jsonl"), "--tokens", "100"]) == 1
