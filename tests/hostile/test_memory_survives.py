"""A server's memory under uploads made to fill it; Linux, where a process' own peak can be read and forgotten."""

import asyncio
import struct
import sys
import zipfile
from collections.abc import AsyncIterator
from io import BytesIO
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from tests.fixtures.adapters import CONFIG, WEIGHTS, lora_config, with_header
from tests.fixtures.front_end_clients import Call, Refused
from tests.fixtures.lifecycle_clients import GrpcLifecycle, HttpLifecycle
from tests.fixtures.peft_files import lora_files
from tests.fixtures.server_process import ServerProcess
from tests.hostile.archive_cases import tar_of
from tests.hostile.cases import as_bytes
from tests.hostile.left import left

pytestmark = [
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]

MAX_GROWTH_BYTES = 48 << 20
BODY_BYTES = 600 << 20
_PIECE = b"\0" * (1 << 20)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ServerProcess]:
    server = ServerProcess(tmp_path_factory.mktemp("server"))
    await server.start()
    try:
        async with HttpLifecycle(server) as http, GrpcLifecycle(server) as grpc:
            for client in (http, grpc):
                await client.push("sound", lora_files())
                await client.push_archive("sound", tar_of(lora_files(), "w:gz"))
                await client.summarize(Call(adapters=["sound"]))
        yield server
    finally:
        server.kill()


def _proc(server: ServerProcess, name: str) -> Path:
    process = server._process
    assert process is not None
    return Path(f"/proc/{process.pid}/{name}")


def _status_bytes(server: ServerProcess, key: str) -> int:
    lines = _proc(server, "status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(key))


class Watch:
    """How far a server's resident memory rose above where it was."""

    def __init__(self, server: ServerProcess) -> None:
        self._server = server
        _proc(server, "clear_refs").write_text("5")  # forgets the peak
        self._start_bytes = _status_bytes(server, "VmRSS")

    def growth_bytes(self) -> int:
        """The peak since the beginning."""
        return _status_bytes(self._server, "VmHWM") - self._start_bytes


def _zip_bomb() -> bytes:
    target = BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(CONFIG, as_bytes(lora_config()))
        with archive.open(WEIGHTS, "w", force_zip64=False) as member:
            for _ in range(500):
                member.write(_PIECE)
    return target.getvalue()


def _gzip_bomb() -> bytes:
    return tar_of({CONFIG: as_bytes(lora_config()), WEIGHTS: _PIECE * 500}, "w:gz")


FILES = {
    "header that claims a gigabyte": lambda: struct.pack("<Q", 1 << 30) + b"{}" * 9,
    "header of brackets": lambda: with_header('{"a":[' + "[]," * 250_000 + "[]]}"),
    "header of names": lambda: with_header(
        "{" + ",".join(f'"{n:x}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for n in range(30_000)) + "}"
    ),
    "header that claims a terabyte": lambda: with_header(
        {"prompt_embeddings": {"dtype": "F32", "shape": [1 << 38], "data_offsets": [0, 1 << 40]}}
    ),
}
ARCHIVES = {"zip bomb": _zip_bomb, "gzip bomb": _gzip_bomb}


@pytest.mark.parametrize("wire", [HttpLifecycle, GrpcLifecycle], ids=["http", "grpc"])
@pytest.mark.parametrize("title", [*FILES, *ARCHIVES])
async def test_upload_made_to_fill_memory_does_not(server: ServerProcess, wire: type, title: str) -> None:
    make = FILES.get(title) or ARCHIVES[title]
    data = await asyncio.to_thread(make)
    before = await asyncio.to_thread(left, server.data_dir)
    async with wire(server) as client:
        watch = Watch(server)
        files = {CONFIG: as_bytes(lora_config()), WEIGHTS: data}
        sending = client.push("bomb", files) if title in FILES else client.push_archive("bomb", data)
        with pytest.raises(Refused):
            await sending
        assert watch.growth_bytes() < MAX_GROWTH_BYTES
        assert await asyncio.to_thread(left, server.data_dir) == before
        assert (await client.summarize(Call(adapters=["sound"]))).text


async def _zeros(head: bytes) -> AsyncIterator[bytes]:
    yield head
    for _ in range(BODY_BYTES // len(_PIECE)):
        yield _PIECE


@pytest.mark.parametrize("kind", ["multipart/form-data; boundary=b", "application/x-tar", "application/json"])
async def test_body_of_zeros_without_end_does_not_fill_memory(server: ServerProcess, kind: str) -> None:
    head = f'--b\r\nContent-Disposition: form-data; name="files"; filename="{WEIGHTS}"\r\n\r\n'.encode()
    before = await asyncio.to_thread(left, server.data_dir)
    watch = Watch(server)
    async with httpx.AsyncClient(base_url=server.http, timeout=120) as client:
        body = _zeros(head if kind.startswith("multipart") else b"")
        try:
            answer = await client.post("/v1/adapters/zeros/versions", content=body, headers={"content-type": kind})
            assert answer.status_code in (400, 413, 429)
        except httpx.WriteError:
            pass  # the server may also answer and close before everything is sent
        assert watch.growth_bytes() < MAX_GROWTH_BYTES
        assert await asyncio.to_thread(left, server.data_dir) == before
        assert (await client.get("/readyz")).status_code == 200
