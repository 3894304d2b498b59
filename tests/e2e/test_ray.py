"""Two replicas on a Ray cluster of this machine, with PostgreSQL and S3: the same answers, found adapters, and deaths.

The cluster is one for all tests and takes a while to start; each test leaves it as it found it.
"""

import asyncio
import logging
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import ray
from grpc import StatusCode, aio
from httpx import AsyncClient
from ray import serve
from ray.exceptions import RayActorError

from medley.v1 import inference_pb2 as pb
from medley.v1 import inference_pb2_grpc
from server.runtime.ray_app import APPLICATION, REPLICA, application
from server.settings import Settings
from tests.fixtures.faults import Fault, recorder
from tests.fixtures.front_end_clients import Call, FrontEndClient, GrpcClient, HttpClient, Refused
from tests.fixtures.peft_files import lora_files
from tests.fixtures.postgres import running_postgres
from tests.fixtures.ray_stand_in import plain_scope
from tests.fixtures.running_server import fake_engine, running_server
from tests.fixtures.s3 import running_s3
from tests.fixtures.server_process import ServerProcess

pytestmark = [
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(900),
    # Ray's are its own.
    pytest.mark.filterwarnings("default"),
]
_log = logging.getLogger(__name__)

START_S = 600.0
PATIENCE_S = 120.0
NUM_ADAPTERS = 64
NUM_SLOTS = 8
NUM_REQUESTS = 1024
NUM_IN_A_ROW = 20
NUM_STREAMS = 8
LONG = "word " * 60


class RayServerProcess(ServerProcess):
    """A ``medley serve --ray``."""

    def _launch(self) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "server", "serve", "--ray", "--config", str(self._config_file)]
        with self._log_file.open("ab") as log:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)

    @property
    def cluster(self) -> str:
        """The address of its cluster."""
        (address,) = re.findall(r"cluster=(\S+)", self.log_tail(1000))
        return str(address)


@dataclass
class Deployment:
    """What runs.

    Attributes:
        server: The command.
        settings: What it was deployed with.
        http: Its address, for clients.
        grpc: Its address, for clients.
    """

    server: RayServerProcess
    settings: Settings
    http: str = field(init=False)
    grpc: str = field(init=False)

    def __post_init__(self) -> None:
        self.http, self.grpc = self.server.http, self.server.grpc

    async def loads(self) -> dict[int, int]:
        """Adapters loaded so far by each of two replicas."""
        handle = serve.get_deployment_handle(REPLICA, APPLICATION)
        found: dict[int, int] = {}
        async with asyncio.timeout(PATIENCE_S):
            while len(found) < 2:
                # Without a key either is asked.
                with suppress(RayActorError):
                    pid, num_loads = await handle.options(method_name="loads").remote()
                    found[pid] = num_loads
        return found

    async def replaced(self, gone: set[int]) -> None:
        """Wait until two other replicas than some that are gone are there."""
        async with asyncio.timeout(PATIENCE_S):
            while gone & set(await self.loads()):  # noqa: ASYNC110 - the replicas tell nobody
                await asyncio.sleep(0.2)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def deployment(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Deployment]:
    folder = tmp_path_factory.mktemp("ray")
    with running_postgres() as postgres, running_s3() as s3:
        settings = {
            "registry": {"url": postgres.url(postgres.make_database()), "poll_s": 0.2},
            "store": {"url": s3.new_bucket(), "options": s3.options},
            "engine": {"name": "fake", "step_time_s": 0.002, "max_loras": NUM_SLOTS, "max_num_waiting": 256},
            "access": {"allow_open": True},
            "ray": {"num_cpus": 0.1, "spill_least": 16},
        }
        # Both drivers must agree on it; the cluster is on loopback and lives for a minute.
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        server = RayServerProcess(folder, settings, start_timeout_s=START_S)
        own = {"data_dir": server.data_dir, "library": folder / "none", "evaluation": {"warm_at_start": False}}
        try:
            await server.start()
            ray.init(server.cluster, configure_logging=False, log_to_driver=False)
            yield Deployment(server, Settings(**(settings | own)))
        finally:
            ray.shutdown()
            if server.is_running():
                await server.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=[HttpClient, GrpcClient], ids=["http", "grpc"])
async def client(deployment: Deployment, request: pytest.FixtureRequest) -> AsyncIterator[FrontEndClient]:
    async with request.param(deployment) as client:
        yield client


@dataclass
class Load:
    """Requests without end, over both wires; what failed is kept.

    Attributes:
        deployment: Who is asked.
        adapters: Asked for at random; none for the base.
        num_callers: At once.
    """

    deployment: Deployment
    adapters: tuple[str, ...] = ()
    num_callers: int = 8
    text: str = "one two three"
    num_answers: int = 0
    failures: list[str] = field(default_factory=list)

    async def run(self, is_over: Callable[[], bool]) -> None:
        async with (
            HttpClient(self.deployment) as http,  # type: ignore[arg-type]
            GrpcClient(self.deployment) as grpc,  # type: ignore[arg-type]
            asyncio.TaskGroup() as group,
        ):
            for number in range(self.num_callers):
                group.create_task(self._call((http, grpc)[number % 2], random.Random(number), is_over))

    async def _call(self, client: FrontEndClient, draw: random.Random, is_over: Callable[[], bool]) -> None:
        while not is_over():
            adapters = (draw.choice(self.adapters),) if self.adapters else ()
            try:
                await client.summarize(Call(text=self.text, adapters=adapters))
            except Exception as error:
                self.failures.append(repr(error))
            else:
                self.num_answers += 1


async def _upload(deployment: Deployment, names: list[str], first_seed: int) -> None:
    seeds = iter(range(first_seed, first_seed + len(names)))
    waiting = iter(names)
    async with HttpClient(deployment) as client:  # type: ignore[arg-type]

        async def upload_some() -> None:
            for name in waiting:
                await client.upload(name, lora_files(next(seeds)))

        await asyncio.gather(*(upload_some() for _ in range(4)))
    await _known(deployment, names[-1])


async def _known(deployment: Deployment, name: str) -> None:
    """Wait until every replica knows an adapter: until a row of answers has it, each from either replica."""
    num_seen = 0
    async with AsyncClient(base_url=deployment.http, timeout=PATIENCE_S) as client, asyncio.timeout(PATIENCE_S):
        while num_seen < NUM_IN_A_ROW:
            answer = await client.get(f"/v1/adapters/{name}")
            num_seen = num_seen + 1 if answer.is_success else 0


async def test_answers_are_those_of_one_server(deployment: Deployment, client: FrontEndClient, tmp_path: Path) -> None:
    name = f"same-{type(client).__name__.lower()}"
    async with (
        running_server(tmp_path, fake_engine(step_time_s=0.002, max_loras=NUM_SLOTS)) as server,
        type(client)(server) as other,  # type: ignore[call-arg]
    ):
        for each in (client, other):
            await each.upload(name, lora_files(seed=1))
        await _known(deployment, name)
        for call in (Call(text="one two"), Call(text="one two", adapters=(name,))):
            ours, theirs = await client.summarize(call), await other.summarize(call)
            assert (ours.text, ours.adapters, ours.finish_reason) == (
                theirs.text,
                theirs.adapters,
                theirs.finish_reason,
            )
            pieces = [[piece async for piece in each.stream(call)] for each in (client, other)]
            assert pieces[0][:-1] == pieces[1][:-1]
            assert pieces[0][-1].text == pieces[1][-1].text  # type: ignore[union-attr]
        refusals = []
        for each in (client, other):
            with pytest.raises(Refused) as caught:
                await each.summarize(Call(adapters=("nobody",)))
            refusals.append((caught.value.code, caught.value.message))
        assert refusals[0] == refusals[1]


async def test_upload_is_served_by_every_replica(deployment: Deployment) -> None:
    handle = serve.get_deployment_handle(REPLICA, APPLICATION).options(method_name="http", stream=True)
    await _upload(deployment, ["everywhere"], 1000)
    before, since_s = await deployment.loads(), time.monotonic()
    body = b'{"text": "one two", "adapters": ["everywhere"]}'
    scope = plain_scope("POST", "/v1/summarize")
    served: set[int] = set()
    async with asyncio.timeout(PATIENCE_S):
        while len(served) < 2:
            # Without a key either is asked.
            async for _ in handle.remote(scope, [[body]]):
                pass
            after = await deployment.loads()
            served = {pid for pid in after if after[pid] > before[pid]}
    _log.info("served by both replicas %.2f s after the upload was answered", time.monotonic() - since_s)


@pytest.mark.chaos
async def test_killed_replica_loses_no_request_that_was_not_streaming(
    deployment: Deployment, record_property: Callable[[str, object], None]
) -> None:
    load, is_over = Load(deployment, num_callers=12, text=LONG), asyncio.Event()
    running = asyncio.create_task(load.run(is_over.is_set))
    streams = [asyncio.create_task(_stream(deployment, is_over.is_set)) for _ in range(NUM_STREAMS)]
    async with asyncio.timeout(PATIENCE_S):
        while load.num_answers < 24:  # noqa: ASYNC110 - the servers are other processes
            await asyncio.sleep(0.05)
    killed, _ = await deployment.loads()
    os.kill(killed, signal.SIGKILL)
    killed_s = time.monotonic()
    await deployment.replaced({killed})
    recovered_s = time.monotonic() - killed_s
    is_over.set()
    ended = Counter(code for codes in await asyncio.gather(*streams) for code in codes)
    await running
    assert load.failures == []
    assert set(ended) <= {StatusCode.OK, StatusCode.UNAVAILABLE}
    assert ended[StatusCode.OK] > 0
    # Each stream that ran on the replica broke once.
    assert ended[StatusCode.UNAVAILABLE] <= NUM_STREAMS
    recorder(record_property)(
        Fault(
            "kill -9 of one of two replicas under load",
            sent=f"{load.num_answers} requests, {ended.total()} streams",
            refused=f"{ended[StatusCode.UNAVAILABLE]} of the streams, those on the replica: UNAVAILABLE",
            lost="nothing else",
            recovered_s=recovered_s,
        )
    )


async def _stream(deployment: Deployment, is_over: Callable[[], bool]) -> list[StatusCode]:
    """Return how one stream after the other ended."""
    codes = []
    async with aio.insecure_channel(deployment.grpc) as channel:
        stub: Any = inference_pb2_grpc.InferenceServiceStub(channel)
        while not is_over():
            try:
                async for _ in stub.StreamSummarize(pb.StreamSummarizeRequest(text=LONG)):
                    pass
            except aio.AioRpcError as error:
                codes.append(error.code())
            else:
                codes.append(StatusCode.OK)
    return codes


async def test_affinity_finds_more_adapters_than_chance_and_a_rolling_update_fails_none(deployment: Deployment) -> None:
    names = [f"tenant-{number}" for number in range(NUM_ADAPTERS)]
    await _upload(deployment, names, 2000)
    affine = await _hit_rate(deployment, names)
    load, is_over = Load(deployment, tuple(names[:8]), num_callers=4), asyncio.Event()
    running = asyncio.create_task(load.run(is_over.is_set))
    before = set(await deployment.loads())
    by_chance = deployment.settings.model_copy(update={"ray": _by_chance(deployment.settings)})
    await asyncio.to_thread(serve.run, application(by_chance), name=APPLICATION, route_prefix="/")
    await deployment.replaced(before)
    is_over.set()
    await running
    assert load.failures == []
    assert load.num_answers > 0
    random_rate = await _hit_rate(deployment, names)
    _log.info("hit rate %.3f by adapter, %.3f by chance", affine, random_rate)
    # Requests that come independently for any of the adapters can be hits twice as often at the very most: together
    # the replicas hold 16 adapters instead of the same 8 twice.
    assert affine > 1.4 * random_rate


def _by_chance(settings: Settings) -> Any:
    return replace(settings.ray, is_affine=False)


async def _hit_rate(deployment: Deployment, names: list[str]) -> float:
    before = sum((await deployment.loads()).values())
    draw = random.Random(7)
    asked = iter([draw.choice(names) for _ in range(NUM_REQUESTS)])
    async with HttpClient(deployment) as client:  # type: ignore[arg-type]

        async def ask_some() -> None:
            for name in asked:
                await client.summarize(Call(text="one two", adapters=(name,)))

        await asyncio.gather(*(ask_some() for _ in range(8)))
    return 1 - (sum((await deployment.loads()).values()) - before) / NUM_REQUESTS


async def test_unknown_path_is_answered_as_by_one_server(deployment: Deployment) -> None:
    async with AsyncClient(base_url=deployment.http, timeout=PATIENCE_S) as client:
        answer = await client.get("/nowhere", headers={"x-request-id": "r-7"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "NOT_FOUND")
    assert answer.headers.get_list("x-request-id") == ["r-7"]
