"""What a controller decides by, measured where it decides: the forwards of a drafter, and the device."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

import torch

from selfspec.control.base import Controller, ControlState
from selfspec.control.step_costs import StepCosts
from selfspec.engine.decode import Ending, speculate
from selfspec.engine.protocols import AroundDrafter, Drafter
from selfspec.errors import InputError
from selfspec.measure.stopwatch import Stopwatch
from selfspec.models.decoder import Decoder
from selfspec.records import provenance
from selfspec.stopping import Threshold

N_DRAFTED, N_ROUNDS = 4, 4  # of the rounds that time a drafter
N_ROWS, CONTEXT = 8, 64  # of the batch in which it is timed, unless a caller says otherwise; chosen, not tuned


def begun(policy: Controller, costs: StepCosts | None, decoder: Decoder, drafter: Drafter) -> ControlState:
    """The state of a controller for a drafter, whose forwards are timed if the controller reads costs.

    Args:
        policy: the controller.
        costs: seconds of a step on this device; None: unknown.
        decoder: the target.
        drafter: drafts for it.

    Raises:
        InputError: if it reads costs and there are none, or they are of another device.
    """
    if not policy.reads_costs:
        return policy.begin(costs or StepCosts((1.0, 0.0, 0.0, 0.0, 0.0)))
    if costs is None:
        raise InputError(
            f"controller={type(policy).__name__} decides by the seconds of a step, and has none; give costs=, the "
            "costs.json of a `selfspec profile` on this machine"
        )
    costs.check_device(here(decoder))
    context = min(CONTEXT, max(1, decoder.context_length // 4))
    watch = Stopwatch(decoder.device)
    drafting = measure_drafting(decoder, drafter, n_rows=N_ROWS, context=context, stopwatch=watch)
    return policy.begin(costs.drafting(drafting))


def here(decoder: Decoder) -> Mapping[str, Any]:
    """What seconds that are measured here are of, as texts."""
    return {
        "model_type": str(decoder.config.model_type),
        "dtype": str(decoder.dtype).removeprefix("torch."),
        "device": str(decoder.device),
        "threads": str(torch.get_num_threads()),
        "machine": provenance.processor(),
    }


@torch.inference_mode()
def measure_drafting(
    decoder: Decoder, drafter: Drafter, *, n_rows: int, context: int, stopwatch: Stopwatch
) -> tuple[float, float] | None:
    """Seconds of a forward of a drafter: those of one row without it, and those of each row; see `StepCosts.draft`.

    Real rounds with one row and with `n_rows` are timed, so it serves every drafter. Of drafters around others the
    innermost counts.

    Args:
        decoder: the target.
        drafter: the drafter.
        n_rows: rows of the largest batch.
        context: tokens before the rounds.
        stopwatch: measures the seconds.

    Returns:
        None if it drafts without forwards.
    """
    while isinstance(drafter, AroundDrafter):
        drafter = drafter.inner
    one, all_s = (_forward_s(decoder, drafter, n, context, stopwatch) for n in (1, n_rows))
    if one is None or all_s is None:
        return None
    row_s = max(0.0, (all_s - one) / (n_rows - 1)) if n_rows > 1 else 0.0
    return max(0.0, one - row_s), row_s


def _forward_s(decoder: Decoder, drafter: Drafter, n_rows: int, context: int, stopwatch: Stopwatch) -> float | None:
    rule = Threshold(N_DRAFTED, 0.0)  # drafts always, and reads confidences like most rules
    ids = [(-1 - i // 3) % int(decoder.config.vocab_size) for i in range(context)]
    results = speculate(
        decoder,
        [ids] * n_rows,
        drafter=drafter,
        stops=[rule.begin() for _ in range(n_rows)],
        ending=Ending((N_DRAFTED + 1) * N_ROUNDS + 1, frozenset()),
        stopwatch=stopwatch,
    )
    # equal rows stay together, and each has its share of the seconds
    found = [n_rows * r.draft_s / r.n_forwards for r in results[0].rounds if r.n_forwards]
    return median(found) if found else None
