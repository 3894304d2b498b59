"""The disk fills up under load: requests are served, changes refused with a clear word, and pass once there is room."""

import asyncio
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.fixtures.adapter_changes import Change, Kind
from tests.fixtures.change_clients import ChangeClient, Refused
from tests.fixtures.faults import Fault, RecordFault
from tests.fixtures.server_process import ServerProcess
from tests.fixtures.traffic import Traffic, under_traffic


def small_disk_can_be_made() -> bool:
    if shutil.which("unshare") is None:
        return False
    made = subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, check=False)
    return made.returncode == 0


pytestmark = [
    pytest.mark.slow,
    pytest.mark.chaos,
    pytest.mark.skipif(not small_disk_can_be_made(), reason="the kernel does not let us mount a small disk of our own"),
]

SIZE = "16m"
NUM_REFUSED = 3
NUM_ANSWERS = 100
SETTINGS = {"engine": {"step_time_s": 0.001}, "evaluation": {"warm_at_start": False}}


async def test_disk_full_serves_on_refuses_changes_and_recovers(tmp_path: Path, record_fault: RecordFault) -> None:
    data = tmp_path / "server" / "data"
    data.mkdir(parents=True)
    mount = f'mount -t tmpfs -o size={SIZE} tmpfs "$0" && exec "$@"'
    server = ServerProcess(tmp_path / "server", SETTINGS, wrapper=("unshare", "-rm", "sh", "-c", mount, str(data)))
    traffic = Traffic([server], ["adapter@stable"], num_callers=8, think_s=0.01, seed=1)
    await server.start()
    try:
        async with ChangeClient(server.http, server.grpc) as client:
            await client.send(upload(0))
            await client.send(Change(Kind.PROMOTE, "adapter", "promote", "http", version=1, alias="stable"))
            before = await client.state("adapter")
            async with under_traffic(server, traffic):
                filler = Path(f"/proc/{server.pid}/root{data}/filler")
                await asyncio.to_thread(fill, filler)
                refused = []
                for index in range(1, NUM_REFUSED + 1):
                    with pytest.raises(Refused) as caught:
                        await client.send(upload(index))
                    refused.append(caught.value)
                assert {each.code for each in refused} == {"UNAVAILABLE"}
                await traffic.until_served(NUM_ANSWERS)
                assert (await client.state("adapter")) == before
                await asyncio.to_thread(filler.unlink)
                freed_s = time.monotonic()
                for index in range(1, NUM_REFUSED + 1):
                    await client.send(upload(index))
                recovered_s = time.monotonic() - freed_s
                await traffic.until_served(NUM_ANSWERS)
                assert len((await client.state("adapter")).versions) == 1 + NUM_REFUSED
    finally:
        server.kill()
    record_fault(
        Fault(
            "disk full",
            sent=f"{len(traffic.served)} requests, {NUM_REFUSED} uploads",
            refused=f"{NUM_REFUSED} uploads",
            lost="nothing",
            recovered_s=recovered_s,
        )
    )


def upload(index: int) -> Change:
    return Change(Kind.UPLOAD, "adapter", f"upload-{index}", ("http", "grpc")[index % 2], seed=index)


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        for size in (1 << 16, 1):
            try:
                while True:
                    file.write(b"\0" * size)
            except OSError:
                continue
