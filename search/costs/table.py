"""The cost table: seconds of the parts of a forward, which give the cost of any skip set.

A table is a value. It knows nothing of measuring, which is in `search.costs.measure`.
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

FORM = 3  # version of the measurement; tables of older versions can be read, but are measured again
FORMER_NAMES = {"round_s": "overhead_s", "beside_s": "interaction_s"}  # in files written before 2026-11-28
GRID = (0.0, 0.5, 1.0)  # fractions of the attention and of the MLP sublayers that measured drafts skip


@dataclass(frozen=True, slots=True)
class CostTable:
    """Seconds of the parts of a forward.

    Attributes:
        contexts: context lengths of the measurement, in tokens, in rising order.
        attn_s: one attention sublayer for one token, at each of `contexts`.
        mlp_s: one MLP sublayer for one token.
        base_s: the parts that no skip set skips: embedding, norms, head, choice of a token, and its confidence.
        full_s: one plain token and its choice, at each of `contexts`.
        verify_s: the full forward of 1, 2, 3, ... tokens, at the first of `contexts`.
        verify_far_s: the same at the last of `contexts`; empty: each grows with the context as one token does.
        overhead_s: a round with a model draft, without its forwards; plain rounds and lookup rounds have none.
        head_s: the output head, a part of `base_s`.
        map_s: one linear bridge; a mean costs nothing, and a map of low rank costs its fraction of the weights.
        head_saved_s: saving by the draft's own head of this table, which is trimmed, rounded or both.
        attn_saved_s: saving by int8 or int4 for one attention sublayer.
        mlp_saved_s: saving by int8 or int4 for one MLP sublayer.
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

    @property
    def text(self) -> str:
        """All numbers, under the first names of the fields: the same text whatever a version calls them."""
        found = str(self)
        for former, name in FORMER_NAMES.items():
            found = found.replace(f"{name}=", f"{former}=")
        return found

    def for_plan(self, plan: DraftPlan) -> CostTable:
        """The table itself, which serves all plans of its head and precision."""
        return self

    def draft_s(self, draft: SkipSet | DraftPlan, context: int) -> float:
        """Seconds of one drafted token of a skip set or a plan, after `context` tokens."""
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
        """Cost of one drafted token, in plain tokens: the c of the expected speedup."""
        return self.draft_s(draft, context) / self.plain_s(context)

    def plain_s(self, context: int) -> float:
        """Seconds of one plain token after `context` tokens."""
        return self._at(self.full_s, context)

    def verification_s(self, n_tokens: int, context: int) -> float:
        """Seconds of the full forward of `n_tokens` after `context` tokens; extrapolated beyond the measured sizes."""
        near = along(self.verify_s, n_tokens)
        far = along(self.verify_far_s, n_tokens) if self.verify_far_s else near + self.full_s[-1] - self.full_s[0]
        return self._at((near, far), context)

    def _interaction_s(self, skip: SkipSet, context: int) -> float:
        """Linear interpolation of `interaction_s` between measured sets: over MLPs, then attention, then context."""
        n, found = skip.n_layers, []
        for grid in self.interaction_s:
            rows = [between(grid[i : i + 3], len(skip.mlp), n) for i in (0, 3, 6)]
            found.append(between(rows, len(skip.attn), n))
        return self._at(found, context, may_fall=True) if found else 0.0

    def _at(self, values: Sequence[float], context: int, *, may_fall: bool = False) -> float:
        """The value at a context, on the line through the first and the last measured one.

        Before the first context its value counts. After the last one its value counts if the line falls: more context
        never costs less, and a line through two noisy values may become negative. `may_fall`: the values are
        differences, which may fall.
        """
        if len(self.contexts) == 1 or context <= self.contexts[0]:
            return values[0]
        if context > self.contexts[-1] and values[-1] < values[0] and not may_fall:
            return values[-1]
        slope = (values[-1] - values[0]) / (self.contexts[-1] - self.contexts[0])
        return values[0] + slope * (context - self.contexts[0])

    def to_dict(self) -> dict[str, Any]:
        """The table as plain values; `from_dict` is the inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> CostTable:
        """The table of `to_dict`, also from JSON; earlier names of its parts are understood."""
        named = {FORMER_NAMES.get(k, k): v for k, v in body.items()}
        parts: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in named.items()}
        return cls(**parts | {"interaction_s": tuple(tuple(grid) for grid in parts.get("interaction_s", ()))})

    @classmethod
    def read(cls, path: Path) -> CostTable:
        """The table in a JSON file.

        Raises:
            InputError: if there is none, or it holds impossible times.
        """
        try:
            table = cls.from_dict(json.loads(path.read_text(encoding="utf-8"))["costs"])
            table.check(str(path))
        except InputError:
            raise
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(f"{path} is not a cost table ({error}); `selfspec profile` makes one") from None
        return table

    def check(self, name: str, *, n_layers: int | None = None, contexts: Sequence[int] = ()) -> None:
        """Check that no time is negative, nan or infinite, and that every token costs something at the given contexts.

        Args:
            name: name of the table, for the message.
            n_layers: number of layers of the model; None: drafts are not checked.
            contexts: contexts at which costs will be read, besides the measured ones.

        Raises:
            InputError: names the first impossible time.
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
                f"{name}: {what} takes {seconds:.3g} s, which is impossible; the machine was busy: measure again while "
                "it is quiet (costs.refresh=true), or give another table by costs.path"
            )


def along(known: Sequence[float], n: int) -> float:
    """The `n`-th value (from 1); beyond the last one, extrapolated with the last step."""
    step = known[-1] - known[-2] if len(known) > 1 else 0.0
    return known[min(n, len(known)) - 1] + max(0, n - len(known)) * step


def between(values: Sequence[float], count: int, n_layers: int) -> float:
    """The value at `count` skipped sublayers, interpolated from the values at none, half and all."""
    none, middle, every = values
    half = round(n_layers / 2)
    if count >= half:
        return middle + (every - middle) * (count - half) / (n_layers - half)
    return none + (middle - none) * count / half


def spread(n_layers: int, fraction: float) -> frozenset[int]:
    """This fraction of the layers, evenly spaced."""
    count = round(n_layers * fraction)
    return frozenset(int((i + 0.5) * n_layers / count) for i in range(count))
