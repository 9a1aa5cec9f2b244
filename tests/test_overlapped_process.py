"""Drafting in a process of its own: the same tokens as its simulation, and no process or memory that is left behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from selfspec.drafters.build import build_drafter
from selfspec.drafters.spec import DraftSpec
from selfspec.engine.decode import Ending, speculate
from selfspec.engine.sampling import Sampling
from selfspec.engine.trace import DecodeResult
from selfspec.errors import InputError
from selfspec.models.packing import pack
from selfspec.overlapped import shared
from selfspec.overlapped.partner import Partner, SamePartner
from selfspec.overlapped.process import ChildPartner, Places
from selfspec.overlapped.rates import beside, measure
from selfspec.overlapped.schedule import Overlapped
from selfspec.skipping.plan import DraftPlan
from selfspec.skipping.skip_set import SkipSet
from selfspec.stopping import Fixed
from tests.contracts.architecture import LONG, MIDDLE, SHORT
from tests.test_engine import decoder_of
from tests.test_heads import trained
from tests.test_overlapped import plain
from tests.toys import toy

PROMPTS = [SHORT, LONG, MIDDLE]
ENDING = Ending(9)

pytestmark = pytest.mark.usefixtures("quick_processes")

SAMPLING = Sampling(do_sample=True, temperature=1.3, top_k=20, seed=5)


def spec_of(decoder: Any, skip: str = "m2") -> DraftSpec:
    return DraftSpec(DraftPlan.from_skip_set(SkipSet.parse(skip, decoder.n_layers)), Fixed(4))


def decode(decoder: Any, partner: Partner, *, gamma: int | None = 3, listener: Any = None, **settings: Any) -> Any:
    overlapped = Overlapped(partner, gamma=gamma)
    found: list[DecodeResult] = []
    for row, ids in enumerate(PROMPTS):
        found += speculate(
            decoder,
            [ids],
            drafter=overlapped,
            schedule=overlapped,
            stops=[Fixed(1).begin()],
            first_row=row,
            listener=listener,
            **{"ending": ENDING, **settings},
        )
    return found


def counts(results: list[DecodeResult]) -> list[Any]:
    return [(r.tokens, [(x.drafted, x.accepted, x.committed, x.n_forwards) for x in r.rounds]) for r in results]


def start(decoder: Any, spec: DraftSpec, **settings: Any) -> ChildPartner:
    return ChildPartner(decoder, spec, places=Places(1, 1), **settings)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def has_ended(pid: int) -> bool:
    """Whether a process ends within 10 s."""
    for _ in range(500):
        if not is_alive(pid):
            return True
        time.sleep(0.02)
    return False


@pytest.fixture(scope="module")
def target(quick_processes: None) -> Any:
    return decoder_of()


@pytest.fixture(scope="module")
def partner(target: Any) -> Iterator[ChildPartner]:
    before = set(os.listdir("/dev/shm"))
    with start(target, spec_of(target)) as found:
        yield found
    assert has_ended(found.pid) and set(os.listdir("/dev/shm")) <= before


def test_tokens_and_rounds_are_those_of_the_simulation(target: Any, partner: ChildPartner) -> None:
    for how in ({}, {"sampling": SAMPLING}, {"ending": Ending(5)}):
        simulated = SamePartner(target, build_drafter(spec_of(target), target))
        wanted = counts(decode(target, simulated, **how))
        assert counts(decode(target, partner, **how)) == wanted, how
    assert any(accepted for _, rounds in wanted for _, accepted, _, _ in rounds)


def test_greedy_tokens_are_those_of_plain_decoding_whatever_gamma(target: Any, partner: ChildPartner) -> None:
    for gamma in (1, 5, None):
        results = decode(target, partner, gamma=gamma)
        assert [r.tokens for r in results] == plain(target, PROMPTS, ending=ENDING)


def test_a_longer_text_gets_new_memory(target: Any, partner: ChildPartner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selfspec.overlapped.process.ROOM", 8)
    partner._text = None
    assert [r.tokens for r in decode(target, partner)] == plain(target, PROMPTS, ending=ENDING)
    assert partner._text is not None and partner._text.capacity < 64


def test_the_rates_of_the_machine_are_measured_with_both_processes(target: Any, partner: ChildPartner) -> None:
    drafter = build_drafter(spec_of(target), target)
    rates = measure(target, drafter, partner, gamma=2, beside=lambda: beside(1), for_s=0.02)
    assert min(rates.plain_all, rates.verify_pair, rates.draft_pair, rates.r, rates.r_one) > 0
    assert [r.tokens for r in decode(target, partner)] == plain(target, PROMPTS, ending=ENDING)


def test_a_killed_drafter_leaves_the_verifier_to_go_on(target: Any, caplog: pytest.LogCaptureFixture) -> None:
    # a head, so that hidden states travel too; killed in the middle of the second prompt
    spec = DraftSpec(trained(target, "eagle"), Fixed(4))
    with start(target, spec) as partner:
        n_told = 0

        def kill(row: int, tokens: list[int], kinds: list[str]) -> None:
            nonlocal n_told
            n_told += 1
            if n_told == 12:
                os.kill(partner.pid, signal.SIGKILL)

        results = decode(target, partner, listener=kill)
        assert [r.tokens for r in results] == plain(target, PROMPTS, ending=ENDING)
        assert not partner.is_there and sum("goes on alone" in m for m in caplog.messages) == 1
        assert "status -9" in caplog.text


def test_a_drafter_that_hangs_is_given_up_and_ended(target: Any, caplog: pytest.LogCaptureFixture) -> None:
    packed = toy("llama").float()
    assert pack(packed)
    decoder = type(target)(packed)  # packed weights are packed again in the other process
    with start(decoder, spec_of(decoder), timeout_s=0.5) as partner:
        simulated = SamePartner(decoder, build_drafter(spec_of(decoder), decoder))
        assert counts(decode(decoder, partner)) == counts(decode(decoder, simulated))
        os.kill(partner.pid, signal.SIGSTOP)
        results = decode(decoder, partner)
        assert [r.tokens for r in results] == plain(decoder, PROMPTS, ending=ENDING)
        assert sum("goes on alone" in m for m in caplog.messages) == 1 and "silent for 0.5 s" in caplog.text
        assert not is_alive(partner.pid)


def test_a_drafter_that_cannot_be_made_is_an_error_of_one_line(target: Any) -> None:
    settings = {"_target_": "selfspec.drafters.small_model.SmallModel", "path": "/nowhere"}
    spec = DraftSpec(DraftPlan.from_skip_set(SkipSet(target.n_layers)), Fixed(4), drafter=settings)
    with pytest.raises(InputError, match=r"did not start.*nowhere") as raised:
        start(target, spec)
    assert "\n" not in str(raised.value)


def test_too_little_shared_memory_is_refused_before_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = decoder_of("gpt2")
    monkeypatch.setattr(shared.os, "statvfs", lambda path: os.statvfs_result((1,) * 10))
    with pytest.raises(InputError, match="shm-size"):
        start(decoder, spec_of(decoder))
    assert not any(p.is_shared() for p in decoder.model.parameters())


def test_ctrl_c_ends_the_run_and_its_drafter(target: Any) -> None:
    def interrupt(row: int, tokens: list[int], kinds: list[str]) -> None:
        os.kill(partner.pid, signal.SIGINT)  # Ctrl-C reaches both processes
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), start(target, spec_of(target)) as partner:
        assert len(decode(target, partner)) == len(PROMPTS)
        os.kill(partner.pid, signal.SIGINT)
        assert [r.tokens for r in decode(target, partner)] == plain(target, PROMPTS, ending=ENDING)
        assert partner.is_there, "of Ctrl-C the target's process decides"
        decode(target, partner, listener=interrupt)
    assert has_ended(partner.pid)


def test_a_drafter_ends_by_itself_when_its_verifier_is_gone(target: Any) -> None:
    partner = start(target, spec_of(target))
    partner._connection.close()  # as the system does when it kills a process
    assert has_ended(partner.pid)


def decode_for_ever(connection: Connection) -> None:
    decoder = decoder_of()
    partner = start(decoder, spec_of(decoder))
    connection.send(partner.pid)
    while True:
        decode(decoder, partner)
        connection.send(None)


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
def test_both_processes_end_together_and_leave_no_memory(ending: signal.Signals) -> None:
    before = set(os.listdir("/dev/shm"))
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe()
    main = context.Process(target=decode_for_ever, args=(theirs,))
    main.start()
    theirs.close()
    assert ours.poll(120)
    pid = ours.recv()
    ours.recv()
    if ending == signal.SIGINT:
        os.kill(pid, ending)
    assert main.pid is not None
    os.kill(main.pid, ending)
    main.join(20)
    assert main.exitcode == (1 if ending == signal.SIGINT else -signal.SIGKILL)
    assert has_ended(pid) and set(os.listdir("/dev/shm")) <= before
