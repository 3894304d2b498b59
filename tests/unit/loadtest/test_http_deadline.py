"""The HTTP client tells the server its time limit, as gRPC does by itself."""

import pytest

from loadtest.clients.base import NO_CREDENTIALS, ClientError, SummaryRequest
from loadtest.clients.http import HttpClient
from tests.fixtures.scripted_server import Answer, scripted_server


@pytest.mark.parametrize(("timeout_s", "told"), [(2.5, "2500"), (0.0001, "1"), (7200.0, None)])
async def test_time_limit_is_told_as_the_deadline(timeout_s: float, told: str | None) -> None:
    with scripted_server() as script:
        script.answers = [Answer(status=504)]
        async with HttpClient(script.url.removeprefix("http://"), NO_CREDENTIALS) as client:
            for ask in (client.summarize, lambda *call: anext(client.stream(*call))):
                with pytest.raises(ClientError):
                    await ask(SummaryRequest("x"), timeout_s)
    # One that was out of time before it was sent has told nobody.
    assert {sent.headers.get("x-deadline-ms") for sent in script.sent} in ({told}, set())
    assert script.sent or timeout_s < 0.01
