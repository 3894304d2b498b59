"""The client of OpenAI's protocol, against a server that is not Medley and against Medley's own routes."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from loadtest.clients.base import NO_CREDENTIALS, ClientError, SummaryRequest
from loadtest.clients.openai import OpenAIClient, Route
from loadtest.recording import Recording
from loadtest.records import Outcome
from loadtest.scenario_file import load_scenario
from loadtest.session import Session
from tests.fixtures.running_server import fake_engine, running_server
from tests.unit.loadtest.fake_openai import FakeOpenAI, fake_openai


@pytest.fixture
async def other() -> AsyncIterator[FakeOpenAI]:
    async with fake_openai() as fake:
        yield fake


@pytest.mark.parametrize("route", list(Route))
async def test_openai_whole_and_streamed_answers_say_the_same(other: FakeOpenAI, route: Route) -> None:
    request = SummaryRequest("a text", max_new_tokens=5, exact=True)
    async with OpenAIClient(other.address, NO_CREDENTIALS, route) as client:
        whole = await client.summarize(request, 5.0)
        pieces = [piece async for piece in client.stream(request, 5.0)]
    streamed = pieces[-1].answer
    assert streamed is not None
    assert [piece.delta for piece in pieces] == ["The ", "cat ", "sat.", ""]
    assert whole.summary == streamed.summary == "The cat sat."
    assert (streamed.finish_reason, streamed.num_prompt_tokens, streamed.num_output_tokens) == ("length", 9, 5)
    (path, body), _ = other.asked
    asks = {"messages": [{"role": "user", "content": "a text"}]} if route is Route.CHAT else {"prompt": "a text"}
    assert path == ("/v1/chat/completions" if route is Route.CHAT else "/v1/completions")
    assert body == {"model": "their-base", "max_tokens": 5, "min_tokens": 5, "ignore_eos": True, **asks}


async def test_openai_names_adapters_or_the_given_model(other: FakeOpenAI) -> None:
    async with OpenAIClient(other.address, NO_CREDENTIALS, Route.COMPLETIONS, "mine") as client:
        await client.summarize(SummaryRequest("x"), 5.0)
        await client.summarize(SummaryRequest("x", ("a", "b")), 5.0)
    assert [body["model"] for _, body in other.asked] == ["mine", "a+b"]
    assert "max_tokens" not in other.asked[0][1]


async def test_openai_errors_of_other_servers_have_a_code(other: FakeOpenAI) -> None:
    async with OpenAIClient(other.address, NO_CREDENTIALS, Route.COMPLETIONS) as client:
        for model, code, message in (("missing", "HTTP_404", "no such model"), ("broken", "HTTP_502", "bad gateway")):
            with pytest.raises(ClientError, match=message) as caught:
                await client.summarize(SummaryRequest("x", (model,)), 5.0)
            assert caught.value.code == code


async def test_openai_stream_without_usage_counts_pieces_and_without_end_is_an_error(other: FakeOpenAI) -> None:
    async with OpenAIClient(other.address, NO_CREDENTIALS, Route.CHAT) as client:
        other.tells_usage = False
        pieces = [piece async for piece in client.stream(SummaryRequest("x"), 5.0)]
        assert pieces[-1].answer is not None
        assert pieces[-1].answer.num_output_tokens == 3
        other.breaks_off = True
        with pytest.raises(ClientError, match="without a finish reason"):
            assert [piece async for piece in client.stream(SummaryRequest("x"), 5.0)]


@pytest.mark.parametrize("route", list(Route))
async def test_openai_same_scenario_drives_medley_and_another_server(
    other: FakeOpenAI, route: Route, tmp_path: Path
) -> None:
    asked = [
        ("target.route", route.value),
        ("arrivals.rate", 40),
        ("num_requests", 12),
        ("warm_up.duration_s", 0),
        ("lengths.input.high", 60),
        ("lengths.input.median", 20),
    ]
    recordings = []
    async with running_server(tmp_path, fake_engine()) as medley:
        for address in (medley.http.removeprefix("http://"), other.address):
            scenario = load_scenario("side-by-side", [*asked, ("target.address", address)])
            with Recording(scenario, None) as recording:
                await Session(recording).run()
            recordings.append(recording)
    for recording in recordings:
        assert [record.outcome for record in recording.records] == [Outcome.COMPLETED] * 12, recording.records[0]
    assert {record.num_output_tokens for record in recordings[0].records} == {32}
    sent = [sorted(record.scheduled_s for record in recording.records) for recording in recordings]
    assert sent[0] == sent[1]
