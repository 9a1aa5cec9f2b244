"""What a draft costs on this machine: measured once, then known for every skip set.

The parts are measured in place, as differences between forwards that leave all of one kind out, so that what a part
costs here is what leaving it out saves. Seconds hold for one model, dtype, device, number of threads and kernel.
"""

# L layers

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import isotonic_regression  # type: ignore[import-untyped]
from torch import Tensor

from search.turns import Turns
from selfspec.bridges import Bridge
from selfspec.build_drafter import build_drafter
from selfspec.cache import ClockCache
from selfspec.decode import Ending, speculate
from selfspec.errors import InputError
from selfspec.model import Decoder
from selfspec.plan import DraftPlan, Precision
from selfspec.protocols import Row
from selfspec.sampling import Chooser, Sampling, largest
from selfspec.skip import SkipSet
from selfspec.spec import DraftSpec
from selfspec.stop import Threshold
from selfspec.timing import Stopwatch

FORM = 2  # of a table: what it measures; one of an older form can be read, but is not what is measured now
GRID = (0.0, 0.5, 1.0)  # parts of the attention, and of the MLPs, that are left out where drafts are measured
OVERHEAD_REPEATS, OVERHEAD_ROUNDS, N_DRAFTED = 8, 4, 2  # enough for a median; chosen, not tuned


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
        round_s: of a round beside its forwards, where the model drafts; a plain round, or one looked up, has nothing.
        map_s: of one linear bridge; a mean costs nothing, a map of low rank its part of the weights.
        head_saved_s: what the draft's own head that it was measured with saves: trimmed, rounded or both.
        attn_saved_s: what int8 or int4 saves of one attention sublayer.
        mlp_saved_s: what int8 or int4 saves of one MLP sublayer.
        beside_s: what a drafted token takes beside the sum of its parts, at each of `contexts`: with none, half and all
            of the attention left out (rows) and of the MLPs (columns), row by row; empty: nothing.
    """

    contexts: tuple[int, ...]
    attn_s: tuple[float, ...]
    mlp_s: float
    base_s: float
    full_s: tuple[float, ...]
    verify_s: tuple[float, ...]
    verify_far_s: tuple[float, ...] = ()
    round_s: float = 0.0
    head_s: float = 0.0
    map_s: float = 0.0
    head_saved_s: float = 0.0
    attn_saved_s: float = 0.0
    mlp_saved_s: float = 0.0
    beside_s: tuple[tuple[float, ...], ...] = ()

    def for_plan(self, plan: DraftPlan) -> CostTable:
        """Itself: a table of one head and precision is for all plans that have them."""
        return self

    def draft_s(self, draft: SkipSet | DraftPlan, context: int) -> float:
        """Seconds of one drafted token with a skip set left out or as planned, after `context` tokens."""
        plan = draft if isinstance(draft, DraftPlan) else DraftPlan.of(draft)
        skip = plan.skip
        n_attn, n_mlp = skip.n_layers - len(skip.attn), skip.n_layers - len(skip.mlp)
        bridges_s = sum(b.n_maps for b in plan.bridges.values()) * self.map_s
        is_rounded = plan.precision != "same"
        saved_s = self.head_saved_s if is_rounded or plan.head is not None else 0.0
        saved_s += n_attn * self.attn_saved_s + n_mlp * self.mlp_saved_s if is_rounded else 0.0
        parts_s = self.base_s + n_attn * self._at(self.attn_s, context) + n_mlp * self.mlp_s
        return parts_s + self._beside_s(skip, context) + bridges_s - saved_s

    def draft_cost(self, draft: SkipSet | DraftPlan, context: int) -> float:
        """Of one drafted token, in plain tokens: c of the expected speedup."""
        return self.draft_s(draft, context) / self.plain_s(context)

    def plain_s(self, context: int) -> float:
        """Seconds of one plain token after `context` tokens."""
        return self._at(self.full_s, context)

    def verification_s(self, n_tokens: int, context: int) -> float:
        """Seconds of the full forward of `n_tokens` after `context`; beyond what was measured, along the last step."""
        near = _along(self.verify_s, n_tokens)
        far = _along(self.verify_far_s, n_tokens) if self.verify_far_s else near + self.full_s[-1] - self.full_s[0]
        return self._at((near, far), context)

    def _beside_s(self, skip: SkipSet, context: int) -> float:
        """Between the sets that were measured, along straight lines: by MLPs, then attention, then context."""
        n, found = skip.n_layers, []
        for grid in self.beside_s:
            rows = [_between(grid[i : i + 3], len(skip.mlp), n) for i in (0, 3, 6)]
            found.append(_between(rows, len(skip.attn), n))
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

    def as_dict(self) -> dict[str, Any]:
        """For JSON; `read` is its inverse."""
        return asdict(self)

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> CostTable:
        """The table of `as_dict`, also after JSON made lists of its tuples."""
        parts: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in body.items()}
        return cls(**parts | {"beside_s": tuple(tuple(grid) for grid in parts.get("beside_s", ()))})

    @classmethod
    def read(cls, path: Path) -> CostTable:
        """The table in a JSON file.

        Raises:
            InputError: if there is none, or it holds times that cannot be.
        """
        try:
            table = cls.of(json.loads(path.read_text(encoding="utf-8"))["costs"])
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
            **{"mlp_s": self.mlp_s, "base_s": self.base_s, "round_s": self.round_s, "map_s": self.map_s},
        }
        whole = {f"full_s at {c}": s for c, s in zip(self.contexts, self.full_s, strict=False)}
        whole |= {f"verify_s of {k}": s for k, s in enumerate(self.verify_s, start=1)}
        for context in contexts:
            whole[f"a plain token after {context}"] = self.plain_s(context)
            whole[f"a verification of {len(self.verify_s)} after {context}"] = self.verification_s(
                len(self.verify_s), context
            )
        if n_layers is not None:
            sets = [SkipSet(n_layers, _spread(n_layers, a), _spread(n_layers, m)) for a in GRID for m in GRID]
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


@torch.inference_mode()
def measure(
    decoder: Decoder, *, contexts: Sequence[int], max_tokens: int, repeats: int, stopwatch: Stopwatch
) -> CostTable:
    """Measure the table; takes some `repeats` · 2 · (sets + max_tokens) forwards. The machine must be quiet.

    Sets that leave out none, half or all of the attention and MLP sublayers are drafted with in turn; the parts are the
    least-squares fit of their medians, and what is left of each set stands beside them.

    Args:
        decoder: the model.
        contexts: one or two lengths, rising; two where attention's growth matters.
        max_tokens: the longest verification.
        repeats: of every forward, in turn with the others; the median counts.
        stopwatch: where seconds come from.
    """
    n = decoder.n_layers
    sets = [SkipSet(n, _spread(n, a), _spread(n, m)) for a in GRID for m in GRID]
    turns = Turns(_plain(decoder, 1, contexts[0]), repeats, stopwatch)
    full, drafted = [1.0], []
    for context in contexts:
        calls = {str(s): _drafting(decoder, s, context) for s in sets}
        if context != contexts[0]:
            calls["plain"] = _plain(decoder, 1, context)
        units = turns.units(calls)
        full += [units["plain"]] if "plain" in units else []
        drafted += [(context, s, units[str(s)]) for s in sets]
    base, mlp, *attn = _fit(drafted, contexts)
    verify = []
    for context in contexts:
        sizes = {str(k): _plain(decoder, k, context) for k in range(1, max_tokens + 1)}
        # More tokens never cost less: where the medians fall, it is noise.
        verify.append(isotonic_regression(list(turns.units(sizes).values())).x)
    head_units = turns.units({"head": _calling_head(decoder)})["head"]
    unit_s = turns.unit_s
    table = CostTable(
        contexts=tuple(contexts),
        attn_s=tuple(v * unit_s for v in attn),
        mlp_s=mlp * unit_s,
        base_s=base * unit_s,
        full_s=tuple(v * unit_s for v in full),
        verify_s=tuple(float(v) * unit_s for v in verify[0]),
        verify_far_s=tuple(float(v) * unit_s for v in verify[-1]) if len(verify) > 1 else (),
        head_s=head_units * unit_s,
    )
    left = [tuple(v * unit_s - table.draft_s(s, c) for at, s, v in drafted if at == c) for c in contexts]
    table = replace(table, beside_s=tuple(left))
    return replace(table, round_s=_round_units(decoder, contexts[0], stopwatch) * unit_s)


@torch.inference_mode()
def measure_drafts(
    decoder: Decoder,
    table: CostTable,
    *,
    has_maps: bool,
    head: Tensor | None,
    precision: Precision = "same",
    repeats: int,
    stopwatch: Stopwatch,
) -> CostTable:
    """The table with what linear bridges cost, and what a trimmed head and rounded weights save, at the first context.

    Args:
        decoder: the model.
        table: what plain skipping costs.
        has_maps: whether bridges are wanted that hold a matrix.
        head: tokens that the draft scores, [V]; None: all.
        precision: of the weights that the drafts keep.
        repeats: of every forward, in turn with the others; the median counts.
        stopwatch: where seconds come from.
    """
    context, n = table.contexts[0], decoder.n_layers
    everything = DraftPlan.of(SkipSet.from_bits([True] * (2 * n)))
    has_head, is_rounded = head is not None or precision != "same", precision != "same"
    halves = {"attn": SkipSet(n, mlp=frozenset(range(n))), "mlp": SkipSet(n, attn=frozenset(range(n)))}
    calls = {"nothing": _drafting(decoder, everything, context)}
    if has_maps:
        width = int(decoder.config.hidden_size)
        zeros = torch.zeros(width, width), torch.zeros(width)
        places = [at for at in everything.skipped if at[0] == "attn"]  # every family takes a bridge there
        bridges = {at: Bridge(zeros[1], zeros[:1]) for at in places}
        calls["maps"] = _drafting(decoder, DraftPlan(everything.skip, bridges, kind="linear"), context)
    if has_head:
        own = DraftPlan(everything.skip, head=head, precision=precision)
        calls["head"] = _drafting(decoder, own, context)
    if is_rounded:
        for name, skip in halves.items():
            calls[name] = _drafting(decoder, skip, context)
            calls[f"{name} rounded"] = _drafting(decoder, replace(own, skip=skip), context)
    turns = Turns(_plain(decoder, 1, context), repeats, stopwatch)
    units, unit_s = turns.units(calls), table.plain_s(context)
    map_s = max(0.0, units["maps"] - units["nothing"]) * unit_s / n if has_maps else 0.0
    saved = units["nothing"] - units["head"] if has_head else 0.0
    # A kernel may lose on small layers: then what it saves is less than nothing, and the search is to know.
    attn_s, mlp_s = ((units[k] - units[f"{k} rounded"] - saved) * unit_s / n if is_rounded else 0.0 for k in halves)
    head_s = saved * unit_s if is_rounded else max(0.0, saved) * unit_s
    return replace(table, map_s=map_s, head_saved_s=head_s, attn_saved_s=attn_s, mlp_saved_s=mlp_s)


@torch.inference_mode()
def check(
    decoder: Decoder, table: CostTable, sets: Sequence[SkipSet | DraftPlan], *, repeats: int, stopwatch: Stopwatch
) -> list[tuple[float, float]]:
    """(predicted, measured) cost of one drafted token of each set in plain tokens, at the first context, in turn."""
    context = table.contexts[0]
    turns = Turns(_plain(decoder, 1, context), repeats, stopwatch)
    measured = turns.units({str(i): _drafting(decoder, skip, context) for i, skip in enumerate(sets)})
    plain_s = table.plain_s(context)
    return [(table.draft_s(skip, context) / plain_s, measured[str(i)]) for i, skip in enumerate(sets)]


def random_sets(n_layers: int, n_sets: int, seed: int) -> list[SkipSet]:
    """Skip sets of every size from few sublayers to nearly all, drawn evenly."""
    rng = np.random.default_rng(seed)
    sizes = np.linspace(1, 2 * n_layers - 1, n_sets).round().astype(int)
    found = []
    for size in sizes:
        chosen = set(rng.choice(2 * n_layers, size=size, replace=False).tolist())
        found.append(SkipSet.from_bits([i in chosen for i in range(2 * n_layers)]))
    return found


def _along(known: Sequence[float], n: int) -> float:
    """The `n`-th, beyond the last along the last step."""
    step = known[-1] - known[-2] if len(known) > 1 else 0.0
    return known[min(n, len(known)) - 1] + max(0, n - len(known)) * step


def _spread(n_layers: int, fraction: float) -> frozenset[int]:
    """That part of the layers, evenly spaced."""
    count = round(n_layers * fraction)
    return frozenset(int((i + 0.5) * n_layers / count) for i in range(count))


def _between(values: Sequence[float], count: int, n_layers: int) -> float:
    """The value at `count` left-out sublayers, of those at none, at `_spread`'s half and at all."""
    none, middle, every = values
    half = round(n_layers / 2)
    if count >= half:
        return middle + (every - middle) * (count - half) / (n_layers - half)
    return none + (middle - none) * count / half


def _fit(drafted: Sequence[tuple[int, SkipSet, float]], contexts: Sequence[int]) -> list[float]:
    """Cost of the base, of one MLP, and of one attention at each context: relative errors squared are least."""
    rows = []
    for context, skip, cost in drafted:
        n_attn, n_mlp = skip.n_layers - len(skip.attn), skip.n_layers - len(skip.mlp)
        rows.append([v / cost for v in (1.0, n_mlp, *(n_attn * (context == c) for c in contexts))])
    parts, *_ = np.linalg.lstsq(np.array(rows), np.ones(len(rows)), rcond=None)
    return [max(0.0, float(v)) for v in parts]


def _round_units(decoder: Decoder, context: int, stopwatch: Stopwatch) -> float:
    """What a real round takes beside its forwards, in plain tokens: at least 0, and 0 where there is no room for one.

    The forwards are timed anew, just before and after: what they cost in plain tokens differs between a machine whose
    memory is busy and one whose is not, and a round is mostly forwards.
    """
    nothing = SkipSet(decoder.n_layers)
    spec = DraftSpec(DraftPlan.of(nothing), _always(N_DRAFTED))
    drafter, plain = build_drafter(spec, decoder), _plain(decoder, 1, context)
    forwards = {"draft": _drafting(decoder, nothing, context), "verify": _plain(decoder, N_DRAFTED + 1, context)}
    left = []
    for _ in range(OVERHEAD_REPEATS):
        turns = Turns(plain, 3, stopwatch)
        before = turns.units(forwards)
        (result,) = speculate(
            decoder,
            [[5] * context],
            drafter=drafter,
            stops=[spec.stop.begin()],
            ending=Ending((N_DRAFTED + 1) * OVERHEAD_ROUNDS + 1, frozenset()),
            stopwatch=stopwatch,
        )
        after = turns.units(forwards)
        draft, verify = ((before[name] + after[name]) / 2 for name in forwards)
        whole = [r for r in result.rounds if r.drafted == N_DRAFTED]
        left += [(r.draft_s + r.verify_s) / turns.unit_s - N_DRAFTED * draft - verify for r in whole]
    return max(0.0, statistics.median(left)) if left else 0.0


def _drafting(decoder: Decoder, draft: SkipSet | DraftPlan, context: int) -> Callable[[], None]:
    """Drafting one token after `context` tokens, ready to be timed."""
    cache, ids = _prefilled(decoder, context, 1)
    spec = DraftSpec(draft if isinstance(draft, DraftPlan) else DraftPlan.of(draft), _always(1))
    drafter = build_drafter(spec, decoder)
    row = Row(0, [*ids, 5], 1, spec.stop.begin(), Chooser(Sampling()))

    def call() -> None:
        drafter.propose([row], cache=cache)

    return call


def _always(n_tokens: int) -> Threshold:
    """Drafts so many tokens, whose confidence is read as a rule that stops by it would."""
    return Threshold(n_tokens, 0.0)


def _plain(decoder: Decoder, n_tokens: int, context: int) -> Callable[[], None]:
    """The full forward of `n_tokens` after `context` tokens and their choice, ready to be timed."""
    cache, _ = _prefilled(decoder, context, n_tokens)
    ids = torch.full((1, n_tokens), 5, device=decoder.device)

    def call() -> None:
        largest(decoder.full(ids, starts=[context], cache=cache)).tolist()

    return call


def _calling_head(decoder: Decoder) -> Callable[[], None]:
    """The output head on one token, ready to be timed."""
    head = decoder.model.get_output_embeddings()  # type: ignore[operator]
    hidden_11D = torch.zeros(1, 1, int(decoder.config.hidden_size), dtype=decoder.dtype, device=decoder.device)
    return lambda: head(hidden_11D)


def _prefilled(decoder: Decoder, context: int, n_more: int) -> tuple[ClockCache, list[int]]:
    """A cache of `context` tokens with room for more, and the tokens: every third a new one, which few heads score."""
    cache = decoder.new_cache(n_rows=1, capacity=context + n_more)
    ids = [(-1 - i // 3) % int(decoder.config.vocab_size) for i in range(context)]
    decoder.full(torch.tensor([ids], device=decoder.device), starts=[0], cache=cache, n_logits=1)
    return cache, ids
