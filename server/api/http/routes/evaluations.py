"""References that come later, and the scores gathered so far."""

from fastapi import APIRouter
from pydantic import Field
from typing_extensions import TypedDict

from server.api.http.call import Calling
from server.api.http.errors import refusals
from server.api.http.wire.fields import References, WireModel
from server.core.errors import ErrorCode
from server.core.request import check_request_id
from server.service.feedback import FeedbackService


class ReferencesBody(WireModel):
    """Reference texts for a request that was answered a little while ago."""

    request_id: str
    references: References = Field(min_length=1)


class ReferencesAnswer(TypedDict):
    """ROUGE F-measures in percent by metric name."""

    request_id: str
    scores: dict[str, float]


class EvaluationWire(TypedDict):
    """Mean scores of one adapter version, of two joined by ``+``, or of the base."""

    adapters: str
    num_scored: int
    means: dict[str, float]


class EvaluationList(TypedDict):
    """The scores gathered since the server started."""

    evaluations: list[EvaluationWire]


def evaluation_routes(feedback: FeedbackService) -> APIRouter:
    """Return the router."""
    router = APIRouter(tags=["evaluation"])

    @router.post("/v1/references", responses=refusals(ErrorCode.NOT_FOUND, with_body=True))
    async def submit_references(principal: Calling, body: ReferencesBody) -> ReferencesAnswer:
        """Score an answer against references that came later."""
        scores = await feedback.submit(principal, check_request_id(body.request_id), body.references)
        return {"request_id": body.request_id, "scores": dict(scores)}

    @router.get("/v1/evaluations")
    async def list_evaluations(principal: Calling) -> EvaluationList:
        """Return the mean scores of each adapter version that the caller sees."""
        return {
            "evaluations": [
                {"adapters": entry.adapters, "num_scored": entry.num_scored, "means": dict(entry.means)}
                for entry in feedback.evaluations(principal)
            ]
        }

    return router
