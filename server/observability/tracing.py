"""Traces by OpenTelemetry: the only module that imports it. Imported only where traces are on.

Calls and stages become spans, and spans wait in a bounded queue of ours until a thread in the background sends them by
OTLP over HTTP. The library's own settings are not used, but for the headers and certificates of its exporter
(``OTEL_EXPORTER_OTLP_HEADERS``, ``OTEL_EXPORTER_OTLP_CERTIFICATE``).

Source:
    https://www.w3.org/TR/trace-context/ (the headers), https://opentelemetry.io/docs/specs/otlp/ (the protocol).
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, format_trace_id, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from server.observability.metrics import Metrics
from server.observability.send_queue import SendQueue
from server.observability.spans import NO_CALL, Call, Stage, TracingConfig, Value

_NO_PARENT = Context()
_HEADERS = TraceContextTextMapPropagator()
_SEEN_AGAIN_AFTER_S = 60.0


def otlp_tracer(config: TracingConfig, metrics: Metrics) -> "OpenTelemetryTracer":
    """Return a tracer that sends spans to the configured endpoint."""
    logging.getLogger(OTLPSpanExporter.__module__).addFilter(_SELDOM)
    exporter = OTLPSpanExporter(config.endpoint, timeout=config.timeout_s, compression=Compression.Gzip)
    return OpenTelemetryTracer(config, metrics, exporter)


class OpenTelemetryTracer:
    """Keeps traces; see :class:`server.observability.spans.Tracer`.

    Args:
        config: What to sample, and bounds.
        metrics: Where spans sent and lost are counted.
        exporter: Sends spans.
    """

    def __init__(self, config: TracingConfig, metrics: Metrics, exporter: SpanExporter) -> None:
        """Send nothing yet."""
        self._timeout_s = config.timeout_s
        self._processor = _Processor(config, metrics, exporter)
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(config.sample_rate)),
            # Not by Resource.create, which looks around in the environment and on the machine.
            resource=Resource({"service.name": config.service_name, "service.version": version("medley")}),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(self._processor)
        self._tracer = self._provider.get_tracer("medley")

    @property
    def is_on(self) -> bool:
        """True."""
        return True

    def open(self, name: str, headers: Mapping[str, str], attributes: Mapping[str, Value]) -> Call:
        """Begin a call."""
        parent = _HEADERS.extract(headers, _NO_PARENT) if "traceparent" in headers else _NO_PARENT
        span = self._tracer.start_span(name, parent, SpanKind.SERVER, attributes)
        return _Call(self._tracer.start_span, span) if span.is_recording() else NO_CALL

    def close(self, call: Call) -> None:
        """End a call."""
        if isinstance(call, _Call):
            call.span.end()

    def stop(self) -> None:
        """Send what waits, within the configured time; blocks for as long."""
        self._processor.stop(self._timeout_s)


class _Call:
    def __init__(self, start_span: Callable[..., Span], span: Span) -> None:
        self.span = span
        self._start_span = start_span

    @property
    def trace_id(self) -> str:
        return format_trace_id(self.span.get_span_context().trace_id)

    def name(self, name: str) -> None:
        self.span.update_name(name)

    def note(self, attributes: Mapping[str, Value]) -> None:
        self.span.set_attributes(attributes)

    def failed(self, code: str) -> None:
        self.span.set_status(Status(StatusCode.ERROR, code))

    def keep(self, stage: Stage) -> None:
        # Taken anew each time: the two clocks drift apart over the days that a server runs.
        self._keep(stage, self.span, time.time_ns() - time.monotonic_ns())

    def _keep(self, stage: Stage, parent: Span, offset_ns: int) -> None:
        begun_ns = offset_ns + round(stage.begun_s * 1e9)
        under = set_span_in_context(parent, _NO_PARENT)
        span = self._start_span(stage.name, under, SpanKind.INTERNAL, stage.attributes, start_time=begun_ns)
        for part in stage.stages:
            self._keep(part, span, offset_ns)
        if stage.error:
            span.set_status(Status(StatusCode.ERROR, stage.error))
        span.end(offset_ns + round(stage.ended_s * 1e9))


class _Processor(SpanProcessor):
    def __init__(self, config: TracingConfig, metrics: Metrics, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._queue: SendQueue[ReadableSpan] = SendQueue(
            self._export,
            lambda outcome, num_spans: metrics.trace_spans.labels(outcome=outcome).inc(num_spans),
            max_num_queued=config.max_num_queued,
            send_every_s=config.send_every_s,
        )

    def on_end(self, span: ReadableSpan) -> None:
        self._queue.offer(span)

    def stop(self, timeout_s: float) -> None:
        self._queue.stop(timeout_s)
        # Ends the waiting between two tries to reach an endpoint that does not answer.
        self._exporter.shutdown()

    def _export(self, spans: Sequence[ReadableSpan]) -> bool:
        return self._exporter.export(spans) is SpanExportResult.SUCCESS


class _Seldom(logging.Filter):
    """Lets one error through a minute: an endpoint that does not answer does so for a while."""

    def __init__(self) -> None:
        super().__init__()
        self._passed_s = -_SEEN_AGAIN_AFTER_S

    def filter(self, record: logging.LogRecord) -> bool:
        now_s = time.monotonic()
        if record.levelno < logging.ERROR or now_s - self._passed_s < _SEEN_AGAIN_AFTER_S:
            return False
        self._passed_s = now_s
        return True


_SELDOM = _Seldom()
