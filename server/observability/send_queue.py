"""Sends items in the background, in groups, and never makes anybody wait: what is too much is dropped and counted.

Knows no protocol. :meth:`SendQueue.offer` may be called from any thread.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Generic, TypeVar

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_MAX_NUM_TOGETHER = 512


class SendQueue(Generic[_T]):
    """A bounded queue and the thread that empties it.

    Args:
        send: Sends a group, on the queue's own thread, and returns whether it arrived; may take its time, may raise.
        count: Told of how many items what became: ``sent``, ``failed`` or ``dropped``.
        max_num_queued: Most items that wait.
        send_every_s: Longest time an item waits for others.
    """

    def __init__(
        self,
        send: Callable[[Sequence[_T]], bool],
        count: Callable[[str, int], object],
        *,
        max_num_queued: int,
        send_every_s: float,
    ) -> None:
        """Start nothing; the first item does, so that no thread is there while an engine starts its processes."""
        self._send = send
        self._count = count
        self._max_num_queued = max_num_queued
        self._send_every_s = send_every_s
        self._waiting: deque[_T] = deque()
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None

    def offer(self, item: _T) -> None:
        """Take an item without waiting, or drop and count it if too many wait or the queue was stopped."""
        # Threads that come here together may add an item too many each, which does no harm.
        if len(self._waiting) >= self._max_num_queued or self._stopping.is_set():
            self._count("dropped", 1)
            return
        self._waiting.append(item)
        if self._thread is None:
            self._start()
        if len(self._waiting) == _MAX_NUM_TOGETHER:
            self._wake.set()

    def stop(self, timeout_s: float) -> None:
        """Send what waits for at most so many seconds, then drop and count the rest."""
        self._stopping.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout_s)
        if num_left := len(self._waiting):
            self._waiting.clear()
            self._count("dropped", num_left)

    def _start(self) -> None:
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="send-queue", daemon=True)
                self._thread.start()

    def _work(self) -> None:
        while not self._stopping.is_set():
            self._wake.wait(self._send_every_s)
            self._wake.clear()
            self._send_waiting()
        self._send_waiting()

    def _send_waiting(self) -> None:
        while group := self._take_group():
            try:
                arrived = self._send(group)
            except Exception as error:
                arrived = False
                _log.warning("traces could not be sent", exc_info=error)
            self._count("sent" if arrived else "failed", len(group))

    def _take_group(self) -> list[_T]:
        group: list[_T] = []
        # Whoever stops us may empty the queue at the same time.
        with suppress(IndexError):
            while len(group) < _MAX_NUM_TOGETHER:
                group.append(self._waiting.popleft())
        return group
