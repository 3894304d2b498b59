"""What routes do around the services: who calls, the call's id and deadline, and the caller who goes away."""

import asyncio
import time
from collections.abc import Coroutine
from typing import Annotated, TypeVar

from fastapi import Depends, Request
from starlette.types import Receive

from server.api.http.errors import refusals
from server.api.http.wire.fields import GenerationBody
from server.core.errors import CancelledError, ErrorCode, InvalidArgumentError
from server.core.outputs import GenerationResult
from server.core.principal import Principal
from server.core.request import GenerationRequest, check_request_id
from server.core.sampling import SamplingParams
from server.service.generation import Generation
from server.service.inference import InferenceService

DEADLINE_HEADER = "x-deadline-ms"
INFERENCE_RESPONSES: dict[int | str, dict[str, object]] = {
    200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}},
    **refusals(
        ErrorCode.NOT_FOUND,
        ErrorCode.ALREADY_EXISTS,
        ErrorCode.FAILED_PRECONDITION,
        ErrorCode.DEADLINE_EXCEEDED,
        with_body=True,
    ),
}
"""For the schema: what a route that generates may answer beside its model and what every route may answer."""
_DEADLINE_PARAMETER = {
    "name": DEADLINE_HEADER,
    "in": "header",
    "description": "Longest time the answer may take, in milliseconds; there is an operator's limit.",
    "schema": {"type": "integer", "minimum": 1},
}
INFERENCE_SCHEMA: dict[str, object] = {"parameters": [_DEADLINE_PARAMETER]}
"""For the schema: what a route that generates reads by hand."""
_T = TypeVar("_T")


async def principal_of(request: Request) -> Principal:
    """Return who calls, as the layer of access found out before the route was reached."""
    principal = request.state.principal
    assert isinstance(principal, Principal)
    return principal


Calling = Annotated[Principal, Depends(principal_of)]
"""The type of a route's parameter that is to be who calls."""


def name_call(request: Request, body: GenerationBody) -> None:
    """Give the call the id its body names, if any; a route's first step, so that every later error carries it.

    Raises:
        InvalidArgumentError: If the id is not well formed.
    """
    if body.request_id is not None:
        request.state.request_id = check_request_id(body.request_id)


def call_deadline_s(request: Request, max_deadline_ms: int) -> float | None:
    """Return the monotonic time by which the answer must be complete, or None.

    Raises:
        InvalidArgumentError: If the header is not a whole number of milliseconds in range.
    """
    given = request.headers.get(DEADLINE_HEADER)
    if given is None:
        return None
    if not (given.isascii() and given.isdecimal() and len(given) <= 10 and 1 <= int(given) <= max_deadline_ms):
        raise InvalidArgumentError(
            f"{DEADLINE_HEADER} must be a whole number from 1 to {max_deadline_ms}", param=DEADLINE_HEADER
        )
    return time.monotonic() + int(given) / 1000


class Caller:
    """Opens generations for HTTP calls.

    Args:
        inference: The service.
        max_deadline_ms: Longest deadline a caller may ask for.
    """

    def __init__(self, inference: InferenceService, max_deadline_ms: int) -> None:
        """Keep the parts."""
        self._inference = inference
        self._max_deadline_ms = max_deadline_ms

    async def open(
        self,
        request: Request,
        body: GenerationBody,
        sampling: SamplingParams,
        *,
        text: str,
        adapters: tuple[str, ...] = (),
        apply_template: bool = True,
    ) -> Generation:
        """Open a generation with the adapters the route found and those the body names; close it afterwards.

        Raises:
            MedleyError: If the call is refused.
            AdapterError: If an adapter is.
        """
        generation_request = GenerationRequest(
            request_id=request.state.request_id,
            text=text,
            adapters=(*adapters, *body.adapters),
            sampling=sampling,
            apply_template=apply_template,
            references=tuple(body.references),
            deadline_s=call_deadline_s(request, self._max_deadline_ms),
        )
        return await self._inference.open(await principal_of(request), generation_request)


async def until_disconnect(receive: Receive, work: Coroutine[object, object, _T]) -> _T:
    """Await ``work``, and give it up when the caller goes away. The request's body must have been read.

    Raises:
        CancelledError: If the caller went away first.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise CancelledError("the caller went away")
        return await working
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def whole_answer(request: Request, generation: Generation) -> GenerationResult:
    """Return a generation's whole answer; it is closed in any case.

    Raises:
        MedleyError: If it failed, or the caller went away.
    """
    try:
        return await until_disconnect(request.receive, generation.result())
    finally:
        await generation.aclose()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
