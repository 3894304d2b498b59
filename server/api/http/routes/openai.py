"""OpenAI's inference routes: completions, chat completions and the list of models."""

import time

from fastapi import APIRouter, Request

from server.api.http.call import INFERENCE_RESPONSES, INFERENCE_SCHEMA, Caller, Calling, name_call, whole_answer
from server.api.http.errors import refusals
from server.api.http.streaming import EventStream
from server.api.http.wire.openai_answers import ChatCompletion, Completion, Envelope, ModelCard, ModelList
from server.api.http.wire.openai_bodies import ChatBody, CompletionBody
from server.api.http.wire.openai_streams import Told, chat_completion, chat_events, completion, completion_events
from server.core.errors import ErrorCode, NotFoundError
from server.service.chunks import good_chunks
from server.service.models import ModelDirectory, ModelEntry

_OWNER = "medley"


def openai_inference_routes(caller: Caller, models: ModelDirectory) -> APIRouter:
    """Return the router of completions and chat completions."""
    router = APIRouter(tags=["openai"])

    @router.post(
        "/v1/completions", response_model=Completion, responses=INFERENCE_RESPONSES, openapi_extra=INFERENCE_SCHEMA
    )
    async def completions(request: Request, body: CompletionBody) -> Completion | EventStream:
        """Continue a prompt as it is; no template."""
        name_call(request, body)
        generation = await caller.open(
            request,
            body,
            body.sampling(body.max_tokens, body.logprobs),
            text=body.prompt,
            adapters=models.parse_model(body.model),
            apply_template=False,
        )
        envelope = _envelope(generation.request_id, body.model)
        told = Told(logprobs=body.logprobs is not None, usage=body.stream_options.include_usage)
        if not body.stream:
            return completion(envelope, await whole_answer(request, generation), told)
        events = completion_events(envelope, generation.adapters, good_chunks(generation), told)
        return EventStream(generation, events, generation.request_id)

    @router.post(
        "/v1/chat/completions",
        response_model=ChatCompletion,
        responses=INFERENCE_RESPONSES,
        openapi_extra=INFERENCE_SCHEMA,
    )
    async def chat_completions(request: Request, body: ChatBody) -> ChatCompletion | EventStream:
        """Answer about a conversation: the messages' texts, one under the other, go into the prompt template."""
        name_call(request, body)
        generation = await caller.open(
            request,
            body,
            body.sampling(body.num_new_tokens, body.num_logprobs),
            text=body.text,
            adapters=models.parse_model(body.model),
        )
        envelope = _envelope(generation.request_id, body.model)
        told = Told(logprobs=body.logprobs, usage=body.stream_options.include_usage)
        if not body.stream:
            return chat_completion(envelope, await whole_answer(request, generation), told)
        events = chat_events(envelope, generation.adapters, good_chunks(generation), told)
        return EventStream(generation, events, generation.request_id)

    return router


def openai_model_routes(models: ModelDirectory) -> APIRouter:
    """Return the router of the list of models."""
    router = APIRouter(tags=["openai"])

    @router.get("/v1/models")
    async def list_models(principal: Calling) -> ModelList:
        """List the base and the adapters that the caller sees."""
        return {"object": "list", "data": [_card(entry) for entry in await models.list_models(principal)]}

    @router.get("/v1/models/{model_id:path}", responses=refusals(ErrorCode.NOT_FOUND))
    async def get_model(principal: Calling, model_id: str) -> ModelCard:
        """Return one entry of the list."""
        for entry in await models.list_models(principal):
            if entry.model_id == model_id:
                return _card(entry)
        raise NotFoundError("no such model", param="model")

    return router


def _envelope(request_id: str, model: str) -> Envelope:
    return {"id": request_id, "created": int(time.time()), "model": model}


def _card(entry: ModelEntry) -> ModelCard:
    return {"id": entry.model_id, "object": "model", "created": int(entry.created_s), "owned_by": _OWNER}
