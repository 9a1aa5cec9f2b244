"""What a draft costs, as a table of the parts of a forward: known for every skip set once the parts are measured.

A value: it holds seconds and knows nothing of how they were measured (`search.costs.measure`).
"""

# L layers

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from selfspec.errors import InputError
from selfspec.skipping.plan import DraftPlan
from selfspec.skipping.skip_set import SkipSet

FORM = 2  # of a table: what it measures; one of an older form can be read, but is not what is measured now
FORMER_NAMES = {"round_s": "overhead_s", "beside_s": "interaction_s"}  # in files written before 2026-11-28
GRID = (0.0, 0.5, 1.0)  # parts of the attention, and of the MLPs, that are left out where drafts are measured


@dataclass(frozen=True, slots=True)
class CostTable:
    """Seconds of the parts of a forward.

    Attributes:
        contexts: where attention was measured, in tokens, rising.
        attn_s: of one attention sublayer for one token, at each of `contexts`.
        mlp_s: of one MLP sublayer for one token.
        head_s: of the output head alone, a part of `base_s`.
        base_s: of what no skip set leaves out: embedding, norms, head, the choice of a token and how sure it is.
        full_s: of one plain token and its choice, at each of `contexts`.
        verify_s: of the full forward of 1, 2, 3, ... tokens, at the first of `contexts`.
        verify_far_s: the same at the last; empty: each takes as much more as one token does.
        overhead_s: of a round with a model draft, without its forwards; plain rounds and lookup rounds have none.
        map_s: of one linear bridge; a mean costs nothing, a map of low rank its part of the weights.
        head_saved_s: what the draft's own head that it was measured with saves: trimmed, rounded or both.
        attn_saved_s: what int8 or int4 saves of one attention sublayer.
        mlp_saved_s: what int8 or int4 saves of one MLP sublayer.
        interaction_s: seconds of a drafted token minus the sum of its parts, one grid of 9 for each of `contexts`: with
            none, half and all of the attention (rows) and of the MLPs (columns) left out, row by row; empty: zeros.
    """

    contexts: tuple[int, ...]
    attn_s: tuple[float, ...]
    mlp_s: float
    base_s: float
    full_s: tuple[float, ...]
    verify_s: tuple[float, ...]
    verify_far_s: tuple[float, ...] = ()
    overhead_s: float = 0.0
    head_s: float = 0.0
    map_s: float = 0.0
    head_saved_s: float = 0.0
    attn_saved_s: float = 0.0
    mlp_saved_s: float = 0.0
    interaction_s: tuple[tuple[float, ...], ...] = ()

    def for_plan(self, plan: DraftPlan) -> CostTable:
        """Itself: a table of one head and precision is for all plans that have them."""
        return self

    def draft_s(self, draft: SkipSet | DraftPlan, context: int) -> float:
        """Seconds of one drafted token with a skip set left out or as planned, after `context` tokens."""
        plan = draft if isinstance(draft, DraftPlan) else DraftPlan.from_skip_set(draft)
        skip = plan.skip
        n_attn, n_mlp = skip.n_layers - len(skip.attn), skip.n_layers - len(skip.mlp)
        bridges_s = sum(b.n_maps for b in plan.bridges.values()) * self.map_s
        is_rounded = plan.precision != "same"
        saved_s = self.head_saved_s if is_rounded or plan.head is not None else 0.0
        saved_s += n_attn * self.attn_saved_s + n_mlp * self.mlp_saved_s if is_rounded else 0.0
        parts_s = self.base_s + n_attn * self._at(self.attn_s, context) + n_mlp * self.mlp_s
        return parts_s + self._interaction_s(skip, context) + bridges_s - saved_s

    def draft_cost(self, draft: SkipSet | DraftPlan, context: int) -> float:
        """Of one drafted token, in plain tokens: c of the expected speedup."""
        return self.draft_s(draft, context) / self.plain_s(context)

    def plain_s(self, context: int) -> float:
        """Seconds of one plain token after `context` tokens."""
        return self._at(self.full_s, context)

    def verification_s(self, n_tokens: int, context: int) -> float:
        """Seconds of the full forward of `n_tokens` after `context`; beyond what was measured, along the last step."""
        near = along(self.verify_s, n_tokens)
        far = along(self.verify_far_s, n_tokens) if self.verify_far_s else near + self.full_s[-1] - self.full_s[0]
        return self._at((near, far), context)

    def _interaction_s(self, skip: SkipSet, context: int) -> float:
        """Between the sets that were measured, along straight lines: by MLPs, then attention, then context."""
        n, found = skip.n_layers, []
        for grid in self.interaction_s:
            rows = [between(grid[i : i + 3], len(skip.mlp), n) for i in (0, 3, 6)]
            found.append(between(rows, len(skip.attn), n))
        return self._at(found, context, may_fall=True) if found else 0.0

    def _at(self, values: Sequence[float], context: int, *, may_fall: bool = False) -> float:
        """Along the straight line through the first and the last measured context.

        Before the first its value counts, and behind the last its value if the line falls: more context never costs
        less, and a line through two noisy values may run below zero. `may_fall`: the values are differences.
        """
        if len(self.contexts) == 1 or context <= self.contexts[0]:
            return values[0]
        if context > self.contexts[-1] and values[-1] < values[0] and not may_fall:
            return values[-1]
        slope = (values[-1] - values[0]) / (self.contexts[-1] - self.contexts[0])
        return values[0] + slope * (context - self.contexts[0])

    def to_dict(self) -> dict[str, Any]:
        """For JSON; `read` is its inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> CostTable:
        """The table of `to_dict`, also after JSON made lists of its tuples; earlier names of parts are understood."""
        named = {FORMER_NAMES.get(k, k): v for k, v in body.items()}
        parts: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in named.items()}
        return cls(**parts | {"interaction_s": tuple(tuple(grid) for grid in parts.get("interaction_s", ()))})

    @classmethod
    def read(cls, path: Path) -> CostTable:
        """The table in a JSON file.

        Raises:
            InputError: if there is none, or it holds times that cannot be.
        """
        try:
            table = cls.from_dict(json.loads(path.read_text(encoding="utf-8"))["costs"])
            table.check(str(path))
        except InputError:
            raise
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(f"{path} is no cost table ({error}); `selfspec profile` makes one") from None
        return table

    def check(self, name: str, *, n_layers: int | None = None, contexts: Sequence[int] = ()) -> None:
        """Refuse times that cannot be: below zero or nan, or a token that costs nothing at a context that is asked for.

        Args:
            name: of the table, for the message.
            n_layers: of the model; None: drafts are not looked at.
            contexts: where costs will be read, beside those that were measured.

        Raises:
            InputError: names the first such time.
        """
        parts = {
            **{f"attn_s at {c}": s for c, s in zip(self.contexts, self.attn_s, strict=False)},
            **{"mlp_s": self.mlp_s, "base_s": self.base_s, "overhead_s": self.overhead_s, "map_s": self.map_s},
        }
        whole = {f"full_s at {c}": s for c, s in zip(self.contexts, self.full_s, strict=False)}
        whole |= {f"verify_s of {k}": s for k, s in enumerate(self.verify_s, start=1)}
        for context in contexts:
            whole[f"a plain token after {context}"] = self.plain_s(context)
            whole[f"a verification of {len(self.verify_s)} after {context}"] = self.verification_s(
                len(self.verify_s), context
            )
        if n_layers is not None:
            sets = [SkipSet(n_layers, spread(n_layers, a), spread(n_layers, m)) for a in GRID for m in GRID]
            for context in {*self.contexts, *contexts}:
                whole |= {f"a drafted token with skip={s} after {context}": self.draft_s(s, context) for s in sets}
        bad = [(what, s) for what, s in parts.items() if not 0 <= s < math.inf]
        bad += [(what, s) for what, s in whole.items() if not 0 < s < math.inf]
        if bad:
            what, seconds = bad[0]
            raise InputError(
                f"{name}: {what} takes {seconds:.3g} s, which cannot be; the machine was busy: measure again while it "
                "is quiet (costs.refresh=true), or give another table by costs.path"
            )


def along(known: Sequence[float], n: int) -> float:
    """The `n`-th, beyond the last along the last step."""
    step = known[-1] - known[-2] if len(known) > 1 else 0.0
    return known[min(n, len(known)) - 1] + max(0, n - len(known)) * step


def between(values: Sequence[float], count: int, n_layers: int) -> float:
    """The value at `count` left-out sublayers, of those at none, at `_spread`'s half and at all."""
    none, middle, every = values
    half = round(n_layers / 2)
    if count >= half:
        return middle + (every - middle) * (count - half) / (n_layers - half)
    return none + (middle - none) * count / half


def spread(n_layers: int, fraction: float) -> frozenset[int]:
    """That part of the layers, evenly spaced."""
    count = round(n_layers * fraction)
    return frozenset(int((i + 0.5) * n_layers / count) for i in range(count))
