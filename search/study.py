"""The memory of a search: an Optuna study of skip sets, kept in memory and mirrored to a journal.

Every `suggest` on a shared storage is a write, so the study that is asked lives in memory and each finished trial is
copied to the journal in one piece. What a sampler remembers lies in its trials, so a study read back from its journal
goes on as if it had never stopped: for each trial the sampler is made anew from (seed, number of trials).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.samplers import BaseSampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from search.objective import Score
from search.space import Space
from selfspec.errors import InputError
from selfspec.records import drop_partial_line
from selfspec.skip import SkipSet

Origin = Literal["start", "searcher"]
Encoding = Literal["bits", "floats"]
MakeSampler = Callable[[int], BaseSampler]

STUDY_NAME = "search"
LOCK_S = 3  # how long a killed search's lock is waited for: Optuna's least; one write takes milliseconds


@dataclass(slots=True)
class Proposal:
    """A skip set to be scored."""

    skip: SkipSet
    origin: Origin
    trial: Trial | None


class SearchStudy:
    """Asks a sampler for skip sets and tells it what was run.

    Args:
        space: what is searched.
        make_sampler: from a seed to an Optuna sampler.
        seed: of the whole search.
        identity: what must be equal for a journal to belong to this search (model, objective, ...).
        journal: where finished trials are mirrored; None: nowhere.
        encoding: what the sampler sees: booleans (`bits`), or numbers in [0, 1] of which those above ½ are true
            (`floats`, for samplers that know only numbers).

    Raises:
        InputError: if the journal belongs to another search.
    """

    def __init__(
        self,
        space: Space,
        make_sampler: MakeSampler,
        *,
        seed: int,
        identity: Mapping[str, Any] | None = None,
        journal: Path | None = None,
        encoding: Encoding = "bits",
    ) -> None:
        self.space = space
        self._make_sampler = make_sampler
        self._seed = seed
        self._study = optuna.create_study(direction="maximize", sampler=make_sampler(seed))
        kind: BaseDistribution = (
            CategoricalDistribution([False, True]) if encoding == "bits" else FloatDistribution(0, 1)
        )
        self._distributions = dict.fromkeys(space.names, kind)
        self._encoding = encoding
        self._journal = _open_journal(journal, dict(identity or {}), space) if journal else None
        if self._journal:
            self._study.add_trials(self._journal.get_trials(deepcopy=False))

    @property
    def trials(self) -> list[FrozenTrial]:
        """Finished trials, in the order in which they were told; failed ones included."""
        return [t for t in self._study.get_trials(deepcopy=False) if "skip" in t.user_attrs]

    def ask(self) -> Proposal:
        """The sampler's next skip set."""
        seed = (self._seed * 1_000_003 + len(self.trials)) % 2**31
        self._study.sampler = self._make_sampler(seed)
        trial = self._study.ask(fixed_distributions=self._distributions)
        return Proposal(self.space.skip(trial.params), "searcher", trial)

    def start(self, skip: SkipSet) -> Proposal:
        """A skip set that somebody else chose."""
        return Proposal(skip, "start", None)

    def tell(self, proposal: Proposal, score: Score | None, **facts: Any) -> FrozenTrial:
        """Record what was run: `score` of `proposal.skip`, or a failure (None). `facts` go into the trial's record."""
        attrs = {
            "skip": str(proposal.skip),
            "attn": sorted(proposal.skip.attn),
            "mlp": sorted(proposal.skip.mlp),
            "origin": proposal.origin,
            **(score.as_dict() if score else {}),
            **facts,
        }
        if proposal.trial is None:
            values = {name: self._value(bit) for name, bit in zip(self.space.names, proposal.skip.bits(), strict=True)}
            self._study.add_trial(
                create_trial(
                    params=values,
                    distributions=self._distributions,
                    value=score.value if score else None,
                    state=TrialState.COMPLETE if score else TrialState.FAIL,
                    user_attrs=attrs,
                )
            )
        else:
            for key, value in attrs.items():
                proposal.trial.set_user_attr(key, value)
            state = None if score else TrialState.FAIL
            self._study.tell(proposal.trial, score.value if score else None, state=state)
        told = self.trials[-1]
        if self._journal:
            self._journal.add_trial(told)
        return told

    def _value(self, bit: bool) -> bool | float:
        """A boolean, or the middle of its half of [0, 1]."""
        return bit if self._encoding == "bits" else 0.75 if bit else 0.25


def _open_journal(path: Path, identity: dict[str, Any], space: Space) -> optuna.Study:
    """The study in the journal, new or read back.

    Raises:
        InputError: if it belongs to another search.
    """
    drop_partial_line(path)  # the next line would be written behind the half one, and neither could be read
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        # Absolute: the lock is a link to the journal; a kill's, if it led nowhere, would be waited for without end.
        file = str(path.absolute())
        storage = JournalStorage(JournalFileBackend(file, JournalFileSymlinkLock(file, grace_period=LOCK_S)))
    study = optuna.create_study(study_name=STUDY_NAME, storage=storage, direction="maximize", load_if_exists=True)
    mine = {**identity, "n_layers": space.n_layers}
    if not study.trials:  # a kill may have left some of these unwritten
        for key in mine.keys() - study.user_attrs.keys():
            study.set_user_attr(key, mine[key])
    for key, value in mine.items():
        if study.user_attrs.get(key) != value:
            raise InputError(
                f"the journal {path} belongs to a search with {key}={study.user_attrs.get(key)!r}, not {value!r}; "
                "resume with the same settings, or start a new run"
            )
    return study
