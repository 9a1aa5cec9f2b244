"""Code: whether a written function passes its tests, and how likely one of k tries passes.

This module builds programs and counts results; the sandbox runs the programs and keeps them from harm.

Source: Chen et al. 2021 (arXiv:2107.03374), sections 2.1 (pass@k) and 3.2 (where a completion ends).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import comb
from typing import Any

from experiments.quality.cut import cut
from experiments.quality.find_code import find_code, free_names

# after the function a raw answer goes on with further code of its own; the stop at the fence is ours
STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint", "\n```")
MBPP_STOPS = ("[DONE]",)


def pass_at_k(n: int, n_passed: int, k: int) -> float:
    """Unbiased estimate of the chance that at least one of k tries passes, from n tries with n_passed passes.

    Raises:
        ValueError: unless 0 <= n_passed <= n and 1 <= k <= n.
    """
    if not (0 <= n_passed <= n and 1 <= k <= n):
        raise ValueError(f"pass@{k} of {n_passed} passes in {n} tries; k is from 1 to the number of tries")
    return 1 - comb(n - n_passed, k) / comb(n, k)


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem that an answer in code solves.

    Attributes:
        prompt: beginning of a module that the answer continues; may be empty.
        tests: source code that raises unless the module is right.
        names: functions that the tests call.
        stops: texts that end a raw answer.
    """

    prompt: str
    tests: str
    names: frozenset[str]
    stops: tuple[str, ...] = STOPS

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Problem | None:
        """The problem of a row of HumanEval or of MBPP; None for any other row."""
        if {"prompt", "test", "entry_point"} <= row.keys():
            name = row["entry_point"]
            return cls(row["prompt"], f"{row['test']}\ncheck({name})\n", frozenset({name}))
        if "test_list" in row:
            tests = "\n".join([row.get("test_setup_code", ""), *row["test_list"]]) + "\n"
            return cls("", tests, frozenset(free_names(tests)), MBPP_STOPS)
        return None

    def program(self, text: str, *, chat: bool) -> str:
        """The source code that raises unless the answer passes the tests.

        A raw answer continues the prompt up to the first stop. The code of a chat answer (`find_code`) follows the
        prompt and defines its function again. Tabs become four spaces, because prompts use both.

        Args:
            text: the decoded answer.
            chat: whether the answer comes from a conversation.
        """
        prompt, text = self.prompt.replace("\t", "    "), text.replace("\t", "    ")
        written = f"\n{find_code(text, self.names, prompt=prompt)}" if chat else cut(text, self.stops)
        return f"{prompt}{written}\n{self.tests}"
