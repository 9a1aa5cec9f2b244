"""Progress: told on a terminal, between steps and nowhere else, with log lines above it."""

from __future__ import annotations

import io
import logging
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from typing import Any

import pytest
from rich.console import Console

from experiments.terminal import live_panel, skip_map_text
from experiments.terminal.progress import Progress
from selfspec.skipping.skip_set import SkipSet
from tests.commands import N_LAYERS, command

CONTROL = re.compile(r"\x1b\[([?\d;]*)([A-Za-z])")
COLOUR = re.compile(r"\x1b\[([\d;]*;)?3[0-7](;[\d;]*)?m")


@pytest.fixture(autouse=True)
def nobody_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CI", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What takes itself for a terminal, once it is standard error."""
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("TTY_INTERACTIVE", "1")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    return io.StringIO()


def screen(written: str) -> list[str]:
    """What a terminal shows after all that was written to it: lines, without trailing spaces."""
    lines, row, column, at = [""], 0, 0, 0
    while at < len(written):
        match = CONTROL.match(written, at)
        if match:
            at = match.end()
            if match[2] == "A":
                row = max(0, row - int(match[1] or 1))
            elif match[2] == "K":
                lines[row] = ""
        else:
            char, at = written[at], at + 1
            if char == "\n":
                row, column = row + 1, 0
                lines += [""] * (row >= len(lines))
            elif char == "\r":
                column = 0
            else:
                lines[row] = lines[row].ljust(column)[:column] + char + lines[row][column + 1 :]
                column += 1
    return [line.rstrip() for line in lines]


def trial(value: float, skip: str, **more: Any) -> dict[str, Any]:
    return {"state": "complete", "value": value, "skip": skip, "acceptance": 0.5, **more}


TRIALS = [trial(0.9, "none"), trial(1.25, "a1 m2", acceptance=0.875), trial(1.1, "a0")]


def run(rows: list[dict[str, Any]], *, console: Console | None = None) -> Iterator[None]:
    """A search of four trials, of which those of `rows` end; yields after each, inside the panel."""
    with Progress(console).steps("trial", 4, show=live_panel.best_set(4, "x plain decoding")) as advance:
        for row in rows:
            advance(row)
            yield


def test_the_panel_tells_how_far_how_good_and_what_is_skipped(terminal: io.StringIO) -> None:
    with redirect_stderr(terminal):
        list(run(TRIALS))
    shown = "\n".join(screen(terminal.getvalue()))
    attn, mlp = skip_map_text.rows(SkipSet.parse("a1 m2", 4))
    for piece in ("3/4", "left", "best 1.250x plain decoding", "acceptance 0.875", "2 of 8 sublayers", attn, mlp):
        assert piece in shown, shown
    assert re.search(r"left 0:00:0\d", shown), shown  # three trials in no time leave one of no time
    assert shown.count("╭") == 1, shown


def test_what_was_done_before_a_resume_counts(terminal: io.StringIO) -> None:
    show = live_panel.best_set(4, "tokens/s")
    with redirect_stderr(terminal), Progress().steps("trial", 4, done=3, show=show, rows=TRIALS) as advance:
        advance(trial(1.0, "m1"))
    shown = "\n".join(screen(terminal.getvalue()))
    assert "4/4" in shown and "best 1.250 tokens/s" in shown


def test_a_search_of_failures_has_no_best(terminal: io.StringIO) -> None:
    with redirect_stderr(terminal):
        list(run([{"state": "failed", "value": None, "skip": "a1", "acceptance": None}]))
    assert "no value yet, 1 failed" in terminal.getvalue()


def test_log_lines_stay_whole_and_in_order_above_the_panel(terminal: io.StringIO) -> None:
    from experiments.cli import _Terminal

    log = logging.Logger("of-this-test")
    log.addHandler(_Terminal())
    with redirect_stderr(terminal):
        for i, _ in enumerate(run(TRIALS)):
            log.warning("trial %d: [a1] said {this}", i)
        assert sys.stderr is terminal
    shown = screen(terminal.getvalue())
    assert shown[:3] == [f"trial {i}: [a1] said {{this}}" for i in range(3)], shown
    assert shown[3].startswith("╭") and sum(line.startswith("╭") for line in shown) == 1, shown


def test_nothing_is_drawn_between_short_steps_and_no_thread_stays(terminal: io.StringIO) -> None:
    before = set(threading.enumerate())
    with redirect_stderr(terminal):
        for _ in run(TRIALS):
            n_written = len(terminal.getvalue())
            time.sleep(0.02)
            assert len(terminal.getvalue()) == n_written > 0
    wait_until(lambda: set(threading.enumerate()) <= before)


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def piped(**seconds: float) -> tuple[Progress, io.StringIO]:
    """Progress as it is written to a pipe, and what is written."""
    file = io.StringIO()
    return Progress(Console(file=file), **seconds), file


def test_a_long_phase_writes_lines_into_a_pipe_while_no_step_ends() -> None:
    progress, file = piped(first_s=0.01, every_s=0.02)
    with progress("references", 8) as step:
        step(2)
        wait_until(lambda: file.getvalue().count("\n") >= 3)
    lines = file.getvalue().splitlines()
    assert all(re.fullmatch(r"references: 25 %, 0:00:00, left 0:00:0\d", line) for line in lines), lines
    with progress("loading", 0):
        wait_until(lambda: "loading: 0:00:00 so far" in file.getvalue())


def test_a_short_phase_writes_nothing() -> None:
    progress, file = piped(first_s=5.0)
    with progress("references", 8) as step, progress.steps("trial", 4) as advance:
        step()
        advance()
    assert file.getvalue() == ""


def test_a_phase_inside_of_another_is_the_one_that_is_told() -> None:
    progress, file = piped(first_s=0.01, every_s=0.02)
    with progress.steps("trial", 4, done=1) as advance:
        advance()
        wait_until(lambda: "trial: 2/4, 0:00:00, left" in file.getvalue())
        with progress("costs", 10):
            wait_until(lambda: file.getvalue().splitlines()[-1].startswith("costs: 0 %"))
        wait_until(lambda: file.getvalue().splitlines()[-1].startswith("trial"))


def test_a_long_phase_draws_a_bar_on_a_terminal_and_a_short_one_none(terminal: io.StringIO) -> None:
    with redirect_stderr(terminal):
        progress = Progress(first_s=0.01)
        with progress("costs", 4) as step:
            step(3)
            wait_until(lambda: "costs" in terminal.getvalue())
        shown = "\n".join(screen(terminal.getvalue()))
        assert "75 %" in shown and "left 0:00:0" in shown, shown
        n_written = len(terminal.getvalue())
        with Progress(first_s=5.0)("references", 4) as step:
            step(3)
        assert len(terminal.getvalue()) == n_written


@pytest.mark.parametrize("ci", [None, "true"])
def test_nothing_is_drawn_in_a_pipe_or_in_ci(ci: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    if ci:
        monkeypatch.setenv("CI", ci)
    list(run(TRIALS, console=Console(file=file, force_terminal=bool(ci), force_interactive=True if ci else None)))
    assert file.getvalue() == ""


def test_no_color_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    def written() -> str:
        file = io.StringIO()
        console = Console(file=file, force_terminal=True, force_interactive=True, color_system="standard")
        list(run(TRIALS, console=console))
        return file.getvalue()

    coloured = written()
    monkeypatch.setenv("NO_COLOR", "1")
    plain = written()
    assert COLOUR.search(coloured) and not COLOUR.search(plain)
    assert "█" in plain


def test_search_and_evaluate_draw_their_panels(
    toy: list[str], empty_folder: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["objective.max_new_tokens=6", "searcher=random", "searcher.n_trials=4", "starts=[nothing]", "finals.top=0"]
    for name, value in (("TTY_COMPATIBLE", "1"), ("TTY_INTERACTIVE", "1"), ("TERM", "xterm"), ("COLUMNS", "120")):
        monkeypatch.setenv(name, value)
    ran = command("search", "draft=skip", *toy, *words)
    shown = "\n".join(screen(ran.err))
    assert "4/4" in shown and f"of {2 * N_LAYERS} sublayers skipped" in shown, shown
    assert "╭" not in ran.out
    ran = command("evaluate", *toy, "skip=a1", "controls=false", "n=2", "max_new_tokens=6", "generate=false")
    shown = "\n".join(screen(ran.err))
    assert "4/4" in shown and re.search(r"plain +2 +0 +– +– +\d+\.\d", shown), shown
