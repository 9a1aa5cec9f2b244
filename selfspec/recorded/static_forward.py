"""A forward in fixed shapes, recorded once for each shape and then replayed on the device.

It has the interface of `Forward` and gives the same logits. Rows and tokens are padded to the next recorded shape. The
results of padding are not used, and its keys and values lie after the clocks. Calls without a recurring shape, such as
a prompt, run without a recording.
"""

# B rows, T tokens, S keys, V vocabulary, E tokens that texts add to a trimmed head, I hidden size

from __future__ import annotations

import itertools
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from selfspec.engine.cache import ClockCache
from selfspec.engine.forward import BoundForward
from selfspec.engine.masks import attention_mask, check_batches, tree_mask
from selfspec.engine.protocols import Output
from selfspec.errors import InputError
from selfspec.recorded.recording import Program, Recorder
from selfspec.recorded.static_cache import TOKENS, StaticCache, StaticCaches, bucket, key_bucket
from selfspec.skipping.trimmed_head import UNSCORED, TextRows

LONGEST = TOKENS[-1]  # largest number of new tokens in a recording
SLACK = 64  # tokens after the longest row, to which padding and drafts beyond the limit may write
_HOST_ROPES = ("dynamic", "longrope")  # transformers reads positions on the host to choose the angles
_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Stage:
    """State that the static forwards of a decoder share.

    Attributes:
        recorder: holds their recordings.
        caches: buffers of their keys and values.
    """

    recorder: Recorder
    caches: StaticCaches = field(default_factory=StaticCaches)

    def __post_init__(self) -> None:
        self.caches.when_dropped(lambda dropped: self.recorder.forget(id(dropped)))


class StaticForward:
    """The forward `bound` in fixed shapes; it implements `Forward`.

    Args:
        bound: forward of the target or of a draft.
        stage: the decoder's stage.
        recorded: a forward that is recorded instead, such as one of compiled pieces; None: `bound`.

    Raises:
        InputError: if the model takes no explicit mask, chooses rotary angles on the host, or lies on several devices.
    """

    def __init__(self, bound: BoundForward, stage: Stage, *, recorded: BoundForward | None = None) -> None:
        check_static(bound.module)
        self.bound, self.stage, self.recorded = bound, stage, recorded or bound
        self.number = ("forward", next(_numbers))
        # The recordings are dropped with the forward.
        weakref.finalize(self, stage.recorder.forget, self.number)

    @property
    def module(self) -> nn.Module:
        """The model, or the draft that shares its parameters."""
        return self.bound.module

    @property
    def context_length(self) -> int:
        """Length of the longest sequence, in tokens."""
        return self.bound.context_length

    def text_rows(self, texts: Sequence[Sequence[int]], lengths_BT: Tensor | None = None) -> TextRows | None:
        """Tokens of `texts` that a trimmed head scores besides its own."""
        return self.bound.text_rows(texts, lengths_BT)

    def forget(self) -> None:
        """Drop its recordings; they are made again if needed."""
        self.stage.recorder.forget(self.number)

    def output(
        self,
        ids_BT: Tensor,
        *,
        starts: Sequence[int],
        cache: ClockCache,
        n_logits: int = 0,
        text_rows: TextRows | None = None,
        hidden: Sequence[int] = (),
    ) -> Output:
        """Logits of `ids_BT`, and hidden states if wanted.

        Hooks collect hidden states, and a recording has no hooks: with `hidden` the forward runs without a recording.
        """
        if hidden:
            return self.bound.output(
                ids_BT, starts=starts, cache=cache, n_logits=n_logits, text_rows=text_rows, hidden=hidden
            )
        return Output(self(ids_BT, starts=starts, cache=cache, n_logits=n_logits, text_rows=text_rows))

    def tree(self, ids_BT: Tensor, **where: Any) -> Tensor:
        """The logits of `tree_output`, [B, T, V]."""
        return self.tree_output(ids_BT, **where).logits_BTV

    @torch.inference_mode()
    def __call__(
        self,
        ids_BT: Tensor,
        *,
        starts: Sequence[int],
        cache: ClockCache,
        n_logits: int = 0,
        text_rows: TextRows | None = None,
    ) -> Tensor:
        """Logits of `ids_BT`, [B, T, V] or [B, n_logits, V]; from a recording if the shape allows one."""
        n_rows, n_new = ids_BT.shape
        static = self.caches_for(cache, n_tokens=max(starts) + n_new) if n_new <= LONGEST else None
        if static is None or (text_rows is not None and text_rows.ceilings.shape[1] > 1):
            return self.bound(ids_BT, starts=starts, cache=cache, n_logits=n_logits, text_rows=text_rows)
        cache.set(starts, n_new)
        n_tokens = bucket(n_new, TOKENS)
        n_keys = min(key_bucket(max(starts) + n_tokens), static.capacity)
        kept = n_logits if n_tokens == n_new else 0
        texts = PaddedTexts.from_rows(text_rows, static.n_rows)
        key = (self.number, id(static), n_tokens, n_keys, kept, texts.shape)
        inputs = {
            "ids_BT": padded(ids_BT, static.n_rows, n_tokens),
            "starts_B": padded_starts(starts, static.n_rows),
            **texts.tensors,
        }

        def make() -> Program:
            buffers = buffers_like(inputs, static)

            def body() -> tuple[Tensor, ...]:
                logits = logits_of(
                    bound,
                    buffers["ids_BT"],
                    buffers["starts_B"],
                    static,
                    n_keys=n_keys,
                    n_logits=kept,
                    text_rows=texts.rows(buffers),
                )
                return (logits,)

            return Program(buffers, body, watching(bound, static))

        bound = self.recorded
        (logits_BTV,) = self.stage.recorder.play(key, make, inputs)
        logits_BTV = logits_BTV[:n_rows]
        if kept == 0:
            logits_BTV = logits_BTV[:, (n_new - n_logits if n_logits else 0) : n_new]
        return logits_BTV.clone()  # the next replay overwrites the recording's output

    @torch.inference_mode()
    def tree_output(
        self,
        ids_BT: Tensor,
        *,
        positions_BT: Tensor,
        seen_BTS: Tensor,
        key_positions_BS: Tensor,
        cache: ClockCache,
        text_rows: TextRows | None = None,
        hidden: Sequence[int] = (),
    ) -> Output:
        """Logits and hidden states of a tree's tokens; recorded for uniform rows without `hidden`."""
        n_rows, n_new = ids_BT.shape
        start = cache.clocks[0]
        static = self.caches_for(cache, n_tokens=start + n_new) if n_new <= LONGEST and cache.is_uniform else None
        if hidden or static is None or (text_rows is not None and text_rows.ceilings.shape[1] > 1):
            return self.bound.tree_output(
                ids_BT,
                positions_BT=positions_BT,
                seen_BTS=seen_BTS,
                key_positions_BS=key_positions_BS,
                cache=cache,
                text_rows=text_rows,
                hidden=hidden,
            )
        n_tokens = bucket(n_new, TOKENS)
        n_keys = min(key_bucket(start + n_tokens), static.capacity)
        # Padding sees the first key only: a query without keys would give nan.
        seen = torch.zeros(static.n_rows, n_tokens, n_keys, dtype=torch.bool, device=ids_BT.device)
        seen[:, :, 0] = True
        seen[:n_rows, :n_new] = pad(seen_BTS.expand(n_rows, n_new, -1), (0, n_keys - seen_BTS.shape[-1]))
        key_positions_BS = key_positions_BS.expand(n_rows, -1)
        texts = PaddedTexts.from_rows(text_rows, static.n_rows)
        key = (self.number, id(static), "tree", n_tokens, n_keys, texts.shape)
        inputs = {
            "ids_BT": padded(ids_BT, static.n_rows, n_tokens),
            "starts_B": padded_starts(cache.clocks, static.n_rows),
            "positions_BT": padded(positions_BT.expand(n_rows, -1), static.n_rows, n_tokens),
            "seen_BTS": seen,
            "key_positions_BS": padded(key_positions_BS, static.n_rows, n_keys),
            **texts.tensors,
        }

        def make() -> Program:
            buffers = buffers_like(inputs, static)

            def body() -> tuple[Tensor, ...]:
                mask = tree_mask(
                    bound.module.config,
                    buffers["positions_BT"],
                    seen_BTS=buffers["seen_BTS"],
                    key_positions_BS=buffers["key_positions_BS"],
                    dtype=static.layers[0].dtype,
                )
                offsets_T = torch.arange(n_tokens, device=static.layers[0].device)
                return (
                    run(
                        bound,
                        buffers["ids_BT"],
                        slots_BT=buffers["starts_B"].unsqueeze(1) + offsets_T,
                        positions_BT=buffers["positions_BT"],
                        mask=mask,
                        static=static,
                        n_keys=n_keys,
                        n_logits=0,
                        text_rows=texts.rows(buffers),
                    ),
                )

            return Program(buffers, body, watching(bound, static))

        bound = self.recorded
        (logits_BTV,) = self.stage.recorder.play(key, make, inputs)
        return Output(logits_BTV[:n_rows, :n_new].clone())

    def caches_for(self, cache: ClockCache, *, n_tokens: int) -> StaticCache | None:
        """The static cache that now holds `cache`, with room for `n_tokens` in each row and for padding."""
        return self.stage.caches.holding(cache, n_tokens=n_tokens + SLACK)


def check_static(module: nn.Module) -> None:
    """Raise InputError if the model's forward cannot be recorded; see `StaticForward`."""
    config: Any = module.config
    check_batches(config)
    text = config.get_text_config()
    ropes = getattr(text, "rope_parameters", None) or {}
    kinds = {ropes.get("rope_type"), *(r.get("rope_type") for r in ropes.values() if isinstance(r, dict))}
    if kinds & set(_HOST_ROPES):
        kind = (kinds & set(_HOST_ROPES)).pop()
        raise InputError(
            f"graphs are not possible with a {text.model_type!r} model of rope_type={kind}, "
            "which reads positions on the host; decode without graphs"
        )
    devices = {p.device for p in module.parameters()}
    if len(devices) > 1:
        raise InputError(f"graphs need the whole model on one device, but it lies on {len(devices)}; leave graphs out")


def logits_of(
    bound: BoundForward,
    ids_BT: Tensor,
    starts_B: Tensor,
    static: StaticCache,
    *,
    n_keys: int,
    n_logits: int,
    text_rows: TextRows | None,
) -> Tensor:
    """Logits of tokens whose rows begin at the tensor `starts_B`; the host knows only shapes."""
    positions_BT = starts_B.unsqueeze(1) + torch.arange(ids_BT.shape[1], device=ids_BT.device)
    mask = attention_mask(bound.module.config, positions_BT, n_keys=n_keys, dtype=static.layers[0].dtype)
    return run(
        bound,
        ids_BT,
        slots_BT=positions_BT,
        positions_BT=positions_BT,
        mask=mask,
        static=static,
        n_keys=n_keys,
        n_logits=n_logits,
        text_rows=text_rows,
    )


def run(
    bound: BoundForward,
    ids_BT: Tensor,
    *,
    slots_BT: Tensor,
    positions_BT: Tensor,
    mask: Any,
    static: StaticCache,
    n_keys: int,
    n_logits: int,
    text_rows: TextRows | None,
) -> Tensor:
    """The module's logits; keys and values are written at `slots_BT`."""
    static.slots_BT, static.n_keys = slots_BT, n_keys
    more = {} if text_rows is None else {"text_rows": text_rows}
    logits: Tensor = bound.module(
        input_ids=ids_BT,
        attention_mask=additive(mask, static.layers[0].dtype),
        # Padding may lie beyond the context; its results are not used.
        position_ids=positions_BT.clamp(max=bound.context_length - 1),
        past_key_values=static,
        use_cache=True,
        logits_to_keep=n_logits,
        **more,
    ).logits
    return logits


def additive(mask: Any, dtype: torch.dtype) -> Any:
    """Boolean masks as additive ones; otherwise torch's kernel would convert them in every layer."""
    if isinstance(mask, dict):
        return {kind: additive(one, dtype) for kind, one in mask.items()}
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, -torch.inf)


@dataclass(frozen=True, slots=True)
class PaddedTexts:
    """Head rows that texts add to a trimmed head, padded to a recorded shape; empty if there are none.

    Attributes:
        tensors: inputs of a program.
        shape: part of the key of a recording.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    shape: tuple[int, ...] = ()

    @classmethod
    def from_rows(cls, rows: TextRows | None, n_rows: int) -> PaddedTexts:
        """`rows` for a batch padded to `n_rows`."""
        if rows is None:
            return cls()
        n = key_bucket(len(rows.ids))
        # Padding repeats the first row: writing its score twice has no effect.
        again_E = torch.zeros(n, dtype=torch.long, device=rows.ids.device)
        again_E[: len(rows.ids)] = torch.arange(len(rows.ids), device=rows.ids.device)
        ceilings = rows.ceilings
        if ceilings.shape[0] < n_rows:
            ceilings = pad(ceilings, (0, 0, 0, 0, 0, n_rows - ceilings.shape[0]), value=UNSCORED)
        tensors = {"text_ids": rows.ids[again_E], "text_weight": rows.weight[again_E], "text_ceilings": ceilings}
        if rows.bias is not None:
            tensors["text_bias"] = rows.bias[again_E]
        return cls(tensors, (n,))

    def rows(self, buffers: dict[str, Tensor]) -> TextRows | None:
        """The rows in the buffers of a program."""
        if not self.tensors:
            return None
        return TextRows(buffers["text_ids"], buffers["text_weight"], buffers.get("text_bias"), buffers["text_ceilings"])


def padded(tensor_BT: Tensor, n_rows: int, n_columns: int) -> Tensor:
    """The tensor padded with zeros to [n_rows, n_columns]."""
    b, t = tensor_BT.shape
    return tensor_BT if (b, t) == (n_rows, n_columns) else pad(tensor_BT, (0, n_columns - t, 0, n_rows - b))


def padded_starts(starts: Sequence[int], n_rows: int) -> Tensor:
    """The starts as a tensor [B]; padding rows begin at 0."""
    return torch.tensor([*starts, *([0] * (n_rows - len(starts)))])


def buffers_like(inputs: dict[str, Tensor], static: StaticCache) -> dict[str, Tensor]:
    """Empty buffers for a program's inputs, on the device of the cache."""
    return {name: torch.empty_like(t, device=static.layers[0].device) for name, t in inputs.items()}


def watching(bound: BoundForward, static: StaticCache) -> Any:
    """Tensors that must not move while a recording is used: first and last weight, first keys, last values."""

    first, *_, last = bound.module.parameters()
    return lambda: (first, last, static.layers[0].keys, static.layers[-1].values)
