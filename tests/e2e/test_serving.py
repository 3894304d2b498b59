"""A real server in a process of its own, driven over the wire as a user would: demo, load, lost clients."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from importlib.resources import files
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from typer.testing import CliRunner

from loadtest.cli import app as loadtest_app
from loadtest.clients import WireProtocol, create_client
from loadtest.clients.base import SummaryRequest
from loadtest.demo import app as demo_app
from loadtest.demo.scenario import WAYS, Scenario
from loadtest.demo.server import ServerConfig, ServerProcess
from loadtest.examples import SHIPPED_EXAMPLES, read_examples

pytestmark = [pytest.mark.torch, pytest.mark.slow]
# One server for most tests, as starting one takes most of the time; it belongs to the loop it was started on.
on_shared_loop = pytest.mark.asyncio(loop_scope="module")

EXAMPLES = read_examples(SHIPPED_EXAMPLES)
LIBRARY = Path(str(files("adapters") / "library"))

# A caller in a process of its own: says when the first piece came, then waits to be killed, its answer half read.
CLIENT = """
import asyncio, sys, time
from loadtest.clients import WireProtocol, create_client
from loadtest.clients.base import SummaryRequest

async def main(protocol, address, text):
    async with create_client(WireProtocol(protocol), address) as client:
        async for piece in client.stream(SummaryRequest(text, max_new_tokens=250), 60.0):
            print("piece", flush=True)
            time.sleep(60)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ServerProcess]:
    async with ServerProcess(ServerConfig(tmp_path_factory.mktemp("server"))) as running:
        yield running


@on_shared_loop
async def test_demo_serves_every_way_at_once_and_uploads_meanwhile(server: ServerProcess) -> None:
    addresses = {protocol: server.address(protocol) for protocol in WireProtocol}
    result = await Scenario(addresses, LIBRARY / "tweetsumm", max_dialogues_at_once=2).run(EXAMPLES[:2])
    assert result.failures == ()
    asked = [(served.example, served.way, served.protocol) for served in result.served]
    assert len(set(asked)) == len(asked) == 2 * len(WAYS) * 2
    for served in result.served:
        assert served.answer is not None
        assert served.answer.summary
        assert 0.0 <= served.scores["rougeL"] <= 100.0
        assert served.ttft_ms <= served.e2e_ms
    digests = set()
    for upload in result.uploads:
        assert (upload.version.state, upload.version.kind) == ("ready", "lora")
        assert upload.num_in_flight > 0
        digests.add(upload.version.digest)
    assert len(digests) == 1
    # The adapters make a difference: one dialogue, five ways, not one text.
    texts = {served.answer.summary for served in result.served if served.answer and served.example == EXAMPLES[0].name}
    assert len(texts) >= 4


def test_demo_command_exits_clean_and_prints_the_tables() -> None:
    # The demo keeps away from the database of a real server, though the environment names one.
    result = CliRunner().invoke(demo_app, [], env={"MEDLEY_REGISTRY__URL": "postgresql://nobody@127.0.0.1:1/none"})
    assert result.exit_code == 0, result.output
    for expected in ("dialogsum + dialogsum-prompt", "uploaded-over-grpc:1", "ROUGE-L", "stopped cleanly"):
        assert expected in result.output


def test_demo_command_server_does_not_start_shows_its_last_words() -> None:
    result = CliRunner().invoke(demo_app, [], env={"MEDLEY_DRAIN_GRACE_S": "-1"})
    assert result.exit_code == 1
    assert "before it was ready" in result.output
    assert "settings: drain_grace_s" in result.output


@on_shared_loop
@pytest.mark.parametrize("protocol", list(WireProtocol))
async def test_loadtest_on_the_real_server_completes_everything(
    server: ServerProcess, protocol: WireProtocol, tmp_path: Path
) -> None:
    arguments = [
        *("--protocol", protocol.value, "--address", server.address(protocol), "--out", str(tmp_path)),
        *("--rate", "4", "--num-requests", "20", "--max-new-tokens", "24"),
        *("--mix", "base=1,dialogsum=2,dialogsum+dialogsum-prompt=1,dialogsum-topic=1"),
        # On a busy machine the client may be late; that is not what this is about.
        *("--set", "client.max_lag_p99_ms=60000"),
    ]
    result = await asyncio.to_thread(CliRunner().invoke, loadtest_app, arguments)
    assert result.exit_code == 0, result.output
    total = json.loads((tmp_path / "report.json").read_text())["total"]
    assert total["outcomes"] == {"completed": 20, "failed": 0, "dropped": 0}
    assert 0.0 < total["latencies"]["ttft"]["p50"] <= total["latencies"]["e2e"]["p50"]
    assert 0 < total["num_output_tokens"] <= 20 * 24


@on_shared_loop
@pytest.mark.parametrize("protocol", list(WireProtocol))
async def test_client_killed_while_it_is_answered_others_do_not_notice(
    server: ServerProcess, protocol: WireProtocol
) -> None:
    address = server.address(protocol)
    async with create_client(protocol, address) as client:
        before = await client.summarize(SummaryRequest(EXAMPLES[1].text, ("dialogsum",)), 60.0)
        victims = [
            await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", CLIENT, protocol.value, address, EXAMPLES[0].text),
                stdout=asyncio.subprocess.PIPE,
            )
            for _ in range(2)
        ]
        for victim in victims:
            assert victim.stdout is not None
            assert await victim.stdout.readline() == b"piece\n"
            os.kill(victim.pid, signal.SIGKILL)
            await victim.wait()
            assert victim.returncode == -signal.SIGKILL
        after = await client.summarize(SummaryRequest(EXAMPLES[1].text, ("dialogsum",)), 60.0)
    assert after.summary == before.summary
    async with asyncio.timeout(20.0):
        while await _num_running(server):  # noqa: ASYNC110 - the server is another process
            await asyncio.sleep(0.1)


async def _num_running(server: ServerProcess) -> float:
    async with aiohttp.request("GET", f"http://{server.address(WireProtocol.HTTP)}/metrics") as response:
        lines = (await response.text()).splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("medley_requests_running "))
