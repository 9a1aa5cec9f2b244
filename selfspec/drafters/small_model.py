"""Drafts with another, smaller model that has the same tokens; it keeps keys and values of its own for each row."""

# B rows, T tokens, V vocabulary

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from selfspec.drafters.chain import ChainDraft
from selfspec.drafters.spec import DraftSpec
from selfspec.engine.cache import ClockCache
from selfspec.engine.protocols import Draft, Row
from selfspec.errors import InputError
from selfspec.models.decoder import Decoder
from selfspec.models.load import load
from selfspec.models.locate import locate
from selfspec.stopping.protocol import Evidence

SMALL_MODEL = "small_model"  # the source of its drafts
ROOM = 64  # tokens by which the cache of a row is longer than its text; chosen, not tuned


@dataclass(slots=True)
class _Text:
    """The tokens of a row that the small model has read, and their keys and values."""

    cache: ClockCache
    ids: list[int] = field(default_factory=list)


class SmallModelDraft(ChainDraft):
    """Drafts chains with another model.

    Args:
        small: the model.
        n_vocab: size of the target's vocabulary. A small model that knows fewer tokens proposes only these, and drafts
            for no text with others; its scores of further ones are left out.
        sample: draw from the draft's distribution if the target samples; otherwise take its maximum.
        needs_confidence, evidence: what the stop rule reads.
    """

    reads_cache: ClassVar[bool] = False

    def __init__(
        self,
        small: Decoder,
        *,
        n_vocab: int,
        sample: bool = True,
        needs_confidence: bool = True,
        evidence: Evidence = "probability",
    ) -> None:
        self.small, self._n_vocab = small, n_vocab
        self.sample, self.needs_confidence, self.evidence = sample, needs_confidence, evidence
        self._own: dict[int, _Text] = {}  # by key of the row

    @property
    def name(self) -> str:
        """Name of the drafter, and `source` of its drafts."""
        return SMALL_MODEL

    def can_draft(self, row: Row) -> bool:
        """Whether the text and another token fit into the small model's context, and it knows every token of it."""
        return len(row.ids) < self.small.context_length and max(row.ids) < self.small.n_vocab

    def propose(self, rows: Sequence[Row], *, cache: ClockCache) -> list[Draft]:
        """A chain for each row, one row after another, since each has read a different part of its text."""
        return [self._chain(row) for row in rows]

    def end(self, row: Row) -> None:
        """Forget the row."""
        self._own.pop(row.key, None)

    def _chain(self, row: Row) -> Draft:
        chains = self.begin_chains([row])
        chains.limits[0] = min(chains.limits[0], self.small.context_length - len(row.ids))
        draft = chains.drafts[0]
        while chains.active[0]:
            self.grow(chains, self._logits(row.key, [*row.ids, *draft.tokens]))
        return draft

    def _logits(self, key: int, ids: list[int]) -> Tensor:
        """Logits after a text, [1, V]; reads what the model has not read of it."""
        if key not in self._own:
            self._own[key] = _Text(self.small.new_cache(n_rows=1, capacity=len(ids) + ROOM))
        text = self._own[key]
        # the last token is read again if need be: its logits are not kept
        most = min(len(text.ids), len(ids) - 1)
        n_known = next((i for i in range(most) if text.ids[i] != ids[i]), most)
        ids_1T = torch.tensor([ids[n_known:]], device=self.small.device)
        logits_1V = self.small.full(ids_1T, starts=[n_known], cache=text.cache, n_logits=1)[:, -1]
        text.ids = ids
        n_more = self._n_vocab - logits_1V.shape[-1]
        if n_more > 0:
            return torch.nn.functional.pad(logits_1V, (0, n_more), value=-torch.inf)
        return logits_1V[:, : self._n_vocab]


class SmallModel(SmallModelDraft):
    """Drafts chains with the model of a folder, in the dtype and on the device of the target.

    Args:
        decoder: the target.
        spec: the draft spec, whose stop rule it serves.
        path: a folder in the form of `save_pretrained`.

    Raises:
        InputError: if there is no such folder, or the spec skips sublayers, which has no effect here.
    """

    def __init__(self, *, decoder: Decoder, spec: DraftSpec, path: str) -> None:
        if len(spec.skip):
            raise InputError(f"a small model drafts (path={path}), so skip={spec.skip} has no effect; leave one out")
        found = load(
            locate(None, path=path),
            dtype=str(decoder.dtype)[6:],
            device=str(decoder.device),
            threads=torch.get_num_threads(),
        )
        super().__init__(
            found.decoder,
            n_vocab=decoder.n_vocab,
            sample=spec.sample_draft,
            needs_confidence=spec.stop.needs_confidence,
            evidence=spec.stop.evidence,
        )


def check_same_tokens(target: Mapping[str, int], small: Mapping[str, int], *, path: str) -> None:
    """Refuse a small model with another tokenizer: its ids would be other words.

    Args:
        target: id by token of the target's tokenizer.
        small: the same of the small model.
        path: its folder, for the message.

    Raises:
        InputError: with a token that differs.
    """
    wrong = next((t for t, i in small.items() if target.get(t) != i), None)
    wrong = next((t for t in target if t not in small), None) if wrong is None else wrong
    if wrong is not None:
        raise InputError(
            f"model.draft_path={path} has token {small.get(wrong)} where the target has {target.get(wrong)} for "
            f"{wrong!r}; a small model drafts only with the target's own tokenizer"
        )
