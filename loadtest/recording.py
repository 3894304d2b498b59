"""A run's folder: what was asked, and every record as it comes, so that a run that ends badly leaves what it had."""

import json
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from loadtest.records import RequestRecord, read_records, to_line
from loadtest.scenario import Scenario
from loadtest.scenario_file import as_json, from_json
from loadtest.timeline import Change, Event, Reading

_SCENARIO, _RECORDS, _EVENTS, _READINGS = "scenario.json", "records.jsonl", "events.jsonl", "readings.jsonl"


class RecordingError(ValueError):
    """A folder that holds no run."""


class Recording:
    """Everything seen in one run, in memory and, as it comes, in files.

    Args:
        scenario: What was asked.
        folder: Where to keep it; made if need be. None keeps it in memory alone.
    """

    def __init__(self, scenario: Scenario, folder: Path | None) -> None:
        self.scenario, self.folder = scenario, folder
        self.records: list[RequestRecord] = []
        self.events: list[Event] = []
        self.readings: list[Reading] = []
        self._files: dict[str, TextIO] = {}

    def __enter__(self) -> Self:
        """Open the files, those of an earlier run in the folder being lost.

        Raises:
            OSError: If they cannot be written.
        """
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            shown = json.dumps(as_json(self.scenario), indent=2) + "\n"
            (self.folder / _SCENARIO).write_text(shown, encoding="utf-8")
            for name in (_RECORDS, _EVENTS, _READINGS):
                # Line by line, so that even a killed run leaves what it had.
                self._files[name] = (self.folder / name).open("w", encoding="utf-8", buffering=1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()

    def keep(self, record: RequestRecord) -> None:
        """Keep a request's record."""
        self.records.append(record)
        self._write(_RECORDS, to_line(record))

    def keep_event(self, event: Event) -> None:
        """Keep a change of an adapter."""
        self.events.append(event)
        self._write(_EVENTS, json.dumps(asdict(event)) + "\n")

    def keep_reading(self, reading: Reading) -> None:
        """Keep a reading of the server's counters."""
        self.readings.append(reading)
        self._write(_READINGS, json.dumps(asdict(reading)) + "\n")

    def _write(self, name: str, line: str) -> None:
        if name in self._files:
            self._files[name].write(line)


def load_recording(folder: Path) -> Recording:
    """Return the run a folder holds; one that was broken off, too.

    Raises:
        RecordingError: If it holds none.
    """
    try:
        scenario = from_json(json.loads((folder / _SCENARIO).read_text(encoding="utf-8")))
        recording = Recording(scenario, folder)
        recording.records += read_records(folder / _RECORDS)
        for fields in _lines(folder / _EVENTS):
            recording.events.append(Event(**fields | {"change": Change(fields["change"])}))
        recording.readings += [Reading(**fields) for fields in _lines(folder / _READINGS)]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RecordingError(f"{folder} holds no run: {error}") from error
    return recording


def _lines(path: Path) -> list[dict[str, Any]]:
    # Without what comes behind the last end of a line: it was cut off.
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
