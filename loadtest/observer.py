"""Reads the server's own counters during a run. A server that has none, or does not show them, gives no readings."""

import asyncio
import re
from collections.abc import Callable

from loadtest.clients.base import CONNECTION, ClientError, Credentials
from loadtest.clients.http_connection import HttpConnection
from loadtest.timeline import Reading

_TIMEOUT_S = 5.0
_SAMPLE = re.compile(r"^(medley_adapter_(?:loads|evictions)_total) (\S+)$", re.MULTILINE)


async def observe(
    address: str, credentials: Credentials, every_s: float, zero_s: float, on_reading: Callable[[Reading], None]
) -> None:
    """Read until cancelled, or until the server turns out not to tell.

    Args:
        address: ``host:port`` of the server's HTTP side.
        credentials: For a server that wants a key or speaks TLS.
        every_s: Seconds between readings.
        zero_s: When the measured part begins, on the event loop's clock.
        on_reading: Given each reading.
    """
    clock = asyncio.get_running_loop().time
    async with HttpConnection(address, credentials, _refused) as connection:
        while True:
            try:
                async with connection.answer("GET", "/metrics", _TIMEOUT_S) as response:
                    page = await response.text()
            except ClientError as error:
                if error.code != CONNECTION:
                    return
            else:
                counters = {name: int(float(value)) for name, value in _SAMPLE.findall(page)}
                if len(counters) < 2:
                    return
                loads, evictions = counters["medley_adapter_loads_total"], counters["medley_adapter_evictions_total"]
                on_reading(Reading(clock() - zero_s, loads, evictions))
            await asyncio.sleep(every_s)


def _refused(status: int, data: bytes) -> ClientError:
    return ClientError(f"HTTP_{status}", data[:200].decode(errors="replace"))
