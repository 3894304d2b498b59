"""Who keeps a connection for a while can use it again: clients must drop idle ones before the server does."""

import asyncio
import http.client
import time
from pathlib import Path

import pytest

from tests.fixtures.server_process import ServerProcess

pytestmark = pytest.mark.slow

# httpx keeps idle connections for 5 s.
IDLE_S = 6.0


def test_connection_idle_for_longer_than_clients_keep_theirs_is_open(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path)
    asyncio.run(server.start())
    connection = http.client.HTTPConnection(server.http.removeprefix("http://"), timeout=30)
    try:
        for idle_s in (0.0, IDLE_S):
            time.sleep(idle_s)
            # Raises if the server has closed the connection of the first request.
            connection.request("GET", "/healthz")
            response = connection.getresponse()
            response.read()
            assert response.status == 200
    finally:
        connection.close()
        server.kill()
