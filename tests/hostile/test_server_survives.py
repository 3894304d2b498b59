"""The whole corpus against a running server, over both wires: its own answer each, nothing left, the server serves."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path

import pytest
import pytest_asyncio

from server.core.errors import ErrorCode
from server.evaluation.config import EvaluationConfig
from server.service.adapters import CatalogConfig
from tests.fixtures.front_end_clients import Call, Refused
from tests.fixtures.lifecycle_clients import GrpcLifecycle, HttpLifecycle, Labels, LifecycleClient
from tests.fixtures.peft_files import lora_files as sound_files
from tests.fixtures.running_server import RunningServer, fake_engine, running_server
from tests.hostile.archive_cases import tar_of
from tests.hostile.cases import LIMITS, Case, Upload
from tests.hostile.corpus import CORPUS, NAMES
from tests.hostile.left import left

pytestmark = pytest.mark.asyncio(loop_scope="module")

NO_SCORER = EvaluationConfig(warm_at_start=False)
ENGINE = fake_engine(max_lora_rank=LIMITS.max_rank, max_virtual_tokens=LIMITS.max_virtual_tokens)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("server")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(data_dir: Path) -> AsyncIterator[RunningServer]:
    catalog = CatalogConfig(max_file_bytes=LIMITS.max_file_bytes)
    async with running_server(data_dir, ENGINE, catalog=catalog, evaluation=NO_SCORER) as running:
        yield running


@pytest_asyncio.fixture(
    scope="module", loop_scope="module", params=[HttpLifecycle, GrpcLifecycle], ids=["http", "grpc"]
)
async def client(server: RunningServer, request: pytest.FixtureRequest) -> AsyncIterator[LifecycleClient]:
    async with request.param(server) as client:
        await client.push("sound", sound_files(), Labels(alias="stable"))
        yield client


def send(client: LifecycleClient, upload: Upload) -> Awaitable[object]:
    """The call that sends an upload."""
    labels = Labels(alias=upload.alias, tags=upload.tags)
    if upload.source:
        return client.push_source(upload.name, upload.source, labels)
    if upload.archive:
        return client.push_archive(upload.name, upload.archive, labels)
    return client.push(upload.name, upload.files, labels)


def expected_code(case: Case, upload: Upload, wire: str) -> str:
    """The code a case is answered with; slashes and dots in a name make another path over HTTP, with no route."""
    is_elsewhere = wire == "http" and ("/" in upload.name or upload.name == "..")
    return str(ErrorCode.NOT_FOUND if is_elsewhere else case.code)


@pytest.mark.parametrize("title", CORPUS)
async def test_hostile_upload_is_refused_and_leaves_nothing(
    client: LifecycleClient, data_dir: Path, title: str
) -> None:
    case = CORPUS[title]
    upload = await asyncio.to_thread(case.make)
    before = await asyncio.to_thread(left, data_dir)
    with pytest.raises(Refused) as caught:
        await send(client, upload)
    refused = caught.value
    assert refused.code == expected_code(case, upload, client.name)
    # Over HTTP the shape of names, tags and sources is also checked where the path and the body are read.
    if client.name == "grpc" or title not in NAMES:
        assert case.message in refused.message
    assert refused.message.isprintable()
    assert len(refused.message) < 600
    assert await asyncio.to_thread(left, data_dir) == before
    assert (await client.summarize(Call(adapters=["sound"]))).adapters[0][0] == "sound"


async def test_sound_upload_after_all_that_is_taken_once(client: LifecycleClient, data_dir: Path) -> None:
    name = f"late-{client.name}"
    first = await client.push(name, sound_files(7), Labels(alias="stable", tags=["good"]))
    again = await client.push(name, sound_files(7))
    packed = await client.push_archive(name, tar_of({f"x/{file}": data for file, data in sound_files(7).items()}))
    assert first["digest"] == again["digest"] == packed["digest"]
    assert first["version"] == again["version"] == packed["version"] == 1
    paths, _ = await asyncio.to_thread(left, data_dir)
    assert "staging" in paths
    assert not any(path.startswith("staging/") for path in paths)
