"""The form of a question: shots (answered examples) before it, and the words around them.

Shots are calibration prompts. They are removed from the calibration part: a prompt that is shown is not decoded.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from selfspec.data.source import Split
from selfspec.data.task import Example
from selfspec.errors import InputError


@dataclass(frozen=True, slots=True)
class Form:
    """The words around a question and its answer.

    Attributes:
        before: text before every question.
        after: text after every question.
        gap: text between `after` and the answer of a shot.
        end: text after the answer of a shot.
        is_text: whether the question is a long text that may be shortened at its end.
    """

    before: str
    after: str
    gap: str
    end: str
    is_text: bool = False

    def put(self, example: Example, shots: Sequence[Example]) -> Example:
        """The example with its complete prompt: the shots with their answers, then its question."""
        shown = "".join(
            f"{self.before}{shot.prompt}{self.after}{self.gap}{self._answer(shot)}{self.end}" for shot in shots
        )
        start = len(shown) + len(self.before)
        clip = (start, start + len(example.prompt)) if self.is_text else None
        prompt = f"{shown}{self.before}{example.prompt}{self.after}"
        return replace(example, prompt=prompt, clip=clip, content=example.prompt)

    def _answer(self, shot: Example) -> str:
        answer = shot.reference or ""
        return answer.replace("\n", "") if self.is_text else answer  # the paper shows a summary on one line


def put(split: Split, form: Form, *, shots: int = 0) -> Split:
    """The data set with every prompt in this form, after the first `shots` calibration examples.

    Its version includes a digest of its prompts, since two files of the same name may differ.

    Raises:
        InputError: if there are fewer calibration examples.
    """
    if not isinstance(shots, int) or not 0 <= shots <= len(split.calibration):
        raise InputError(
            f"asked to show {shots} example(s) before each question, but {split.name} has {len(split.calibration)} "
            "calibration prompts to take them from; change data.shots= or data.calibration_n="
        )
    shown, rest = split.calibration[:shots], split.calibration[shots:]
    calibration = [form.put(example, shown) for example in rest]
    evaluation = [form.put(example, shown) for example in split.evaluation]
    digest = hashlib.sha256("\0".join(e.prompt for e in [*calibration, *evaluation]).encode()).hexdigest()
    return replace(
        split,
        version=f"{split.version}-{digest[:12]}",
        calibration=calibration,
        evaluation=evaluation,
        about={**split.about, "shots": [shot.id for shot in shown]},
    )
