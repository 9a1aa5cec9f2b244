"""Choose the tokens that a draft's head scores.

A token that the draft cannot propose ends a round if the target chooses it. Tokens are therefore ranked by their
frequency in the full model's answers to calibration prompts, after the tokens that are always needed. The head also
scores the tokens of the text at hand (`selfspec.skipping.trimmed_head`), which need no place here.
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
    """The `n` token ids that a draft most likely needs, [N] in rising order.

    The order of preference is: `always`; frequency in `answers`; frequency in `prompts`, since answers copy from them;
    lowest id, since byte-pair vocabularies number their merges by frequency. Of equally frequent tokens the lower id
    comes first.

    Args:
        answers: token ids of the full model's answers to calibration prompts.
        n: number of ids.
        n_vocab: size of the vocabulary.
        prompts: token ids of calibration prompts.
        always: ids to include in any case, such as those that end a sequence.

    Raises:
        InputError: if `n` is smaller than `always` or larger than the vocabulary, or an id is outside the vocabulary.
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
