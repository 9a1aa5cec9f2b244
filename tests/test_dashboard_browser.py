"""The dashboard in a real browser, on runs that search and evaluate made: every page is drawn, and nothing complains.

With SELFSPEC_SCREENSHOTS=FOLDER the pictures go there, for the README; else beside the test's other files.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright (pip install playwright)")
pytest.importorskip("streamlit", reason="needs selfspec[dashboard]")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium here; `make browser` installs Debian's"),
]
WAIT_MS = 20_000
REFRESH_S = 5.0  # of a watched page
NAMELESS = """[...document.querySelectorAll('button,input,a')].filter(e => e.offsetParent && e.tabIndex >= 0
 && !e.labels?.length
 && !(e.ariaLabel || e.textContent.trim() || e.title || e.getAttribute('aria-labelledby'))).map(e => e.outerHTML)"""
CHARTS = {"Runs": 0, "Search": 5, "Compare": 2, "Evaluation": 3, "Calculator": 2}  # at least


@dataclass(slots=True)
class Seen:
    """A page of the browser, and what it complained of."""

    page: Any
    errors: list[str] = field(default_factory=list)
    sent: list[object] = field(default_factory=list)  # to the server: every click, and every look of a watched page

    def listen(self) -> None:
        """Remember errors of the console, and whatever is asked of another machine."""
        self.page.on("console", lambda message: message.type == "error" and self.errors.append(message.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: is_foreign(request.url) and self.errors.append(f"asked {request.url}"))

    def settle(self) -> None:
        """Wait until nothing runs and every chart is drawn."""
        self.page.wait_for_selector("h1", timeout=WAIT_MS)
        self.page.wait_for_selector('[data-testid="stApp"][data-test-script-state="notRunning"]', timeout=WAIT_MS)
        drawn = "[...document.querySelectorAll('[data-testid=stPlotlyChart]')].every(c => c.querySelector('.main-svg'))"
        self.page.wait_for_function(drawn, timeout=WAIT_MS)


def is_foreign(url: str) -> bool:
    return url.startswith(("http", "ws")) and "//127.0.0.1" not in url and "//localhost" not in url


@pytest.fixture(scope="module")
def real_runs(toy: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search and an evaluation of what it found, by the verbs themselves; SELFSPEC_RUNS=FOLDER shows others."""
    if os.environ.get("SELFSPEC_RUNS"):
        return Path(os.environ["SELFSPEC_RUNS"])
    from tests.commands import command

    outputs = tmp_path_factory.mktemp("runs")
    quick = ["objective=acceptance", "objective.max_new_tokens=8", "searcher.n_trials=16", "finals.top=0"]
    found = command("search", "draft=skip", *toy, *quick, f"paths.outputs={outputs}", "force=true")
    assert found.status == 0, found.err
    shown = command(
        "evaluate", *toy, f"paths.outputs={outputs}", "skip=a1 m2", "controls=false", "n=2", "max_new_tokens=12"
    )
    assert shown.status == 0, shown.err
    return outputs


@pytest.fixture(scope="module")
def address(real_runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served(real_runs, tmp_path_factory.mktemp("server") / "log.txt") as address:
        yield address


@contextmanager
def served(runs: Path, log: Path) -> Iterator[str]:
    """The dashboard of these runs as the verb serves it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with in_background(log, "dashboard", f"runs={runs}", f"port={port}", "open_browser=false"):
        yield f"http://127.0.0.1:{port}"
    assert "Traceback" not in log.read_text(encoding="utf-8"), log.read_text(encoding="utf-8")


@contextmanager
def in_background(log: Path, *words: str) -> Iterator[None]:
    """A verb in a process of its own, stopped afterwards."""
    line = [sys.executable, "-c", "from experiments.cli import main; main()", *words]
    with log.open("wb") as file, subprocess.Popen(line, stdout=file, stderr=subprocess.STDOUT) as process:
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:  # the dashboard waits for open pages
                process.kill()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    flags = ["--no-sandbox"] if os.name == "posix" and os.geteuid() == 0 else []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    asked = os.environ.get("SELFSPEC_SCREENSHOTS")
    folder = Path(asked) if asked else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def open_at(browser: Any, address: str, *, width: int, scheme: str = "light") -> Seen:
    seen = Seen(browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme))
    seen.page.on("websocket", lambda socket: socket.on("framesent", lambda frame: seen.sent.append(frame)))
    for _ in range(60):  # until the server listens
        try:
            seen.page.goto(address, timeout=WAIT_MS)
            break
        except sync_api.Error:
            seen.page.wait_for_timeout(250)
    seen.listen()
    seen.settle()
    return seen


def go_to(seen: Seen, title: str) -> None:
    menu = seen.page.get_by_test_id("stExpandSidebarButton")
    if menu.is_visible():  # on a phone the pages are in a menu
        menu.click()
    seen.page.get_by_role("link", name=title, exact=True).click()
    seen.page.get_by_role("heading", name=title, exact=True, level=1).wait_for(timeout=WAIT_MS)
    seen.settle()


def shoot(seen: Seen, file: Path) -> None:
    size = seen.page.viewport_size
    height = seen.page.evaluate("document.querySelector('[data-testid=stMain]').scrollHeight")
    seen.page.set_viewport_size({"width": size["width"], "height": min(height, 2600)})
    seen.page.wait_for_timeout(500)  # charts are drawn anew at the new size
    seen.page.screenshot(path=file)
    seen.page.set_viewport_size(size)


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light")])
def test_every_page_is_drawn_and_nothing_complains(
    browser: Any, address: str, pictures: Path, width: int, scheme: str
) -> None:
    seen = open_at(browser, address, width=width, scheme=scheme)
    for title, n_charts in CHARTS.items():
        if scheme == "dark" and title not in ("Runs", "Compare"):
            continue  # the charts of the others take their letters' colour from the same function
        if title != "Runs":
            go_to(seen, title)
        if n_charts:  # the last of them is the proof that the script came through
            seen.page.locator("[data-testid=stPlotlyChart]").nth(n_charts - 1).wait_for(timeout=WAIT_MS)
            seen.settle()
        assert seen.page.locator("[data-testid=stException]").count() == 0, title
        too_wide = "document.documentElement.scrollWidth > document.documentElement.clientWidth + 1"
        assert not seen.page.evaluate(too_wide), f"{title} is wider than {width} px"
        assert seen.page.evaluate(NAMELESS) == [], title
        shoot(seen, pictures / f"dashboard_{title.lower()}_{scheme if width > 400 else 'phone'}.png")
    assert seen.errors == []
    seen.page.close()


def test_a_run_is_opened_from_the_list(browser: Any, address: str) -> None:
    seen = open_at(browser, address, width=1280)
    table = seen.page.locator("[data-testid=stDataFrame]").first
    table.click(position={"x": 18, "y": 52})  # the box before the first line
    seen.page.get_by_test_id("stButton").get_by_role("button").click(timeout=WAIT_MS)
    seen.page.get_by_role("heading", level=1, name="Evaluation").wait_for(timeout=WAIT_MS)
    assert "run=" in seen.page.url
    seen.page.locator(".tokens .accepted, .tokens .correction").first.wait_for(timeout=WAIT_MS)
    seen.page.close()


def test_a_search_is_followed_without_a_click_until_it_ends(browser: Any, toy: list[str], tmp_path: Path) -> None:
    (runs := tmp_path / "runs").mkdir()
    long = ["objective=tokens_per_second", "searcher=random", "searcher.n_trials=10000", "pause=false", "force=true"]
    long += ["searcher.max_s=15", "finals.top=0"]
    with (
        in_background(tmp_path / "search.txt", "search", "draft=skip", *toy, *long, f"paths.outputs={runs}"),
        served(runs, tmp_path / "server.txt") as address,
    ):
        wait_until(lambda: any(file.stat().st_size for file in runs.glob("search/*/*/trials.jsonl")), tmp_path)
        seen = open_at(browser, address, width=1280)
        seen.page.get_by_role("link", name="Search", exact=True).click()  # never settled: it is drawn again and again
        trials = seen.page.get_by_test_id("stMetric").filter(has_text="Trials")
        trials.wait_for(timeout=WAIT_MS)
        first = trials.inner_text()
        assert "/ 10000" in first
        wait_until(lambda: trials.inner_text() != first, tmp_path)
        seen.page.get_by_test_id("stMetric").filter(has_text="finished").wait_for(timeout=2 * WAIT_MS)
        seen.page.wait_for_timeout(1000 * REFRESH_S)  # the last look may be on its way
        n_sent = len(seen.sent)
        seen.page.wait_for_timeout(2000 * REFRESH_S)
        assert n_sent and len(seen.sent) == n_sent, "a page goes on looking at a search that has ended"
        assert seen.errors == []
        seen.page.close()


def wait_until(is_so: Callable[[], bool], logs: Path) -> None:
    for _ in range(240):
        if is_so():
            return
        time.sleep(0.25)
    raise AssertionError("\n".join(log.read_text(encoding="utf-8") for log in sorted(logs.glob("*.txt"))))


def test_the_report_in_one_file_draws_without_a_network(browser: Any, real_runs: Path, tmp_path: Path) -> None:
    from experiments.charts.html_report import write_html
    from experiments.results.find_runs import find_runs

    write_html(find_runs(str(real_runs), real_runs), tmp_path / "report.html")
    seen = Seen(browser.new_page(viewport={"width": 1280, "height": 900}))
    seen.listen()
    seen.page.goto((tmp_path / "report.html").as_uri(), timeout=WAIT_MS)
    seen.page.wait_for_selector(".main-svg", timeout=WAIT_MS)
    assert seen.page.locator(".plotly-graph-div").count() >= 5
    assert seen.errors == []
    seen.page.close()
