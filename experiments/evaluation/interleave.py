"""Decodes every prompt with every arm, in turn, and writes one row for each answer."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from experiments.evaluation.arms import Arm
from experiments.evaluation.conversations import UNDECODED, Answer, Asked, Conversations, Encode, ToText, why_none
from selfspec.answer_text import opens_thought
from selfspec.engine.trace import DecodeResult
from selfspec.measure.exactness import Comparison, compare
from selfspec.models.decoder import Decoder
from selfspec.records.run_files import append_row

log = logging.getLogger(__name__)

LAST = 16  # last tokens of a prompt, which are searched for the mark that opens a thought

Row = dict[str, Any]
Key = tuple[str, int, int, str]


def alternate(
    decoder: Decoder,
    arms: Sequence[Arm],
    asked: Sequence[Asked],
    *,
    batch: int,
    warm_up: list[int],
    encode: Encode,
    to_text: ToText,
    is_greedy: bool,
    rows_path: Path,
    done: Collection[tuple[str, int]] = (),
    listener: Callable[[Row], None] | None = None,
) -> None:
    """Decode all prompts with each arm and write a row for each turn.

    The arms alternate batch by batch, and a different arm goes first each time, so that a drift of the machine's speed
    affects all of them. Each arm first decodes the warm-up prompt, which leaves no row. The first arm is the baseline.

    Args:
        decoder: the target.
        arms: the arms, the baseline first.
        asked: the prompts to decode.
        batch: number of prompts decoded at once.
        warm_up: token ids of the warm-up prompt.
        encode: encodes a conversation; raises InputError if it does not fit.
        to_text: decodes an answer from the token ids of prompt and answer.
        is_greedy: whether outputs can be compared; sampled outputs are equal in distribution only.
        rows_path: file of JSON lines for the rows.
        done: keys of prompts with answers; a batch with any other prompt is decoded as a whole.
        listener: called with each row.
    """
    for arm in arms:
        try:
            arm([warm_up])
        except UNDECODED as error:
            log.warning("%s could not decode the warm-up prompt: %s", arm.name, *why_none(error, [warm_up]))
    for i, start in enumerate(range(0, len(asked), batch)):
        group = asked[start : start + batch]
        if all(a.key in done for a in group):
            continue
        order = [arms[(i + j) % len(arms)] for j in range(len(arms))]
        talks: dict[str, list[list[Answer]]] = {}
        for arm in order:
            talk = Conversations(group, first_row=start, n_rows=len(asked), encode=encode, to_text=to_text)
            for turn in talk.turns():
                try:
                    results: Sequence[DecodeResult | str] = arm(turn.prompts, first_row=turn.first_row)
                except UNDECODED as error:
                    results = why_none(error, turn.prompts)
                talk.take(turn, results)
            talks[arm.name] = talk.answers
        for place, arm in enumerate(order):
            for one, expected, got in zip(group, talks[arms[0].name], talks[arm.name], strict=True):
                rows = _rows(decoder, one, arm, got, None if arm is arms[0] else expected, is_greedy, to_text)
                for row in rows:
                    append_row(rows_path, row | {"order": place, "batch": len(group)})
                    if listener:
                        listener(row)


def latest(rows: Sequence[Row]) -> dict[Key, Row]:
    """The rows by prompt, sample, turn and arm; if a resumed run wrote a row twice, the later row."""
    return {(row["prompt_id"], row["sample"], row["turn"], row["arm"]): row for row in rows}


def finished(rows: Mapping[Key, Row], asked: Sequence[Asked], arms: Sequence[Arm]) -> set[tuple[str, int]]:
    """The keys of the prompts for which every arm has answered all turns."""
    return {
        a.key
        for a in asked
        if all((*a.key, turn, arm.name) in rows for turn in range(len(a.questions)) for arm in arms)
    }


def _rows(
    decoder: Decoder,
    asked: Asked,
    arm: Arm,
    talk: Sequence[Answer],
    expected: Sequence[Answer] | None,
    is_greedy: bool,
    to_text: ToText,
) -> list[Row]:
    """One row for each turn; its verdict compares it with the baseline's answer, if `expected` holds one."""
    rows: list[Row] = []
    for turn, answer in enumerate(talk):
        row: Row = {
            "prompt_id": asked.example.id,
            "category": asked.example.category,
            "sample": asked.sample,
            "turn": turn,
            "arm": arm.name,
        }
        if isinstance(answer.result, str):
            rows.append({**row, "error": answer.result})
            continue
        comparison: Comparison | None = None
        verdict = "baseline"
        if expected is not None:
            verdict, wanted = "not compared", expected[turn]
            if is_greedy and arm.is_lossless and not isinstance(wanted.result, str):
                if wanted.ids == answer.ids:
                    comparison = compare(decoder, answer.ids, wanted.result.tokens, answer.result.tokens)
                    verdict = comparison.verdict
                else:  # the conversations differ since an earlier turn, and its verdict holds for this turn too
                    verdict = rows[-1]["verdict"]
        rows.append(row | _counts(decoder, arm, answer.ids, answer.result, to_text) | _judged(verdict, comparison))
    return rows


def runs_of(versions: Sequence[str]) -> list[list[str | int]]:
    """Each version of the draft with the number of consecutive rounds that it drafted; empty if it has none."""
    found: list[list[str | int]] = [[version, len([*group])] for version, group in groupby(versions)]
    return found if any(version for version, _ in found) else []


def _judged(verdict: str, comparison: Comparison | None) -> Row:
    return {
        "verdict": verdict,
        "first_divergence": comparison.first_divergence if comparison else None,
        "top2_gap": comparison.gap if comparison else None,
        "tolerance": comparison.tolerance if comparison else None,
        "error": None,
    }


def _counts(decoder: Decoder, arm: Arm, ids: Sequence[int], result: DecodeResult, to_text: ToText) -> Row:
    rounds = result.rounds
    draft_s, verify_s = sum(r.draft_s for r in rounds), sum(r.verify_s for r in rounds)
    return {
        "skip": None if arm.skip is None else str(arm.skip),
        "stop": arm.stop,
        "n_layers": decoder.n_layers,
        "n_prompt_tokens": len(ids),
        "n_tokens": len(result.tokens),
        "finish": result.finish,
        "n_rounds": len(rounds),
        "drafted": result.drafted,
        "accepted": result.accepted,
        "committed": sum(r.committed for r in rounds),
        "prefill_s": None if math.isnan(result.prefill_s) else result.prefill_s,
        "draft_s": draft_s,
        "verify_s": verify_s,
        "other_s": result.total_s - result.prefill_s - draft_s - verify_s if rounds else 0.0,
        "total_s": result.total_s,
        # a round of plain decoding drafts nothing, so its lists would hold zeros only
        "round_drafted": [r.drafted for r in rounds] if result.drafted else [],
        "round_accepted": [r.accepted for r in rounds] if result.drafted else [],
        "round_threshold": [r.threshold for r in rounds] if result.drafted else [],
        "tokens": result.tokens,
        "text": to_text(ids, result.tokens),
        **({"round_version": versions} if (versions := runs_of([r.version for r in rounds])) else {}),
        # some chat templates open a thought in the prompt; the answer then holds its end only
        **({"begins_in_thought": True} if opens_thought(to_text([], ids[-LAST:])) else {}),
    }
