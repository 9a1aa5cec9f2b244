"""Every page of the dashboard is found under its own address, as a browser asks the server for it."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("streamlit", reason="needs selfspec[dashboard]")
client = pytest.importorskip("websockets.asyncio.client", reason="comes with streamlit")

from streamlit.proto.BackMsg_pb2 import BackMsg  # noqa: E402
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg  # noqa: E402

from experiments.verbs.dashboard import words  # noqa: E402

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
WAIT_S = 30


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The web socket of a dashboard without runs."""
    outputs = tmp_path_factory.mktemp("outputs")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    line = words(outputs, address="127.0.0.1", port=port, open_browser=False)
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    with subprocess.Popen(
        line, env=os.environ | {"PYTHONPATH": path}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            yield f"ws://127.0.0.1:{port}/_stcore/stream"
        finally:
            process.kill()


async def visit(address: str, page: str) -> tuple[bool, list[str]]:
    """Whether the server knows the page of `/page`, and the headings that it draws."""
    for _ in range(4 * WAIT_S):  # until the server listens
        try:
            opened = await client.connect(address, subprotocols=["streamlit"], max_size=None)
            break
        except OSError:
            await asyncio.sleep(0.25)
    async with opened as connection:
        request = BackMsg()
        request.rerun_script.page_name = page
        await connection.send(request.SerializeToString())
        is_found, is_drawn, headings = True, False, list[str]()
        while not is_drawn:
            message = ForwardMsg()
            message.ParseFromString(await asyncio.wait_for(connection.recv(), WAIT_S))
            kind = message.WhichOneof("type")
            is_drawn = kind == "script_finished" and message.script_finished == ForwardMsg.FINISHED_SUCCESSFULLY
            is_found &= kind != "page_not_found"
            if message.delta.new_element.heading.body:
                headings.append(message.delta.new_element.heading.body)
    return is_found, headings


@pytest.mark.parametrize("page", ["", "runs", "search", "compare", "evaluation", "calculator"])
def test_every_page_is_found_under_its_own_address(address: str, page: str) -> None:
    is_found, headings = asyncio.run(visit(address, page))
    assert is_found and headings[0] == (page or "runs").capitalize()


def test_another_address_is_told_not_to_be_a_page(address: str) -> None:
    assert not asyncio.run(visit(address, "nowhere"))[0]
