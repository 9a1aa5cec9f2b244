"""From a skip set to the draft that is run with it: what stands in for what is skipped, and which tokens it scores.

A search moves over skip sets alone; this says what a skip set means.
"""

# V tokens that the draft's head scores

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from search.fits import Fits, observe
from search.vocabulary import most_useful
from selfspec.decode import Ending, autoregress
from selfspec.lookup import joined
from selfspec.model import Decoder
from selfspec.plan import PLAIN, DraftPlan, Precision
from selfspec.skip import SkipSet

BATCH = 8  # prompts decoded at once for calibration


@dataclass(frozen=True, slots=True)
class Text:
    """A prompt and what the full model says after it, token ids."""

    prompt: list[int]
    tokens: list[int]


@dataclass(frozen=True, slots=True)
class Drafts:
    """What is drafted with when a skip set is asked for.

    Attributes:
        kind: of the bridges: skip (none), mean, linear or lowrank.
        fits: of the bridges; None for skip.
        merge: one map for a run of adjacent skipped sublayers instead of one for each.
        rank: of lowrank maps.
        head: the tokens that the draft scores, [V]; None: all.
        precision: of the weights that are kept.
        memory: texts that prompt lookup searches as well, see `DraftPlan`.
        other_heads: that the best sets of a search are tried with as well.
    """

    kind: str = PLAIN
    fits: Fits | None = None
    merge: bool = True
    rank: int | None = None
    head: Tensor | None = None
    precision: Precision = "same"
    memory: Tensor | None = None
    other_heads: Sequence[Tensor] = ()

    def __call__(self, skip: SkipSet) -> DraftPlan:
        """The plan of a skip set."""
        plan = DraftPlan(skip)
        if self.fits is not None:
            plan = self.fits.plan(skip, kind=self.kind, merge=self.merge, rank=self.rank)
        return replace(plan, head=self.head, precision=self.precision, memory=self.memory)

    def outline(self, skip: SkipSet) -> DraftPlan:
        """The plan of a skip set with nothing fitted: it costs what the plan costs, and has its size."""
        bridges = {} if self.fits is None else self.fits.blanks(skip, kind=self.kind, merge=self.merge, rank=self.rank)
        kind = self.kind if bridges else PLAIN
        return DraftPlan(skip, bridges, self.head, kind, self.precision, self.memory)

    def variants(self) -> list[Drafts]:
        """These drafts, then the same with each of the other heads."""
        return [self, *(replace(self, head=head, other_heads=()) for head in self.other_heads)]


def continued(decoder: Decoder, prompts: Sequence[list[int]], *, max_new_tokens: int, n_tokens: int) -> list[Text]:
    """What the full model says after the prompts, several at once, until there are `n_tokens`.

    Raises:
        InputError: if the model takes no batches.
    """
    texts: list[Text] = []
    ending = Ending(max_new_tokens)
    for begin in range(0, len(prompts), BATCH):
        group = [list(ids) for ids in prompts[begin : begin + BATCH]]
        results = autoregress(decoder, group, ending=ending)
        texts += [Text(ids, r.tokens) for ids, r in zip(group, results, strict=True)]
        if sum(len(t.tokens) for t in texts) >= n_tokens:
            break
    return texts


def remembered(texts: Sequence[Text], n_tokens: int) -> Tensor:
    """The first texts, prompts and answers, until there are `n_tokens` of answers, as `lookup.Memory` takes them."""
    until = itertools.accumulate((len(t.tokens) for t in texts), initial=0)
    return joined([*t.prompt, *t.tokens] for t, n_before in zip(texts, until, strict=False) if n_before < n_tokens)


def drafts(
    decoder: Decoder,
    texts: Sequence[Text],
    *,
    kind: str,
    merge: bool,
    rank: int | None,
    n_tokens: int,
    n_scored: int | None,
    precision: Precision = "same",
    n_remembered: int | None = None,
    other_sizes: Sequence[int] = (),
) -> Drafts:
    """Fit what `kind` needs on calibration texts.

    Args:
        decoder: the model.
        texts: see `continued`; none of the prompts that drafts are judged on.
        kind, merge, rank: see `Drafts`.
        n_tokens: the most positions whose states are kept.
        n_scored: tokens that the draft's head scores; None: all.
        precision: of the weights that are kept.
        n_remembered: tokens of the answers among the texts that prompt lookup searches as well; None: it does not.
        other_sizes: tokens that the `other_heads` score.
    """
    fits = None if kind == PLAIN else Fits(observe(decoder, texts, n_tokens=n_tokens))
    memory = None if n_remembered is None else remembered(texts, n_remembered)
    if n_scored is None:
        return Drafts(kind, fits, merge, rank, None, precision, memory)
    n_vocab = int(decoder.config.vocab_size)
    head, *others = (
        most_useful(
            [t.tokens for t in texts],
            n,
            n_vocab=n_vocab,
            prompts=[t.prompt for t in texts],
            always=sorted(decoder.eos_ids),
        )
        for n in dict.fromkeys(min(n, n_vocab) for n in (n_scored, *other_sizes))
    )
    return Drafts(kind, fits, merge, rank, head, precision, memory, others)
