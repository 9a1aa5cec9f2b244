"""Code: does the function that was written pass its tests, and how often in k tries?

Builds the programs and counts; where they run, and that they can do no harm there, is the sandbox's business.

Source: Chen et al. 2021 (arXiv:2107.03374), sections 2.1 (pass@k) and 3.2 (where a completion ends).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import comb
from typing import Any

from experiments.quality.cut import cut

# After a function a raw continuation goes on with something else of its own making; the fence is ours.
STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint", "\n```")
MBPP_STOPS = ("[DONE]",)
_FENCE = re.compile(r"```[^\n]*\n(.*?)(?:```|\Z)", re.DOTALL)


def pass_at_k(n: int, n_passed: int, k: int) -> float:
    """The unbiased estimate of how likely at least one of k tries passes, from n tries of which n_passed did.

    Raises:
        ValueError: unless 0 <= n_passed <= n and 1 <= k <= n.
    """
    if not (0 <= n_passed <= n and 1 <= k <= n):
        raise ValueError(f"pass@{k} of {n_passed} passes in {n} tries; k is from 1 to the number of tries")
    return 1 - comb(n - n_passed, k) / comb(n, k)


@dataclass(frozen=True, slots=True)
class Problem:
    """What an answer in code is judged by.

    Attributes:
        prompt: the beginning of a module that the answer goes on with; may be empty.
        tests: source that raises unless the module is right.
        stops: where a raw answer ends.
    """

    prompt: str
    tests: str
    stops: tuple[str, ...] = STOPS

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Problem | None:
        """The problem of a row of HumanEval or of MBPP; None if it is neither."""
        if {"prompt", "test", "entry_point"} <= row.keys():
            return cls(row["prompt"], f"{row['test']}\ncheck({row['entry_point']})\n")
        if "test_list" in row:
            return cls("", "\n".join([row.get("test_setup_code", ""), *row["test_list"]]) + "\n", MBPP_STOPS)
        return None

    def program(self, text: str, *, chat: bool) -> str:
        """The source that raises unless the answer passes the tests.

        A raw answer continues the prompt up to the first stop. A chat's answer, or the first fenced part of it, follows
        the prompt, whose function it defines again. Tabs become four spaces: prompts are asked with either.

        Args:
            text: the answer as decoded.
            chat: whether it was asked for in a conversation.
        """
        fenced = _FENCE.search(text)
        written = "\n" + (fenced.group(1) if fenced else text) if chat else cut(text, self.stops)
        return f"{self.prompt}{written}\n".replace("\t", "    ") + self.tests
