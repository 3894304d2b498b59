"""A ``medley serve`` of one's own: a child process on free ports with a temporary data directory.

Used by the demo and by the end-to-end tests. Knows only the command line, the ready file and the exit status.
"""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from loadtest.clients import WireProtocol

_POLL_S = 0.05


class ServerFailedError(Exception):
    """The server did not start, or did not end as it should."""


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """How to start it.

    Attributes:
        folder: An existing folder for its data, ready file and log.
        options: More options of ``medley serve``.
        start_timeout_s: Longest wait until it is ready.
        stop_timeout_s: Longest wait until it has drained and ended; then it is killed.
    """

    folder: Path
    options: Sequence[str] = ()
    start_timeout_s: float = 120.0
    stop_timeout_s: float = 60.0


class ServerProcess:
    """Starts on entry and stops on exit, each once; use as ``async with``.

    Args:
        config: How to start it.
    """

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._ready_file = config.folder / "ready.json"
        self._log_file = config.folder / "server.log"
        self._addresses: dict[WireProtocol, str] = {}

    async def __aenter__(self) -> Self:
        """Start and wait until it is ready.

        Raises:
            ServerFailedError: If it ends first or takes too long.
        """
        command = [
            *(sys.executable, "-m", "server", "serve", "--port", "0", "--grpc-port", "0"),
            *("--data-dir", str(self._config.folder / "data"), "--ready-file", str(self._ready_file)),
            *self._config.options,
        ]
        with self._log_file.open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            async with asyncio.timeout(self._config.start_timeout_s):
                await self._wait_until_ready()
        except TimeoutError as error:
            await self._kill()
            raise ServerFailedError(f"not ready within {self._config.start_timeout_s:g} s") from error
        except BaseException:
            await self._kill()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop; an error inside the block is not covered by one of stopping."""
        if error is None:
            await self.stop()
        else:
            await self._kill()

    def address(self, protocol: WireProtocol) -> str:
        """Return ``host:port``."""
        return self._addresses[protocol]

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    async def stop(self) -> None:
        """Ask it to end (SIGTERM) and wait until it has drained; does nothing if that was done before.

        Raises:
            ServerFailedError: If it takes too long or its exit status is not 0.
        """
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(self._config.stop_timeout_s):
                status = await self._process.wait()
        except TimeoutError as error:
            await self._kill()
            raise ServerFailedError(f"did not end within {self._config.stop_timeout_s:g} s of SIGTERM") from error
        if status != 0:
            raise ServerFailedError(f"ended with status {status}")

    def log_tail(self, num_lines: int = 30) -> str:
        """Return the last lines it logged."""
        lines = self._log_file.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(lines[-num_lines:])

    async def _wait_until_ready(self) -> None:
        # The file appears whole, by a rename; nothing but polling tells of it.
        while not self._ready_file.exists():
            if self._process.returncode is not None:
                raise ServerFailedError(f"ended with status {self._process.returncode} before it was ready")
            await asyncio.sleep(_POLL_S)
        ready = json.loads(self._ready_file.read_text(encoding="utf-8"))
        self._addresses = {protocol: ready[protocol.value] for protocol in WireProtocol}

    async def _kill(self) -> None:
        if self._process.returncode is None:
            os.kill(self._process.pid, signal.SIGKILL)
            await self._process.wait()
