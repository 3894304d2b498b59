"""Sending in the background: nobody waits, what is too much is dropped, and everything is counted once."""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence

import pytest

from server.observability.send_queue import SendQueue


class Wire:
    """Takes groups once it is open."""

    def __init__(self, *, is_open: bool = True) -> None:
        self.counts: Counter[str] = Counter()
        self.groups: list[list[int]] = []
        self.gate = threading.Event()
        self.arrives: Callable[[], bool] = lambda: True
        if is_open:
            self.gate.set()

    def send(self, group: Sequence[int]) -> bool:
        assert self.gate.wait(10)
        arrived = self.arrives()
        if arrived:
            self.groups.append(list(group))
        return arrived

    def count(self, outcome: str, number: int) -> None:
        self.counts[outcome] += number

    def queue(self, max_num_queued: int = 10_000, send_every_s: float = 0.01) -> SendQueue[int]:
        return SendQueue(self.send, self.count, max_num_queued=max_num_queued, send_every_s=send_every_s)

    def wait_for(self, outcome: str, number: int) -> None:
        give_up_s = time.monotonic() + 10
        while self.counts[outcome] < number:
            assert time.monotonic() < give_up_s, self.counts
            time.sleep(0.005)


def test_items_arrive_in_order_and_in_groups_without_being_asked_for() -> None:
    wire = Wire()
    queue = wire.queue()
    for item in range(1200):
        queue.offer(item)
    wire.wait_for("sent", 1200)
    queue.stop(5)
    assert [item for group in wire.groups for item in group] == list(range(1200))
    assert max(map(len, wire.groups)) <= 512


def test_stop_sends_what_waits() -> None:
    wire = Wire()
    queue = wire.queue(send_every_s=60)
    queue.offer(1)
    queue.stop(5)
    assert wire.groups == [[1]]
    assert wire.counts == {"sent": 1}


def test_full_queue_drops_and_counts_without_waiting() -> None:
    wire = Wire(is_open=False)
    queue = wire.queue(max_num_queued=3, send_every_s=60)
    began_s = time.monotonic()
    for item in range(10):
        queue.offer(item)
    assert time.monotonic() - began_s < 1
    assert wire.counts == {"dropped": 7}
    wire.gate.set()
    queue.stop(5)
    assert wire.groups == [[0, 1, 2]]


def test_stop_does_not_wait_longer_than_told_and_counts_the_rest() -> None:
    wire = Wire(is_open=False)
    queue = wire.queue()
    queue.offer(1)
    while queue._waiting:
        time.sleep(0.005)
    queue.offer(2)
    began_s = time.monotonic()
    queue.stop(0.1)
    queue.offer(3)
    assert time.monotonic() - began_s < 2
    assert wire.counts == {"dropped": 2}
    wire.gate.set()
    wire.wait_for("sent", 1)


def test_group_that_does_not_arrive_is_counted_and_the_next_one_sent() -> None:
    wire = Wire()
    wire.arrives = lambda: False
    queue = wire.queue()
    queue.offer(1)
    wire.wait_for("failed", 1)
    wire.arrives = lambda: True
    queue.offer(2)
    wire.wait_for("sent", 1)
    queue.stop(5)
    assert wire.groups == [[2]]


def test_sending_that_raises_is_logged_and_the_thread_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    wire = Wire()

    def breaks() -> bool:
        raise OSError("the wire broke")

    wire.arrives = breaks
    queue = wire.queue()
    with caplog.at_level(logging.WARNING):
        queue.offer(1)
        wire.wait_for("failed", 1)
    wire.arrives = lambda: True
    queue.offer(2)
    wire.wait_for("sent", 1)
    queue.stop(5)
    assert "traces could not be sent" in caplog.text


def test_queue_has_no_thread_before_its_first_item() -> None:
    wire = Wire()
    before = threading.active_count()
    queue = wire.queue()
    assert threading.active_count() == before
    queue.stop(5)
    queue.offer(1)
    assert wire.counts == {"dropped": 1}


def test_items_from_many_threads_at_once_are_sent_once_by_one_thread() -> None:
    wire = Wire()
    queue = wire.queue()
    threads = [threading.Thread(target=queue.offer, args=(item,)) for item in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    queue.stop(5)
    assert sorted(item for group in wire.groups for item in group) == list(range(50))
