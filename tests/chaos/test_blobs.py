"""Bytes of an adapter rot on the disk: whoever asks for it is told so, nobody else notices, and an upload heals it.

They rot while the server is down: what it has read once, it does not hash again.
"""

import asyncio
import time
from pathlib import Path

import pytest

from tests.fixtures.adapter_changes import Change, Kind
from tests.fixtures.change_clients import ChangeClient
from tests.fixtures.faults import Fault, RecordFault
from tests.fixtures.peft_files import lora_files
from tests.fixtures.server_process import ServerProcess
from tests.fixtures.traffic import Traffic, under_traffic

pytestmark = [pytest.mark.slow, pytest.mark.chaos]

NUM_ANSWERS = 60
SETTINGS = {"engine": {"step_time_s": 0.001}}


async def test_rotten_bytes_hurt_their_own_callers_alone_and_an_upload_heals(
    tmp_path: Path, record_fault: RecordFault
) -> None:
    server = ServerProcess(tmp_path, SETTINGS)
    traffic = Traffic([server], ["adapter@stable"], num_callers=4, think_s=0.01, seed=1)
    await server.start()
    try:
        async with ChangeClient(server.http, server.grpc) as client:
            await client.send(upload("adapter", seed=1))
            await client.send(Change(Kind.PROMOTE, "adapter", "promote", "http", version=1, alias="stable"))
            await client.send(upload("rotten", seed=2))
        assert await server.stop() == 0
        await asyncio.to_thread(rot, server.data_dir / "store", lora_files(seed=2)["adapter_model.safetensors"])
        await server.start()
        async with ChangeClient(server.http, server.grpc) as client, under_traffic(server, traffic):
            refused = await asyncio.gather(*(client.refusal("rotten:1") for _ in range(4)))
            # The first to read them finds them rotten and puts them away; to whoever comes later they are missing.
            assert {each.code for each in refused} <= {"INTERNAL", "UNAVAILABLE"}
            await traffic.until_served(NUM_ANSWERS)
            begun_s = time.monotonic()
            await client.send(upload("rotten", seed=2, key="again"))
            await client.ask(["rotten:1"])
            recovered_s = time.monotonic() - begun_s
    finally:
        server.kill()
    record_fault(
        Fault(
            "a byte of an adapter changed on the disk",
            sent=f"{len(traffic.served)} requests for another adapter, {len(refused)} for this one",
            refused=f"{len(refused)} requests",
            lost="nothing",
            recovered_s=recovered_s,
        )
    )


def upload(name: str, seed: int, key: str = "first") -> Change:
    return Change(Kind.UPLOAD, name, f"{name}-{key}", "http", seed=seed)


def rot(store: Path, weights: bytes) -> None:
    """Change the last byte of the file with these bytes."""
    (file,) = [path for path in store.rglob("*.safetensors") if path.read_bytes() == weights]
    file.chmod(0o600)
    file.write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
