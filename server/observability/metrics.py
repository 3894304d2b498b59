"""Every metric of the server: names, units, labels and buckets. Definitions in docs/metrics.md, which a test compares.

Knows no engine class: what it reads at scrape time is any object shaped like :class:`EngineSnapshot`. Counters and
histograms may be touched from any thread, but ``itl`` from the event loop's only; the engine's snapshot is taken by
whoever scrapes, on that thread.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from server.observability.adapter_labels import UNRESOLVED, AdapterLabels
from server.observability.durations import DurationCounts
from server.observability.quick_histogram import QuickHistogram

_LATENCY_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_TOKEN_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28)
_PERCENT_BUCKETS = tuple(float(bound) for bound in range(5, 101, 5))


@dataclass(frozen=True, slots=True)
class MetricsConfig:
    """Bounds of what is counted apart.

    Attributes:
        max_num_adapter_labels: Most adapters, or pairs used together, with figures of their own; the rest share
            ``other``.
    """

    max_num_adapter_labels: int = 100


class EngineSnapshot(Protocol):
    """What is read of an engine at scrape time."""

    @property
    def alive(self) -> bool:
        """Whether the step loop runs."""
        ...

    @property
    def num_waiting(self) -> int:
        """Requests in the queue."""
        ...

    @property
    def num_running(self) -> int:
        """Requests in the batch."""
        ...

    @property
    def resident(self) -> tuple[str, ...]:
        """Digests on the device."""
        ...

    @property
    def num_adapter_loads(self) -> int:
        """Loads since start."""
        ...

    @property
    def num_adapter_evictions(self) -> int:
        """Evictions since start."""
        ...

    @property
    def num_adapter_host_hits(self) -> int:
        """Loads that found the weights in host memory, since start."""
        ...

    @property
    def num_adapter_host_bytes(self) -> int:
        """Bytes of adapters kept in host memory."""
        ...

    @property
    def adapter_load_times(self) -> DurationCounts:
        """How long adapters took to be brought up, since start."""
        ...

    @property
    def num_steps(self) -> int:
        """Steps since start."""
        ...


class RequestMetrics:
    """The figures of requests with the same adapters. Any thread.

    Args:
        metrics: Where they are kept.
        label: What the adapters are counted under.
    """

    def __init__(self, metrics: "Metrics", label: str) -> None:
        """Find the label's own counters once."""
        self._requests, self._label = metrics.requests, label
        self.prompt_tokens = metrics.prompt_tokens.labels(adapters=label)
        self.generated_tokens = metrics.generated_tokens.labels(adapters=label)
        self.queue = metrics.queue.labels(adapters=label)
        self.ttft = metrics.ttft.labels(adapters=label)
        self.e2e = metrics.e2e.labels(adapters=label)

    def ended(self, code: str) -> None:
        """Count a request's end."""
        self._requests.labels(code=code, adapters=self._label).inc()


class Metrics:
    """All metrics, in a registry of their own, so that several servers fit one process in tests.

    Args:
        config: Bounds.

    Attributes:
        registry: What ``/metrics`` renders.
    """

    def __init__(self, config: MetricsConfig | None = None) -> None:
        """Register every metric at zero."""
        self.registry = CollectorRegistry()
        self.requests = self._counter("medley_requests", "Requests ended, refused ones included.", "code", "adapters")
        self.refused = self._counter(
            "medley_requests_refused", "Requests turned away for want of room or of time.", "reason"
        )
        self.prompt_tokens = self._counter("medley_prompt_tokens", "Prompt tokens of accepted requests.", "adapters")
        self.generated_tokens = self._counter("medley_generated_tokens", "Tokens generated.", "adapters")
        self.queue = self._latency("medley_request_queue_seconds", "Queue time.")
        self.ttft = self._latency("medley_request_ttft_seconds", "Time to first token.")
        self.e2e = self._latency("medley_request_e2e_seconds", "End-to-end latency of complete answers.")
        self.itl = QuickHistogram("medley_inter_token_seconds", "Inter-token latency.", _TOKEN_BUCKETS_S)
        self.registry.register(self.itl)
        self.uploads = self._counter("medley_adapter_uploads", "Adapter uploads ended, by code.", "code")
        self.adapter_failures = self._counter(
            "medley_adapter_failures", "What went wrong with adapters.", "stage", "reason"
        )
        self.evaluation_dropped = self._counter(
            "medley_evaluation_dropped", "Ended requests not scored or not recorded.", "reason"
        )
        self.rollout_decisions = self._counter("medley_rollout_decisions", "Decisions about rollouts.", "action")
        self.shadows_dropped = self._counter(
            "medley_shadows_dropped", "Requests no shadow ran beside, for want of room."
        )
        self.trace_spans = self._counter("medley_trace_spans", "Spans of traces, by what became of them.", "outcome")
        self.evaluation_score = Histogram(
            "medley_evaluation_score",
            "Scores of served texts, in percent.",
            ("metric", "adapters"),
            buckets=_PERCENT_BUCKETS,
            registry=self.registry,
        )
        self._labels = AdapterLabels((config or MetricsConfig()).max_num_adapter_labels)
        self._by_label: dict[str, RequestMetrics] = {}

    def of(self, names: Sequence[str]) -> RequestMetrics:
        """Return the figures of requests with these adapters.

        Args:
            names: Of adapters that exist: whoever could name any would use up the labels.
        """
        return self._of_label(self._labels.label(names))

    def unresolved(self) -> RequestMetrics:
        """Return the figures of requests refused before their adapters were found."""
        return self._of_label(UNRESOLVED)

    def adapter_failed(self, stage: str, error: Exception) -> None:
        """Count a failure under its error's class.

        Args:
            stage: ``upload``, ``lookup`` or ``serving``.
            error: What happened.
        """
        self.adapter_failures.labels(stage=stage, reason=type(error).__name__).inc()

    def watch_engine(self, stats: Callable[[], EngineSnapshot]) -> None:
        """Read ``stats`` at every scrape from now on; call once."""
        self.registry.register(_EngineCollector(stats))

    def _of_label(self, label: str) -> RequestMetrics:
        found = self._by_label.get(label)
        if found is None:
            found = self._by_label.setdefault(label, RequestMetrics(self, label))
        return found

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _latency(self, name: str, text: str) -> Histogram:
        return Histogram(name, text, ("adapters",), buckets=_LATENCY_BUCKETS_S, registry=self.registry)


class _EngineCollector(Collector):
    def __init__(self, stats: Callable[[], EngineSnapshot]) -> None:
        self._stats = stats

    def collect(self) -> Iterable[Metric]:
        stats = self._stats()
        yield GaugeMetricFamily("medley_engine_alive", "1 while the step loop runs.", float(stats.alive))
        yield GaugeMetricFamily("medley_requests_waiting", "Requests in the queue.", float(stats.num_waiting))
        yield GaugeMetricFamily("medley_requests_running", "Requests in the batch.", float(stats.num_running))
        yield GaugeMetricFamily("medley_adapters_resident", "Adapters on the device.", float(len(stats.resident)))
        yield CounterMetricFamily("medley_adapter_loads", "Adapter loads.", float(stats.num_adapter_loads))
        yield CounterMetricFamily("medley_adapter_evictions", "Adapter evictions.", float(stats.num_adapter_evictions))
        yield CounterMetricFamily(
            "medley_adapter_host_hits",
            "Adapter loads that found the weights in host memory.",
            float(stats.num_adapter_host_hits),
        )
        yield GaugeMetricFamily(
            "medley_adapter_host_bytes", "Adapters in host memory.", float(stats.num_adapter_host_bytes)
        )
        yield HistogramMetricFamily(
            "medley_adapter_load_seconds",
            "Time to bring an adapter's weights up.",
            buckets=stats.adapter_load_times.cumulative(),
            sum_value=stats.adapter_load_times.sum_s,
        )
        yield CounterMetricFamily("medley_engine_steps", "Engine steps.", float(stats.num_steps))
