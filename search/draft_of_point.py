"""From a point of the search space to its draft spec.

A search sees skip sets and named values; this module gives them their meaning. Settings outside the space are those of
the run.
"""

# V tokens that the draft's head scores

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_args

from torch import Tensor

from search.dimensions import Choice, Dimension, choices
from search.fitting.bridge_fitting import BridgeFitter
from search.fitting.continuations import Text, continued
from search.fitting.kept_fits import bridge_fitter
from search.fitting.vocabulary import most_useful
from search.point import TRAINED, Point, Value
from selfspec.drafters.lookup import joined
from selfspec.drafters.spec import DraftSpec, Lookup
from selfspec.drafters.tree_shapes import TreeShape
from selfspec.errors import InputError, check_count, unknown_name
from selfspec.measure.phases import Phases, unwatched
from selfspec.models.decoder import Decoder
from selfspec.records.content_cache import ContentCache
from selfspec.skipping.bridges import KINDS
from selfspec.skipping.plan import PLAIN, DraftPlan, Precision
from selfspec.skipping.rounding import check_kernel
from selfspec.skipping.skip_set import SkipSet
from selfspec.stopping import StopPolicy
from selfspec.targets import changed

NAMES = ("head", "precision", "draft", "lookup", "memory", TRAINED)  # names of dimensions; others are GROUP.SETTING
GROUPS = ("stop", "tree", "drafter")
FULL = "full"  # the head that scores all tokens


@dataclass(frozen=True, slots=True)
class Drafts:
    """The settings of drafts; called with a point, it gives the point's draft spec.

    Attributes:
        stop: the stop rule.
        kind: kind of the bridges: skip (none), mean, linear or lowrank.
        fits: fits bridges; None if no draft of the run has any.
        merge: one bridge for a run of adjacent skipped sublayers instead of one for each.
        rank: rank of lowrank bridges.
        head: number of tokens that the draft's head scores; None: all.
        heads: ids of these tokens by their number, each [V], for every head that a draft of the run may have.
        precision: precision of the kept weights.
        lookup: prompt lookup, see `DraftSpec`; None: none.
        memory: number of tokens of other texts that prompt lookup searches; None: none.
        memories: these texts by their size, in the form of `lookup.Memory`.
        tree, sample_draft, drafter: see `DraftSpec`.
        other_heads: further heads to try with the best points of a search.
        trained: drafts of trained heads by name, each with its own head, precision and stop rule.
        chosen: name of the trained draft that takes the place of the model's layers; None: the layers draft.
        price: adds measured costs to a spec whose tree needs them; None: there are no costs.
    """

    stop: StopPolicy
    kind: str = PLAIN
    fits: BridgeFitter | None = None
    merge: bool = True
    rank: int | None = None
    head: int | None = None
    heads: Mapping[int, Tensor] = field(default_factory=dict)
    precision: Precision = "same"
    lookup: Lookup | None = None
    memory: int | None = None
    memories: Mapping[int, Tensor] = field(default_factory=dict)
    tree: TreeShape | None = None
    sample_draft: bool = True
    drafter: Mapping[str, Any] | None = None
    other_heads: Sequence[int] = ()
    trained: Mapping[str, DraftSpec] = field(default_factory=dict)
    chosen: str | None = None
    price: Callable[[DraftSpec], DraftSpec] | None = None

    def kinds(self, dimensions: Sequence[Dimension]) -> list[str]:
        """The bridges that a draft of a search over these dimensions may have."""
        return choices(dimensions, "draft", self.kind)

    def head_sizes(self, dimensions: Sequence[Dimension]) -> list[int]:
        """The sizes that a trimmed head of such a draft may have."""
        return _sizes("head", choices(dimensions, "head", self.head), self.other_heads)

    def memory_sizes(self, dimensions: Sequence[Dimension]) -> list[int]:
        """The sizes that a memory of such a draft may have, in tokens."""
        return _sizes("memory", choices(dimensions, "memory", self.memory), ())

    def precisions(self, dimensions: Sequence[Dimension]) -> list[Precision]:
        """The precisions that such a draft may have."""
        return choices(dimensions, "precision", self.precision)

    def needs_texts(self, dimensions: Sequence[Dimension]) -> bool:
        """Whether drafts are made of what the full model says: prompts beyond those of the search are needed."""
        is_mapped = set(self.kinds(dimensions)) != {PLAIN}
        return is_mapped or bool(self.head_sizes(dimensions) or self.memory_sizes(dimensions))

    def is_plain(self, dimensions: Sequence[Dimension] = ()) -> bool:
        """Whether a draft is nothing but the model without its skip set: no plan is needed to say what it is."""
        return not self.needs_texts(dimensions) and self.precisions(dimensions) == ["same"] and not self.trained

    def __call__(self, draft: Point | SkipSet) -> DraftSpec:
        """The spec of a point.

        Raises:
            RuntimeError: if its values exclude each other, so that there is no such draft.
        """
        point = Point.from_draft(draft)
        try:
            chosen = self.at(point.settings)
        except InputError as error:
            raise RuntimeError(str(error)) from None
        return chosen._spec(point.skip)

    def outline(self, draft: Point | SkipSet) -> DraftPlan:
        """The plan of a point with unfitted bridges; it has the cost and the size of the real plan."""
        point = Point.from_draft(draft)
        return self.at(point.settings)._outline(point.skip)

    def at(self, settings: Mapping[str, Value]) -> Drafts:
        """The drafts with these values in place of the run's own settings.

        Raises:
            InputError: if a name or a value is invalid.
        """
        parts: dict[str, dict[str, Value]] = {}
        found = self
        for name, value in settings.items():
            group, dot, part = name.partition(".")
            if dot and group in GROUPS:
                parts.setdefault(group, {})[part] = value
            else:
                found = found._with(name, value)
        for group, values in parts.items():
            found = found._with_part(group, values)
        return found

    def variants(self, point: Point) -> list[Drafts]:
        """These drafts, and the same with each of the other heads, unless the point has a head of its own."""
        found, n_scored = [self], {None if self.head is None else len(self.heads[self.head])}
        has_own = "head" in point.settings or point.settings.get(TRAINED)
        for n in () if has_own else self.other_heads:
            if len(self.heads[n]) not in n_scored:
                n_scored.add(len(self.heads[n]))
                found.append(replace(self, head=n))
        return found

    def _with(self, name: str, value: Any) -> Drafts:
        """The drafts with another value of a setting in `NAMES`."""
        if name == "head":
            return replace(self, head=_member(name, None if value == FULL else value, (None, *self.heads)))
        if name == "precision":
            return replace(self, precision=_member(name, value, get_args(Precision)))
        if name == "draft":
            kind = _member(name, value, (PLAIN, *KINDS))
            if kind == "lowrank" and self.rank is None:
                raise InputError("draft=lowrank needs a rank; set draft.rank")
            return replace(self, kind=kind, rank=self.rank if kind == "lowrank" else None)
        if name == "lookup":
            return replace(self, lookup=_member(name, value, (None, *get_args(Lookup))))
        if name == "memory":
            return replace(self, memory=_member(name, value or None, (None, *self.memories)))
        if name == TRAINED:
            return replace(self, chosen=_member(name, value, (None, *self.trained)))
        raise unknown_name("dimension of the space", name, [*NAMES, *(f"{group}.SETTING" for group in GROUPS)])

    def _with_part(self, group: str, values: Mapping[str, Value]) -> Drafts:
        """The drafts with other settings of the stop rule, the tree or the user's drafter."""
        part = getattr(self, group)
        if part is None:
            raise InputError(f"the run has no {group}, of which {', '.join(values)} could be searched; choose one")
        changes: dict[str, Any] = {group: {**part, **values} if group == "drafter" else changed(part, group, **values)}
        return replace(self, **changes)

    def _spec(self, skip: SkipSet) -> DraftSpec:
        if self.chosen is not None:
            own = self.trained[self.chosen]
            spec = DraftSpec(self._outline(skip), own.stop, self.lookup, sample_draft=self.sample_draft)
            return spec if self.price is None else self.price(spec)
        plan = DraftPlan(skip)
        if self.kind != PLAIN:
            assert self.fits is not None
            plan = self.fits.plan(skip, kind=self.kind, merge=self.merge, rank=self.rank)
        spec = DraftSpec(
            replace(plan, **self._kept()),
            self.stop,
            self.lookup,
            tree=self.tree,
            sample_draft=self.sample_draft,
            drafter=self.drafter,
        )
        return spec if self.price is None else self.price(spec)

    def _outline(self, skip: SkipSet) -> DraftPlan:
        if self.chosen is not None:
            return replace(self.trained[self.chosen].plan, memory=self._kept()["memory"])
        bridges = {}
        if self.kind != PLAIN and self.fits is not None:
            bridges = self.fits.blanks(skip, kind=self.kind, merge=self.merge, rank=self.rank)
        return DraftPlan(skip, bridges, kind=self.kind if bridges else PLAIN, **self._kept())

    def _kept(self) -> dict[str, Any]:
        head = None if self.head is None else self.heads[self.head]
        memory = None if self.memory is None else self.memories[self.memory]
        return {"head": head, "precision": self.precision, "memory": memory}


def fitted(
    drafts: Drafts,
    decoder: Decoder,
    prompts: Sequence[list[int]],
    *,
    dimensions: Sequence[Dimension] = (),
    n_tokens: int,
    max_new_tokens: int,
    cache: ContentCache | None = None,
    phase: Phases = unwatched,
) -> Drafts:
    """The drafts with all maps, heads and memories that a search over the dimensions may need.

    Args:
        drafts: with nothing fitted.
        decoder: the model, whose own continuations all is made of.
        prompts: token ids; of those that no draft is judged on.
        dimensions: of the search.
        n_tokens: positions whose hidden states are kept for maps.
        max_new_tokens: of each prompt.
        cache: of this model: what was computed before is found again there, and what is computed now is kept.
        phase: is told how it goes on.

    Raises:
        InputError: if there is no prompt and the drafts are made of some, or a dimension has a value that cannot be.
    """
    for precision in drafts.precisions(dimensions):
        if precision not in get_args(Precision):
            raise unknown_name("precision", str(precision), list(get_args(Precision)))
        if precision != "same":
            check_kernel(precision, decoder.device)
    check_texts(drafts, dimensions, prompts)
    if drafts.needs_texts(dimensions):
        check_count("calibration.n_tokens", n_tokens)
        memories = drafts.memory_sizes(dimensions)
        n_answered = max(n_tokens, *memories, 0)
        how: dict[str, Any] = {"cache": cache, "phase": phase}
        texts = continued(decoder, prompts, max_new_tokens=max_new_tokens, n_tokens=n_answered, **how)
        is_mapped = set(drafts.kinds(dimensions)) != {PLAIN}
        drafts = replace(
            drafts,
            fits=bridge_fitter(decoder, texts, n_tokens=n_tokens, **how) if is_mapped else None,
            heads=heads(decoder, texts, drafts.head_sizes(dimensions)),
            memories={n: remembered(texts, n) for n in memories},
        )
    check_dimensions(drafts, dimensions)
    return drafts


def check_texts(drafts: Drafts, dimensions: Sequence[Dimension], prompts: Sequence[list[int]]) -> None:
    """Refuse drafts that are made of what the model writes after prompts, if there is no prompt.

    Raises:
        InputError: says what data to give.
    """
    if drafts.needs_texts(dimensions) and not prompts:
        raise InputError(
            f"draft={drafts.kind}, head.n={drafts.head} and memory={drafts.memory} are made from calibration "
            "prompts beyond those of the search and its finals, and none are left; give data with more of them, "
            "as by data.calibration_n where it has that"
        )


def _sizes(name: str, own: Iterable[int | str | None], others: Iterable[int]) -> list[int]:
    """Those that are sizes; the whole and none are none."""
    found = [n for n in (*own, *others) if n not in (None, 0, FULL)]
    for n in found:
        check_count(name, n)
    return list(dict.fromkeys(found))  # type: ignore[arg-type]


def check_dimensions(drafts: Drafts, dimensions: Sequence[Dimension]) -> None:
    """Check that a draft can have each value of each dimension, taken by itself.

    Raises:
        InputError: if not, or if a dimension of `NAMES` is a range instead of a choice.
    """
    for d in dimensions:
        if d.name in NAMES and not isinstance(d.domain, Choice):
            raise InputError(f"space.{d.name} is a range; what is made beforehand has a list of values: [a, b]")
        for value in d.domain.extremes:
            try:
                drafts.at({d.name: value})
            except InputError as error:
                raise InputError(f"space.{d.name}: {error}") from None


def _member(name: str, value: Any, known: Iterable[Any]) -> Any:
    if not any(value is k or (value == k and type(value) is type(k)) for k in known):
        none = FULL if name == "head" else "null"
        raise InputError(f"{name}={value}; it is one of {', '.join(none if k is None else str(k) for k in known)}")
    return value


def remembered(texts: Sequence[Text], n_tokens: int) -> Tensor:
    """The first texts (prompts and answers) with `n_tokens` tokens of answers, in the form of `lookup.Memory`."""
    until = itertools.accumulate((len(t.tokens) for t in texts), initial=0)
    return joined([*t.prompt, *t.tokens] for t, n_before in zip(texts, until, strict=False) if n_before < n_tokens)


def heads(decoder: Decoder, texts: Sequence[Text], sizes: Iterable[int]) -> dict[int, Tensor]:
    """For each size, ids of the tokens that a draft's head should score, [V]; all of them if there are fewer.

    Args:
        decoder: the model.
        texts: texts of `search.fitting.continuations.continued`.
        sizes: numbers of tokens.
    """
    n_vocab = int(decoder.config.vocab_size)
    answers, prompts, always = [t.tokens for t in texts], [t.prompt for t in texts], sorted(decoder.eos_ids)
    return {n: most_useful(answers, min(n, n_vocab), n_vocab=n_vocab, prompts=prompts, always=always) for n in sizes}
