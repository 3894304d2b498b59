"""Callers who ask for long streamed answers and read them slowly, or not at all, in a process of their own.

``python -m benchmarks.slow_readers``: one line of JSON comes in, a :class:`SlowReading`; ``ready`` goes out once every
reader has the beginning of its answer; then they read until standard input ends. What they saw goes out as JSON. A
reader whose answer has ended asks again.

A slow network is a small window at the receiver, so that the sender cannot get rid of what it has.
"""

import asyncio
import json
import socket
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass

import grpc

from medley.v1 import inference_pb2, inference_pb2_grpc

# The system doubles the first and has least values for both.
_RECEIVE_BUFFER_BYTES = 4096
_CHANNEL_OPTIONS = (
    ("grpc.http2.lookahead_bytes", 4096),
    ("grpc.http2.bdp_probe", 0),
    # Else all channels of a process would share one connection.
    ("grpc.use_local_subchannel_pool", 1),
)


@dataclass(frozen=True, slots=True)
class SlowReading:
    """What the readers do.

    Attributes:
        protocol: ``http`` or ``grpc``.
        address: ``host:port``.
        num_readers: How many; each has a connection of its own.
        text: What they ask about.
        max_new_tokens: Longest answer.
        every_s: Seconds between two reads; 0 never reads again after the answer's beginning.
        num_bytes: Most bytes of a read, over HTTP; over gRPC a read is a message.
        num_logprobs: Alternatives to each token, over HTTP; they make answers long.
        ignore_eos: Whether answers go on until ``max_new_tokens``, over HTTP.
    """

    protocol: str
    address: str
    num_readers: int
    text: str
    max_new_tokens: int
    every_s: float = 0.5
    num_bytes: int = 256
    num_logprobs: int | None = None
    ignore_eos: bool = True


class SlowReaders:
    """All readers of one process, on one event loop.

    Args:
        reading: What they do.

    Attributes:
        ends: How answers ended: ``whole``, ``broken``, or over gRPC a status.
        num_read: Reads, by all of them.
    """

    def __init__(self, reading: SlowReading) -> None:
        self._reading = reading
        self._read_one = _read_over_http if reading.protocol == "http" else _read_over_grpc
        self._num_begun, self._all_begun = 0, asyncio.Event()
        self.ends: Counter[str] = Counter()
        self.num_read = 0

    async def begun(self) -> None:
        """Wait until each reader has the beginning of an answer."""
        await self._all_begun.wait()

    async def read(self) -> None:
        """Read until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._reading.num_readers):
                group.create_task(self._reader())

    async def _reader(self) -> None:
        is_first = True
        while True:
            begun = self._begin if is_first else _nothing
            self.ends[await self._read_one(self._reading, begun, self._pause)] += 1
            is_first = False

    def _begin(self) -> None:
        self._num_begun += 1
        if self._num_begun == self._reading.num_readers:
            self._all_begun.set()

    async def _pause(self) -> None:
        if not self._reading.every_s:
            await asyncio.Event().wait()
        await asyncio.sleep(self._reading.every_s)
        self.num_read += 1


def _nothing() -> None:
    pass


async def _read_over_http(reading: SlowReading, begun: Callable[[], None], pause: Callable[[], Awaitable[None]]) -> str:
    loop = asyncio.get_running_loop()
    host, _, port = reading.address.rpartition(":")
    body = {"prompt": reading.text, "max_tokens": reading.max_new_tokens, "stream": True}
    body |= {"ignore_eos": True} if reading.ignore_eos else {}
    body |= {} if reading.num_logprobs is None else {"logprobs": reading.num_logprobs}
    content = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: {reading.address}\r\ncontent-type: application/json\r\n"
    head += f"content-length: {len(content)}\r\nconnection: close\r\n\r\n"
    with socket.socket() as connection:
        connection.settimeout(0.0)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
        await loop.sock_connect(connection, (host, int(port)))
        await loop.sock_sendall(connection, head.encode() + content)
        last = b""
        try:
            while data := await loop.sock_recv(connection, reading.num_bytes):
                if not last:
                    begun()
                last = (last + data)[-64:]
                await pause()
        except OSError:
            return "broken"
        return "whole" if b"[DONE]" in last else "broken"


async def _read_over_grpc(reading: SlowReading, begun: Callable[[], None], pause: Callable[[], Awaitable[None]]) -> str:
    sampling = inference_pb2.SamplingOptions(max_new_tokens=reading.max_new_tokens)
    async with grpc.aio.insecure_channel(reading.address, options=_CHANNEL_OPTIONS) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        call = stub.StreamGenerate(inference_pb2.StreamGenerateRequest(prompt=reading.text, sampling=sampling))
        is_first = True
        try:
            while await call.read() is not grpc.aio.EOF:
                if is_first:
                    begun()
                is_first = False
                await pause()
        except grpc.aio.AioRpcError as error:
            return str(error.code().name)
        return "whole"


async def _work() -> None:
    inbox = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(inbox), sys.stdin)
    readers = SlowReaders(SlowReading(**json.loads(await inbox.readline())))
    reading = asyncio.create_task(readers.read())
    await asyncio.wait({reading, begun := asyncio.create_task(readers.begun())}, return_when=asyncio.FIRST_COMPLETED)
    if reading.done():
        reading.result()
    begun.cancel()
    print("ready", flush=True)
    await inbox.read()
    reading.cancel()
    await asyncio.wait({reading})
    print(json.dumps({"ends": readers.ends, "num_read": readers.num_read}), flush=True)


class ReaderProcess:
    """Slow readers in a process of their own; use as ``async with``, inside which each has begun.

    Args:
        reading: What they do.

    Attributes:
        ends: How answers ended, once the block was left.
        num_read: Reads, then.
    """

    def __init__(self, reading: SlowReading) -> None:
        self._reading = reading
        self.ends: dict[str, int] = {}
        self.num_read = 0

    async def __aenter__(self) -> "ReaderProcess":
        """Start them.

        Raises:
            RuntimeError: If they cannot begin.
        """
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "benchmarks.slow_readers"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asdict(self._reading)).encode() + b"\n")
        if await self._process.stdout.readline() != b"ready\n":
            await self._process.wait()
            raise RuntimeError("the slow readers could not begin")
        return self

    def kill(self) -> None:
        """End them as ``kill -9`` does; what they saw is lost."""
        self._process.kill()

    async def __aexit__(self, *_error: object) -> None:
        """Stop them: the end of their input tells them."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        told, _ = await self._process.communicate()
        outcome = json.loads(told or b'{"ends": {}, "num_read": 0}')
        self.ends, self.num_read = outcome["ends"], outcome["num_read"]


if __name__ == "__main__":
    asyncio.run(_work())
