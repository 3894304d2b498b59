"""Figures read from the store: of every server's requests, for each combination, and not too often."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import pytest
import sqlalchemy as sa

from server.evaluation import reports as reports_module
from server.evaluation.figures import Totals
from server.evaluation.records import Entry, Record
from server.evaluation.reports import ReportQuery, Reports
from server.evaluation.store import EvaluationStore
from tests.fixtures.outcomes import record_of
from tests.fixtures.registry import Clock
from tests.unit.server.evaluation.conftest import OpenStore


@pytest.fixture
async def reports(store: EvaluationStore, clock: Clock) -> AsyncIterator[Reports]:
    made = Reports(store, max_num_labels=3, max_num_examined=5, clock=clock)
    yield made
    await asyncio.to_thread(made.close)


def scored(record: Record, score: float) -> Entry:
    return Entry(record, {"copy_rate": 10.0}, ("x",), {"rouge1": score})


@contextmanager
def counted_reads(store: EvaluationStore) -> Iterator[list[str]]:
    statements: list[str] = []

    def note(*args: object) -> None:
        if str(args[2]).startswith("SELECT"):
            statements.append(str(args[2]))

    engine = store.reader
    sa.event.listen(engine, "before_cursor_execute", note)
    yield statements
    sa.event.remove(engine, "before_cursor_execute", note)


async def test_figures_are_of_all_servers_requests(open_store: OpenStore, reports: Reports, clock: Clock) -> None:
    first, second = open_store(), open_store()
    first.write([scored(record_of(adapters="a:1", finished_s=clock.now_s), 10.0)])
    second.write([scored(record_of(adapters="a:1", finished_s=clock.now_s), 30.0)])
    second.write([Entry(record_of(adapters="a:1", finished_s=clock.now_s, code="INTERNAL", text=""))])
    [found] = await reports.evaluations(ReportQuery())
    assert (found.adapters, found.totals, found.means) == ("a:1", Totals(3, 1, 2), {"rouge1": 20.0})
    assert found.metrics["copy_rate"].count == 2
    assert found.windows[-1].num_finished == 3


async def test_references_that_wait_count_as_not_scored(open_store: OpenStore, reports: Reports, clock: Clock) -> None:
    open_store(store_texts=True).write([Entry(record_of(finished_s=clock.now_s), references=("x",))])
    [found] = await reports.evaluations(ReportQuery())
    assert (found.totals, found.means) == (Totals(1, 0, 0), {})


@pytest.mark.parametrize(
    ("adapter", "labels"),
    [
        ("", ["a:1", "a:1+b:1", "a:2"]),
        ("a", ["a:1", "a:1+b:1", "a:2"]),
        ("b", ["a:1+b:1"]),
        ("a:1", ["a:1", "a:1+b:1"]),
        ("a:1+b:1", ["a:1+b:1"]),
        ("none", []),
    ],
)
async def test_adapter_chooses_combinations(
    store: EvaluationStore, reports: Reports, adapter: str, labels: list[str]
) -> None:
    store.write([Entry(record_of(adapters=label)) for label in ("a:1", "a:2", "a:1+b:1")])
    assert [found.adapters for found in await reports.evaluations(ReportQuery(adapter))] == labels


async def test_combinations_with_the_newest_requests_are_told_of(store: EvaluationStore, reports: Reports) -> None:
    store.write([Entry(record_of(adapters=f"a:{number}", finished_s=float(number))) for number in range(1, 6)])
    assert [found.adapters for found in await reports.evaluations(ReportQuery())] == ["a:3", "a:4", "a:5"]


async def test_newest_requests_are_examined_and_all_are_counted(store: EvaluationStore, reports: Reports) -> None:
    store.write([scored(record_of(finished_s=float(number)), float(number)) for number in range(8)])
    [found] = await reports.evaluations(ReportQuery())
    assert found.totals == Totals(8, 0, 8)
    assert (found.metrics["rouge1"].count, found.means) == (5, {"rouge1": 5.0})


async def test_windows_are_as_asked(store: EvaluationStore, reports: Reports, clock: Clock) -> None:
    store.write([Entry(record_of(finished_s=clock.now_s))])
    [found] = await reports.evaluations(ReportQuery(window_s=60.0, num_windows=3))
    assert len(found.windows) == 3
    assert {window.end_s - window.start_s for window in found.windows} == {60.0}


async def test_cheap_figures_are_made_anew_each_time(store: EvaluationStore, reports: Reports) -> None:
    for number in range(1, 4):
        store.write([Entry(record_of())])
        [found] = await reports.evaluations(ReportQuery())
        assert found.totals.num_finished == number


async def test_dear_figures_are_handed_out_again_for_a_while(
    store: EvaluationStore, reports: Reports, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reports_module, "_CHEAP_S", 0.0)
    monkeypatch.setattr(reports_module, "_NUM_TIMES_AS_LONG", 1_000_000)
    store.write([Entry(record_of())])
    with counted_reads(store) as statements:
        asked = [reports.evaluations(ReportQuery()) for _ in range(5)]
        answers = await asyncio.gather(*asked)
        num_once = len(statements)
        await reports.evaluations(ReportQuery("base"))
    assert {answer[0].totals.num_finished for answer in answers} == {1}
    assert num_once == 2
    assert len(statements) == 4
