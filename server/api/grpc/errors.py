"""Errors on the gRPC wire: one table from code to status, the message, and the code and request id as trailers."""

import asyncio
import logging
import math
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from types import MappingProxyType

import grpc
from grpc import aio

from adapters.errors import AdapterError
from server.core.errors import ErrorCode, MedleyError, ResourceExhaustedError, code_of

_LOGGER = logging.getLogger(__name__)
REQUEST_ID_KEY = "medley-request-id"
CODE_KEY = "medley-code"
PARAM_KEY = "medley-param"
_MAX_HEARD_S = 1.0
_MAX_NUM_HEARD = 64
_MAX_ENDING_S = 5.0
RETRY_AFTER_KEY = "retry-after-ms"

GRPC_STATUSES: Mapping[ErrorCode, grpc.StatusCode] = MappingProxyType(
    {
        ErrorCode.INVALID_ARGUMENT: grpc.StatusCode.INVALID_ARGUMENT,
        ErrorCode.UNAUTHENTICATED: grpc.StatusCode.UNAUTHENTICATED,
        ErrorCode.PERMISSION_DENIED: grpc.StatusCode.PERMISSION_DENIED,
        ErrorCode.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
        ErrorCode.ALREADY_EXISTS: grpc.StatusCode.ALREADY_EXISTS,
        ErrorCode.FAILED_PRECONDITION: grpc.StatusCode.FAILED_PRECONDITION,
        ErrorCode.RESOURCE_EXHAUSTED: grpc.StatusCode.RESOURCE_EXHAUSTED,
        ErrorCode.UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
        ErrorCode.DEADLINE_EXCEEDED: grpc.StatusCode.DEADLINE_EXCEEDED,
        ErrorCode.CANCELLED: grpc.StatusCode.CANCELLED,
        ErrorCode.INTERNAL: grpc.StatusCode.INTERNAL,
    }
)

Context = aio.ServicerContext[object, object]


@asynccontextmanager
async def answering(
    context: Context, request_id: str = "", *, messages: AsyncIterable[object] | None = None
) -> AsyncIterator[None]:
    """End the call with the right status when the block raises; unknown errors say no more than "internal error".

    Args:
        context: The call.
        request_id: For the trailers.
        messages: What the caller streams. It is heard out for a moment, as one that still writes when the call ends may
            see a broken stream instead of the reason.
    """
    try:
        yield
    except aio.AbortError:
        raise
    except Exception as error:
        code = code_of(error)
        message = error.message if isinstance(error, MedleyError | AdapterError) else "internal error"
        if code is ErrorCode.INTERNAL:
            _LOGGER.error("call failed", exc_info=error, extra={"request_id": request_id})
        if messages is not None:
            await _hear_out(messages)
        await _abort(context, GRPC_STATUSES[code], message, _trailers(error, code, request_id))


async def _abort(
    context: Context, status: grpc.StatusCode, message: str, trailers: tuple[tuple[str, str], ...]
) -> None:
    """End a call.

    Raises:
        aio.AbortError: As the library wants it to be.
        asyncio.CancelledError: If the caller takes nothing any more, not even the status, which comes behind all that
            it has not taken yet. The library then breaks the call off.
    """
    try:
        async with asyncio.timeout(_MAX_ENDING_S):
            await context.abort(status, message, trailers)
    except (TimeoutError, aio.InternalError) as error:
        raise asyncio.CancelledError("the caller does not take the status") from error


async def _hear_out(messages: AsyncIterable[object]) -> None:
    num_left = _MAX_NUM_HEARD
    with suppress(AdapterError, MedleyError, TimeoutError):
        async with asyncio.timeout(_MAX_HEARD_S):
            async for _ in messages:
                num_left -= 1
                if not num_left:
                    return


def _trailers(error: Exception, code: ErrorCode, request_id: str) -> tuple[tuple[str, str], ...]:
    trailers = [(CODE_KEY, str(code))]
    # An id that was refused might hold characters a header cannot.
    if request_id.isascii() and request_id.isprintable() and request_id:
        trailers.append((REQUEST_ID_KEY, request_id))
    if isinstance(error, MedleyError) and error.param is not None:
        trailers.append((PARAM_KEY, error.param))
    if isinstance(error, ResourceExhaustedError) and error.retry_after_s is not None:
        trailers.append((RETRY_AFTER_KEY, str(math.ceil(error.retry_after_s * 1000))))
    return tuple(trailers)
