"""Every field of a request reaches the service, from both wires alike."""

from typing import Any

import pytest

from medley.v1 import inference_pb2
from server.api.grpc.translate import generation_request
from server.api.http.routes.summarize import SummarizeBody
from server.api.http.wire.openai_bodies import CompletionBody
from server.api.http.wire.openai_chat_bodies import ChatBody
from server.core.errors import InvalidArgumentError
from server.core.request import GenerationRequest
from server.core.sampling import SamplingParams

SAMPLING: dict[str, Any] = {
    "temperature": 0.7,
    "top_p": 0.9,
    "top_k": 5,
    "seed": 2**40,
    "stop": ["x", "y"],
    "repetition_penalty": 1.1,
    "no_repeat_ngram_size": 3,
}
PARAMS = SamplingParams(max_new_tokens=20, **{**SAMPLING, "stop": ("x", "y")})


def test_http_body_with_every_option_gives_the_parameters() -> None:
    body = SummarizeBody.model_validate({"text": "t", "max_new_tokens": 20, **SAMPLING})
    assert body.requests("id", (), None)[0].sampling == PARAMS


def test_http_body_with_no_option_gives_the_defaults() -> None:
    body = SummarizeBody.model_validate({"text": "t"})
    assert body.requests("id", ("a",), 5.0) == (GenerationRequest("id", "t", adapters=("a",), deadline_s=5.0),)


@pytest.mark.parametrize("stream", [True, False])
def test_requests_say_whether_they_are_streamed(stream: bool) -> None:
    chat = {"messages": [{"role": "user", "content": "t"}], "stream": stream}
    bodies = [
        SummarizeBody.model_validate({"text": "t", "stream": stream}),
        CompletionBody.model_validate({"prompt": "t", "stream": stream}),
        ChatBody.model_validate(chat),
    ]
    asked = [body.requests("id", (), None)[0] for body in bodies]
    asked.append(
        generation_request(inference_pb2.GenerateRequest(), "id", "t", None, apply_template=True, stream=stream)
    )
    assert [request.stream for request in asked] == [stream] * 4


def test_grpc_message_with_every_field_gives_the_request() -> None:
    options = inference_pb2.SamplingOptions(max_new_tokens=20, **SAMPLING)
    message = inference_pb2.SummarizeRequest(adapters=["a", "b"], references=["r"], sampling=options)
    assert generation_request(message, "id", "t", 5.0, apply_template=False) == GenerationRequest(
        request_id="id",
        text="t",
        adapters=("a", "b"),
        sampling=PARAMS,
        apply_template=False,
        references=("r",),
        deadline_s=5.0,
    )


def test_grpc_message_with_no_option_gives_the_defaults() -> None:
    request = generation_request(inference_pb2.GenerateRequest(), "id", "t", None, apply_template=True)
    assert request == GenerationRequest(request_id="id", text="t")


def test_grpc_zero_is_a_value_and_not_a_default() -> None:
    message = inference_pb2.GenerateRequest(sampling=inference_pb2.SamplingOptions(max_new_tokens=0))
    with pytest.raises(InvalidArgumentError, match="max_new_tokens"):
        generation_request(message, "id", "t", None, apply_template=True)
