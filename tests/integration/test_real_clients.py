"""Clients that were not written for us: the ``openai`` package, and a gRPC client that knows reflection only."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import openai
import pytest
import pytest_asyncio
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from server.service.inference import InferenceConfig
from tests.fixtures.front_end_clients import HttpClient
from tests.fixtures.peft_files import lora_files, prompt_files
from tests.fixtures.running_server import RunningServer, fake_engine, running_server

pytestmark = pytest.mark.asyncio(loop_scope="module")

TEXT = "Ann: tea at four? Bob: yes."
ENGINE = fake_engine(step_time_s=0.001, max_num_seqs=2, max_num_waiting=4)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningServer]:
    # The scorer is a process that gives way to all others; here an answer waits for it.
    inference = InferenceConfig(score_wait_s=20.0)
    async with running_server(tmp_path_factory.mktemp("server"), ENGINE, inference=inference) as running:
        async with HttpClient(running) as uploads:
            await uploads.upload("lora", lora_files(seed=1))
            await uploads.upload("prompt", prompt_files(seed=2))
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(server: RunningServer) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{server.http}/v1", api_key="unused", max_retries=0, timeout=20) as client:
        yield client


class TestOpenAI:
    async def test_models_are_the_base_and_the_adapters(self, client: openai.AsyncOpenAI) -> None:
        models = [model async for model in client.models.list()]
        assert [model.id for model in models] == ["fake", "lora", "prompt"]
        assert (await client.models.retrieve("lora")) == models[1]

    async def test_chat_answers_about_all_messages(self, client: openai.AsyncOpenAI) -> None:
        answer = await client.chat.completions.create(
            model="fake",
            messages=[
                {"role": "system", "content": "Ann: tea"},
                {"role": "user", "content": [{"type": "text", "text": "Bob: yes"}]},
            ],
            user="someone",
            n=1,
            presence_penalty=0,
        )
        choice = answer.choices[0]
        assert (choice.message.role, choice.message.content) == ("assistant", "Ann: tea\nBob: yes")
        assert (choice.finish_reason, answer.model, answer.object) == ("stop", "fake", "chat.completion")
        assert answer.usage is not None
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
        assert answer._request_id == answer.id

    async def test_chat_stream_adds_up_and_ends_with_usage(self, client: openai.AsyncOpenAI) -> None:
        stream = await client.chat.completions.create(
            model="fake",
            messages=[{"role": "user", "content": TEXT}],
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
        pieces = [chunk.choices[0] for chunk in chunks if chunk.choices]
        assert "".join(piece.delta.content or "" for piece in pieces) == TEXT
        assert pieces[0].delta.role == "assistant"
        assert [piece.finish_reason for piece in pieces if piece.finish_reason] == ["stop"]
        assert [chunk.usage is not None for chunk in chunks] == [False] * len(pieces) + [True]

    async def test_chat_stream_helper_gathers_the_message(self, client: openai.AsyncOpenAI) -> None:
        async with client.chat.completions.stream(model="fake", messages=[{"role": "user", "content": TEXT}]) as stream:
            final = await stream.get_final_completion()
        assert final.choices[0].message.content == TEXT

    async def test_chat_logprobs_have_alternatives_and_bytes(self, client: openai.AsyncOpenAI) -> None:
        answer = await client.chat.completions.create(
            model="fake", messages=[{"role": "user", "content": "abc"}], logprobs=True, top_logprobs=2
        )
        logprobs = answer.choices[0].logprobs
        assert logprobs is not None
        assert logprobs.content is not None
        assert [token.token for token in logprobs.content] == ["a", "b", "c"]
        assert logprobs.content[0].bytes == [97]
        assert [top.token for top in logprobs.content[0].top_logprobs] == ["a", "b"]

    async def test_completion_continues_the_prompt_itself(self, client: openai.AsyncOpenAI) -> None:
        answer = await client.completions.create(model="fake", prompt=TEXT, max_tokens=7, logprobs=1)
        choice = answer.choices[0]
        assert (choice.text, choice.finish_reason) == (TEXT[:7], "length")
        assert choice.logprobs is not None
        assert choice.logprobs.tokens == list(TEXT[:7])
        assert choice.logprobs.text_offset == list(range(7))
        assert choice.logprobs.top_logprobs is not None
        assert len(choice.logprobs.top_logprobs[0]) == 1

    async def test_completion_stream_adds_up(self, client: openai.AsyncOpenAI) -> None:
        stream = await client.completions.create(
            model="fake", prompt=[TEXT], stream=True, stop=["yes"], logprobs=0, seed=3, temperature=0.5, top_p=0.9
        )
        chunks = [chunk async for chunk in stream]
        assert "".join(chunk.choices[0].text for chunk in chunks) == TEXT[: TEXT.index("yes")]
        assert chunks[-1].choices[0].finish_reason == "stop"
        assert all(chunk.usage is None for chunk in chunks)

    async def test_streamed_logprobs_know_their_place_in_the_text(self, client: openai.AsyncOpenAI) -> None:
        stream = await client.completions.create(model="fake", prompt=TEXT, stream=True, logprobs=0)
        logprobs = [chunk.choices[0].logprobs async for chunk in stream]
        assert [place for each in logprobs if each for place in each.text_offset or []] == list(range(len(TEXT)))

    async def test_several_prompts_get_several_answers_each(self, client: openai.AsyncOpenAI) -> None:
        answer = await client.completions.create(model="fake", prompt=["ab", "cd"], n=2, best_of=2)
        assert [(choice.index, choice.text) for choice in answer.choices] == [
            (0, "ab"),
            (1, "ab"),
            (2, "cd"),
            (3, "cd"),
        ]
        stream = await client.completions.create(model="fake", prompt=["ab", "cd"], n=2, stream=True)
        texts = [""] * 4
        async for chunk in stream:
            texts[chunk.choices[0].index] += chunk.choices[0].text
        assert texts == ["ab", "ab", "cd", "cd"]

    async def test_token_ids_with_echo_and_logprobs_tell_all_about_the_prompt(self, client: openai.AsyncOpenAI) -> None:
        answer = await client.completions.create(
            model="fake", prompt=[[100, 101, 102]], echo=True, logprobs=1, max_tokens=1, seed=1234, temperature=0
        )
        logprobs = answer.choices[0].logprobs
        assert logprobs is not None
        assert logprobs.tokens == ["a", "b", "c", "a"]
        assert logprobs.text_offset == [0, 1, 2, 3]
        token_logprobs, top_logprobs = logprobs.token_logprobs, logprobs.top_logprobs
        assert token_logprobs is not None
        assert top_logprobs is not None
        assert token_logprobs[0] is None
        assert [max(top.values()) for top in top_logprobs[1:]] == token_logprobs[1:]

    async def test_usage_comes_with_every_piece_where_asked_for(self, client: openai.AsyncOpenAI) -> None:
        stream = await client.chat.completions.create(
            model="fake",
            messages=[{"role": "user", "content": "abc"}],
            stream=True,
            stream_options={"include_usage": True, "continuous_usage_stats": True},  # type: ignore[typeddict-unknown-key]
        )
        counts = [chunk.usage.completion_tokens async for chunk in stream if chunk.usage is not None]
        assert counts == [1, 2, 3, 3, 3]

    async def test_model_names_adapters(self, client: openai.AsyncOpenAI) -> None:
        answer = await client.completions.create(model="lora+prompt:1", prompt=TEXT)
        extras: Any = answer.model_extra
        assert sorted(use["name"] for use in extras["adapters"]) == ["lora", "prompt"]

    async def test_own_fields_ride_in_extra_body(self, client: openai.AsyncOpenAI) -> None:
        answer = await client.chat.completions.create(
            model="fake",
            messages=[{"role": "user", "content": TEXT}],
            extra_body={
                "adapters": ["lora"],
                "references": [TEXT],
                "request_id": "mine",
                "top_k": 3,
                "repetition_penalty": 1.1,
                "no_repeat_ngram_size": 2,
            },
        )
        extras: Any = answer.model_extra
        assert answer.id == answer._request_id == "mine"
        assert extras["adapters"][0]["name"] == "lora"
        assert extras["scores"]["rouge1"] > 0

    async def test_synchronous_client_works(self, server: RunningServer) -> None:
        def ask() -> str | None:
            with openai.OpenAI(base_url=f"{server.http}/v1", api_key="unused", max_retries=0) as client:
                stream = client.chat.completions.create(
                    model="fake", messages=[{"role": "user", "content": TEXT}], stream=True
                )
                return "".join(chunk.choices[0].delta.content or "" for chunk in stream)

        assert await asyncio.to_thread(ask) == TEXT

    async def test_unknown_model_is_not_found(self, client: openai.AsyncOpenAI) -> None:
        with pytest.raises(openai.NotFoundError) as caught:
            await client.completions.create(model="nobody", prompt=TEXT)
        assert (caught.value.code, caught.value.type) == ("NOT_FOUND", "not_found_error")
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("nobody")

    async def test_bad_parameter_is_a_bad_request_that_names_it(self, client: openai.AsyncOpenAI) -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.completions.create(model="fake", prompt=TEXT, temperature=-1)
        assert (caught.value.code, caught.value.param) == ("INVALID_ARGUMENT", "temperature")
        assert caught.value.request_id

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("n", 1000),
            ("presence_penalty", 2.5),
            ("logit_bias", {"5000": 1}),
            ("tools", [{"type": "function", "function": {"name": "f"}}]),
            ("response_format", {"type": "json_object"}),
        ],
    )
    async def test_field_we_cannot_honour_is_refused_by_name(
        self, client: openai.AsyncOpenAI, field: str, value: object
    ) -> None:
        body: dict[str, Any] = {field: value}
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(
                model="fake", messages=[{"role": "user", "content": TEXT}], extra_body=body
            )
        assert caught.value.param == field

    async def test_full_queue_is_a_rate_limit(self, client: openai.AsyncOpenAI, server: RunningServer) -> None:
        streams = []
        for number in range(1, ENGINE.max_num_seqs + ENGINE.max_num_waiting + 1):
            asked = {"prompt": "x" * 250, "max_tokens": 256}
            streams.append(await client.completions.create(model="fake", **asked, stream=True))
            async with asyncio.timeout(20):
                while server.stats().num_running < min(number, ENGINE.max_num_seqs):  # noqa: ASYNC110
                    await asyncio.sleep(0)
        with pytest.raises(openai.RateLimitError) as caught:
            await client.completions.create(model="fake", prompt=TEXT)
        assert caught.value.response.headers["retry-after"] == "1"
        for stream in streams:
            await stream.close()
        await server.idle()

    async def test_stream_that_breaks_off_raises(self, client: openai.AsyncOpenAI) -> None:
        stream = await client.completions.create(
            model="fake", prompt="x" * 250, stream=True, max_tokens=256, extra_headers={"x-deadline-ms": "60"}
        )
        with pytest.raises(openai.APIError, match="deadline"):
            async for _ in stream:
                pass


class ReflectedClient:
    """Calls methods it learns of from the server alone."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel
        self._database = ProtoReflectionDescriptorDatabase(channel)
        self._pool = DescriptorPool(self._database)

    def services(self) -> list[str]:
        return sorted(self._database.get_services())

    def call(self, service: str, method: str, request: dict[str, Any]) -> list[dict[str, Any]]:
        found = self._pool.FindServiceByName(service).FindMethodByName(method)
        ask, answer = GetMessageClass(found.input_type), GetMessageClass(found.output_type)
        path = f"/{service}/{method}"
        message = ParseDict(request, ask())
        if found.server_streaming:
            pieces = self._channel.unary_stream(path, ask.SerializeToString, answer.FromString)(message)
        else:
            pieces = [self._channel.unary_unary(path, ask.SerializeToString, answer.FromString)(message)]
        return [MessageToDict(piece, preserving_proto_field_name=True) for piece in pieces]


class TestReflection:
    async def test_all_services_are_found(self, server: RunningServer) -> None:
        assert await self._on_thread(server, lambda client: client.services()) == [
            "grpc.health.v1.Health",
            "grpc.reflection.v1alpha.ServerReflection",
            "medley.v1.AdapterService",
            "medley.v1.EvaluationService",
            "medley.v1.InferenceService",
            "medley.v1.RolloutService",
        ]

    async def test_every_method_can_be_called_from_what_was_learnt(self, server: RunningServer) -> None:
        def calls(client: ReflectedClient) -> tuple[Any, ...]:
            inference = "medley.v1.InferenceService"
            return (
                client.call(inference, "Summarize", {"text": TEXT, "adapters": ["lora"], "request_id": "r"}),
                client.call(inference, "StreamSummarize", {"text": TEXT}),
                client.call(inference, "Generate", {"prompt": TEXT, "sampling": {"max_new_tokens": 3}}),
                client.call(inference, "StreamGenerate", {"prompt": TEXT}),
                client.call("medley.v1.AdapterService", "ListAdapters", {}),
                client.call("medley.v1.EvaluationService", "GetEvaluation", {}),
                client.call("medley.v1.RolloutService", "ListRollouts", {"name": "lora"}),
                client.call("grpc.health.v1.Health", "Check", {"service": inference}),
            )

        summary, pieces, text, text_pieces, adapters, _, _, health = await self._on_thread(server, calls)
        assert summary[0]["adapters"][0]["name"] == "lora"
        assert summary[0]["finish_reason"] == "FINISH_REASON_STOP"
        for stream in (pieces, text_pieces):
            assert "".join(piece.get("delta", "") for piece in stream) == TEXT
            assert ["finish_reason" in piece for piece in stream] == [False] * (len(stream) - 1) + [True]
        assert (text[0]["text"], text[0]["finish_reason"]) == (TEXT[:3], "FINISH_REASON_LENGTH")
        assert [adapter["name"] for adapter in adapters[0]["adapters"]] == ["lora", "prompt"]
        assert health == [{"status": "SERVING"}]

    async def test_refusal_has_status_and_reason(self, server: RunningServer) -> None:
        def call(client: ReflectedClient) -> None:
            client.call("medley.v1.InferenceService", "Summarize", {"text": TEXT, "adapters": ["nobody"]})

        with pytest.raises(grpc.RpcError) as caught:
            await self._on_thread(server, call)
        error: Any = caught.value
        assert error.code() is grpc.StatusCode.NOT_FOUND
        assert dict(error.trailing_metadata())["medley-code"] == "NOT_FOUND"

    async def _on_thread(self, server: RunningServer, work: Any) -> Any:
        def with_channel() -> Any:
            with grpc.insecure_channel(server.grpc) as channel:
                return work(ReflectedClient(channel))

        return await asyncio.to_thread(with_channel)
