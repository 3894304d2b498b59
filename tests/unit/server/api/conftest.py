"""One server for the tests of what only one protocol has."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.fixtures.running_server import RunningServer, fake_engine, running_server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningServer]:
    async with running_server(tmp_path_factory.mktemp("server"), fake_engine(step_time_s=0.001)) as running:
        yield running
