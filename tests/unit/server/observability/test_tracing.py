"""Spans from times that are over, the current call, and a server that runs without OpenTelemetry."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Sequence

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from server.core.errors import FailedPreconditionError
from server.observability.metrics import Metrics
from server.observability.spans import NO_CALL, NO_TRACER, Stage, TracingConfig, current_call, working_for
from server.observability.tracers import open_tracer
from server.observability.tracing import OpenTelemetryTracer


class Memory(SpanExporter):
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.spans.extend(spans)
        return SpanExportResult.SUCCESS

    def named(self, name: str) -> ReadableSpan:
        (found,) = [span for span in self.spans if span.name == name]
        return found


def tracer(memory: Memory, sample_rate: float = 1.0) -> OpenTelemetryTracer:
    return OpenTelemetryTracer(TracingConfig("http://unused", sample_rate), Metrics(), memory)


def test_stages_become_spans_with_the_times_they_had() -> None:
    memory = Memory()
    opened = tracer(memory)
    call = opened.open("call", {}, {"one": 1})
    now_s, now_ns = time.monotonic(), time.time_ns()
    queue = Stage("queue", now_s - 3, now_s - 2, stages=(Stage("load", now_s - 2.75, now_s - 2.25),))
    call.keep(Stage("request", now_s - 4, now_s - 1, {"two": ("a", "b")}, (queue,), error="INTERNAL"))
    opened.close(call)
    opened.stop()

    request, load = memory.named("request"), memory.named("load")
    assert request.start_time is not None
    assert request.end_time is not None
    assert request.start_time == pytest.approx(now_ns - 4e9, abs=50e6)
    assert request.end_time - request.start_time == pytest.approx(3e9, abs=1e3)
    assert request.attributes == {"two": ("a", "b")}
    assert request.status.description == "INTERNAL"
    assert load.parent is not None
    assert load.parent.span_id == memory.named("queue").get_span_context().span_id
    assert memory.named("queue").parent == request.get_span_context()
    assert request.parent == memory.named("call").get_span_context()
    assert not memory.named("call").status.description


def test_trace_id_is_the_one_that_is_sent() -> None:
    memory = Memory()
    opened = tracer(memory)
    call = opened.open("call", {}, {})
    opened.close(call)
    opened.stop()
    assert call.trace_id == f"{memory.named('call').get_span_context().trace_id:032x}"


def test_call_that_is_not_sampled_is_the_one_that_does_nothing() -> None:
    memory = Memory()
    opened = tracer(memory, sample_rate=0.0)
    call = opened.open("call", {}, {})
    opened.close(call)
    opened.stop()
    assert call is NO_CALL
    assert memory.spans == []


def test_half_the_calls_are_sampled_at_a_rate_of_a_half() -> None:
    opened = tracer(Memory(), sample_rate=0.5)
    num_traced = sum(opened.open("call", {}, {}) is not NO_CALL for _ in range(2000))
    opened.stop()
    assert 850 < num_traced < 1150


async def test_current_call_is_the_one_of_the_task_and_of_those_it_starts() -> None:
    opened = tracer(Memory())

    async def work(number: int) -> bool:
        call = opened.open(str(number), {}, {})
        with working_for(call):
            await asyncio.sleep(0.001)
            return current_call() is call and await asyncio.create_task(same(call))

    async def same(call: object) -> bool:
        return current_call() is call

    assert all(await asyncio.gather(*map(work, range(20))))
    assert current_call() is NO_CALL
    await asyncio.to_thread(opened.stop)


def test_tracer_without_an_endpoint_is_the_one_that_keeps_nothing() -> None:
    assert open_tracer(TracingConfig(), Metrics()) is NO_TRACER
    call = NO_TRACER.open("call", {}, {})
    call.keep(Stage("stage", 0.0, 1.0))
    call.note({"a": 1})
    NO_TRACER.close(call)
    assert (call.trace_id, NO_TRACER.is_on) == ("", False)


@pytest.mark.parametrize("options", [{"sample_rate": 1.5}, {"sample_rate": -0.1}, {"max_num_queued": 0}])
def test_tracing_settings_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        TracingConfig(**options)  # type: ignore[arg-type]


def test_tracing_without_the_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "server.observability.tracing")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(FailedPreconditionError, match=r"pip install 'medley\[tracing\]'"):
        open_tracer(TracingConfig("http://127.0.0.1:9/v1/traces"), Metrics())


def test_server_without_traces_does_not_import_the_library() -> None:
    code = (
        "import sys, server.runtime.local; "
        "print([name for name in sys.modules if name.startswith('opentelemetry.sdk') or name.endswith('.tracing')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert [name for name in eval(done.stdout) if "opentelemetry" in name or "observability" in name] == []
