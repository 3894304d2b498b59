"""Plays cases through a running server: a few requests at a time, tried again while the server is full.

Requests are sent from threads; records come back on the caller's. Knows neither tables nor where records are kept.
"""

import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from server.cli.client import Attempt
from server.cli.evaluation.dataset import Case
from server.cli.evaluation.records import OK, ReplayRecord
from server.core.errors import ErrorCode

BASE = "base"
_FIRST_WAIT_S, _MAX_WAIT_S = 0.25, 8.0
_PASSING = frozenset({ErrorCode.RESOURCE_EXHAUSTED, ErrorCode.UNAVAILABLE})
# What is wrong with one request is wrong with all that follow.
_HOPELESS = frozenset(
    {
        *(ErrorCode.UNAUTHENTICATED, ErrorCode.PERMISSION_DENIED, ErrorCode.NOT_FOUND, ErrorCode.FAILED_PRECONDITION),
        ErrorCode.UNAVAILABLE,
    }
)

Ask = Callable[[Mapping[str, object]], Attempt]
Score = Callable[[str, Sequence[str], str], Mapping[str, float]]


class StoppedError(Exception):
    """A replay that cannot go on.

    Args:
        code: Why.
        message: What the server said.
    """

    def __init__(self, code: str, message: str) -> None:
        """Keep both."""
        super().__init__(message)
        self.code, self.message = code, message


@dataclass(frozen=True, slots=True)
class ReplayConfig:
    """How to send.

    Attributes:
        concurrency: Requests in flight.
        max_new_tokens: Most tokens of an answer.
        max_num_tries: Most times one request is sent.
        with_references: Whether references go along, so that the server counts the scores among those of its traffic.
    """

    concurrency: int = 4
    max_new_tokens: int = 128
    max_num_tries: int = 8
    with_references: bool = False


@dataclass(frozen=True, slots=True)
class Task:
    """One request to come: the system that is asked, and the case with its place in the data, from 0."""

    system: str
    place: int
    case: Case


@dataclass(frozen=True, slots=True)
class _Tried:
    task: Task
    attempt: Attempt
    latency_ms: float
    num_tries: int


class Replay:
    """One run through the data.

    Args:
        ask: Sends one body to ``POST /v1/summarize``, from any thread.
        score: Scores one answer, on the caller's thread.
        config: How to send.
        sleep: Waits for so many seconds.
    """

    def __init__(
        self, ask: Ask, score: Score, config: ReplayConfig, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        """Keep the parts."""
        self._ask, self._score, self._config, self._sleep = ask, score, config, sleep
        self._draws = random.Random(0)  # noqa: S311 - spreads out tries, no secrets

    def run(self, tasks: Iterable[Task]) -> Iterator[ReplayRecord]:
        """Send every task and yield its record as it ends, in no order.

        Raises:
            StoppedError: If a request fails in a way that others would, too; what is in flight is waited for.
        """
        waiting, in_flight = deque(tasks), set[Future[_Tried]]()
        pool = ThreadPoolExecutor(self._config.concurrency, thread_name_prefix="replay")
        try:
            while waiting or in_flight:
                while waiting and len(in_flight) < self._config.concurrency:
                    in_flight.add(pool.submit(self._try, waiting.popleft()))
                ended, in_flight = wait(in_flight, return_when=FIRST_COMPLETED)
                for tried in ended:
                    yield self._record(tried.result())
        finally:
            pool.shutdown(cancel_futures=True)

    def _try(self, task: Task) -> _Tried:
        """Send one request until it is answered, refused for good, or tried often enough."""
        body = self._body(task)
        for num_tries in range(1, self._config.max_num_tries + 1):
            begun_s = time.perf_counter()
            attempt = self._ask(body)
            latency_ms = (time.perf_counter() - begun_s) * 1e3
            if attempt.code not in _PASSING or num_tries == self._config.max_num_tries:
                break
            longest_s = min(_FIRST_WAIT_S * 2 ** (num_tries - 1), _MAX_WAIT_S)
            self._sleep(max(attempt.retry_after_s, longest_s * self._draws.uniform(0.5, 1.0)))
        return _Tried(task, attempt, latency_ms, num_tries)

    def _body(self, task: Task) -> dict[str, object]:
        body: dict[str, object] = {
            "text": task.case.text,
            "adapters": adapters_of(task.system),
            "max_new_tokens": self._config.max_new_tokens,
            "temperature": 0,
        }
        return body | {"references": list(task.case.references)} if self._config.with_references else body

    def _record(self, tried: _Tried) -> ReplayRecord:
        task, attempt = tried.task, tried.attempt
        if attempt.code in _HOPELESS:
            raise StoppedError(attempt.code, attempt.message)
        is_answered = attempt.code == OK
        answer = attempt.document.get("summary", "")
        if not isinstance(answer, str) or (is_answered and "summary" not in attempt.document):
            raise StoppedError(ErrorCode.INTERNAL, "the server's answer has no summary; is --server right?")
        return ReplayRecord(
            case=task.place,
            system=task.system,
            code=attempt.code,
            message=attempt.message,
            served=_served(attempt.document) if is_answered else "",
            answer=answer,
            latency_ms=tried.latency_ms,
            num_tries=tried.num_tries,
            figures=dict(self._score(answer, task.case.references, task.case.text)) if is_answered else {},
        )


def adapters_of(system: str) -> list[str]:
    """Return the adapter references of a system: ``base`` has none, others are joined by ``+``."""
    return [] if system == BASE else system.split("+")


def _served(document: Mapping[str, object]) -> str:
    uses = document.get("adapters")
    if not isinstance(uses, list):
        return ""
    return "+".join(f"{use['name']}:{use['version']}" for use in uses) or BASE
