"""Every arm on every prompt, in turn, one row each."""

from __future__ import annotations

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
    warm_up: Prompt,
    to_text: Callable[[list[int]], str],
    is_greedy: bool,
    rows_path: Path,
    listener: Listener | None = None,
) -> Counter[str]:
    """Decode each prompt with each arm and write a row for each; returns how often each verdict was given.

    The arms alternate prompt by prompt and take turns at going first, so that a drift of the machine's speed meets all
    of them. The warm-up prompt is decoded by every arm before and leaves no row. The first arm is the baseline.

    Args:
        decoder: the target.
        arms: the baseline first.
        prompts: what to decode.
        warm_up: a prompt that is not in `prompts`.
        to_text: from token ids to text.
        is_greedy: whether outputs can be compared; sampled ones are equal in distribution only.
        rows_path: JSON lines.
        listener: told each row.
    """
    for arm in arms:
        arm(warm_up.ids)
    verdicts: Counter[str] = Counter()
    baseline = arms[0]
    for i, prompt in enumerate(prompts):
        turn = [arms[(i + j) % len(arms)] for j in range(len(arms))]
        results: dict[str, DecodeResult | str] = {}
        for arm in turn:
            try:
                results[arm.name] = arm(prompt.ids)
            except RuntimeError as error:  # out of memory, mostly: the prompt is a row with its reason, not a lost run
                results[arm.name] = str(error).splitlines()[0]
        expected = results[baseline.name]
        for order, arm in enumerate(turn):
            result = results[arm.name]
            if isinstance(result, str):
                row = {**_identity(prompt, arm), "error": result}
            elif arm is baseline or not is_greedy or isinstance(expected, str):
                verdict = "baseline" if arm is baseline else "not compared"
                row = _row(decoder, prompt, arm, result, order, verdict, None, to_text)
            else:
                comparison = compare(decoder, prompt.ids, expected.tokens, result.tokens)
                row = _row(decoder, prompt, arm, result, order, comparison.verdict, comparison, to_text)
            verdicts[row.get("verdict", "failed")] += 1
            append_row(rows_path, row)
            if listener:
                listener(row)
    return verdicts


def _identity(prompt: Prompt, arm: Arm) -> dict[str, Any]:
    return {"prompt_id": prompt.example.id, "category": prompt.example.category, "arm": arm.name}


def _row(
    decoder: Decoder,
    prompt: Prompt,
    arm: Arm,
    result: DecodeResult,
    order: int,
    verdict: str,
    comparison: Comparison | None,
    to_text: Callable[[list[int]], str],
) -> dict[str, Any]:
    rounds = result.rounds
    draft_s, verify_s = sum(r.draft_s for r in rounds), sum(r.verify_s for r in rounds)
    return {
        **_identity(prompt, arm),
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
        "prefill_s": result.prefill_s,
        "draft_s": draft_s,
        "verify_s": verify_s,
        "other_s": result.total_s - result.prefill_s - draft_s - verify_s if rounds else 0.0,
        "total_s": result.total_s,
        "verdict": verdict,
        "first_divergence": comparison.first_divergence if comparison else None,
        "top2_gap": comparison.gap if comparison else None,
        "tolerance": comparison.tolerance if comparison else None,
        "order": order,
        "error": None,
        # A round of plain decoding drafts nothing: its lists would only be zeros.
        "round_drafted": [r.drafted for r in rounds] if result.drafted else [],
        "round_accepted": [r.accepted for r in rounds] if result.drafted else [],
        "round_threshold": [r.threshold for r in rounds] if result.drafted else [],
        "tokens": result.tokens,
        "text": to_text(result.tokens),
    }
