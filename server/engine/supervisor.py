"""Keeps one engine process running: launches it, notices its death, launches another after a while.

Knows no requests and no adapters: it tells its owner when a core is up and when it is gone. Event loop's thread.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Generic, Protocol, TypeVar

from server.core.errors import InternalError, MedleyError

_log = logging.getLogger(__name__)


class CoreDiedError(Exception):
    """The process behind a :class:`Launched` is gone; only another launch helps."""


class Launched(Protocol):
    """A core: one launched process that an engine computes in."""

    async def run(self) -> None:
        """Hand out outputs until the process is gone.

        Raises:
            CoreDiedError: Once it is; the only way this ends, but for being cancelled.
        """
        ...

    def shutdown(self) -> None:
        """End the process behind it, if it still runs, and wait for that. A worker thread."""
        ...


Core = TypeVar("Core", bound=Launched)


@dataclass(frozen=True, slots=True)
class BackOff:
    """How long to wait before another launch.

    Attributes:
        first_s: Before the first; doubled before each further one.
        longest_s: At most.
        forgiven_s: A core that lived for so long makes the next wait the first again.
    """

    first_s: float = 1.0
    longest_s: float = 60.0
    forgiven_s: float = 120.0


class Supervisor(Generic[Core]):
    """Keeps one core running.

    Args:
        launch: Starts a core and waits until it can serve; called on a thread of its own.
        went_up: Told of each core that is up, just before it runs.
        went_down: Told that it is gone; not of the end by :meth:`stop`.
        abandon: Makes a launch fail that goes on, but is not wanted any more.
        back_off: How long to wait in between.
    """

    def __init__(
        self,
        launch: Callable[[], Core],
        *,
        went_up: Callable[[Core], None],
        went_down: Callable[[], None],
        abandon: Callable[[], None],
        back_off: BackOff,
    ) -> None:
        """Launch nothing yet."""
        self._abandon = abandon
        self._launch, self._went_up, self._went_down, self._back_off = launch, went_up, went_down, back_off
        self._task: asyncio.Task[None] | None = None

    @property
    def is_running(self) -> bool:
        """Whether a core runs, or will."""
        return self._task is not None and not self._task.done()

    async def start(self) -> None:
        """Launch the first core; from then on keep one running.

        Raises:
            MedleyError: If the first cannot be launched.
        """
        core = await self._launch_one()
        self._task = asyncio.create_task(self._keep(core), name="engine-supervisor")
        # So that a core is up when this returns.
        await asyncio.sleep(0)

    async def stop(self) -> None:
        """End the core that runs, and launch none any more."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _keep(self, core: Core) -> None:
        wait_s = self._back_off.first_s
        while True:
            up_since_s = time.monotonic()
            await self._run(core)
            if time.monotonic() - up_since_s >= self._back_off.forgiven_s:
                wait_s = self._back_off.first_s
            core, wait_s = await self._launch_another(wait_s)

    async def _run(self, core: Core) -> None:
        """Run a core until it dies."""
        self._went_up(core)
        try:
            try:
                await core.run()
            except CoreDiedError as error:
                _log.error("the engine died: %s", error)
            except Exception:
                _log.exception("the engine's outputs could not be read; it is given up")
            self._went_down()
        finally:
            await asyncio.shield(asyncio.to_thread(core.shutdown))

    async def _launch_another(self, wait_s: float) -> tuple[Core, float]:
        """Launch until it works; returns the core and how long to wait before the next time."""
        while True:
            _log.warning("the engine is launched again in %g s", wait_s)
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, self._back_off.longest_s)
            try:
                return await self._launch_one(), wait_s
            except MedleyError as error:
                _log.error("the engine could not be launched: %s", error.message)

    async def _launch_one(self) -> Core:
        """Launch one core.

        On a daemon thread: a process that is told to end meanwhile shall not wait for a launch of minutes.
        """
        launched: asyncio.Future[Core] = asyncio.get_running_loop().create_future()
        threading.Thread(target=self._launch_into, args=(launched,), name="engine-launch", daemon=True).start()
        try:
            return await launched
        except asyncio.CancelledError:
            # The thread gives its core up, and the process that it waits for would keep this one from ending.
            self._abandon()
            raise

    def _launch_into(self, launched: "asyncio.Future[Core]") -> None:
        """Launch a core and hand it over. The launching thread."""
        try:
            with telling_progress():
                core = self._launch()
        except MedleyError as failure:
            _post(launched, partial(_fail, launched, failure))
        except Exception as failure:
            _log.exception("the engine could not be launched")
            error = InternalError(f"the engine could not be launched: {failure}")
            _post(launched, partial(_fail, launched, error))
        else:
            if not _post(launched, partial(_hand_over, launched, core)):
                core.shutdown()


@contextmanager
def telling_progress(interval_s: float = 10.0) -> Iterator[None]:
    """Say every so often that the engine is still starting, and at the end how long it took. Any thread."""
    begin_s = time.monotonic()
    is_over = threading.Event()

    def tell() -> None:
        while not is_over.wait(interval_s):
            _log.info("the engine is starting", extra={"elapsed_s": round(time.monotonic() - begin_s, 1)})

    teller = threading.Thread(target=tell, name="engine-start-progress", daemon=True)
    teller.start()
    try:
        yield
        _log.info("the engine has started", extra={"elapsed_s": round(time.monotonic() - begin_s, 1)})
    finally:
        is_over.set()
        teller.join()


def _post(launched: "asyncio.Future[Core]", call: Callable[[], None]) -> bool:
    """Have a call made on the event loop; return False if that is closed."""
    try:
        launched.get_loop().call_soon_threadsafe(call)
    except RuntimeError:
        return False
    return True


def _hand_over(launched: "asyncio.Future[Core]", core: Core) -> None:
    if launched.cancelled():
        threading.Thread(target=core.shutdown, name="engine-shutdown").start()
    else:
        launched.set_result(core)


def _fail(launched: "asyncio.Future[Core]", error: MedleyError) -> None:
    if not launched.cancelled():
        launched.set_exception(error)
