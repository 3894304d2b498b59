"""The object store is away, or says nothing, under load: what is at hand is served; what is not is refused, in time."""

import asyncio
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from loadtest.clients import WireProtocol, create_client
from loadtest.clients.base import ClientError, SummaryRequest
from tests.fixtures.adapter_changes import Change, Kind
from tests.fixtures.change_clients import ChangeClient, Refused
from tests.fixtures.cut_line import CutLine, LineState
from tests.fixtures.faults import Fault, RecordFault
from tests.fixtures.peft_files import lora_files
from tests.fixtures.s3 import running_s3
from tests.fixtures.server_process import ServerProcess
from tests.fixtures.traffic import Traffic, under_traffic

pytestmark = [pytest.mark.slow, pytest.mark.chaos]

SIZE_BYTES = sum(len(data) for data in lora_files().values())
NUM_ANSWERS = 60
DEADLINE_S = 30.0


@pytest.mark.parametrize("state", [LineState.CUT, LineState.DEAD])
async def test_store_away_serves_what_is_at_hand_and_recovers(
    tmp_path: Path, state: LineState, record_fault: RecordFault
) -> None:
    with running_s3() as s3:
        place = urlsplit(str(s3.options["endpoint_url"]))
        async with CutLine(place.hostname or "", place.port or 0) as line:
            patience = {"connect_timeout": 0.2, "read_timeout": 0.2}  # else 5 and 20
            options = {**s3.options, "endpoint_url": f"http://127.0.0.1:{line.port}", "config_kwargs": patience}
            # Room for two copies on the local disk: the first version is in the store alone, and the second gives way
            # to what is uploaded later, not the one that is asked for all the time.
            store = {"url": s3.new_bucket(), "options": options, "max_local_bytes": SIZE_BYTES * 5 // 2}
            server = ServerProcess(tmp_path, {"store": store, "engine": {"max_loras": 1, "step_time_s": 0.001}})
            traffic = Traffic([server], ["adapter@stable"], num_callers=4, think_s=0.01, seed=1)
            await server.start()
            try:
                async with ChangeClient(server.http, server.grpc) as client:
                    for seed in (3, 2, 1):
                        await client.send(upload(seed))
                    await client.send(Change(Kind.PROMOTE, "adapter", "promote", "http", version=3, alias="stable"))
                    async with under_traffic(server, traffic):
                        await traffic.until_served(NUM_ANSWERS)
                        await line.become(state)
                        refusals = await asyncio.gather(*(refusal(server, protocol) for protocol in WireProtocol))
                        refusals.append(await refused_upload(client))
                        await traffic.until_served(NUM_ANSWERS)
                        await line.become(LineState.OPEN)
                        begun_s = time.monotonic()
                        await client.send(upload(4))
                        await client.ask(["adapter:1"])
                        recovered_s = time.monotonic() - begun_s
            finally:
                server.kill()
    assert set(refusals) == {"UNAVAILABLE"}
    record_fault(
        Fault(
            f"object store {state}",
            sent=f"{len(traffic.served)} requests for the adapter at hand, 2 for another, 1 upload",
            refused="what the store was needed for: UNAVAILABLE",
            lost="nothing",
            recovered_s=recovered_s,
        )
    )


def upload(seed: int) -> Change:
    return Change(Kind.UPLOAD, "adapter", f"upload-{seed}", "http", seed=seed)


async def refusal(server: ServerProcess, protocol: WireProtocol) -> str:
    """Ask for the adapter that is in the store alone; return what was said."""
    address = {WireProtocol.HTTP: server.http.removeprefix("http://"), WireProtocol.GRPC: server.grpc}[protocol]
    async with create_client(protocol, address) as client:
        with pytest.raises(ClientError) as caught:
            await client.summarize(SummaryRequest("one two", ("adapter:1",)), DEADLINE_S)
    return caught.value.code


async def refused_upload(client: ChangeClient) -> str:
    with pytest.raises(Refused) as caught:
        await client.send(upload(4))
    return caught.value.code
