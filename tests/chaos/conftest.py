"""Tells at the end of a run what each fault did."""

from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from tests.fixtures.faults import PROPERTY, RecordFault, recorder

_COLUMNS = ("name", "sent", "refused", "lost", "recovered_s")


@pytest.fixture
def record_fault(record_property: Callable[[str, object], None]) -> RecordFault:
    return recorder(record_property)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    reports = [report for report in terminalreporter.getreports("passed") if report.when == "call"]
    faults = [fault for report in reports for name, fault in report.user_properties if name == PROPERTY]
    if not faults:
        return
    table = Table(*_COLUMNS, title="faults")
    for fault in faults:
        seconds = fault["recovered_s"]
        table.add_row(*(fault[name] for name in _COLUMNS[:-1]), "" if seconds is None else f"{seconds:.2f}")
    console = Console(width=160)
    with console.capture() as capture:
        console.print(table)
    terminalreporter.write(capture.get())
