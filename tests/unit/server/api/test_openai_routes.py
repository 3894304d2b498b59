"""The OpenAI routes on a whole server with the fake engine, which says the prompt itself, one byte a step."""

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio

from server.service.tokenizer import ByteTokenizer
from tests.fixtures.running_server import RunningServer

pytestmark = pytest.mark.asyncio(loop_scope="module")

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
USER = {"role": "user", "content": "abc"}
Body = dict[str, Any]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(server: RunningServer) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=server.http, timeout=10) as client:
        yield client


async def whole(client: httpx.AsyncClient, body: Body, path: str = COMPLETIONS) -> Body:
    response = await client.post(path, json=body)
    assert response.status_code == 200, response.text
    answer: Body = response.json()
    return answer


async def streamed(client: httpx.AsyncClient, body: Body, path: str = COMPLETIONS) -> list[Body]:
    response = await client.post(path, json=body | {"stream": True})
    assert response.status_code == 200, response.text
    *events, end = response.text.strip().split("\n\n")
    assert end == "data: [DONE]"
    return [json.loads(event.removeprefix("data: ")) for event in events]


async def refusal(client: httpx.AsyncClient, body: Body, path: str = COMPLETIONS) -> Body:
    response = await client.post(path, json=body)
    assert response.status_code == 400, response.text
    error: Body = response.json()["error"]
    assert error["code"] == "INVALID_ARGUMENT"
    return error


def choices(events: list[Body], index: int) -> list[Body]:
    return [choice for event in events for choice in event["choices"] if choice["index"] == index]


class TestPrompts:
    async def test_several_prompts_are_answered_in_their_order(self, client: httpx.AsyncClient) -> None:
        answer = await whole(client, {"prompt": ["long one", "b", "cc"]})
        assert [(choice["index"], choice["text"]) for choice in answer["choices"]] == [
            (0, "long one"),
            (1, "b"),
            (2, "cc"),
        ]
        assert answer["usage"] == {"prompt_tokens": 14, "completion_tokens": 11, "total_tokens": 25}

    async def test_token_ids_are_the_prompt_itself(self, client: httpx.AsyncClient) -> None:
        token_ids = ByteTokenizer().encode("né", add_special_tokens=False)
        answer = await whole(client, {"prompt": [token_ids, token_ids[:1]]})
        assert [choice["text"] for choice in answer["choices"]] == ["né", "n"]
        assert answer["usage"]["prompt_tokens"] == 4
        assert (await whole(client, {"prompt": token_ids}))["choices"][0]["text"] == "né"

    async def test_special_tokens_may_be_left_out(self, client: httpx.AsyncClient) -> None:
        counts = [
            (await whole(client, {"prompt": "abc", "add_special_tokens": add}))["usage"]["prompt_tokens"]
            for add in (True, False)
        ]
        assert counts == [4, 3]

    async def test_no_model_is_the_base(self, client: httpx.AsyncClient) -> None:
        assert (await whole(client, {"prompt": "a"}))["model"] == "fake"

    @pytest.mark.parametrize("prompt", ["", [], [[]], [259], [-1], ["a", ""], [[5], [10**9]]])
    async def test_prompt_that_is_none_is_refused(self, client: httpx.AsyncClient, prompt: object) -> None:
        assert (await refusal(client, {"prompt": prompt}))["param"] == "prompt"

    async def test_refused_prompt_leaves_its_neighbours_unbegun(
        self, client: httpx.AsyncClient, server: RunningServer
    ) -> None:
        await refusal(client, {"prompt": ["a" * 100, "b" * 5000], "max_tokens": 100})
        await server.idle()

    async def test_too_many_answers_are_refused(self, client: httpx.AsyncClient) -> None:
        for body in ({"prompt": "a", "n": 129}, {"prompt": ["a"] * 65, "n": 2}, {"prompt": ["a"] * 129}):
            assert "128" in (await refusal(client, body))["message"]


class TestSeveralAnswers:
    async def test_each_prompt_gets_n_answers_and_counts_once(self, client: httpx.AsyncClient) -> None:
        answer = await whole(client, {"prompt": ["ab", "cde"], "n": 2})
        assert [choice["text"] for choice in answer["choices"]] == ["ab", "ab", "cde", "cde"]
        assert answer["usage"] == {"prompt_tokens": 7, "completion_tokens": 10, "total_tokens": 17}
        assert all(choice["timings"]["e2e_ms"] > 0 for choice in answer["choices"])
        assert "timings" not in answer

    async def test_stream_has_every_answer_whole_and_ended_once(self, client: httpx.AsyncClient) -> None:
        body = {"prompt": ["abcdef", "gh"], "n": 2, "stream_options": {"include_usage": True}}
        events = await streamed(client, body)
        for index, text in enumerate(["abcdef", "abcdef", "gh", "gh"]):
            pieces = choices(events, index)
            assert "".join(piece["text"] for piece in pieces) == text
            assert [piece["finish_reason"] for piece in pieces] == [None] * (len(pieces) - 1) + ["stop"]
        order = [event["choices"][0]["index"] for event in events if event["choices"]]
        assert order != sorted(order)
        assert events[-1]["usage"] == {"prompt_tokens": 10, "completion_tokens": 16, "total_tokens": 26}
        assert len({event["id"] for event in events}) == 1

    async def test_chat_has_n_messages(self, client: httpx.AsyncClient) -> None:
        answer = await whole(client, {"messages": [USER], "n": 3}, CHAT)
        assert [choice["message"]["content"] for choice in answer["choices"]] == ["abc"] * 3
        assert answer["usage"] == {"prompt_tokens": 4, "completion_tokens": 9, "total_tokens": 13}

    async def test_chat_stream_gives_each_message_its_role(self, client: httpx.AsyncClient) -> None:
        events = await streamed(client, {"messages": [USER], "n": 2}, CHAT)
        for index in (0, 1):
            deltas = [choice["delta"] for choice in choices(events, index)]
            assert ["role" in delta for delta in deltas] == [True] + [False] * (len(deltas) - 1)
            assert "".join(delta["content"] for delta in deltas) == "abc"

    async def test_caller_who_goes_away_frees_every_row(self, client: httpx.AsyncClient, server: RunningServer) -> None:
        body = {"prompt": ["x" * 200, "y" * 200], "n": 2, "stream": True, "max_tokens": 200}
        async with client.stream("POST", COMPLETIONS, json=body) as response:
            async for _ in response.aiter_lines():
                break
        await server.idle()


class TestEcho:
    async def test_text_begins_with_the_prompt(self, client: httpx.AsyncClient) -> None:
        answer = await whole(client, {"prompt": ["abc", "né"], "echo": True, "max_tokens": 3})
        assert [choice["text"] for choice in answer["choices"]] == ["abcabc", "néné"]

    async def test_token_ids_are_said_again_as_text(self, client: httpx.AsyncClient) -> None:
        token_ids = ByteTokenizer().encode("né", add_special_tokens=False)
        answer = await whole(client, {"prompt": token_ids, "echo": True})
        assert answer["choices"][0]["text"] == "néné"

    async def test_log_probabilities_begin_with_the_prompts(self, client: httpx.AsyncClient) -> None:
        token_ids = ByteTokenizer().encode("abc", add_special_tokens=False)
        body = {"prompt": [token_ids], "echo": True, "logprobs": 1, "max_tokens": 1, "temperature": 0, "seed": 1234}
        logprobs = (await whole(client, body))["choices"][0]["logprobs"]
        assert logprobs["tokens"] == ["a", "b", "c", "a"]
        assert logprobs["token_logprobs"] == [None, -0.5, -0.5, -0.5]
        assert logprobs["top_logprobs"] == [None, {"b": -0.5}, {"c": -0.5}, {"a": -0.5}]
        assert logprobs["text_offset"] == [0, 1, 2, 3]

    async def test_only_the_prompt_is_told_where_nothing_is_to_be_generated(self, client: httpx.AsyncClient) -> None:
        body = {"prompt": "abc", "echo": True, "max_tokens": 0, "logprobs": 0, "add_special_tokens": False}
        choice = (await whole(client, body))["choices"][0]
        assert (choice["text"], choice["finish_reason"]) == ("abc", "length")
        assert choice["logprobs"]["tokens"] == ["a", "b", "c"]

    async def test_stream_begins_with_the_prompt_and_offsets_run_on(self, client: httpx.AsyncClient) -> None:
        body = {"prompt": "abc", "echo": True, "logprobs": 0, "add_special_tokens": False}
        for n in (1, 2):
            events = await streamed(client, body | {"n": n})
            for index in range(n):
                pieces = choices(events, index)
                assert "".join(piece["text"] for piece in pieces) == "abcabc"
                assert pieces[0]["text"].startswith("abc")
                assert [place for piece in pieces for place in piece["logprobs"]["text_offset"]] == list(range(6))

    async def test_prompt_logprobs_come_by_themselves(self, client: httpx.AsyncClient) -> None:
        body = {"prompt": "ab", "prompt_logprobs": 1, "add_special_tokens": False}
        choice = (await whole(client, body))["choices"][0]
        b = str(ByteTokenizer().encode("b")[0])
        assert choice["text"] == "ab"
        assert choice["prompt_logprobs"] == [None, {b: {"logprob": -0.5, "rank": 1, "decoded_token": "b"}}]
        answer = await whole(client, {"messages": [USER], "prompt_logprobs": 0}, CHAT)
        assert answer["prompt_logprobs"][0] is None
        assert len(answer["prompt_logprobs"]) == 4

    async def test_chat_goes_on_with_what_the_assistant_said(self, client: httpx.AsyncClient) -> None:
        body = {"messages": [USER, {"role": "assistant", "content": "well, "}], "echo": True}
        answer = await whole(client, body, CHAT)
        assert answer["choices"][0]["message"]["content"].startswith("well, abc")
        events = await streamed(client, body, CHAT)
        assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": "well, a"}


class TestUsage:
    async def test_usage_is_null_until_the_last_piece(self, client: httpx.AsyncClient) -> None:
        events = await streamed(client, {"prompt": "abc", "stream_options": {"include_usage": True}})
        assert [event["usage"] for event in events[:-1]] == [None] * (len(events) - 1)
        assert events[-1]["choices"] == []
        assert events[-1]["usage"] == {"prompt_tokens": 4, "completion_tokens": 3, "total_tokens": 7}

    async def test_usage_may_come_with_every_piece(self, client: httpx.AsyncClient) -> None:
        options = {"include_usage": True, "continuous_usage_stats": True}
        events = await streamed(client, {"prompt": "abc", "stream_options": options})
        assert [event["usage"]["completion_tokens"] for event in events] == [1, 2, 3, 3, 3]
        assert {event["usage"]["prompt_tokens"] for event in events} == {4}

    @pytest.mark.parametrize("options", [{}, {"include_usage": False}, {"continuous_usage_stats": True}, None])
    async def test_usage_is_not_told_unless_asked_for(self, client: httpx.AsyncClient, options: object) -> None:
        events = await streamed(client, {"prompt": "abc", "stream_options": options})
        assert not any("usage" in event for event in events)
        assert all(event["choices"] for event in events)


class TestSampling:
    async def test_text_goes_on_behind_its_end_until_it_is_long_enough(self, client: httpx.AsyncClient) -> None:
        answer = await whole(client, {"prompt": "abc", "ignore_eos": True, "max_tokens": 9})
        assert answer["usage"]["completion_tokens"] == 9
        assert answer["choices"][0]["finish_reason"] == "length"

    async def test_stop_token_ends_the_text(self, client: httpx.AsyncClient) -> None:
        stop = ByteTokenizer().encode("c")[0]
        answer = await whole(client, {"prompt": "abcd", "stop_token_ids": [stop]})
        assert (answer["choices"][0]["text"], answer["choices"][0]["finish_reason"]) == ("ab", "stop")

    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"response_format": {"type": "json_object"}}, "response_format"),
            ({"structured_outputs": {"choice": ["a"]}}, "structured_outputs"),
            ({"stop_token_ids": [10**6]}, "stop_token_ids"),
            ({"logit_bias": {"999": 1}}, "logit_bias"),
            ({"max_tokens": 0}, "max_tokens"),
            ({"max_tokens": 10**6}, "max_tokens"),
            ({"min_tokens": 5, "max_tokens": 4}, "min_tokens"),
            ({"guided_json": {}}, "guided_json"),
        ],
    )
    async def test_refusal_names_the_field_as_the_caller_knows_it(
        self, client: httpx.AsyncClient, fields: Body, param: str
    ) -> None:
        assert (await refusal(client, {"prompt": "abc", **fields}))["param"] == param
        assert (await refusal(client, {"messages": [USER], **fields}, CHAT))["param"] == param

    async def test_newer_name_of_the_length_is_blamed_where_it_was_used(self, client: httpx.AsyncClient) -> None:
        body = {"messages": [USER], "max_completion_tokens": 10**6}
        assert (await refusal(client, body, CHAT))["param"] == "max_completion_tokens"

    async def test_too_many_alternatives_blame_the_field_that_asks_for_them(self, client: httpx.AsyncClient) -> None:
        assert (await refusal(client, {"prompt": "abc", "logprobs": 21}))["param"] == "logprobs"
        body = {"messages": [USER], "logprobs": True, "top_logprobs": 21}
        assert (await refusal(client, body, CHAT))["param"] == "top_logprobs"

    async def test_text_that_is_too_long_blames_the_field_it_came_in(self, client: httpx.AsyncClient) -> None:
        long = "x" * 5000
        assert (await refusal(client, {"prompt": long}))["param"] == "prompt"
        assert (await refusal(client, {"messages": [{"role": "user", "content": long}]}, CHAT))["param"] == "messages"


async def test_list_of_models_tells_what_clients_of_vllm_look_for(client: httpx.AsyncClient) -> None:
    base = (await client.get("/v1/models")).json()["data"][0]
    assert (base["id"], base["root"], base["parent"], base["max_model_len"]) == ("fake", "fake", None, 1024)
