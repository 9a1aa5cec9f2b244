"""GSM8K: word problems of school arithmetic; a reference ends with #### and the answer.

Source: Cobbe et al. 2021 (arXiv:2110.14168).
"""

from collections.abc import Mapping
from typing import Any

from selfspec.data.rows import text
from selfspec.data.shots import Form, put
from selfspec.data.source import Origin, Source, Split
from selfspec.data.task import Example

RAW = Form("Question: ", "\nAnswer:", " ", "\n\n")
CHAT = Form("", "\nReason step by step. End with #### and the answer.", "\n", "\n\n")
HINT = "to read other prompts, use data=jsonl"


def gsm8k(source: Source, *, shots: int = 5, chat: bool = False) -> Split:
    """The problems, each after `shots` others with their solutions.

    Args:
        source: rows with `question` and `answer`; the train split, or data.calibration_path, is for calibration.
        shots: number of problems shown with their solutions.
        chat: ask a chat model; otherwise a text to continue.

    Raises:
        InputError: if the source is not available, or a row has another form.
    """
    origin = Origin("gsm8k", "1", "openai/gsm8k", "main", "train", _read)
    return put(source.load(origin), CHAT if chat else RAW, shots=shots)


def _read(row: Mapping[str, Any], place: str, where: str) -> Example:
    question = text(row, "question", where, hint=HINT)
    return Example(place, question, text(row, "answer", where, hint=HINT), "math")
