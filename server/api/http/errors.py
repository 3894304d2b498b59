"""Errors on the HTTP wire: one table from code to status, and OpenAI's error object around it.

Every failure of every route leaves through here: ours, the adapters', the framework's (unknown route, wrong method,
body that does not parse) and the unknown ones, which say no more than "internal error". Nothing of a request's text is
repeated in an answer.

Source:
    The error object: https://platform.openai.com/docs/guides/error-codes, as the ``openai`` package reads it.
"""

import http
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from typing_extensions import TypedDict

from adapters.errors import AdapterError, AdapterTooLargeError
from server.core.errors import ErrorCode, InvalidArgumentError, MedleyError, ResourceExhaustedError, code_of

_LOGGER = logging.getLogger(__name__)
CLIENT_CLOSED_REQUEST = 499


@dataclass(frozen=True, slots=True)
class HttpError:
    """How a code looks on the wire.

    Attributes:
        status: HTTP status.
        type: OpenAI's ``type`` word.
    """

    status: int
    type: str


# FAILED_PRECONDITION is 412 and not 409: OpenAI's clients repeat a 409 by themselves, and here that cannot help.
HTTP_ERRORS: Mapping[ErrorCode, HttpError] = MappingProxyType(
    {
        ErrorCode.INVALID_ARGUMENT: HttpError(400, "invalid_request_error"),
        ErrorCode.UNAUTHENTICATED: HttpError(401, "authentication_error"),
        ErrorCode.PERMISSION_DENIED: HttpError(403, "permission_error"),
        ErrorCode.NOT_FOUND: HttpError(404, "not_found_error"),
        ErrorCode.ALREADY_EXISTS: HttpError(409, "conflict_error"),
        ErrorCode.FAILED_PRECONDITION: HttpError(412, "invalid_request_error"),
        ErrorCode.RESOURCE_EXHAUSTED: HttpError(429, "rate_limit_error"),
        ErrorCode.UNAVAILABLE: HttpError(503, "server_error"),
        ErrorCode.DEADLINE_EXCEEDED: HttpError(504, "timeout_error"),
        ErrorCode.CANCELLED: HttpError(CLIENT_CLOSED_REQUEST, "cancelled_error"),
        ErrorCode.INTERNAL: HttpError(500, "server_error"),
    }
)
_RETRY_LATER = frozenset({429, 503})
_PLACES = frozenset({"body", "path", "query", "header"})


class ErrorDetail(TypedDict):
    """What OpenAI's clients read, and the request's id."""

    message: str
    type: str
    param: str | None
    code: str
    request_id: str


class ErrorBody(TypedDict):
    """OpenAI's error object."""

    error: ErrorDetail


def body_too_large(max_body_bytes: int) -> HTTPException:
    """Return what to raise while reading a body over its limit (the framework lets only this kind through)."""
    return HTTPException(http.HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body may have at most {max_body_bytes} bytes")


def refusals(
    *codes: ErrorCode, with_body: bool = False, with_content_types: bool = False
) -> dict[int | str, dict[str, object]]:
    """Return, for the schema, what a route may answer beside what every route may.

    Args:
        codes: Of its service.
        with_body: Whether it reads a body, which may be too large.
        with_content_types: Whether it tells bodies apart by their content type.
    """
    statuses = [HTTP_ERRORS[code].status for code in codes]
    statuses += [413] if with_body else []
    statuses += [415] if with_content_types else []
    return {status: {"model": ErrorBody} for status in statuses}


EVERY_REFUSAL = refusals(
    ErrorCode.INVALID_ARGUMENT,
    ErrorCode.UNAUTHENTICATED,
    ErrorCode.PERMISSION_DENIED,
    ErrorCode.RESOURCE_EXHAUSTED,
    ErrorCode.INTERNAL,
    ErrorCode.UNAVAILABLE,
)
"""What every route may answer."""


def content_type_not_taken(taken: Sequence[str]) -> HTTPException:
    """Return what to raise for a body of a kind that a route does not read."""
    return HTTPException(
        http.HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"send the body with one of the content types {', '.join(taken)}"
    )


def invalid_body(error: ValidationError) -> InvalidArgumentError:
    """Return the refusal of a body that a route read by itself and that does not fit its model."""
    message, param = _first_problem(error)
    return InvalidArgumentError(message, param=param)


def error_body(error: Exception, request_id: str) -> ErrorBody:
    """Return the error object of any exception."""
    code = code_of(error)
    message = error.message if isinstance(error, MedleyError | AdapterError) else "internal error"
    param = error.param if isinstance(error, MedleyError) else None
    return _body(code, message, param, request_id)


def error_response(error: Exception, request_id: str, retry_after_s: int) -> JSONResponse:
    """Return the whole answer for any exception; unknown ones are logged with their traceback."""
    if isinstance(error, HTTPException):
        body = _body(_code_of_status(error.status_code), error.detail, None, request_id)
        return JSONResponse(body, error.status_code, error.headers)
    code = code_of(error)
    if code is ErrorCode.INTERNAL:
        _LOGGER.error("request failed", exc_info=error, extra={"request_id": request_id})
    # Sending the same file again cannot help, so a file over its limit is not "try later".
    status = 413 if isinstance(error, AdapterTooLargeError) else HTTP_ERRORS[code].status
    return JSONResponse(error_body(error, request_id), status, _headers(error, status, retry_after_s))


def install_error_handlers(app: FastAPI, retry_after_s: int) -> None:
    """Make every error of ``app`` leave as an error object."""

    async def on_known(request: Request, error: Exception) -> JSONResponse:
        return error_response(error, request.state.request_id, retry_after_s)

    async def on_validation(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        message, param = _first_problem(error)
        return JSONResponse(_body(ErrorCode.INVALID_ARGUMENT, message, param, request.state.request_id), 400)

    app.add_exception_handler(MedleyError, on_known)
    app.add_exception_handler(AdapterError, on_known)
    app.add_exception_handler(RequestValidationError, on_validation)
    app.add_exception_handler(HTTPException, on_known)


def _headers(error: Exception, status: int, retry_after_s: int) -> dict[str, str] | None:
    if status == http.HTTPStatus.UNAUTHORIZED:
        return {"www-authenticate": "Bearer"}
    if status not in _RETRY_LATER:
        return None
    known_s = error.retry_after_s if isinstance(error, ResourceExhaustedError) else None
    return {"retry-after": str(retry_after_s if known_s is None else math.ceil(known_s))}


def _body(code: ErrorCode, message: str, param: str | None, request_id: str) -> ErrorBody:
    kind = HTTP_ERRORS[code].type
    return {"error": {"message": message, "type": kind, "param": param, "code": code, "request_id": request_id}}


def _code_of_status(status: int) -> ErrorCode:
    if status == http.HTTPStatus.NOT_FOUND:
        return ErrorCode.NOT_FOUND
    if status == http.HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        return ErrorCode.RESOURCE_EXHAUSTED
    return ErrorCode.INVALID_ARGUMENT if status < 500 else ErrorCode.INTERNAL


def _first_problem(error: RequestValidationError | ValidationError) -> tuple[str, str | None]:
    problem = error.errors()[0]
    if problem["type"] == "json_invalid":
        return "the body is not valid JSON", None
    # The framework says first where it looked; in a body of its own reading a field may well be called that.
    places = _PLACES if isinstance(error, RequestValidationError) else frozenset[str]()
    place = [str(part) for index, part in enumerate(problem["loc"]) if index or part not in places]
    if not place:
        return "the body must be a JSON object, sent with content-type application/json", None
    param = ".".join(place)
    return f"{param}: {problem['msg']}", param
