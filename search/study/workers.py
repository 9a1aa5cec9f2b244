"""Several workers on one search: the common storage, and the claims of places.

A storage holds two Optuna studies. One has the finished trials, each written as a whole. The other has a trial for
every claimed place, in which a running worker writes signs of life. This module knows places and no skip sets.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import optuna
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, GrpcStorageProxy, JournalStorage, RDBStorage, get_storage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import FrozenTrial, TrialState, create_trial

from search.study.processes import state_of, this_process
from selfspec.errors import InputError
from selfspec.measure.stopwatch import Stopwatch
from selfspec.records.run_files import drop_partial_line

logger = logging.getLogger(__name__)

LOCK_S = 20  # wait for a killed worker's lock on a journal: longer than any write, less than `grace_s`
SQLITE_LOCK_S = 60  # wait for the writes of other workers; each takes some tenths of a second
CONNECT_S = 10  # wait for a proxy
FINALS = -1  # the place of the finals
N_OPENINGS = 5  # attempts, since workers that create the tables of an empty database at the same time conflict


@dataclass(frozen=True, slots=True)
class Sharing:
    """Number and timing of a worker; the seconds are chosen, not tuned.

    Attributes:
        worker: number of this worker, unique among those that run at the same time.
        beat_s: seconds between two signs of life of a running trial.
        grace_s: seconds without a sign of life after which another worker may take the place.
        poll_s: seconds between two checks while this worker only waits for others.
    """

    worker: int = 0
    beat_s: float = 10
    grace_s: float = 60
    poll_s: float = 1

    def __post_init__(self) -> None:
        if self.worker < 0:
            raise InputError(f"worker={self.worker}; workers are numbered from 0")
        if not 0 < self.beat_s < self.grace_s:
            raise InputError(
                f"beat_s={self.beat_s:g} and grace_s={self.grace_s:g}; a worker that is alive must show it more often "
                "than every grace_s"
            )


def shown(storage: str | Path) -> str:
    """The storage for messages, without its password."""
    text = str(storage)
    if "://" not in text:
        return text
    password = urlsplit(text).password
    return text.replace(f":{password}@", ":***@") if password else text


def open_storage(storage: str | Path, *, lock_s: int = LOCK_S) -> BaseStorage:
    """The storage at a path (a journal), `sqlite:///FILE`, `postgresql://...` or `grpc://HOST:PORT`.

    Args:
        storage: path or address of the storage.
        lock_s: seconds after which a lock on a journal counts as left by a dead process.

    Raises:
        InputError: if the address has another form, a driver is missing, or there is no answer.
    """
    text = str(storage)
    scheme = text.partition("://")[0].partition("+")[0] if "://" in text else ""
    if not scheme:
        return _journal(Path(text), lock_s)
    if scheme not in ("sqlite", "postgresql", "grpc"):
        raise InputError(
            f"storage={shown(text)!r}; use the path of a journal, sqlite:///FILE, postgresql://USER@HOST/DATABASE or "
            "grpc://HOST:PORT"
        )
    try:
        return _proxy(text) if scheme == "grpc" else _database(text, scheme)
    except ImportError as error:
        raise InputError(
            f"storage={shown(text)!r} needs a package that is not installed ({error.__cause__ or error}); "
            f"pip install 'selfspec[{scheme}]'"
        ) from None


def open_study(storage: BaseStorage, name: str, identity: Mapping[str, Any], where: str) -> optuna.Study:
    """The study of finished trials, new or existing.

    Args:
        storage: storage of the study.
        name: name of the study.
        identity: facts that must be equal for it to belong to this search.
        where: name of the storage, for messages.

    Raises:
        InputError: if it belongs to another search.
    """
    study = optuna.create_study(study_name=name, storage=storage, direction="maximize", load_if_exists=True)
    if not study.get_trials(deepcopy=False):  # a kill may have left some of these unwritten
        for key in identity.keys() - study.user_attrs.keys():
            study.set_user_attr(key, identity[key])
    theirs = study.user_attrs
    for key, value in identity.items():
        if theirs.get(key) != value:
            raise InputError(
                f"the study {name!r} in {where} belongs to a search with {key}={theirs.get(key)!r}, not {value!r}; "
                "resume with the same settings, or start a new run"
            )
    return study


def agree(storage: BaseStorage, name: str, value: Mapping[str, Any]) -> dict[str, Any]:
    """A value that all workers of a search share: that of the first worker.

    Args:
        storage: common storage of the workers.
        name: name of the value.
        value: this worker's value, as JSON.
    """
    study = optuna.create_study(study_name=name, storage=storage, direction="maximize", load_if_exists=True)
    if not study.get_trials(deepcopy=False):
        # The storage numbers trials, so all workers see the same first one, even of two added at the same time.
        study.add_trial(create_trial(value=0.0, user_attrs={"agreed": dict(value)}))
    return dict(study.get_trials(deepcopy=False)[0].user_attrs["agreed"])


class Claims:
    """Claims of the places 0, 1, 2, ... of a search, so that one worker at a time runs each place.

    A place belongs to the first claim that was not released. The storage numbers claims, so all workers see the same
    first one. Signs of life are counters and not times: each worker measures the age of a counter with its own clock.

    Args:
        storage: common storage of the workers.
        name: name of the study of finished trials.
        sharing: number and timing of this worker.
    """

    def __init__(self, storage: BaseStorage, name: str, sharing: Sharing) -> None:
        self._storage, self._sharing = storage, sharing
        study = optuna.create_study(
            study_name=f"{name} claims", storage=storage, direction="maximize", load_if_exists=True
        )
        self._study_id = study._study_id
        self._watch = Stopwatch()
        self._seen: dict[int, tuple[int, float]] = {}  # by running claim: its counter, and the time of its last change
        self._mine = self._place = -1
        self._stopped = threading.Event()
        self._let_go: weakref.finalize[..., Any] | None = None

    def take(self, n_places: int, finished: Callable[[], Container[int]]) -> int | None:
        """Claim the first open place; waits while other workers run the last ones, since those may die.

        Args:
            n_places: number of places.
            finished: reads the places of finished trials.

        Returns:
            The place, or None if all are finished.
        """
        self.release("it was given up")
        while True:
            done = finished()
            self._free_dead(done)
            held = {int(c.user_attrs["place"]) for c in self._all() if c.state != TrialState.FAIL}
            place = next((p for p in range(n_places) if p not in held and p not in done), None)
            if place is not None:
                if self._win(place):
                    return place
            elif all(p in done for p in range(n_places)):
                return None
            else:
                threading.Event().wait(self._sharing.poll_s)

    def take_finals(self) -> None:
        """Claim the finals, until `release`.

        Raises:
            InputError: if another process with the number of this worker is at work on this search.
        """
        self._free_dead(())
        self._win(FINALS)

    def close(self) -> None:
        """Mark the claimed place as finished, after its trial was written."""
        if self._let_go is not None and self._let_go.detach():
            self._stopped.set()
            _close(self._storage, self._mine, self._place)

    def release(self, reason: str) -> None:
        """Release an unfinished place immediately."""
        if self._let_go is not None and self._let_go.detach():
            _release(self._storage, self._mine, self._stopped, reason)

    def _win(self, place: int) -> bool:
        """Claim `place`; returns whether this is the first claim."""
        worker = self._sharing.worker
        attrs = {"place": place, "worker": worker, "beats": 0, "process": this_process()}
        claim_id = self._storage.create_new_trial(
            self._study_id, template_trial=create_trial(state=TrialState.RUNNING, user_attrs=attrs)
        )
        rivals = [c for c in self._all() if c.state != TrialState.FAIL and c.user_attrs["place"] == place]
        if rivals[0]._trial_id != claim_id:
            _free(self._storage, claim_id, f"worker {rivals[0].user_attrs['worker']} was first", quiet=True)
            return False
        self._mine, self._place, self._stopped = claim_id, place, threading.Event()
        self._let_go = weakref.finalize(
            self, _release, self._storage, claim_id, self._stopped, f"worker {worker} came to its end"
        )
        threading.Thread(
            target=_beat, args=(self._storage, claim_id, self._stopped, self._sharing.beat_s), daemon=True
        ).start()
        return True

    def _free_dead(self, done: Container[int]) -> None:
        """Release places of workers that were silent for `grace_s`, and those of an earlier life of this worker.

        Raises:
            InputError: if another process with the number of this worker is alive.
        """
        now, seen, self._seen = self._watch.now(), self._seen, {}
        for claim in self._all():
            if claim.state != TrialState.RUNNING:
                continue
            worker, beats, place = (claim.user_attrs[key] for key in ("worker", "beats", "place"))
            then = seen.get(claim._trial_id)
            since = then[1] if then and then[0] == beats else now
            self._seen[claim._trial_id] = (beats, since)
            if place in done:  # killed after its trial was written
                _close(self._storage, claim._trial_id, place)
            elif worker == self._sharing.worker and self._is_free(claim.user_attrs):
                _free(self._storage, claim._trial_id, f"worker {worker} was started again")
            elif now - since > self._sharing.grace_s:
                _free(self._storage, claim._trial_id, f"worker {worker} died: silent for {now - since:.0f} s")

    def _is_free(self, claim: Mapping[str, Any]) -> bool:
        """Whether the claim of a worker with the number of this one was left by an earlier life of it.

        Raises:
            InputError: if that worker is alive: two with one number would take each other's places.
        """
        process: Mapping[str, Any] = claim.get("process") or {}
        state = state_of(process)
        if state == "alive":
            raise InputError(
                f"worker={claim['worker']} is at work on this search already (process {process['pid']} on "
                f"{process['host']}); wait for its end, or give this one another number: worker=N"
            )
        # earlier versions left no mark; one on another host may be alive, and its signs of life tell
        return not process or state != "unknown"

    def _all(self) -> list[FrozenTrial]:
        return self._storage.get_all_trials(self._study_id, deepcopy=False)


def _close(storage: BaseStorage, claim_id: int, place: int) -> None:
    with contextlib.suppress(UpdateFinishedTrialError):  # released, but its worker finished first
        storage.set_trial_state_values(claim_id, TrialState.COMPLETE, [place])


def _free(storage: BaseStorage, claim_id: int, reason: str, *, quiet: bool = False) -> None:
    """Release a place, unless it was released already or its trial is finished."""
    with contextlib.suppress(UpdateFinishedTrialError):
        storage.set_trial_user_attr(claim_id, "reason", reason)
        storage.set_trial_state_values(claim_id, TrialState.FAIL)
        if not quiet:
            logger.warning("trial %d is open again: %s", storage.get_trial(claim_id).user_attrs["place"], reason)


def _release(storage: BaseStorage, claim_id: int, stopped: threading.Event, reason: str) -> None:
    stopped.set()
    _free(storage, claim_id, reason, quiet=True)


def _beat(storage: BaseStorage, claim_id: int, stopped: threading.Event, beat_s: float) -> None:
    """Write signs of life until the claim is closed."""
    failures: tuple[type[Exception], ...] = (StorageInternalError, OSError)
    if grpc := sys.modules.get("grpc"):
        failures = (*failures, grpc.RpcError)
    for n in itertools.count(1):
        if stopped.wait(beat_s):
            return
        try:
            storage.set_trial_user_attr(claim_id, "beats", n)
        except UpdateFinishedTrialError:
            return
        except failures as error:  # the next one may succeed
            logger.warning("no sign of life could be written: %s", (str(error) or repr(error)).splitlines()[0])


class _MendingLock(JournalFileSymlinkLock):
    """Optuna's lock of a journal, which removes an incomplete last line before its holder writes.

    Otherwise the next line would be appended to the incomplete one that a kill left, and neither could be read.
    """

    def __init__(self, path: Path, lock_s: int) -> None:
        super().__init__(str(path), grace_period=lock_s)
        self._path = path

    def acquire(self) -> bool:
        acquired = super().acquire()
        with self._path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(size - 1, 0))
            is_whole = file.read(1) in (b"", b"\n")
        if not is_whole:
            drop_partial_line(self._path)
            logger.warning("%s ended in half a line, left by a kill: the line was dropped", self._path)
        return acquired


def _journal(path: Path, lock_s: int) -> BaseStorage:
    path = path.absolute()  # the lock is a link to this path; a dangling link of a killed process would block forever
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        try:
            return JournalStorage(JournalFileBackend(str(path), _MendingLock(path, lock_s)))
        except OSError as error:
            raise InputError(f"cannot open the journal {path} ({error.strerror}); choose another storage") from None
        except (ValueError, LookupError, TypeError, RecursionError, AssertionError) as error:  # Optuna's, of its lines
            raise InputError(
                f"the journal {path} is damaged ({type(error).__name__}: {error}); restore it, or move it away: a run "
                "then takes its trials from trials.jsonl"
            ) from None


def _database(url: str, scheme: str) -> BaseStorage:
    from sqlalchemy.exc import SQLAlchemyError

    # The driver of a bare `postgresql` depends on the version of SQLAlchemy.
    url = url.replace("postgresql://", "postgresql+psycopg://", 1)
    arguments = {"connect_args": {"timeout": SQLITE_LOCK_S}} if scheme == "sqlite" else {"pool_pre_ping": True}
    for attempt in range(N_OPENINGS):
        try:
            return get_storage(RDBStorage(url, engine_kwargs=arguments))
        except (SQLAlchemyError, StorageInternalError) as error:
            if attempt == N_OPENINGS - 1:
                cause = str(error.__cause__ or error).splitlines()[0]
                raise InputError(
                    f"cannot open storage={shown(url)!r}: {cause}; is the database there, and may you write to it?"
                ) from None
            threading.Event().wait(0.2 * (attempt + 1))
    raise AssertionError


def _proxy(url: str) -> BaseStorage:
    parts = urlsplit(url)
    if not parts.hostname or not parts.port:
        raise InputError(f"storage={url!r}; write grpc://HOST:PORT")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        proxy = GrpcStorageProxy(host=parts.hostname, port=parts.port)
    try:
        proxy.wait_server_ready(timeout=CONNECT_S)
    except ConnectionError:
        raise InputError(
            f"storage={url!r}: no answer within {CONNECT_S} s; start optuna.storages.run_grpc_proxy_server there"
        ) from None
    return proxy
