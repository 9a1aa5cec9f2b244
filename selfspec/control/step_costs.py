"""Seconds of the steps of a batch: what a controller decides by. It knows nothing of measuring."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from selfspec.errors import InputError

N_TERMS = 5  # of `StepCosts.verify`


@dataclass(frozen=True, slots=True)
class StepCosts:
    """Seconds of verifying and of drafting, as sums of a few terms.

    All rows of a step are read in one forward, each padded to the longest draft, so rows of n tokens are counted as
    rows times n.

    Attributes:
        verify: seconds of the target's forward: a constant, for each row, for each token of a row, for each token of
            each row, and for each token of context of each row.
        draft: seconds of a forward of the draft: a constant, and for each row; None: no forward drafts.
        r2: R² of `verify` on points that it was not fitted to; None: unknown.
        of: what the seconds were measured on, by name: device, dtype, threads, ...
        prefill: seconds of the forward that reads a piece of one prompt: a constant, and for each token; None: as
            `verify` says, which was fitted to a few tokens.
    """

    verify: tuple[float, ...]
    draft: tuple[float, float] | None = None
    r2: float | None = None
    of: Mapping[str, Any] | None = None
    prefill: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        others = *(self.draft or ()), *(self.prefill or ())
        if len(self.verify) != N_TERMS or min(*self.verify, *others) < 0 or sum(self.verify) <= 0:
            raise InputError(
                f"costs of a step verify={self.verify}, draft={self.draft}, prefill={self.prefill}: {N_TERMS} terms, "
                "2 and 2, none below 0; measure them again (costs.refresh=true)"
            )

    def verify_s(self, n_rows: int, n_tokens: int, context: float) -> float:
        """Seconds of the target's forward of `n_tokens` in each of `n_rows`, after `context` tokens on average."""
        return sum(c * t for c, t in zip(self.verify, terms(n_rows, n_tokens, context), strict=True))

    def prefill_s(self, n_tokens: int, context: int) -> float:
        """Seconds of reading `n_tokens` of one prompt after `context` tokens."""
        if self.prefill is None:
            return self.verify_s(1, n_tokens, context)
        return self.prefill[0] + self.prefill[1] * n_tokens + self.verify[-1] * context

    def of_batch(self, n_rows: int, context: float, longest: int, breadth: float = 1.0) -> BatchCosts:
        """The costs of one step of a batch.

        Args:
            n_rows: number of rows.
            context: tokens before the step, on average over the rows.
            longest: tokens of the longest draft to consider.
            breadth: nodes that are verified for each level of a draft, above 1 for trees.
        """
        begin = self.verify_s(n_rows, 1, context)
        # the fit is linear in the tokens, so one difference serves all lengths
        each = self.verify_s(n_rows, 2, context) - begin
        forward_s, row_s = self.draft or (0.0, 0.0)
        return BatchCosts(tuple(begin + each * breadth * n for n in range(longest + 1)), forward_s, row_s)

    def drafting(self, draft: tuple[float, float] | None) -> StepCosts:
        """The same with other costs of drafting."""
        return replace(self, draft=draft)

    def check_device(self, here: Mapping[str, Any]) -> None:
        """Refuse costs that were measured elsewhere: seconds of two devices cannot be compared.

        Args:
            here: device, dtype, threads, ... of this run; names that the costs do not have are not compared.

        Raises:
            InputError: with the first difference.
        """
        for name, there in (self.of or {}).items():
            if name in here and here[name] != there:
                raise InputError(
                    f"the costs of a step were measured with {name}={there}, and here it is {here[name]}; measure them "
                    "here (selfspec profile), or set controller=none"
                )

    def to_dict(self) -> dict[str, Any]:
        """The costs as plain values; `from_dict` is the inverse."""
        return asdict(self)

    @classmethod
    def read(cls, path: Path) -> StepCosts:
        """The costs in a file `costs.json` of `selfspec profile` or `selfspec serve-sim`.

        Raises:
            InputError: if it holds none.
        """
        try:
            return cls.from_dict(json.loads(path.read_text(encoding="utf-8"))["steps"])
        except InputError:
            raise
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"costs={path} holds no costs of a step ({error}); `selfspec profile` measures them"
            ) from None

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> StepCosts:
        """The costs of `to_dict`, also from JSON."""
        draft, prefill = (None if body.get(name) is None else tuple(body[name]) for name in ("draft", "prefill"))
        return cls(tuple(body["verify"]), draft, body.get("r2"), body.get("of"), prefill)


@dataclass(frozen=True, slots=True)
class BatchCosts:
    """Seconds of one step of a batch.

    Attributes:
        verify_s: of the target's forward if the longest draft has 0, 1, 2, ... tokens.
        forward_s: of a forward of the draft.
        row_s: of each row in a forward of the draft, in addition.
    """

    verify_s: tuple[float, ...]
    forward_s: float = 0.0
    row_s: float = 0.0

    def seconds(self, lengths: Sequence[int]) -> float:
        """Seconds of a step in which the rows draft these numbers of tokens."""
        longest = max(lengths, default=0)
        return self.verify_s[longest] + longest * self.forward_s + sum(lengths) * self.row_s


def terms(n_rows: int, n_tokens: int, context: float) -> tuple[float, ...]:
    """What the terms of `StepCosts.verify` are multiplied with."""
    return 1.0, n_rows, n_tokens, n_rows * n_tokens, n_rows * context
