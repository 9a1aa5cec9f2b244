"""Drafts as trees: which drafts are valid, their mask, and the forward of the target that reads all nodes at once.

Node i of a row's draft is written at slot i + 1 after the row's last token. Its position follows from its depth, and it
attends to the text and to its own branch. A batch of chains needs no such layout, since the model's masks fit it.
"""

# B rows, N nodes, T tokens read (the last token and the nodes), S slots of the cache, V vocabulary

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from selfspec.engine.cache import ClockCache
from selfspec.engine.protocols import ROOT, Draft, Output, Row
from selfspec.errors import DrafterError
from selfspec.models.decoder import Decoder

SUM_TOLERANCE = 1e-3  # of a sum of probabilities; 150 000 of them in float32 are exact to 1e-5


def depths(draft: Draft) -> list[int]:
    """Depth of each node; the children of the root have depth 1."""
    if draft.parents is None:
        return list(range(1, len(draft.tokens) + 1))
    found: list[int] = []
    for parent in draft.parents:
        found.append(1 if parent == ROOT else found[parent] + 1)
    return found


def depth(draft: Draft) -> int:
    """Tokens on the longest path of a draft."""
    return len(draft.tokens) if draft.parents is None else max(depths(draft), default=0)


def check_drafts(drafts: Sequence[Draft], rows: Sequence[Row], *, n_vocab: int, by: str) -> None:
    """Check that the target can verify the drafts.

    Raises:
        DrafterError: if a draft is invalid; the message names the drafter and the fault.
    """
    if len(drafts) != len(rows):
        raise DrafterError(f"drafter {by} made {len(drafts)} drafts for {len(rows)} rows; it makes one for each")
    for draft, row in zip(drafts, rows, strict=True):
        if draft.tokens or draft.parents or draft.probabilities:
            wrong = _what_is_wrong(draft, row.limit, n_vocab)
            if wrong:
                raise DrafterError(f"drafter {by} {wrong}")


def _what_is_wrong(draft: Draft, limit: int, n_vocab: int) -> str | None:
    n = len(draft.tokens)
    outside = [token for token in draft.tokens if not 0 <= token < n_vocab]
    if outside:
        return f"proposed token {outside[0]}, and the vocabulary has 0..{n_vocab - 1}"
    if draft.parents is not None:
        if len(draft.parents) != n:
            return f"gave {len(draft.parents)} parents for {n} tokens; each node has one"
        for node, parent in enumerate(draft.parents):
            if not ROOT <= parent < node:
                return f"gave node {node} the parent {parent}; a parent comes before its children, and the root is -1"
    longest = depth(draft)
    if longest > limit:
        return f"drafted {longest} tokens, and the limit is {limit}"
    if draft.confidences and len(draft.confidences) != n:
        return f"gave {len(draft.confidences)} confidences for {n} tokens; give one for each, or none"
    return None if draft.probabilities is None else _wrong_probabilities(draft, n_vocab)


def _wrong_probabilities(draft: Draft, n_vocab: int) -> str | None:
    assert draft.probabilities is not None
    if len(draft.probabilities) != len(draft.tokens):
        return f"gave {len(draft.probabilities)} distributions for {len(draft.tokens)} tokens; give one for each"
    for token, draft_V in zip(draft.tokens, draft.probabilities, strict=True):
        if draft_V.shape != (n_vocab,):
            return f"gave a distribution of shape {list(draft_V.shape)}; it is over the {n_vocab} tokens"
        total, own, least = float(draft_V.sum()), float(draft_V[token]), float(draft_V.min())
        if not math.isclose(total, 1, abs_tol=SUM_TOLERANCE) or least < 0:
            return f"gave probabilities that sum to {total:.4f}, the least {least:.4f}; they sum to 1, none below 0"
        if own <= 0:
            return f"drew token {token}, whose probability it gave as {own}"
    return None


def read_drafts(
    decoder: Decoder, rows: Sequence[Row], drafts: Sequence[Draft], cache: ClockCache, *, hidden: tuple[int, ...] = ()
) -> Output:
    """Run the full model on [last token, draft] of each row in one forward; short rows are padded at the end.

    Padding is written after its row's clock, where the next forward overwrites it.

    Args:
        decoder: the target.
        rows: the rows, before any drafted token is committed.
        drafts: one for each row.
        cache: keys and values.
        hidden: layers whose output to return.

    Raises:
        InputError: if a draft branches and the model takes no explicit mask.
    """
    n_new = 1 + max(len(d.tokens) for d in drafts)
    starts = [len(row.ids) - 1 for row in rows]
    padded = [[row.ids[-1], *d.tokens] + [0] * (n_new - 1 - len(d.tokens)) for row, d in zip(rows, drafts, strict=True)]
    ids_BT = torch.tensor(padded, device=decoder.device)
    if all(d.parents is None for d in drafts):
        return decoder.full.output(ids_BT, starts=starts, cache=cache, hidden=hidden)
    cache.set(starts, n_new)
    positions_BT, seen_BTS, key_positions_BS = tree_layout(starts, drafts, n_new=n_new)
    return decoder.full.tree_output(
        ids_BT,
        positions_BT=positions_BT.to(decoder.device),
        seen_BTS=seen_BTS.to(decoder.device),
        key_positions_BS=key_positions_BS.to(decoder.device),
        cache=cache,
        hidden=hidden,
    )


def tree_layout(
    starts: Sequence[int], drafts: Sequence[Draft], *, n_new: int, n_keys: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Positions, attention mask and key positions for the last token and the nodes of each row.

    Args:
        starts: position of each row's last token.
        drafts: one for each row.
        n_new: T, at least 1 + the nodes of the largest draft. Further tokens are padding, which sees the text and
            itself.
        n_keys: S; None: up to the end of the longest row.

    Returns:
        Position of each token [B, T]; whether each token sees each slot [B, T, S]; position of each slot's key [B, S].
    """
    n_keys = max(starts) + n_new if n_keys is None else n_keys
    branches_BTT = torch.zeros(len(starts), n_new, n_new, dtype=torch.bool)
    depths_BT = torch.zeros(len(starts), n_new, dtype=torch.long)
    for b, draft in enumerate(drafts):
        depths_BT[b, 1 : 1 + len(draft.tokens)] = torch.tensor(depths(draft), dtype=torch.long)
        branches_BTT[b] = torch.tensor(_branches(draft, n_new))
    starts_B1 = torch.tensor(starts).unsqueeze(1)
    slots_S = torch.arange(n_keys)
    positions_BT = starts_B1 + depths_BT
    # Index of a slot among the new ones; it is not used for other slots.
    new_BS = slots_S - starts_B1
    is_new_BS = (new_BS >= 0) & (new_BS < n_new)
    index_BS = new_BS.clamp(0, n_new - 1)
    key_positions_BS = torch.where(is_new_BS, starts_B1 + depths_BT.gather(1, index_BS), slots_S)
    own_BTS = branches_BTT.gather(2, index_BS.unsqueeze(1).expand(-1, n_new, -1)) & is_new_BS.unsqueeze(1)
    return positions_BT, own_BTS | (new_BS < 0).unsqueeze(1), key_positions_BS


def _branches(draft: Draft, n_new: int) -> list[list[bool]]:
    """Row t: which of the T new tokens token t sees, namely itself and its ancestors, the root included."""
    seen = [[t == other for other in range(n_new)] for t in range(n_new)]
    for node in range(len(draft.tokens)):
        parent = node - 1 if draft.parents is None else draft.parents[node]
        before = seen[parent + 1]  # slot 0 is the root's
        seen[node + 1] = [own or other for own, other in zip(seen[node + 1], before, strict=True)]
    return seen
