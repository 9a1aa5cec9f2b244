"""A store of what a model wrote: token ids, hidden states and the likeliest next tokens, in safetensors shards.

A store is a folder that is named by a digest of its content: weights, prompts and settings. Each shard is written
completely or not at all, so a collection that was stopped goes on where it ended, and two writers write the same
shards. Shards are memory-mapped: a text is read when it is needed.
"""

# T tokens of a text, A answer tokens, D hidden size, K likeliest tokens, N tokens of a shard, S texts of a shard

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as bytes_of
from torch import Tensor

from selfspec.errors import InputError
from selfspec.records.run_files import make_writable, write_bytes, write_json

NAME = "store.json"
VERSION = 1  # of the shards' layout


@dataclass(frozen=True, slots=True)
class StoredText:
    """A prompt and the model's continuation.

    Attributes:
        ids: token ids, prompt first, [T].
        n_prompt: number of tokens of the prompt.
        hidden: hidden states after a layer by layer, [T, D]; -1: the input of the output head.
        top_ids: likeliest next tokens after the last prompt token and each answer token, [A + 1, K], likeliest first.
        top_logprobs: their log-probabilities, at temperature 1, [A + 1, K].
    """

    ids: Tensor
    n_prompt: int
    hidden: Mapping[int, Tensor]
    top_ids: Tensor
    top_logprobs: Tensor

    @property
    def prompt(self) -> list[int]:
        """Token ids of the prompt."""
        return self.ids[: self.n_prompt].tolist()

    @property
    def tokens(self) -> list[int]:
        """Token ids of the continuation."""
        return self.ids[self.n_prompt :].tolist()


class Store:
    """A folder of shards.

    Args:
        path: the folder.

    Raises:
        InputError: if it is no store, or its description cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.about: dict[str, Any] = json.loads((path / NAME).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(f"{path} is no store (no {NAME}); selfspec collect makes one") from None
        except (OSError, ValueError) as error:
            raise InputError(f"cannot read the store {path} ({error}); collect it again") from None
        if self.about.get("version") != VERSION:
            raise InputError(f"the store {path} has version {self.about.get('version')}, not {VERSION}; collect again")
        self._open: dict[Path, Any] = {}

    @classmethod
    def create(cls, folder: Path, name: str, content: Mapping[str, Any], **about: Any) -> Store:
        """The store of some content: an existing one, or a new and empty one.

        Args:
            folder: folder of the stores.
            name: readable beginning of the store's name.
            content: what decides the content of its shards: weights, prompts, settings.
            **about: further facts.
        """
        body = {"version": VERSION, "content": dict(content)}
        digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        path = folder / f"{name}-{digest[:12]}"
        make_writable(path)
        if not (path / NAME).is_file():
            write_json(path / NAME, {**body, **about})
        return cls(path)

    @property
    def shards(self) -> list[Path]:
        """Files of the complete shards, in order."""
        return sorted(self.path.glob("[0-9]*.safetensors"))

    @property
    def layers(self) -> list[int]:
        """Layers whose hidden states it holds."""
        return [int(layer) for layer in self.about["content"]["layers"]]

    def has(self, number: int) -> bool:
        """Whether the shard of this number is complete."""
        return self._file(number).is_file()

    def write(self, number: int, texts: Sequence[StoredText]) -> None:
        """Write a shard; a half-written one never has its name."""
        tensors = {
            "ids": torch.cat([t.ids for t in texts]).int(),
            "n_ids": torch.tensor([len(t.ids) for t in texts]),
            "n_prompt": torch.tensor([t.n_prompt for t in texts]),
            "top_ids": torch.cat([t.top_ids for t in texts]).int(),
            "top_logprobs": torch.cat([t.top_logprobs for t in texts]).half(),
        }
        for layer in texts[0].hidden:
            tensors[f"hidden.{layer}"] = torch.cat([t.hidden[layer] for t in texts])
        write_bytes(self._file(number), bytes_of({k: v.contiguous().cpu() for k, v in tensors.items()}))
        self.__dict__.pop("index", None)

    @cached_property
    def index(self) -> list[tuple[Path, int, int, int, int]]:
        """Of each text: its shard, first token, number of tokens, tokens of the prompt, first row of its top tokens."""
        found = []
        for file in self.shards:
            shard = self._shard(file)
            at = row = 0
            for n_ids, n_prompt in zip(
                shard.get_tensor("n_ids").tolist(), shard.get_tensor("n_prompt").tolist(), strict=True
            ):
                found.append((file, at, n_ids, n_prompt, row))
                at, row = at + n_ids, row + n_ids - n_prompt + 1
        return found

    def __len__(self) -> int:
        return len(self.index)

    @property
    def n_tokens(self) -> int:
        """Number of answer tokens."""
        return sum(n_ids - n_prompt for _, _, n_ids, n_prompt, _ in self.index)

    def text(self, i: int, layers: Sequence[int] | None = None) -> StoredText:
        """Text `i`, with the hidden states of `layers`; None: of all layers it holds."""
        file, at, n_ids, n_prompt, row = self.index[i]
        shard, n_rows = self._shard(file), n_ids - n_prompt + 1
        return StoredText(
            shard.get_slice("ids")[at : at + n_ids].long(),
            n_prompt,
            {n: shard.get_slice(f"hidden.{n}")[at : at + n_ids] for n in (self.layers if layers is None else layers)},
            shard.get_slice("top_ids")[row : row + n_rows].long(),
            shard.get_slice("top_logprobs")[row : row + n_rows].float(),
        )

    def texts(self) -> Iterator[StoredText]:
        """All texts, without hidden states."""
        return (self.text(i, ()) for i in range(len(self)))

    def _file(self, number: int) -> Path:
        return self.path / f"{number:05d}.safetensors"

    def _shard(self, file: Path) -> Any:
        if file not in self._open:
            try:
                self._open[file] = safe_open(file, "pt")
            except (SafetensorError, OSError) as error:
                raise InputError(f"the shard {file} is damaged ({error}); delete it and collect again") from None
        return self._open[file]


def seen_by(stores: Iterable[Store]) -> set[str]:
    """Digests of the prompts of stores, which no evaluation of a draft that is trained on them may use."""
    return {str(digest) for store in stores for digest in store.about.get("seen", ())}
