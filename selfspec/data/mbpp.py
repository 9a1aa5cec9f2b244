"""MBPP: small Python functions to write from one sentence and three tests.

This module reads the problems; it runs no code.

Source: Austin et al. 2021 (arXiv:2108.07732), whose form the raw prompt follows.
"""

from collections.abc import Mapping
from typing import Any

from selfspec.data.rows import text
from selfspec.data.shots import Form, put
from selfspec.data.source import Origin, Source, Split
from selfspec.data.task import Example
from selfspec.errors import InputError

ASK = "You are an expert Python programmer, and here is your task: "
RAW = Form(ASK, "\n[BEGIN]\n", "", "\n[DONE]\n\n")
CHAT = Form(ASK, "\nAnswer with the code alone.", "\n", "\n\n")
HINT = "to read other prompts, use data=jsonl"


def mbpp(source: Source, *, shots: int = 3, chat: bool = False) -> Split:
    """The problems with their tests, each after `shots` others with their solutions.

    Args:
        source: rows with `text`, `code` and `test_list`.
        shots: number of problems shown with their solutions.
        chat: ask a chat model; otherwise a text to continue, up to "[DONE]".

    Raises:
        InputError: if the source is not available, or a row has another form.
    """
    origin = Origin("mbpp", "1", "google-research-datasets/mbpp", "full", "train", _read)
    return put(source.load(origin), CHAT if chat else RAW, shots=shots)


def _read(row: Mapping[str, Any], place: str, where: str) -> Example:
    tests = row.get("test_list")
    if not isinstance(tests, list) or not tests or not all(isinstance(test, str) for test in tests):
        raise InputError(f"{where} has no list of tests in its field 'test_list'; {HINT}")
    asked = text(row, "text", where, hint=HINT)
    prompt = f"{asked} Your code should pass these tests:\n\n" + "\n".join(tests)
    return Example(str(row.get("task_id", place)), prompt, text(row, "code", where, hint=HINT), "code", extra=dict(row))
