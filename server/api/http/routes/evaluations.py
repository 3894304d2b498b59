"""References, one by one, in bulk and in sets, and the figures gathered so far."""

from typing import Annotated

from fastapi import APIRouter, Query, Request
from pydantic import Field
from typing_extensions import TypedDict

from server.api.http.call import Calling, principal_of
from server.api.http.direct import DirectRoute, body_of
from server.api.http.errors import content_type_not_taken, refusals
from server.api.http.wire.adapter_bodies import NamePath
from server.api.http.wire.evaluations import (
    EvaluationList,
    ReferenceBatchAnswer,
    ReferenceSetList,
    ReferenceSetWire,
    evaluation_wire,
    set_wire,
)
from server.api.http.wire.fields import References, WireModel
from server.core.errors import ErrorCode
from server.core.request import check_request_id
from server.evaluation.reports import ReportQuery
from server.service.feedback import MAX_NUM_WINDOWS, MAX_WINDOW_S, FeedbackService
from server.service.reference_files import RowFormat
from server.service.reference_import import ReferenceImport

_DEFAULT = ReportQuery()
_JSONL = ("application/jsonl", "application/x-ndjson", "application/x-jsonlines")
_CSV = "text/csv"
_FORMATS = dict.fromkeys(_JSONL, RowFormat.JSONL) | {_CSV: RowFormat.CSV}
_ROWS: dict[str, object] = {"schema": {"type": "string"}}
# The framework does not see these bodies, as they are lines and no JSON value.
_BATCH_BODY: dict[str, object] = {"requestBody": {"required": True, "content": dict.fromkeys(_FORMATS, _ROWS)}}
_SET_BODY: dict[str, object] = {"requestBody": {"required": True, "content": dict.fromkeys(_JSONL, _ROWS)}}
_BODY_REFUSALS = refusals(with_body=True, with_content_types=True)


class ReferencesBody(WireModel):
    """Reference texts for a request that was answered a little while ago."""

    request_id: str
    references: References = Field(min_length=1)


class ReferencesAnswer(TypedDict):
    """The scores by metric name: ROUGE in percent, or what the adapters are scored by."""

    request_id: str
    scores: dict[str, float]


AdapterQuery = Annotated[
    str, Query(max_length=256, description="A name, `base`, or a combination as `name:3`; all when left out.")
]
WindowQuery = Annotated[float, Query(ge=1.0, le=MAX_WINDOW_S, description="Length of a window in seconds.")]
NumWindowsQuery = Annotated[int, Query(ge=1, le=MAX_NUM_WINDOWS, description="How many windows, up to now.")]


def reference_routes(feedback: FeedbackService) -> APIRouter:
    """Return the router of references one by one."""
    router = APIRouter(tags=["evaluation"], route_class=DirectRoute)

    @router.post("/v1/references", responses=refusals(ErrorCode.NOT_FOUND, with_body=True))
    async def submit_references(request: Request, body: ReferencesBody) -> ReferencesAnswer:
        """Score an answer against references that came later; what is answered is on disk."""
        principal = await principal_of(request)
        scores = await feedback.submit(principal, check_request_id(body.request_id), body.references)
        return {"request_id": body.request_id, "scores": dict(scores)}

    return router


def evaluation_routes(feedback: FeedbackService, references: ReferenceImport) -> APIRouter:
    """Return the router of references in bulk and in sets, and of the figures."""
    router = APIRouter(tags=["evaluation"])

    @router.post("/v1/references/batch", openapi_extra=_BATCH_BODY, responses=_BODY_REFUSALS)
    async def submit_batch(request: Request, principal: Calling) -> ReferenceBatchAnswer:
        """Score many answers: JSONL or CSV of `request_id` and `references` (a list) or `reference`."""
        form = _FORMATS[_content_type(request, _FORMATS)]
        done = await references.submit_batch(principal, await body_of(request), form)
        return {
            "num_accepted": done.num_accepted,
            "num_unknown": done.num_unknown,
            "num_refused": done.num_refused,
            "errors": [{"line": error.line, "message": error.message} for error in done.errors],
        }

    @router.put("/v1/reference-sets/{name}", openapi_extra=_SET_BODY, responses=_BODY_REFUSALS)
    async def put_set(request: Request, principal: Calling, name: NamePath) -> ReferenceSetWire:
        """Keep references for requests to come: JSONL of `text` or `input_sha256`, and `references`."""
        _content_type(request, _JSONL)
        return set_wire(await references.put_set(principal, name, await body_of(request)))

    @router.get("/v1/reference-sets")
    async def list_sets(principal: Calling) -> ReferenceSetList:
        """List the caller's reference sets."""
        return {"reference_sets": [set_wire(found) for found in await references.sets(principal)]}

    @router.delete("/v1/reference-sets/{name}", status_code=204, responses=refusals(ErrorCode.NOT_FOUND))
    async def delete_set(principal: Calling, name: NamePath) -> None:
        """Remove a reference set; scores made by it stay."""
        await references.remove_set(principal, name)

    @router.get("/v1/evaluations")
    async def list_evaluations(
        principal: Calling,
        adapter: AdapterQuery = "",
        window_s: WindowQuery = _DEFAULT.window_s,
        num_windows: NumWindowsQuery = _DEFAULT.num_windows,
    ) -> EvaluationList:
        """Return figures of each adapter version that the caller sees."""
        found = await feedback.evaluations(principal, ReportQuery(adapter, window_s, num_windows))
        return {"evaluations": [evaluation_wire(entry) for entry in found]}

    return router


def _content_type(request: Request, taken: "tuple[str, ...] | dict[str, RowFormat]") -> str:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in taken:
        raise content_type_not_taken(tuple(taken))
    return kind
