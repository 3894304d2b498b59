"""OpenAI's inference routes: completions, chat completions and the list of models."""

import time

from fastapi import APIRouter, Request

from server.api.http.call import INFERENCE_RESPONSES, INFERENCE_SCHEMA, Caller, Calling, name_call, whole_answers
from server.api.http.direct import DirectRoute
from server.api.http.errors import refusals
from server.api.http.streaming import EventStream
from server.api.http.wire.openai_answers import ChatCompletion, Completion, Envelope, chat_completion, completion
from server.api.http.wire.openai_bodies import CompletionBody
from server.api.http.wire.openai_chat_bodies import ChatBody
from server.api.http.wire.openai_models import ModelCard, ModelList
from server.api.http.wire.openai_streams import ChatPieces, CompletionPieces
from server.core.errors import ErrorCode, NotFoundError
from server.service.models import ModelDirectory, ModelEntry

_OWNER = "medley"


def openai_inference_routes(caller: Caller, models: ModelDirectory) -> APIRouter:
    """Return the router of completions and chat completions."""
    router = APIRouter(tags=["openai"], route_class=DirectRoute)

    @router.post(
        "/v1/completions", response_model=Completion, responses=INFERENCE_RESPONSES, openapi_extra=INFERENCE_SCHEMA
    )
    async def completions(request: Request, body: CompletionBody) -> Completion | EventStream:
        """Continue prompts as they are; no template."""
        name_call(request, body)
        several = await caller.open(request, body, models.parse_model(body.model))
        envelope = _envelope(several.request_id, body.model or models.base_id)
        told = body.told(logprobs=body.logprobs is not None, echo=body.echo)
        if body.stream:
            return EventStream(several, CompletionPieces(envelope, several, told))
        return completion(envelope, await whole_answers(request, several), told)

    @router.post(
        "/v1/chat/completions",
        response_model=ChatCompletion,
        responses=INFERENCE_RESPONSES,
        openapi_extra=INFERENCE_SCHEMA,
    )
    async def chat_completions(request: Request, body: ChatBody) -> ChatCompletion | EventStream:
        """Answer a conversation, through the base's chat template if it has one."""
        name_call(request, body)
        several = await caller.open(request, body, models.parse_model(body.model))
        envelope = _envelope(several.request_id, body.model or models.base_id)
        told = body.told(logprobs=body.logprobs, opening=body.opening)
        if body.stream:
            return EventStream(several, ChatPieces(envelope, several, told))
        return chat_completion(envelope, await whole_answers(request, several), told)

    return router


def openai_model_routes(models: ModelDirectory) -> APIRouter:
    """Return the router of the list of models."""
    router = APIRouter(tags=["openai"])

    def card(entry: ModelEntry) -> ModelCard:
        return {
            "id": entry.model_id,
            "object": "model",
            "created": int(entry.created_s),
            "owned_by": _OWNER,
            "root": models.base_id,
            "parent": entry.parent,
            "max_model_len": models.max_model_len,
        }

    @router.get("/v1/models")
    async def list_models(principal: Calling) -> ModelList:
        """List the base and the adapters that the caller sees."""
        return {"object": "list", "data": [card(entry) for entry in await models.list_models(principal)]}

    @router.get("/v1/models/{model_id:path}", responses=refusals(ErrorCode.NOT_FOUND))
    async def get_model(principal: Calling, model_id: str) -> ModelCard:
        """Return one entry of the list."""
        for entry in await models.list_models(principal):
            if entry.model_id == model_id:
                return card(entry)
        raise NotFoundError("no such model", param="model")

    return router


def _envelope(request_id: str, model: str) -> Envelope:
    return {"id": request_id, "created": int(time.time()), "model": model}
