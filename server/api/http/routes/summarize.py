"""``POST /v1/summarize``: our own inference route."""

from fastapi import APIRouter, Request
from pydantic import Field

from server.api.http.call import INFERENCE_RESPONSES, INFERENCE_SCHEMA, Caller, name_call, whole_answer
from server.api.http.streaming import EventStream
from server.api.http.wire.answers import SummarizeAnswer, summarize_answer, summarize_events
from server.api.http.wire.fields import GenerationBody
from server.core.sampling import SamplingParams
from server.service.chunks import good_chunks


class SummarizeBody(GenerationBody):
    """A text to summarize; the adapter's prompt template, else the base's, wraps it."""

    text: str
    max_new_tokens: int = Field(SamplingParams().max_new_tokens, description="The engine's limit caps it.")


def summarize_routes(caller: Caller) -> APIRouter:
    """Return the router."""
    router = APIRouter(tags=["inference"])

    @router.post(
        "/v1/summarize", response_model=SummarizeAnswer, responses=INFERENCE_RESPONSES, openapi_extra=INFERENCE_SCHEMA
    )
    async def summarize(request: Request, body: SummarizeBody) -> SummarizeAnswer | EventStream:
        """Summarize a text, whole or (with `stream`) in server-sent events."""
        name_call(request, body)
        generation = await caller.open(request, body, body.sampling(body.max_new_tokens), text=body.text)
        if not body.stream:
            return summarize_answer(await whole_answer(request, generation))
        events = summarize_events(generation.request_id, generation.adapters, good_chunks(generation))
        return EventStream(generation, events, generation.request_id)

    return router
