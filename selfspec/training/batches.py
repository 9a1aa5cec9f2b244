"""From stored texts to the tensors of a training step, and the split into training and held-out texts."""

# B texts, T slots, D hidden size, K likeliest tokens

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from selfspec.errors import InputError
from selfspec.training.store import Store, StoredText

HELD_OUT = 0.1  # fraction of the prompts that is held out; chosen, not tuned


@dataclass(frozen=True, slots=True)
class Batch:
    """Padded slots of several texts; slot i pairs the hidden states at token i with token i + 1.

    Attributes:
        first_id_B: token 0.
        features: hidden states by layer, in the order of the head's layers, [B, T, D] each.
        last_BTD: the input of the output head at token i + 1, which a feature loss aims at; None if the store lacks it.
        next_BT: token i + 1.
        goal_BT: the target's choice of token i + 2; -1 where no draft would be made.
        first_B: the first slot of each row at which a draft may begin.
        top_ids_BTK, top_logprobs_BTK: the target's likeliest tokens at i + 2.
    """

    first_id_B: Tensor
    features: list[Tensor]
    last_BTD: Tensor | None
    next_BT: Tensor
    goal_BT: Tensor
    first_B: Tensor
    top_ids_BTK: Tensor
    top_logprobs_BTK: Tensor

    @property
    def whole_text(self) -> Tensor:
        """Tokens 0 to T."""
        return torch.cat([self.first_id_B.unsqueeze(1), self.next_BT], 1)

    def counts(self, depth: int) -> Tensor:
        """Slots at which a drafted token of this depth would be judged, [B, T]."""
        slots_T = torch.arange(self.goal_BT.shape[1], device=self.goal_BT.device)
        return (self.goal_BT >= 0) & (slots_T[None, :] >= self.first_B[:, None] + depth)

    def to(self, device: torch.device) -> Batch:
        """The batch on a device."""
        held = {field.name: getattr(self, field.name) for field in fields(self)}
        moved = {name: value.to(device) for name, value in held.items() if isinstance(value, Tensor)}
        return replace(self, features=[feature.to(device) for feature in self.features], **moved)


def batch_of(texts: Sequence[StoredText], layers: Sequence[int], *, max_slots: int) -> Batch:
    """One batch; of a longer text the last `max_slots` slots count."""
    rows = [_row(text, layers, max_slots) for text in texts]
    longest = max(len(row["next"]) for row in rows)

    def padded(name: str, value: float = 0) -> Tensor:
        parts = [row[name] for row in rows]
        found = parts[0].new_full((len(parts), longest, *parts[0].shape[1:]), value)
        for b, part in enumerate(parts):
            found[b, : len(part)] = part
        return found

    return Batch(
        first_id_B=torch.cat([row["first_id"] for row in rows]),
        features=[padded(f"hidden.{layer}") for layer in layers],
        last_BTD=padded("last") if "last" in rows[0] else None,
        next_BT=padded("next"),
        goal_BT=padded("goal", -1),
        first_B=torch.cat([row["first"] for row in rows]),
        top_ids_BTK=padded("top_ids"),
        top_logprobs_BTK=padded("top_logprobs", -torch.inf),
    )


def _row(text: StoredText, layers: Sequence[int], max_slots: int) -> dict[str, Tensor]:
    n = len(text.ids) - 2  # slots whose predicted token is of the text
    cut = max(0, n - max_slots)
    first = max(0, text.n_prompt - 1 - cut)
    # row r of the top tokens belongs to token n_prompt + r, and slot i predicts token i + 2
    rows_T = torch.arange(cut, n) + 2 - text.n_prompt
    is_goal_T = rows_T >= 1
    safe_T = rows_T.clamp(min=0)
    found = {
        "first_id": text.ids[cut : cut + 1],
        "next": text.ids[cut + 1 : n + 1],
        "first": torch.tensor([first]),
        "goal": torch.where(is_goal_T, text.top_ids[safe_T, 0], -1),
        "top_ids": text.top_ids[safe_T],
        "top_logprobs": text.top_logprobs[safe_T],
    }
    for layer in layers:
        found[f"hidden.{layer}"] = text.hidden[layer][cut:n]
    if -1 in text.hidden:
        found["last"] = text.hidden[-1][cut + 1 : n + 1]
    return found


def check_layers(layers: Sequence[int], stores: Sequence[Store]) -> None:
    """Check that stores hold the hidden states that a head reads.

    Raises:
        InputError: if one lacks a layer.
    """
    for store in stores:
        if not set(layers) <= set(store.layers):
            raise InputError(
                f"the head reads the hidden states of layers {list(layers)}, but the store {store.path} "
                f"holds {store.layers}; collect with layers={list(layers)}"
            )


def split(stores: Sequence[Store]) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """(store, text) of the texts to train on and of those held out; samples of one prompt are on one side.

    Raises:
        InputError: if one side would be empty.
    """
    by_prompt: dict[str, list[tuple[int, int]]] = {}
    for s, store in enumerate(stores):
        for i in range(len(store)):
            text = store.text(i, ())
            if len(text.ids) - text.n_prompt >= 2:  # a draft needs a token to predict
                digest = hashlib.sha256(str(text.prompt).encode()).hexdigest()
                by_prompt.setdefault(digest, []).append((s, i))
    n_held = round(HELD_OUT * len(by_prompt)) or 1
    order = sorted(by_prompt)
    held = [at for digest in order[:n_held] for at in by_prompt[digest]]
    train = sorted(at for digest in order[n_held:] for at in by_prompt[digest])
    if not train or not held:
        raise InputError(
            f"the stores hold answers to {len(by_prompt)} prompts; training needs 2 at least, one of them held out: "
            "collect more (selfspec collect)"
        )
    return train, held


def groups(
    stores: Sequence[Store], chosen: Sequence[tuple[int, int]], *, n_slots: int, max_slots: int, seed: int | None = None
) -> list[list[tuple[int, int]]]:
    """The chosen texts in groups of about `n_slots` padded slots, texts of like length together.

    Args:
        stores: the stores.
        chosen: (store, text) of each text.
        n_slots: padded slots of a group.
        max_slots: see `batch_of`.
        seed: of the order of texts and groups; None: no shuffling.
    """
    lengths = {at: min(max_slots, stores[at[0]].index[at[1]][2] - 2) for at in chosen}
    order = list(chosen)
    rng = torch.Generator().manual_seed(seed or 0)
    if seed is not None:
        order = [order[i] for i in torch.randperm(len(order), generator=rng).tolist()]
    order.sort(key=lambda at: lengths[at] // 32)  # stable: texts of like length stay shuffled
    found: list[list[tuple[int, int]]] = [[]]
    for at in order:
        if found[-1] and (len(found[-1]) + 1) * max(lengths[a] for a in (*found[-1], at)) > n_slots:
            found.append([])
        found[-1].append(at)
    return found if seed is None else [found[i] for i in torch.randperm(len(found), generator=rng).tolist()]


def read(stores: Sequence[Store], group: Sequence[tuple[int, int]], layers: Sequence[int], *, max_slots: int) -> Batch:
    """The batch of a group, with the hidden states of `layers`."""
    needed = sorted({*layers, *([-1] if all(-1 in store.layers for store in stores) else [])})
    return batch_of([stores[s].text(i, needed) for s, i in group], layers, max_slots=max_slots)
