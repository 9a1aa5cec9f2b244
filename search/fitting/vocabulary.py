"""Which tokens a draft's head should score: those that answers are made of.

A token that the draft cannot say ends a round where the target says it. So the tokens are ranked by how often the full
model says them on calibration prompts, and those that are certain to matter come first. What a text of the draft itself
holds is scored besides (`selfspec.skipping.trimmed_head`), and so is no part of this.
"""

# N tokens

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence

import torch
from torch import Tensor

from selfspec.errors import InputError


def most_useful(
    answers: Iterable[Sequence[int]],
    n: int,
    *,
    n_vocab: int,
    prompts: Iterable[Sequence[int]] = (),
    always: Collection[int] = (),
) -> Tensor:
    """The `n` token ids that a draft is likeliest to need, [N] in rising order.

    First `always`; then by frequency in `answers`; where these have too few different tokens, by frequency in
    `prompts`, since answers copy; then from the lowest id on, since byte-pair vocabularies number their merges from the
    most frequent on. Ties go to the lower id.

    Args:
        answers: what the full model says on calibration prompts, token ids.
        n: how many.
        n_vocab: rows of the whole head.
        prompts: calibration prompts, token ids.
        always: ids to score whatever their frequency: those that end a sequence, and those of prompts that are known.

    Raises:
        InputError: if `n` is not enough for `always` or more than there are, or an id is not of this vocabulary.
    """
    certain = set(always)
    if not max(1, len(certain)) <= n <= n_vocab:
        raise InputError(
            f"a head of {n} tokens was asked for; it must hold the {len(certain)} that are always scored, at least 1, "
            f"and the vocabulary has {n_vocab}: choose a number between"
        )
    order = [*sorted(certain), *_by_frequency(answers), *_by_frequency(prompts)]
    strange = sorted(i for i in set(order) if not 0 <= i < n_vocab)
    if strange:
        raise InputError(
            f"token {strange[-1]} is not of this vocabulary, which has 0..{n_vocab - 1}; were the texts encoded for "
            "another model?"
        )
    ranked = list(dict.fromkeys([*order, *range(n_vocab)]))
    return torch.tensor(sorted(ranked[:n]))


def _by_frequency(texts: Iterable[Sequence[int]]) -> list[int]:
    counts = Counter(token for text in texts for token in text)
    return sorted(counts, key=lambda token: (-counts[token], token))
