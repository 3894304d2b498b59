"""What routes do around the services: who calls, the call's id and deadline, and the caller who goes away."""

import asyncio
import time
from collections.abc import Coroutine
from typing import Annotated, TypeVar

from fastapi import Depends, Request
from starlette.types import Receive

from server.api.http.errors import refusals
from server.api.http.wire.fields import GenerationBody
from server.core.errors import CancelledError, ErrorCode, InvalidArgumentError, MedleyError
from server.core.outputs import GenerationResult
from server.core.principal import Principal
from server.core.request import check_request_id
from server.service.inference import InferenceService
from server.service.several import Several

DEADLINE_HEADER = "x-deadline-ms"
INFERENCE_RESPONSES: dict[int | str, dict[str, object]] = {
    200: {"content": {"text/event-stream": {}}},
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

    async def open(self, request: Request, body: GenerationBody, adapters: tuple[str, ...] = ()) -> Several:
        """Open what a call asks for, with the adapters its route found and those its body names; close it afterwards.

        Raises:
            MedleyError: If the call is refused; ``param`` is the body's name of a field.
            AdapterError: If an adapter is.
        """
        deadline_s = self._deadline_s(request)
        try:
            asked = body.requests(request.state.request_id, (*adapters, *body.adapters), deadline_s)
            return await self._inference.open_several(await principal_of(request), asked)
        except MedleyError as error:
            if error.param is not None:
                error.param = body.wire_name(error.param)
            raise

    def _deadline_s(self, request: Request) -> float | None:
        given = request.headers.get(DEADLINE_HEADER)
        if given is None:
            return None
        limit = self._max_deadline_ms
        if not (given.isascii() and given.isdecimal() and len(given) <= 10 and 1 <= int(given) <= limit):
            raise InvalidArgumentError(
                f"{DEADLINE_HEADER} must be a whole number from 1 to {limit}", param=DEADLINE_HEADER
            )
        return time.monotonic() + int(given) / 1000


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


async def whole_answers(request: Request, several: Several) -> tuple[GenerationResult, ...]:
    """Return the whole answers to a call; everything is closed in any case.

    Raises:
        MedleyError: If one failed, or the caller went away.
    """
    try:
        return await until_disconnect(request.receive, several.results())
    finally:
        await several.aclose()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
