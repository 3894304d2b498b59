"""What became of each request of a replay, kept in a file as it ends, so that a replay may be stopped and gone on with.

The file is JSON lines: first what was played, then a record a request. A line that was cut short when the process ended
is passed over, and its request sent again. One process, one thread.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

OK = "OK"


class RecordsError(ValueError):
    """A file that holds something else than the records of this replay."""


@dataclass(frozen=True, slots=True)
class Playing:
    """What makes records comparable: those of another data set or length do not belong into one file.

    Attributes:
        data_sha256: :func:`~server.cli.evaluation.dataset.digest_cases` of the data.
        max_new_tokens: Most tokens of an answer.
        metrics: What answers are scored by.
    """

    data_sha256: str
    max_new_tokens: int
    metrics: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ReplayRecord:
    """One case, sent to one system.

    Attributes:
        case: The case's place in the data, from 0.
        system: Adapter references joined by ``+``, or ``base``.
        code: ``OK`` or the error code of the last try.
        message: What a failure said.
        served: ``name:version`` of what answered, joined by ``+``, or ``base``.
        answer: The text.
        latency_ms: From sending the try that was answered until its answer was there.
        num_tries: Times it was sent.
        figures: Metric name → value.
    """

    case: int
    system: str
    code: str
    message: str
    served: str
    answer: str
    latency_ms: float
    num_tries: int
    figures: Mapping[str, float]

    @property
    def is_answered(self) -> bool:
        """Whether there is an answer."""
        return self.code == OK


class RecordsFile:
    """Records on disk. Use as ``with``.

    Args:
        path: The file; made if it is not there.
        playing: What is played.
    """

    def __init__(self, path: Path, playing: Playing) -> None:
        """Read what is there; nothing is written yet."""
        self._path = path
        self._head = {"replay": {**asdict(playing), "metrics": list(playing.metrics)}}
        self._records: dict[tuple[str, int], ReplayRecord] = {}
        self._num_sound_bytes = self._read()

    def __enter__(self) -> Self:
        """Open it for more.

        Raises:
            OSError: If it cannot be written.
        """
        self._file = self._path.open("ab")
        # What a process left half written would make one bad line with what comes next.
        self._file.truncate(self._num_sound_bytes)
        if not self._num_sound_bytes:
            self._write(self._head)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self._file.close()

    @property
    def records(self) -> list[ReplayRecord]:
        """The last record of each request, by system and case."""
        return [self._records[key] for key in sorted(self._records)]

    def is_done(self, system: str, case: int) -> bool:
        """Whether a request was answered; a failed one may be sent again."""
        record = self._records.get((system, case))
        return record is not None and record.is_answered

    def add(self, record: ReplayRecord) -> None:
        """Keep a record, in place of an earlier one of the same request.

        Raises:
            OSError: If it cannot be written.
        """
        self._write(asdict(record))
        self._records[record.system, record.case] = record

    def _write(self, document: Mapping[str, object]) -> None:
        self._file.write(json.dumps(document, ensure_ascii=False).encode() + b"\n")
        self._file.flush()

    def _read(self) -> int:
        """Read what is there and return how many bytes of it are sound.

        Raises:
            RecordsError: If it is not ours.
            OSError: If it cannot be read.
        """
        data = self._path.read_bytes() if self._path.exists() else b""
        num_sound = data.rfind(b"\n") + 1
        lines = data[:num_sound].splitlines()
        if not lines:
            if data:
                raise RecordsError(f"{self._path} holds no records; name another file by --records")
            return 0
        try:
            head, *documents = map(json.loads, lines)
            records = [ReplayRecord(**document) for document in documents] if head == self._head else None
        except (ValueError, TypeError) as error:
            raise RecordsError(f"{self._path} holds no records; name another file by --records") from error
        if records is None:
            raise RecordsError(
                f"{self._path} is of other data, metrics or lengths of answers; name another file by --records"
            )
        self._records |= {(record.system, record.case): record for record in records}
        return num_sound
