"""``POST /v1/summarize``: our own inference route."""

from fastapi import APIRouter, Request
from pydantic import Field

from server.api.http.call import INFERENCE_RESPONSES, INFERENCE_SCHEMA, Caller, name_call, whole_answers
from server.api.http.direct import DirectRoute
from server.api.http.streaming import EventStream
from server.api.http.wire.answers import SummarizeAnswer, SummaryPieces, summarize_answer
from server.api.http.wire.fields import GenerationBody
from server.core.request import GenerationRequest
from server.core.sampling import DEFAULT_NEW_TOKENS, SamplingParams


class SummarizeBody(GenerationBody):
    """A text to summarize; the adapter's prompt template, else the base's, wraps it."""

    text: str
    max_new_tokens: int = Field(DEFAULT_NEW_TOKENS, description="The engine's limit caps it.")

    def requests(
        self, request_id: str, adapters: tuple[str, ...], deadline_s: float | None
    ) -> tuple[GenerationRequest, ...]:
        """Return the one request. See the base.

        Raises:
            InvalidArgumentError: If a value is out of range.
        """
        request = GenerationRequest(
            request_id=request_id,
            text=self.text,
            stream=self.stream,
            adapters=adapters,
            sampling=SamplingParams(**self.shared_sampling(), max_new_tokens=self.max_new_tokens),
            references=tuple(self.references),
            deadline_s=deadline_s,
            routing_key=self.routing_key or "",
            priority=self.priority,
        )
        return (request,)


def summarize_routes(caller: Caller) -> APIRouter:
    """Return the router."""
    router = APIRouter(tags=["inference"], route_class=DirectRoute)

    @router.post(
        "/v1/summarize", response_model=SummarizeAnswer, responses=INFERENCE_RESPONSES, openapi_extra=INFERENCE_SCHEMA
    )
    async def summarize(request: Request, body: SummarizeBody) -> SummarizeAnswer | EventStream:
        """Summarize a text, whole or (with `stream`) in server-sent events."""
        name_call(request, body)
        several = await caller.open(request, body)
        if body.stream:
            return EventStream(several, SummaryPieces(several.request_id, several.adapters))
        (result,) = await whole_answers(request, several)
        return summarize_answer(result)

    return router
