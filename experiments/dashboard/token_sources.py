"""The source of each token of an answer, as HTML (accepted, correction, bonus), and where two answers first differ.

The text comes from the pieces of the row, or else from a tokenizer on this machine; without both, token ids replace it.
The module downloads nothing.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from selfspec.answer_text import is_unfinished, text_after

Kind = Literal["prompt", "plain", "accepted", "correction", "bonus"]

# colours of the letters; the ground is a tint of the same colour, and every kind also has its own underline
STYLE = """
.tokens{font:14px/1.9 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;white-space:pre-wrap;overflow-wrap:anywhere;
 padding:.7rem .9rem;border:1px solid rgba(133,133,133,.35);border-radius:.5rem;max-height:30rem;overflow:auto}
.tokens span{border-radius:3px;padding:1px 0}
.tokens .accepted{background:rgba(0,114,178,.20);border-bottom:2px solid #0072B2}
.tokens .correction{background:rgba(199,119,0,.24);border-bottom:2px dashed #C77700}
.tokens .bonus{background:rgba(204,121,167,.26);border-bottom:2px dotted #CC79A7}
.tokens .parts{outline:2px solid #D55E00;outline-offset:1px}
.tokens.legend{border:0;padding:.2rem 0}
"""


def kinds(row: Mapping[str, Any]) -> list[Kind]:
    """The kind of each token: first the prefill's token, then for each round its accepted tokens and its last one."""
    n = len(row["tokens"])
    found: list[Kind] = ["prompt"]
    for drafted, accepted in zip(row["round_drafted"], row["round_accepted"], strict=True):
        last: Kind = "plain" if drafted == 0 else "bonus" if accepted == drafted else "correction"
        found.extend("accepted" for _ in range(accepted))
        found.append(last)
    found.extend("plain" for _ in range(n - len(found)))
    return found[:n]


def tokenizer_file(config: Mapping[str, Any]) -> Path | None:
    """The tokenizer file of a run's model, from its folder, the cache of copies or the hub's cache; None if absent.

    Args:
        config: settings of the run.
    """
    from huggingface_hub import try_to_load_from_cache

    from selfspec.models.locate import default_cache_dir

    model = config.get("model") or {}
    hub_id, registry = model.get("hub_id"), model.get("registry") or {}
    folders = [Path(str(model["path"])).expanduser()] if model.get("path") else []
    if hub_id and registry.get("sha256"):
        copy = f"{str(hub_id).replace('/', '--')}-{str(registry['sha256'])[:12]}"
        folders.append(default_cache_dir() / "models" / copy)
    for folder in folders:
        if (folder / "tokenizer.json").is_file():
            return folder / "tokenizer.json"
    cached = try_to_load_from_cache(hub_id, "tokenizer.json") if hub_id else None
    return Path(cached) if isinstance(cached, str) else None


def pieces(row: Mapping[str, Any], tokenizer: Any | None) -> list[str]:
    """The text of each token; a character of several tokens stands at the last of them.

    Args:
        row: row of an evaluation.
        tokenizer: tokenizer of the package `tokenizers`; if it is None and the row has no pieces, the text of a token
            is its id in brackets.
    """
    recorded = row.get("pieces")
    if isinstance(recorded, list) and len(recorded) == len(row["tokens"]):
        return [str(piece) for piece in recorded]
    if tokenizer is None:
        return [f"⟨{token}⟩" for token in row["tokens"]]
    # Rows hold no prompt. The first token replaces it in the decoding, unless it is a part of a character.
    first = row["tokens"][:1]
    before = [] if is_unfinished(tokenizer.decode(first, skip_special_tokens=False)) else first
    found, written = [], ""
    for end in range(1, len(row["tokens"]) + 1):
        text = text_after(tokenizer, before, row["tokens"][:end], skip_special_tokens=False)
        ready = written if is_unfinished(text) else text
        found.append(ready[len(written) :])
        written = ready
    return found


def parting(one: Sequence[int], other: Sequence[int]) -> int | None:
    """The first position where two answers differ, at the latest the end of the shorter one; None if they are equal."""
    for i, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return i
    return None if len(one) == len(other) else min(len(one), len(other))


def answer(row: Mapping[str, Any], *, tokenizer: Any | None, parts_at: int | None = None) -> str:
    """One answer as HTML: a mark for the source of every token, and a frame around the first different token.

    Args:
        row: row of an evaluation.
        tokenizer: see `pieces`.
        parts_at: position of the first token that differs from the other answer; None for no frame.
    """
    spans = []
    for i, (kind, piece) in enumerate(zip(kinds(row), pieces(row, tokenizer), strict=True)):
        classes = f"{kind} parts" if i == parts_at else kind
        title = f"token {i}: {kind}" + (", first difference" if i == parts_at else "")
        spans.append(f'<span class="{classes}" title="{title}">{html.escape(piece)}</span>')
    return f'<div class="tokens" tabindex="0" role="region" aria-label="answer of {html.escape(str(row["arm"]))}">' + (
        "".join(spans) + "</div>"
    )


def legend() -> str:
    """An explanation of the marks, as HTML."""
    marks = {
        "accepted": "accepted (drafted, and it stands)",
        "correction": "correction (the model's, after a rejection)",
        "bonus": "bonus (the model's, after full acceptance)",
        "parts": "first difference from plain decoding",
    }
    return (
        '<div class="tokens legend">' + "   ".join(f'<span class="{k}">{v}</span>' for k, v in marks.items()) + "</div>"
    )
