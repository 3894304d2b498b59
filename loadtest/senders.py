"""Who sends a run: this process, or several others; with one face. Knows no statistics."""

import asyncio
import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict
from types import TracebackType
from typing import Self

from loadtest.clients.base import Credentials, GenerationClient
from loadtest.clients.target import Target, connect
from loadtest.records import from_line
from loadtest.runner import Runner
from loadtest.sender import OnRecord, RunnerConfig
from loadtest.shares import Share
from loadtest.worker import END, MAX_LINE_BYTES, READY

_STOP_S = 5.0


class WorkerLostError(Exception):
    """A sending process ended before its work was done."""


class Senders(ABC):
    """Whoever sends; use as ``async with``, inside which they are ready. Leaving it stops what is still running."""

    @abstractmethod
    async def run(self, zero_s: float) -> None:
        """Send everything and wait for the last answer.

        Args:
            zero_s: When the measured part begins, on the event loop's clock.

        Raises:
            WorkerLostError: If a sending process is gone.
        """

    @abstractmethod
    async def __aenter__(self) -> Self:
        """Get ready."""

    @abstractmethod
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop."""


def create_senders(shares: Sequence[Share], target: Target, credentials: Credentials, on_record: OnRecord) -> Senders:
    """Return whoever sends these shares: this process if there is one of them, else a process for each."""
    if len(shares) == 1:
        return _Here(shares[0], target, connect(target, credentials), on_record)
    return _Workers(shares, target, credentials, on_record)


class _Here(Senders):
    def __init__(self, share: Share, target: Target, client: GenerationClient, on_record: OnRecord) -> None:
        self._share, self._client = share, client
        self._config = RunnerConfig(target.stream, target.timeout_s, share.max_in_flight)
        self._on_record = on_record

    async def run(self, zero_s: float) -> None:
        runner = Runner(self._client, self._config, self._on_record)
        if self._share.users is None:
            await runner.run(self._share.planned, zero_s)
        else:
            await runner.run_users(self._share.planned, self._share.users, zero_s)

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.__aexit__(kind, error, trace)


class _Workers(Senders):
    def __init__(self, shares: Sequence[Share], target: Target, credentials: Credentials, on_record: OnRecord) -> None:
        self._on_record = on_record
        common = {"target": asdict(target), "credentials": asdict(credentials)}
        self._jobs = [json.dumps(common | {"share": share.as_json()}) + "\n" for share in shares]
        self._workers: list[asyncio.subprocess.Process] = []
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Start the processes and wait until each is ready.

        Raises:
            WorkerLostError: If one ends instead.
        """
        async with AsyncExitStack() as stack:
            for job in self._jobs:
                worker = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "loadtest.worker"),
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    limit=MAX_LINE_BYTES,
                )
                stack.push_async_callback(_stop, worker)
                self._workers.append(worker)
                await _tell(worker, job)
            for worker in self._workers:
                assert worker.stdout is not None
                if await worker.stdout.readline() != READY.encode():
                    raise await _lost(worker)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def run(self, zero_s: float) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for worker in self._workers:
                    await _tell(worker, json.dumps({"zero_s": zero_s}) + "\n")
                    group.create_task(self._read(worker))
        except* WorkerLostError as errors:
            raise errors.exceptions[0] from None

    async def _read(self, worker: asyncio.subprocess.Process) -> None:
        assert worker.stdout is not None
        while (line := await worker.stdout.readline()) != END.encode():
            if not line.endswith(b"\n"):
                raise await _lost(worker)
            self._on_record(from_line(line))


async def _tell(worker: asyncio.subprocess.Process, line: str) -> None:
    assert worker.stdin is not None
    try:
        worker.stdin.write(line.encode())
        await worker.stdin.drain()
    except (BrokenPipeError, ConnectionResetError) as error:
        raise await _lost(worker) from error


async def _lost(worker: asyncio.subprocess.Process) -> WorkerLostError:
    return WorkerLostError(f"sending process {worker.pid} ended with status {await worker.wait()}")


async def _stop(worker: asyncio.subprocess.Process) -> None:
    """End a worker: the end of its input tells it; one that does not hear is killed."""
    assert worker.stdin is not None
    worker.stdin.close()
    try:
        async with asyncio.timeout(_STOP_S):
            await worker.communicate()
    except TimeoutError:
        worker.kill()
        await worker.wait()
