"""Chooses what keeps traces; imports OpenTelemetry's side only where they are on."""

from server.core.errors import FailedPreconditionError
from server.observability.metrics import Metrics
from server.observability.spans import NO_TRACER, Tracer, TracingConfig


def open_tracer(config: TracingConfig, metrics: Metrics) -> Tracer:
    """Return what keeps traces, as the configuration says.

    Args:
        config: Whether and where to.
        metrics: Where spans sent and lost are counted.

    Raises:
        FailedPreconditionError: If traces are asked for and OpenTelemetry is not installed.
    """
    if not config.endpoint:
        return NO_TRACER
    try:
        from server.observability.tracing import otlp_tracer
    except ModuleNotFoundError as missing:
        raise FailedPreconditionError(
            f"tracing.endpoint is set, but {missing.name} is not installed: pip install 'medley[tracing]'"
        ) from missing
    return otlp_tracer(config, metrics)
