"""Starts an engine's process, talks to it, and ends it.

The process holds on to its end of a socket pair and to nothing else of the server's: when the server is gone, however
that came, the socket is closed, and the process ends by itself. (Linux could also send it a signal, but at the end of
the *thread* that started it, which is no server's end.)
"""

import asyncio
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from server.core.errors import FailedPreconditionError
from server.engine.base import EngineInfo
from server.engine.loading_error import loading_error
from server.engine.process import wire
from server.engine.supervisor import CoreDiedError
from server.observability.logging import present_config

_MAIN = Path(__file__).with_name("__main__.py")
_SHUTDOWN_S = 10.0
_STDERR = 2


class EngineProcess:
    """A started process. Event loop's thread, where nothing else is said.

    Args:
        process: The process.
        link: The server's end of the socket.
        info: What it serves.

    Attributes:
        info: What it serves.
        received: Given each report; set it before :meth:`run`.
    """

    def __init__(self, process: "subprocess.Popen[bytes]", link: socket.socket, info: EngineInfo) -> None:
        """Keep them."""
        self.info = info
        self.received: Callable[[wire.Report], None] = _pass_over
        self._process, self._link = process, link
        self._is_gone = asyncio.Event()
        self._wire = wire.Wire(self._receive, self._is_gone.set)

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    def send(self, message: object) -> None:
        """Send a message; to a process that is gone, it goes nowhere."""
        self._wire.send(message)

    async def run(self) -> None:
        """Take reports until the process is gone.

        Raises:
            CoreDiedError: Once it is.
        """
        try:
            await self._wire.connect(self._link)
            await self._is_gone.wait()
            raise CoreDiedError(f"its process {await asyncio.to_thread(_how_ended, self._process)}")
        finally:
            self._wire.abort()

    def shutdown(self) -> None:
        """End the process and wait for that. A worker thread, after :meth:`run`."""
        self._link.close()
        _end(self._process)

    def _receive(self, report: wire.Report) -> None:
        self.received(report)


class Launcher:
    """Starts processes of one engine, one after the other.

    Args:
        make: A pickle of what makes the engine.
    """

    def __init__(self, make: bytes) -> None:
        """Start nothing yet."""
        self._make = make
        self._lock = threading.Lock()
        self._starting: subprocess.Popen[bytes] | None = None
        self._is_abandoned = False

    def launch(self) -> EngineProcess:
        """Start a process, and wait until its engine has started. A worker thread.

        Raises:
            MedleyError: If it cannot be.
        """
        ours, theirs = socket.socketpair()
        process: subprocess.Popen[bytes] | None = None
        try:
            with theirs, self._lock:
                self._starting = process = _start(theirs)
                if self._is_abandoned:
                    process.kill()
            return EngineProcess(process, ours, self._begin(process, ours))
        except BaseException:
            ours.close()
            if process is not None:
                _end(process)
            raise
        finally:
            self._starting = None

    def abandon(self) -> None:
        """Make a launch fail that goes on, and all to come. Any thread."""
        with self._lock:
            self._is_abandoned = True
            if self._starting is not None:
                self._starting.kill()

    def _begin(self, process: "subprocess.Popen[bytes]", link: socket.socket) -> EngineInfo:
        try:
            link.sendall(wire.frame(wire.Begin(present_config(), self._make)))
            answer = wire.read_message(link)
        except (EOFError, ConnectionError):
            raise FailedPreconditionError(
                f"the engine's process {_how_ended(process)} while it was starting; the log may say why"
            ) from None
        if isinstance(answer, wire.Failed):
            raise loading_error(answer.error)
        assert isinstance(answer, wire.Started)
        return answer.info


def _start(link: socket.socket) -> "subprocess.Popen[bytes]":
    """Start the process; what anything there prints goes where logs go, as standard output is the command's."""
    paths = [path or str(Path.cwd()) for path in sys.path]
    return subprocess.Popen(  # noqa: S603
        [sys.executable, "-P", str(_MAIN), str(link.fileno()), *paths],
        pass_fds=[link.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=_STDERR,
    )


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Wait for a process whose socket is closed, and kill it if that takes long."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(_SHUTDOWN_S)
        return
    process.kill()
    process.wait()


def _how_ended(process: "subprocess.Popen[bytes]") -> str:
    """Say how a process ended that is about to, or has."""
    try:
        status = process.wait(1.0)
    except subprocess.TimeoutExpired:
        return "closed its socket"
    return f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"


def _pass_over(_report: wire.Report) -> None:
    """Take a report that nobody waits for."""
