"""Every arm on every prompt, in turn, one row each."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.arms import Arm
from selfspec.exactness import Comparison, compare
from selfspec.model import Decoder
from selfspec.prompt import Prompt
from selfspec.records import append_row
from selfspec.trace import DecodeResult

Listener = Callable[[dict[str, Any]], None]


def alternate(
    decoder: Decoder,
    arms: Sequence[Arm],
    prompts: Sequence[Prompt],
    *,
    batch: int,
    warm_up: Prompt,
    to_text: Callable[[list[int]], str],
    is_greedy: bool,
    rows_path: Path,
    listener: Listener | None = None,
) -> Counter[str]:
    """Decode all prompts with each arm and write a row for each; returns how often each verdict was given.

    The arms alternate batch by batch and take turns at going first, so that a drift of the machine's speed meets all of
    them. The warm-up prompt is decoded by every arm before and leaves no row. The first arm is the baseline.

    Args:
        decoder: the target.
        arms: the baseline first.
        prompts: what to decode.
        batch: prompts decoded at once.
        warm_up: a prompt that is not in `prompts`.
        to_text: from token ids to text.
        is_greedy: whether outputs can be compared; sampled ones are equal in distribution only.
        rows_path: JSON lines.
        listener: told each row.
    """
    for arm in arms:
        arm([warm_up.ids])
    verdicts: Counter[str] = Counter()
    for i, start in enumerate(range(0, len(prompts), batch)):
        group = prompts[start : start + batch]
        turn = [arms[(i + j) % len(arms)] for j in range(len(arms))]
        results = {arm.name: _decode(arm, group, start) for arm in turn}
        for order, arm in enumerate(turn):
            baseline = None if arm is arms[0] else results[arms[0].name]
            for j, prompt in enumerate(group):
                expected = baseline[j] if baseline is not None else None
                row = _row(decoder, prompt, arm, results[arm.name][j], expected, is_greedy, to_text)
                row |= {"order": order, "batch": len(group)}
                verdicts[row.get("verdict", "failed")] += 1
                append_row(rows_path, row)
                if listener:
                    listener(row)
    return verdicts


def _decode(arm: Arm, group: Sequence[Prompt], first_row: int) -> list[DecodeResult] | list[str]:
    """The results of a batch, or for each prompt why there is none: a row with its reason, not a lost run."""
    try:
        return arm([prompt.ids for prompt in group], first_row=first_row)
    except RuntimeError as error:  # torch's out-of-memory is one
        return [str(error).splitlines()[0]] * len(group)


def _row(
    decoder: Decoder,
    prompt: Prompt,
    arm: Arm,
    result: DecodeResult | str,
    expected: DecodeResult | str | None,
    is_greedy: bool,
    to_text: Callable[[list[int]], str],
) -> dict[str, Any]:
    identity = {"prompt_id": prompt.example.id, "category": prompt.example.category, "arm": arm.name}
    if isinstance(result, str):
        return {**identity, "error": result}
    comparison: Comparison | None = None
    verdict = "baseline"
    if expected is not None:
        if is_greedy and not isinstance(expected, str):
            comparison = compare(decoder, prompt.ids, expected.tokens, result.tokens)
        verdict = comparison.verdict if comparison else "not compared"
    rounds = result.rounds
    draft_s, verify_s = sum(r.draft_s for r in rounds), sum(r.verify_s for r in rounds)
    return {
        **identity,
        "skip": None if arm.skip is None else str(arm.skip),
        "stop": arm.stop,
        "n_layers": decoder.n_layers,
        "n_prompt_tokens": len(prompt.ids),
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
        "verdict": verdict,
        "first_divergence": comparison.first_divergence if comparison else None,
        "top2_gap": comparison.gap if comparison else None,
        "tolerance": comparison.tolerance if comparison else None,
        "error": None,
        # A round of plain decoding drafts nothing: its lists would only be zeros.
        "round_drafted": [r.drafted for r in rounds] if result.drafted else [],
        "round_accepted": [r.accepted for r in rounds] if result.drafted else [],
        "round_threshold": [r.threshold for r in rounds] if result.drafted else [],
        "tokens": result.tokens,
        "text": to_text(result.tokens),
    }
