"""Examples for predictors of acceptance: a draft runs along stored texts, and each drafted token gets its label.

A token is judged if the drafted tokens before it are the text's. Its label is then the probability that verification
accepts it: 0 or 1 in greedy decoding, otherwise min(1, q/p) under the warpers of the run, where p is the draft's and q
the target's probability. Siblings of a tree are point masses: p is 1.
"""

# N drafted tokens, A answer tokens, V vocabulary, D hidden size, T tokens of a text

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor

from search.replay.references import Reference, ReferenceBatch, batches_of
from search.replay.simulator import simulate
from selfspec.acceptance.features import CONFIDENCE, DEPTH, SCALARS, Before, scalars
from selfspec.drafters.build import build_drafter, lookup_of
from selfspec.drafters.chain import LAYER_SKIP
from selfspec.drafters.lookup import LOOKUP, LookupDraft
from selfspec.drafters.lookup_cut import lookup_scalars
from selfspec.drafters.merged import MERGED
from selfspec.drafters.spec import DraftSpec
from selfspec.engine.forward import Forward
from selfspec.engine.hidden_states import HEAD
from selfspec.engine.sampling import Chooser, Sampling
from selfspec.engine.trace import Round
from selfspec.models.decoder import Decoder
from selfspec.stopping import Threshold
from selfspec.training.store import StoredText

N_STARTS = 2048  # tokens of the answers of a batch; it bounds the keys and values that are held
OPEN = 1.0  # label of a token that cannot be judged; `judged_N` leaves it out
Told = Callable[[int], None]  # called with the number of texts that were read


@dataclass(frozen=True, slots=True)
class Examples:
    """Drafted tokens of one source.

    Attributes:
        text_N: index of the text.
        start_N: answer tokens that stand before the draft.
        scalars_N5: see `features.scalars`; of looked-up tokens `lookup_scalars`.
        hidden_ND: input of the draft's output head; None for looked-up tokens.
        label_N: probability that the token is accepted, if those before it are.
        judged_N: whether the label is known.
        right_N: whether the token is the text's.
    """

    text_N: Tensor
    start_N: Tensor
    scalars_N5: Tensor
    hidden_ND: Tensor | None
    label_N: Tensor
    judged_N: Tensor
    right_N: Tensor

    def __len__(self) -> int:
        return len(self.text_N)

    def only(self, chosen_N: Tensor) -> Examples:
        """The examples of a mask or of indices."""
        hidden_ND = None if self.hidden_ND is None else self.hidden_ND[chosen_N]
        parts = (self.text_N, self.start_N, self.scalars_N5, self.label_N, self.judged_N, self.right_N)
        text_N, start_N, scalars_N5, label_N, judged_N, right_N = (part[chosen_N] for part in parts)
        return Examples(text_N, start_N, scalars_N5, hidden_ND, label_N, judged_N, right_N)

    @property
    def judged(self) -> Examples:
        """The examples whose labels are known."""
        return self.only(self.judged_N)


@dataclass(slots=True)
class _Drafted:
    """Tokens that were chosen after one path."""

    row: int
    start: int  # committed ids
    path: tuple[int, ...]
    tokens: list[int]
    scalars_K5: Tensor
    hidden_D: Tensor | None
    draft_p: list[float]  # the draft's probability of each token under the warpers; 1 for a point mass


@dataclass(slots=True)
class _Recorder:
    """A scorer that writes down what it is shown, and gives the confidences."""

    draws: bool
    needs_hidden: bool = True
    is_late: bool = False
    found: list[_Drafted] = field(default_factory=list)

    def score(
        self, before: Sequence[Before], logits_NV: Tensor, tokens_NK: Tensor, hidden_ND: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        found_NK5 = scalars(before, logits_NV, tokens_NK)
        for i, b in enumerate(before):
            tokens = tokens_NK[i].tolist()
            draft_p = [1.0] * len(tokens)
            if self.draws and b.row.chooser.do_sample:
                draft_V = b.row.chooser.probabilities([*b.row.ids, *b.tokens], logits_NV[i])
                draft_p = draft_V[tokens_NK[i]].tolist()
            hidden_D = None if hidden_ND is None else hidden_ND[i].cpu()
            self.found.append(
                _Drafted(
                    b.row.key, len(b.row.ids), tuple(b.tokens), tokens, found_NK5[i].float().cpu(), hidden_D, draft_p
                )
            )
        confidence_NK = found_NK5[..., CONFIDENCE]
        return confidence_NK, confidence_NK


@torch.inference_mode()
def drafted_examples(
    decoder: Decoder,
    spec: DraftSpec,
    texts: Sequence[StoredText],
    *,
    max_draft: int,
    sampling: Sampling | None = None,
    every_start: bool = False,
    told: Told | None = None,
) -> dict[str, Examples]:
    """Examples by source, from drafts of up to `max_draft` tokens along each text.

    Args:
        decoder: the target.
        spec: the draft; its stop rule is not used.
        texts: stored texts of 2 answer tokens or more; of a greedy one each token is the target's choice.
        max_draft: tokens of a draft, or levels of a tree.
        sampling: how the run chooses tokens; None: greedily.
        every_start: begin a draft after each token of the text, instead of where a run would.
        told: called after each batch of texts.

    Raises:
        InputError: if the draft takes no predictor.
    """
    stop = Threshold(max_draft, 0.0)
    plain = DraftSpec(spec.plan, stop, spec.lookup, spec.lookup_settings, spec.tree, spec.sample_draft, spec.drafter)
    lookup, n_done = lookup_of(plain), 0
    parts: dict[str, list[Examples]] = {}
    pairs = [(text.prompt, text.tokens) for text in texts]
    for batch in batches_of(decoder, pairs, batch_starts=N_STARTS):
        recorder = _Recorder(draws=spec.sample_draft and spec.lookup != "beside" and spec.tree is None)
        drafter = build_drafter(plain, decoder, scorer=recorder)
        made, _ = simulate(decoder, drafter, batch, stop, sampling=sampling, every_start=every_start)
        judges = [
            _Judge(decoder, text, n_done + i, sampling) for i, text in enumerate(texts[n_done : n_done + len(made)])
        ]
        source = spec.plan.trained.kind if spec.plan.trained is not None else LAYER_SKIP
        if recorder.found:
            parts.setdefault(source, []).append(_examples(recorder.found, judges))
        if lookup is not None:
            looked_up = _looked_up(lookup, batch, made)
            if looked_up:
                parts.setdefault(LOOKUP, []).append(_examples(looked_up, judges))
        n_done += len(made)
        if told is not None:
            told(len(made))
    return {source: joined(found) for source, found in parts.items()}


def joined(parts: Sequence[Examples]) -> Examples:
    """The examples of several parts, in their order."""
    hidden = [part.hidden_ND for part in parts]
    names = ("text_N", "start_N", "scalars_N5", "label_N", "judged_N", "right_N")
    text_N, start_N, scalars_N5, label_N, judged_N, right_N = (
        torch.cat([getattr(part, name) for part in parts]) for name in names
    )
    hidden_ND = torch.cat([h for h in hidden if h is not None]) if hidden and hidden[0] is not None else None
    return Examples(text_N, start_N, scalars_N5, hidden_ND, label_N, judged_N, right_N)


class _Judge:
    """The labels of one text."""

    def __init__(self, decoder: Decoder, text: StoredText, number: int, sampling: Sampling | None) -> None:
        self.text, self.number, self.n_prompt = text, number, text.n_prompt
        self.tokens, self.choices = text.tokens, text.top_ids[:, 0].tolist()
        self.chooser = Chooser(sampling) if sampling is not None else None
        self.logits_AV: Tensor | None = None
        if self.chooser is not None and not self.chooser.is_plain_greedy:
            self.logits_AV = target_logits(decoder, text)

    def label(self, at: int, token: int, draft_p: float) -> float:
        """Probability that the token is accepted in place of answer token `at`, whose predecessors are the text's."""
        if self.logits_AV is None or self.chooser is None:
            return float(token == self.choices[at])
        ids = self.text.ids[: self.n_prompt + at].tolist()
        if not self.chooser.do_sample:
            return float(token == self.chooser.greedy(ids, self.logits_AV[at]))
        target_p = float(self.chooser.probabilities(ids, self.logits_AV[at])[token])
        return min(1.0, target_p / draft_p) if draft_p > 0 else OPEN


def target_logits(decoder: Decoder, text: StoredText) -> Tensor:
    """The target's logits before each answer token and after the last, [A + 1, V]."""
    ids_1T = text.ids.unsqueeze(0).to(decoder.device)
    cache = decoder.new_cache(n_rows=1, capacity=ids_1T.shape[1])
    return decoder.full(ids_1T, starts=[0], cache=cache, n_logits=len(text.tokens) + 1)[0]


def _examples(found: Sequence[_Drafted], judges: Sequence[_Judge]) -> Examples:
    rows: list[tuple[int, int, float, bool, bool]] = []
    for one in found:
        judge = judges[one.row]
        start = one.start - judge.n_prompt
        at = start + len(one.path)
        judged = at < len(judge.tokens) and list(one.path) == judge.tokens[start:at]
        for token, draft_p in zip(one.tokens, one.draft_p, strict=True):
            label = judge.label(at, token, draft_p) if judged else OPEN
            rows.append((judge.number, start, label, judged, judged and token == judge.tokens[at]))
    text, starts, labels, judged_, right = zip(*rows, strict=True)
    hidden = [one.hidden_D.expand(len(one.tokens), -1) for one in found if one.hidden_D is not None]
    return Examples(
        torch.tensor(text),
        torch.tensor(starts),
        torch.cat([one.scalars_K5 for one in found]),
        torch.cat(hidden) if hidden else None,
        torch.tensor(labels),
        torch.tensor(judged_),
        torch.tensor(right),
    )


def _looked_up(lookup: LookupDraft, batch: ReferenceBatch, made: Sequence[Sequence[Round]]) -> list[_Drafted]:
    """The tokens of the rounds that were looked up."""
    found: list[_Drafted] = []
    for row, (reference, rounds) in enumerate(zip(batch.references, made, strict=True)):
        ends = accumulate((r.committed for r in rounds), initial=1)
        starts = [n for n, r in zip(ends, rounds, strict=False) if LOOKUP in r.source.split(MERGED)]
        found += [one for n in starts for one in _tokens_at(lookup, reference, row, n)]
    return found


def _tokens_at(lookup: LookupDraft, reference: Reference, row: int, n: int) -> list[_Drafted]:
    ids = [*reference.prompt, *reference.tokens[:n]]
    proposal = lookup.found(ids, reference.n_max - n - 1)
    if not proposal.tokens:
        return []
    scalars_N5, tokens = lookup_scalars(proposal), proposal.tokens
    return [
        _Drafted(row, len(ids), tuple(tokens[:i]), [token], scalars_N5[i : i + 1], None, [1.0])
        for i, token in enumerate(tokens)
    ]


@torch.inference_mode()
def teacher_forced(
    decoder: Decoder,
    forward: Forward,
    texts: Sequence[StoredText],
    *,
    share: float,
    seed: int,
    told: Told | None = None,
) -> Examples:
    """The published examples: the draft reads a text whose answer tokens are its own, but for a `share` that is kept.

    At each place i the draft draws y from its distribution p after the text before i, at temperature 1, without
    warpers. The label is min(1, q/p), where q is the target's probability. The hidden state is that after the token at
    i in the mixed text. Only places with y at i are examples.

    Args:
        decoder: the target.
        forward: the draft.
        texts: stored texts.
        share: fraction of the text's own tokens.
        seed: of the draws.
        told: called after each text.

    Source: Huang et al. 2024, SpecDec++ (arXiv:2405.19715), section 3.3, and the authors' code.
    """
    rng, parts = torch.Generator().manual_seed(seed), []
    for number, text in enumerate(texts):
        n_answer, ids_T = len(text.tokens), text.ids
        draft_AV, _ = _read(decoder, forward, ids_T, n_answer)
        target_AV = target_logits(decoder, text)[:-1].float().softmax(-1).cpu()
        drawn_A = torch.multinomial(draft_AV, 1, generator=rng)[:, 0]
        p_A, q_A = (probs_AV.gather(-1, drawn_A.unsqueeze(-1))[:, 0] for probs_AV in (draft_AV, target_AV))
        keeps_A = torch.rand(n_answer, generator=rng) < share
        mixed_A = torch.where(keeps_A, ids_T[text.n_prompt :], drawn_A)
        _, hidden_AD = _read(decoder, forward, torch.cat([ids_T[: text.n_prompt], mixed_A]), n_answer)
        own_A = mixed_A == drawn_A
        scalars_A5 = torch.ones(n_answer, len(SCALARS))
        scalars_A5[:, CONFIDENCE], scalars_A5[:, DEPTH] = p_A, 2.0
        whole = Examples(
            torch.full((n_answer,), number),
            torch.arange(n_answer),
            scalars_A5,
            hidden_AD,
            (q_A / p_A).clamp(max=1.0),
            own_A,
            drawn_A == ids_T[text.n_prompt :],
        )
        parts.append(whole.judged)
        if told is not None:
            told(1)
    return joined(parts)


def _read(decoder: Decoder, forward: Forward, ids_T: Tensor, n_answer: int) -> tuple[Tensor, Tensor]:
    """The draft's probabilities before each answer token [A, V], and its hidden states after each [A, D]."""
    ids_1T = ids_T.unsqueeze(0).to(decoder.device)
    cache = decoder.new_cache(n_rows=1, capacity=len(ids_T))
    text_rows = forward.text_rows([ids_T.tolist()])
    output = forward.output(ids_1T, starts=[0], cache=cache, n_logits=n_answer + 1, text_rows=text_rows, hidden=(HEAD,))
    probs_AV = output.logits_BTV[0, :-1].float().softmax(-1).cpu()
    return probs_AV, output.hidden[HEAD][0, -n_answer:].cpu()


def by_chain(found: Examples) -> Mapping[tuple[int, int], list[int]]:
    """Indices of the tokens of each chain by (text, start), in the order of their depth."""
    chains: dict[tuple[int, int], list[int]] = {}
    depths = found.scalars_N5[:, DEPTH].tolist()
    for i, at in enumerate(zip(found.text_N.tolist(), found.start_N.tolist(), strict=True)):
        chains.setdefault(at, []).append(i)
    return {at: sorted(indices, key=lambda i: depths[i]) for at, indices in chains.items()}
