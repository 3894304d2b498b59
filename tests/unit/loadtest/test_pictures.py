"""Pictures and the page: they are what they should be, whole, and ask no other host for anything."""

import json
import re
from pathlib import Path

import pytest

from loadtest.metrics import Slo
from loadtest.page import Page
from loadtest.pictures import latency_cdf, throughput_latency, timeline
from loadtest.records import Outcome, RequestRecord
from loadtest.report import summarize_run
from loadtest.sweep import Point, Sweep
from loadtest.tables import tables_of
from loadtest.timeline import Change, Event, Reading

PNG = b"\x89PNG\r\n\x1a\n"
RECORDS = [
    *(
        RequestRecord(name, Outcome.COMPLETED, at, at, at + 0.3, (at + 0.1, at + 0.2), 3, "stop")
        for at in (-1.0, 0.5, 1.0, 2.2)
        for name in ("a", "b")
    ),
    RequestRecord("a", Outcome.FAILED, 1.5, 1.5, 1.6, error_code="X", error_message="<script>alert(1)</script>"),
]
EVENTS = [Event(Change.UPLOAD, "a", 1, 0.5, 0.8), Event(Change.DELETE, "a", 1, 1.0, 1.1, "NOT_FOUND")]
READINGS = [Reading(0.0, 1, 0), Reading(1.0, 4, 1), Reading(2.0, 4, 1)]
POINT = Point(4.0, 1.0, 4.0, 4.0, {"e2e_p50": 20.0, "e2e_p99": 40.0}, is_good=True)


@pytest.mark.parametrize(
    ("records", "events", "readings"), [(RECORDS, EVENTS, READINGS), (RECORDS[-1:], [], []), ([], [], [])]
)
def test_timeline_and_cdf_are_pictures_of_whatever_there_is(records, events, readings) -> None:
    assert timeline(records, events, readings).startswith(PNG)
    assert latency_cdf({"one": records, "other": RECORDS}).startswith(PNG)


def test_timeline_shows_changes_and_loads() -> None:
    plain = timeline(RECORDS, [], [])
    assert len({plain, timeline(RECORDS, EVENTS, []), timeline(RECORDS, [], READINGS)}) == 3


@pytest.mark.parametrize("knee", [POINT, None])
def test_throughput_latency_is_a_picture(knee: Point | None) -> None:
    assert throughput_latency(Sweep((POINT,), knee, None)).startswith(PNG)


def test_page_has_everything_in_it_and_nothing_unescaped(tmp_path: Path) -> None:
    report = summarize_run(RECORDS, Slo(), {"name": "mine"}, EVENTS, READINGS)
    page = Page("Mine", ["<b>told</b>"], {"Timeline": PNG}, tables_of(report), {"about": "<i>it</i>"})
    html = page.html()
    assert "data:image/png;base64,iVBORw0KGgo=" in html
    for shown in ("TTFT", "bystanders", "goodput", "&lt;script&gt;", "&lt;b&gt;told", "&lt;i&gt;it"):
        assert shown in html
    assert "<script" not in html
    assert not re.findall(r"(?:src|href)=.(?!data:)|url\(|@import|https?://", html)
    assert json.dumps(report.as_json())
