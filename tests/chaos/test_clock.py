"""The wall clock jumps a day ahead and two back under load: requests do not notice, nothing acknowledged is lost.

An upload under way at a jump ahead looks a day old and may be swept as given up: it must be told so, and pass when sent
again.
"""

import asyncio
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from tests.fixtures.adapter_changes import Change, Kind
from tests.fixtures.change_clients import ChangeClient, Refused
from tests.fixtures.faults import Fault, RecordFault
from tests.fixtures.server_process import ServerProcess
from tests.fixtures.traffic import Traffic, under_traffic

pytestmark = [
    pytest.mark.slow,
    pytest.mark.chaos,
    pytest.mark.skipif(shutil.which("cc") is None, reason="the clock is moved by a library that needs a C compiler"),
]

SHIFT = Path(__file__).parents[1] / "fixtures" / "clock_shift.c"
DAY_S = 86_400
JUMPS_S = (0, DAY_S, -DAY_S, 0)
NUM_ANSWERS = 60
SETTINGS = {"store": {"sweep_every_s": 0.2}, "engine": {"step_time_s": 0.001}}


class Clock:
    """The wall clock of the servers that are started with its environment."""

    def __init__(self, folder: Path) -> None:
        library, self._file = folder / "clock_shift.so", folder / "shift"
        subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(SHIFT), "-ldl"], check=True)
        self.set(0)
        self.environment = {"LD_PRELOAD": str(library), "CLOCK_SHIFT_FILE": str(self._file)}

    def set(self, shift_s: int) -> None:
        """Let it be so many seconds ahead of the machine's."""
        with self._file.open("r+b" if self._file.exists() else "wb") as file:
            file.write(struct.pack("q", shift_s))


async def test_wall_clock_jumps_under_load_nothing_fails(tmp_path: Path, record_fault: RecordFault) -> None:
    clock, num_swept = Clock(tmp_path), 0
    server = ServerProcess(tmp_path / "server", SETTINGS, environment=clock.environment)
    traffic = Traffic([server], ["adapter@stable"], num_callers=8, think_s=0.01, seed=1)
    await server.start()
    try:
        async with ChangeClient(server.http, server.grpc, pause_s=0.05) as client:
            first = await upload(client, 0)
            assert first is not None
            await promote(client, first)
            async with under_traffic(server, traffic):
                for index, shift_s in enumerate(JUMPS_S, start=1):
                    # The jump falls into the middle of an upload, whose body comes in slow pieces.
                    uploading = asyncio.create_task(upload(client, index))
                    await asyncio.sleep(0.1)
                    clock.set(shift_s)
                    version = await uploading
                    if version is None:
                        num_swept += 1
                        version = await upload(client, index + len(JUMPS_S))
                    assert version is not None
                    await promote(client, version)
                    await traffic.until_served(NUM_ANSWERS)
                    assert (await client.state("adapter")).aliases["stable"] == version
    finally:
        server.kill()
    record_fault(
        Fault(
            "wall clock a day ahead, then a day back",
            sent=f"{len(traffic.served)} requests, {len(JUMPS_S) + 1} uploads and promotions",
            refused=f"{num_swept} uploads under way at a jump, to be sent again",
            lost="nothing",
        )
    )


async def upload(client: ChangeClient, seed: int) -> int | None:
    """Return the version made; None if it was swept meanwhile."""
    try:
        return await client.send(Change(Kind.UPLOAD, "adapter", f"upload-{seed}", "http", seed=seed))
    except Refused as refused:
        if "upload it again" not in refused.message:
            raise
        return None


async def promote(client: ChangeClient, version: int) -> None:
    await client.send(Change(Kind.PROMOTE, "adapter", f"promote-{version}", "grpc", version=version, alias="stable"))
