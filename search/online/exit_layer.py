"""DEL: the layer at which the draft ends, and the length of drafts, chosen anew in every round.

The states of a verification after every layer are put through the output head. Where such a shadow token equals the
target's token, a draft that ends at this layer would have been right.
"""

# L layers, N tokens, D hidden size, V vocabulary

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from search.online.exit_head import ExitHead
from search.online.set_searcher import SetSearcher, Tools
from search.online.tried import Tried
from selfspec.drafters.chain import confidences_of
from selfspec.drafters.online import Chosen
from selfspec.engine.cache import ClockCache
from selfspec.engine.protocols import BaseDrafter, Draft, Drafter, Needs, Output, Row, Verdict
from selfspec.engine.sampling import largest
from selfspec.errors import InputError
from selfspec.skipping.skip_set import SkipSet
from selfspec.stopping import Threshold


@dataclass(frozen=True, slots=True)
class Del:
    """Settings of DEL.

    Attributes:
        max_draft: longest draft, in tokens.
        decay: weight that former rounds keep in the acceptance of each layer, per round.
        n_prompt_tokens: newest tokens of a prompt that are counted before its first round; 0: none.
        first_layer: the earliest layer after which a draft may end, counted from 1.

    Source: Zarch et al. 2025 (arXiv:2504.05598), and its released code. There the target continues from the layer at
    which the draft ended; here it reads the draft from its first layer on, so a verification costs all layers.
    """

    max_draft: int
    decay: float
    n_prompt_tokens: int
    first_layer: int

    def __post_init__(self) -> None:
        if min(self.max_draft, self.first_layer) < 1 or not 0 < self.decay < 1 or self.n_prompt_tokens < 0:
            raise InputError(
                f"online=del with max_draft={self.max_draft}, first_layer={self.first_layer}, decay={self.decay}, "
                f"n_prompt_tokens={self.n_prompt_tokens}; the first two are 1 at least, the decay lies between 0 and 1"
            )

    def begin(self, tools: Tools) -> DelSearcher:
        """The searcher of a new stream."""
        return DelSearcher(tools, self)


class DelSearcher(SetSearcher):
    """See `Del`. It draws no set from the draft that it begins with, only head and precision."""

    objective: ClassVar[str] = "tokens_per_layer"

    def __init__(self, tools: Tools, settings: Del) -> None:
        super().__init__(tools, start=None)
        n = self.decoder.n_layers
        if settings.first_layer >= n:
            raise InputError(f"online=del with first_layer={settings.first_layer}; the model has {n} layers")
        self._settings, self._head = settings, ExitHead(tools.decoder)
        self._right_L, self._n_read = torch.zeros(n, dtype=torch.double), 0.0
        # sums of the confidence of right and of wrong shadow tokens, and their numbers, [L, 2]
        self._sure_L2, self._seen_L2 = torch.zeros(n, 2, dtype=torch.double), torch.zeros(n, 2, dtype=torch.double)
        self._drafters: dict[int, Drafter] = {}

    @property
    def needs(self) -> Needs:
        """The states after every layer."""
        return Needs(hidden=tuple(range(self.decoder.n_layers)))

    def begin(self, row: Row, prompt: Output) -> None:
        """Count the newest tokens of the prompt."""
        super().begin(row, prompt)
        n = self._settings.n_prompt_tokens
        if self.is_learning and n:
            began = self.watch.now()
            states_LND = self._states(prompt, slice(-n, None))
            logits_LNV = self._head.logits(states_LND)
            self._count(logits_LNV, largest(logits_LNV[-1]))
            self.progress.spent_s += self.watch.now() - began

    def improve(self, rows: Sequence[Row], cache: ClockCache) -> None:
        """Choose layer and length by the counts so far."""
        if not self._n_read:
            return
        began, settings, n = self.watch.now(), self._settings, self.decoder.n_layers
        values = {
            (layer, k): tokens_per_layer(float(self._right_L[layer - 1]) / self._n_read, layer, k, n_layers=n)
            for layer in range(settings.first_layer, n)
            for k in range(1, settings.max_draft + 1)
        }
        (layer, length), value = max(values.items(), key=lambda item: item[1])
        if value <= 1 / n:  # a plain token takes n layers
            layer = n
        skip = SkipSet(n, frozenset(range(layer, n)), frozenset(range(layer, n)))
        if skip != self.skip:
            seconds = self.watch.now() - began
            counts = round(self._n_read), round(float(self._right_L[layer - 1]))
            self.progress.add(
                skip, value, n_read=counts[0], n_agreed=counts[1], seconds=seconds, is_taken=True, draft_cost=layer / n
            )
            self.use(skip)
        self.value = value
        if layer < n:
            mean_L2 = self._sure_L2[layer - 1] / self._seen_L2[layer - 1].clamp_min(1e-9)
            drafter = self._drafters.setdefault(layer, self.chosen.drafter)
            limited = Shortened(drafter, length, float(mean_L2.mean()))
            self.chosen = Chosen(limited, f"layer {layer}")

    def tell(self, row: Row, draft: Draft, verdict: Verdict, target: Output) -> None:
        """Count what each layer would have said at the verified tokens, up to the first wrong one of the draft."""
        super().tell(row, draft, verdict, target)
        if not self.is_learning or not target.hidden:
            return
        began = self.watch.now()
        at = [0, *(node + 1 for node in verdict.path)]
        states_LND = self._states(target, at)
        self._count(self._head.logits(states_LND), largest(target.logits_BTV[0, at]))
        self.progress.spent_s += self.watch.now() - began

    def _states(self, output: Output, at: Any) -> Tensor:
        return torch.stack([output.hidden[layer][0, at] for layer in range(self.decoder.n_layers)])

    def _count(self, logits_LNV: Tensor, tokens_N: Tensor) -> None:
        shadow_LN = largest(logits_LNV)
        right_LN = (shadow_LN == tokens_N).double().cpu()
        sure_LN = confidences_of(logits_LNV, shadow_LN.unsqueeze(-1)).squeeze(-1).double().cpu()
        decay = self._settings.decay
        self._right_L = decay * self._right_L + right_LN.sum(1)
        self._n_read = decay * self._n_read + right_LN.shape[1]
        both_LN2 = torch.stack([right_LN, 1 - right_LN], -1)
        self._sure_L2 = decay * self._sure_L2 + (both_LN2 * sure_LN.unsqueeze(-1)).sum(1)
        self._seen_L2 = decay * self._seen_L2 + both_LN2.sum(1)

    def state(self) -> dict[str, Any]:
        """What was learnt, with the counts of the layers."""
        counts = {"right": self._right_L.tolist(), "read": self._n_read}
        return super().state() | counts | {"sure": self._sure_L2.tolist(), "seen": self._seen_L2.tolist()}

    def restore(self, state: Mapping[str, Any], trials: Sequence[Tried]) -> None:
        """Go on with the counts."""
        super().restore(state, trials)
        self._take(state)

    def begin_from(self, state: Mapping[str, Any]) -> None:
        """Begin with the counts of another stream."""
        super().begin_from(state)
        self._take(state)

    def _take(self, state: Mapping[str, Any]) -> None:
        self._right_L, self._n_read = torch.tensor(state["right"], dtype=torch.double), state["read"]
        self._sure_L2, self._seen_L2 = (torch.tensor(state[k], dtype=torch.double) for k in ("sure", "seen"))


def tokens_per_layer(acceptance: float, layer: int, n_drafted: int, *, n_layers: int) -> float:
    """Expected tokens of a round over its layers: `n_drafted` drafts of `layer` layers and one verification."""
    expected = sum(acceptance**i for i in range(n_drafted + 1))
    return expected / (n_layers + n_drafted * layer)


@dataclass(frozen=True, slots=True)
class Shortened(BaseDrafter):
    """Another drafter's drafts up to a length, ended after a token whose probability is below a threshold."""

    inner: Drafter
    length: int
    threshold: float

    def propose(self, rows: Sequence[Row], *, cache: ClockCache) -> list[Draft]:
        """The drafts of `inner` under that rule, in place of the rows' own stop rules."""
        rule = Threshold(self.length, min(1.0, max(0.0, self.threshold)))
        limited = [replace(row, limit=min(row.limit, self.length), stop=rule.begin()) for row in rows]
        return self.inner.propose(limited, cache=cache)
