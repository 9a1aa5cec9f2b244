"""ROUGE: the words and word pairs that a summary shares with its reference.

Source: Lin 2004 ("ROUGE: A Package for Automatic Evaluation of Summaries"), by the rouge-score package; F1 and the
Porter stemmer as in Zhang et al. 2024 (Draft & Verify, arXiv:2309.08168). Their code leaves out answers of fewer than
five characters or with five dots in a row; here every answer counts.
"""

from __future__ import annotations

from collections.abc import Sequence

from experiments.quality.cut import cut

KINDS = ("rouge1", "rouge2", "rougeL")
STOPS = ("\nArticle:",)  # stop of Draft & Verify: a raw answer goes on with a next article that the model invents


def rouge(text: str, references: Sequence[str]) -> dict[str, float]:
    """ROUGE-1, ROUGE-2 and ROUGE-L F1 of an answer, in [0, 1], against the reference with the best score.

    Args:
        text: the decoded answer; text after the first of `STOPS` does not count.
        references: at least one.
    """
    from rouge_score.rouge_scorer import RougeScorer  # imports nltk, which imports pandas if it is installed

    scores = RougeScorer(list(KINDS), use_stemmer=True).score_multi(references, cut(text, STOPS))
    return {kind: float(scores[kind].fmeasure) for kind in KINDS}
