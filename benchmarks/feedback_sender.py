"""Sends references for finished requests at a steady rate, from a process of its own.

Apart from the process that measures serving, and yielding to it and to the server: what sending costs the client must
not show in what the server's callers wait. The process says when it is ready, waits for the word, sends, and tells what
became of it.
"""

import asyncio
import itertools
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from loadtest.clients import WireProtocol, create_client
from loadtest.clients.base import NO_CREDENTIALS, ClientError, MedleyClient

_READY = "ready\n"
# Whoever sends references to a real server does so on a machine of his own.
_NICENESS = 19
_ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Feedback:
    """What is sent.

    Attributes:
        address: The server's HTTP address.
        rate: References per second, evenly spaced; sent whether earlier ones were answered or not.
        seconds: For how long.
        request_ids: Finished requests, taken in turn.
        references: What people wrote, taken in turn.
    """

    address: str
    rate: float
    seconds: float
    request_ids: Sequence[str]
    references: Sequence[str]


@dataclass(frozen=True, slots=True)
class FeedbackOutcome:
    """What became of it.

    Attributes:
        num_sent: References sent.
        codes: ``OK``, or the error code, → how many were answered so.
        latencies_ms: From sending to scores, of those that were scored.
        worst_lag_ms: How late the latest was sent; if this is not small, the rate was not what was asked for.
    """

    num_sent: int
    codes: dict[str, int]
    latencies_ms: list[float] = field(repr=False)
    worst_lag_ms: float = 0.0


class Sender:
    """A process that is ready to send. Made by :func:`ready_sender`."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._to, self._from = process.stdin, process.stdout

    def begin(self) -> None:
        """Give the word."""
        self._to.write("go\n")
        self._to.flush()

    async def outcome(self) -> FeedbackOutcome:
        """Wait until all was sent and answered, and return what became of it.

        Raises:
            ValueError: If the process died.
        """
        return FeedbackOutcome(**json.loads(await asyncio.to_thread(self._from.readline)))


@contextmanager
def ready_sender(feedback: Feedback) -> Iterator[Sender]:
    """Start a process, wait until it has loaded all it needs, and end it behind the block.

    Raises:
        RuntimeError: If it died before it was ready.
    """
    # Not by multiprocessing: a spawned child would import the whole command line, torch and all, first.
    command = [sys.executable, "-m", "benchmarks.feedback_sender"]
    with subprocess.Popen(  # noqa: S603
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=_ROOT, text=True
    ) as process:
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps(asdict(feedback)) + "\n")
            process.stdin.flush()
            if process.stdout.readline() != _READY:
                raise RuntimeError("the process that sends references did not start")
            yield Sender(process)
        finally:
            process.kill()


def main() -> None:
    """Be that process."""
    os.nice(_NICENESS)
    feedback = Feedback(**json.loads(sys.stdin.readline()))
    # What the first request would load is loaded before the word.
    create_client(WireProtocol.HTTP, feedback.address, NO_CREDENTIALS)
    print(_READY, end="", flush=True)
    if sys.stdin.readline():
        print(json.dumps(asdict(asyncio.run(_send(feedback)))), flush=True)


async def _send(feedback: Feedback) -> FeedbackOutcome:
    codes: Counter[str] = Counter()
    latencies_ms: list[float] = []

    async def submit(client: MedleyClient, request_id: str, reference: str) -> None:
        begun_s = time.perf_counter()
        try:
            await client.submit_references(request_id, [reference])
        except ClientError as error:
            codes[error.code] += 1
        else:
            codes["OK"] += 1
            latencies_ms.append((time.perf_counter() - begun_s) * 1e3)

    num_to_send = max(1, round(feedback.rate * feedback.seconds))
    whom = zip(range(num_to_send), itertools.cycle(feedback.request_ids), itertools.cycle(feedback.references))
    worst_lag_s, begun_s = 0.0, time.perf_counter()
    async with (
        create_client(WireProtocol.HTTP, feedback.address, NO_CREDENTIALS) as client,
        asyncio.TaskGroup() as group,
    ):
        for number, request_id, reference in whom:
            due_s = begun_s + number / feedback.rate
            await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
            worst_lag_s = max(worst_lag_s, time.perf_counter() - due_s)
            group.create_task(submit(client, request_id, reference))
    return FeedbackOutcome(num_to_send, dict(codes), latencies_ms, worst_lag_s * 1e3)


if __name__ == "__main__":
    main()
