"""A looked-up branch and a branch of the model in one tree.

If the text has a match, both drafters propose and one forward verifies both. Sources that disagree cost a few more
tokens of verification, and the longer accepted branch counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from selfspec.drafters.lookup import LOOKUP, LookupDraft
from selfspec.engine.cache import ClockCache
from selfspec.engine.protocols import ROOT, AroundDrafter, Draft, Drafter, Output, Row, Verdict

MERGED = "+"  # joins the sources of a merged draft


@dataclass(frozen=True, slots=True)
class MergedDraft(AroundDrafter):
    """Looks up and drafts in every round; a row without a match gets the inner drafter's draft.

    `inner` must not draw: both branches are point masses, which keeps the target's distribution when it samples.

    Attributes:
        lookup: proposes one branch; its own `inner` is not used.
        inner: proposes the other branch.
        has_free_drafts: always.
    """

    lookup: LookupDraft
    inner: Drafter
    has_free_drafts: ClassVar[bool] = True
    # drafts of `inner`, by row
    _own: dict[int, Draft] = field(default_factory=dict, init=False, repr=False, compare=False)

    def propose(self, rows: Sequence[Row], *, cache: ClockCache) -> list[Draft]:
        """The merged draft of each row."""
        found = [self.lookup.following(row.ids, row.limit) for row in rows]
        drafted = self.inner.propose([row.within_paid() for row in rows], cache=cache)
        self._own.update({row.key: draft for row, draft in zip(rows, drafted, strict=True)})
        return [
            merged(draft, Draft(tokens, source=LOOKUP)) if tokens else draft
            for draft, tokens in zip(drafted, found, strict=True)
        ]

    def observe(self, row: Row, draft: Draft, verdict: Verdict, target: Output) -> None:
        """Pass the verdict on its own nodes, which come first, to `inner`."""
        own = self._own.pop(row.key, Draft())  # none if nobody was asked for a draft
        path = [node for node in verdict.path if node < len(own.tokens)]
        self.inner.observe(row, own, Verdict(path, verdict.token), target)

    def end(self, row: Row) -> None:
        """Forget the row, here and in `inner`."""
        self._own.pop(row.key, None)
        self.inner.end(row)


def merged(first: Draft, second: Draft) -> Draft:
    """The union of two drafts that were not drawn: a common beginning occurs once, and the nodes of `first` come first.

    Its source names both.

    Raises:
        ValueError: if one of them was drawn.
    """
    if first.probabilities is not None or second.probabilities is not None:
        raise ValueError("a draft that was drawn cannot be merged with another; take sample_draft=false")
    tokens, parents = list(first.tokens), _parents(first)
    place = {ROOT: ROOT}
    for node, (token, parent) in enumerate(zip(second.tokens, _parents(second), strict=True)):
        above = place[parent]
        same = (i for i, (t, p) in enumerate(zip(tokens, parents, strict=True)) if (t, p) == (token, above))
        found = next(same, None)
        if found is None:
            found = len(tokens)
            tokens.append(token)
            parents.append(above)
        place[node] = found
    return Draft(
        tokens,
        parents,
        source=f"{first.source}{MERGED}{second.source}",
        n_forwards=first.n_forwards + second.n_forwards,
    )


def _parents(draft: Draft) -> list[int]:
    return draft.parents if draft.parents is not None else [node - 1 for node in range(len(draft.tokens))]
