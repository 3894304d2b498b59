"""Whether a run's figures are the server's or the client's own: a client that was late measured itself."""

from collections.abc import Sequence

from loadtest.metrics import client_lag
from loadtest.records import RequestRecord, is_measured
from loadtest.scenario import ClientLimits


class LateClientError(Exception):
    """The client could not keep up; says by how much, and what to do."""


def check_lag(records: Sequence[RequestRecord], limits: ClientLimits) -> None:
    """Refuse figures of a client that sent too late.

    Raises:
        LateClientError: If the 99th percentile of its lag is over the bound.
    """
    lag = client_lag(record for record in records if is_measured(record))
    if lag is not None and lag.p99 > limits.max_lag_p99_ms:
        raise LateClientError(
            f"no figures: the client sent its requests up to {lag.p99:.0f} ms late (p99), the scenario allows "
            f"{limits.max_lag_p99_ms:.0f} ms. Give it more processes (client.num_processes, now "
            f"{limits.num_processes}) or a machine of its own, lower the rate, or raise client.max_lag_p99_ms."
        )
