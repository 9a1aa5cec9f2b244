"""A model with a draft, for repeated decoding: the bound draft, rounded weights and the stop rule's state are kept.

A stop rule that carries something over does so from call to call, as in the race that chose it. `kept` returns the
speculator of an earlier call on the same model, for callers that cannot store one.
"""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import replace
from itertools import chain, repeat
from pathlib import Path
from typing import Any

from torch import nn

from selfspec.control.base import Controller, ControlState
from selfspec.control.measured import begun
from selfspec.control.step_costs import StepCosts
from selfspec.drafters.build import build_drafter
from selfspec.drafters.spec import DraftSpec
from selfspec.drafters.spec_files import load_spec
from selfspec.engine.decode import Ending, speculate
from selfspec.engine.protocols import Drafter
from selfspec.engine.sampling import Sampling
from selfspec.engine.schedule import Listener
from selfspec.engine.trace import DecodeResult
from selfspec.measure.stopwatch import Stopwatch
from selfspec.models.decoder import Decoder
from selfspec.skipping import plan_files, skip_set_files
from selfspec.skipping.plan import DraftPlan
from selfspec.skipping.skip_set import SkipSet
from selfspec.stopping import StopPolicy, StopState, Threshold

DEFAULT_STOP = Threshold(max_draft=12, threshold=0.6)  # the paper's K and first threshold, without its adaptation
MOST_KEPT = 4  # speculators kept for a model; each may hold rounded copies of its weights; chosen, not tuned

CostsLike = StepCosts | str | Path
DraftLike = DraftSpec | DraftPlan | SkipSet | str | Path


class Speculator:
    """Decodes with one draft.

    Args:
        model: a causal language model in eval mode, or a decoder of one.
        draft: a spec, a plan, a skip set, one written as `a3,5-9 m7`, a published name, or the file or folder of any of
            these. The folder of a search means the winner of its race, with stop rule, pauses and lookup.
        stop: stop rule that replaces the draft's own; `DEFAULT_STOP` if there is neither.
        lookup: prompt lookup before the draft (true) or none (false); None: as in the draft.
        sample_draft: in sampling, draw drafted tokens (true) or take the likeliest (false); None: as in the draft.
        control: decides how far each row of a batch drafts in each step, and learns from call to call; None: as far as
            the stop rule goes.
        controller: makes `control` at the first call, when the forwards of the draft are timed.
        costs: what it decides by: seconds of a step, or the file `costs.json` of `selfspec profile`.
        instead: drafts in the place of the draft's plan, with its stop rule and lookup; None: the plan drafts.

    Raises:
        InputError: if there is no such draft, or it is for another model.
    """

    def __init__(
        self,
        model: nn.Module | Decoder,
        draft: DraftLike,
        *,
        stop: StopPolicy | None = None,
        lookup: bool | None = None,
        sample_draft: bool | None = None,
        control: ControlState | None = None,
        controller: Controller | None = None,
        costs: CostsLike | None = None,
        instead: Drafter | None = None,
    ) -> None:
        self.decoder = model if isinstance(model, Decoder) else Decoder(model)
        spec = _spec(draft, self.decoder, stop)
        if lookup is not None:
            spec = replace(spec, lookup="front" if lookup else None)
        if sample_draft is not None:
            spec = replace(spec, sample_draft=sample_draft)
        self.spec = spec
        self.drafter = build_drafter(spec, self.decoder, instead=instead)
        self.control, self._controller = control, controller
        self._costs = costs if isinstance(costs, StepCosts | None) else StepCosts.read(Path(costs))
        self.states: list[StopState] = []  # by row, from the last call that had this row

    def __call__(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        ending: Ending | Sequence[Ending],
        sampling: Sampling | Sequence[Sampling] | None = None,
        first_row: int = 0,
        listener: Listener | None = None,
        stopwatch: Stopwatch | None = None,
    ) -> list[DecodeResult]:
        """The target's own output for each prompt; arguments as in `decode.speculate`.

        If the stop rule carries something over, row i continues the state of row i of the last call, or of its last row
        if that call had fewer rows.
        """
        if self.control is None and self._controller is not None:
            self.control = begun(self._controller, self._costs, self.decoder, self.drafter)
        states = self.begin(len(prompts))
        results = speculate(
            self.decoder,
            prompts,
            drafter=self.drafter,
            stops=states,
            ending=ending,
            sampling=sampling,
            first_row=first_row,
            listener=listener,
            stopwatch=stopwatch,
            control=self.control,
        )
        self.keep(states)
        return results

    def begin(self, n_rows: int) -> list[StopState]:
        """The states of the stop rule that `n_rows` rows begin with, see `__call__`."""
        before = chain(self.states, repeat(self.states[-1] if self.states else None))
        return [self.spec.stop.begin(after) for _, after in zip(range(n_rows), before, strict=False)]

    def keep(self, states: Sequence[StopState]) -> None:
        """Let the next call go on from these states, as decoding left them."""
        self.states[: len(states)] = states


def _spec(draft: DraftLike, decoder: Decoder, stop: StopPolicy | None) -> DraftSpec:
    if isinstance(draft, DraftSpec):
        return draft if stop is None else replace(draft, stop=stop)
    if isinstance(draft, SkipSet):
        draft = DraftPlan.from_skip_set(draft)
    if isinstance(draft, DraftPlan):
        return DraftSpec(draft, stop or DEFAULT_STOP)
    return load_spec(draft, decoder, stop=stop, default_stop=DEFAULT_STOP)


class _Kept:
    """Speculators stored on the model itself, so that they are freed with the model.

    A copied or saved model does not include them.
    """

    def __init__(self) -> None:
        self.weights: tuple[tuple[int, int], ...] = ()
        self.decoder: Decoder | None = None
        self.speculators: OrderedDict[Hashable, Speculator] = OrderedDict()

    def __deepcopy__(self, memo: Any) -> _Kept:
        return _Kept()

    def __reduce__(self) -> tuple[type[_Kept], tuple[()]]:
        return _Kept, ()


_PLACE = "_selfspec_kept"


def kept(
    model: nn.Module,
    draft: DraftLike,
    *,
    stop: StopPolicy | None = None,
    lookup: bool | None = None,
    sample_draft: bool | None = None,
    controller: Controller | None = None,
    costs: CostsLike | None = None,
) -> Speculator:
    """The speculator of an earlier call with the same arguments; a new one if weights or files have changed.

    Arguments as in `Speculator`. Weights are unchanged if every parameter is the same tensor of the same version.
    """
    found: _Kept | None = model.__dict__.get(_PLACE)
    if found is None:
        found = model.__dict__[_PLACE] = _Kept()
    weights = tuple((id(p), _version(p)) for p in model.parameters())
    if found.decoder is None or found.weights != weights:
        found.decoder, found.weights = Decoder(model), weights
        found.speculators.clear()
    rules = (None if rule is None else json.dumps(rule.to_dict(), sort_keys=True) for rule in (stop, controller))
    known = json.dumps(costs.to_dict(), sort_keys=True) if isinstance(costs, StepCosts) else _key(costs or "")
    key = _key(draft), *rules, known, lookup, sample_draft
    if key not in found.speculators:
        made = Speculator(
            found.decoder,
            draft,
            stop=stop,
            lookup=lookup,
            sample_draft=sample_draft,
            controller=controller,
            costs=costs,
        )
        while len(found.speculators) >= MOST_KEPT:
            found.speculators.popitem(last=False)
        found.speculators[key] = made
    found.speculators.move_to_end(key)
    return found.speculators[key]


def _key(draft: DraftLike) -> Hashable:
    """Key of a draft; for a file or folder it includes the modification times."""
    if not isinstance(draft, str | Path):
        return draft
    path = Path(draft).expanduser()
    files = [path, path / plan_files.NAME, path / skip_set_files.NAME] if os.path.exists(path) else []
    return str(draft), tuple(f.stat().st_mtime_ns for f in files if f.is_file())


def _version(parameter: nn.Parameter) -> int:
    try:
        return int(parameter._version)
    except RuntimeError:  # an inference tensor has no version and is not written to
        return 0
