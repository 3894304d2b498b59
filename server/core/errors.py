"""One closed set of error codes and the exceptions that carry them.

The tree::

    MedleyError
    ├── InvalidArgumentError      the caller sent something that can never work
    ├── UnauthenticatedError      no or bad credentials
    ├── PermissionDeniedError     known caller, not allowed
    ├── NotFoundError             no such adapter, version, alias or request
    ├── AlreadyExistsError        the name or request id is taken
    ├── FailedPreconditionError   fine in itself, but not in the present state (wrong base, not ready)
    ├── ResourceExhaustedError    a bounded queue or a size limit is full
    ├── UnavailableError          draining, not ready, or the engine died
    ├── DeadlineExceededError     the caller's deadline passed, or cannot be met any more
    ├── CancelledError            the caller went away
    └── InternalError             our own mistake

Front ends translate a code to their wire form by one table each; nothing else decides a status. This module does not
know HTTP or gRPC. ``AdapterError`` (raised by the ``adapters`` package, which knows no server) joins the same codes
through :data:`ADAPTER_ERROR_CODES`.
"""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

from adapters import errors as adapter_errors


class ErrorCode(StrEnum):
    """The closed set of reasons a request can fail with; the same words on every wire."""

    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    NOT_FOUND = "NOT_FOUND"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    FAILED_PRECONDITION = "FAILED_PRECONDITION"
    RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"
    UNAVAILABLE = "UNAVAILABLE"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    CANCELLED = "CANCELLED"
    INTERNAL = "INTERNAL"


class Refusal(StrEnum):
    """Why a request was turned away for want of room or of time, whatever it asks for; metrics count them apart."""

    ARRIVING = "arriving"
    OPEN = "open"
    QUEUE_FULL = "queue_full"
    GAVE_WAY = "gave_way"
    TOO_LONG_A_WAIT = "too_long_a_wait"
    TOO_LATE_TO_WAIT = "too_late_to_wait"
    TOO_LATE_TO_START = "too_late_to_start"


class MedleyError(Exception):
    """Base of every error the server answers with.

    Args:
        message: What went wrong and what the caller can do next; safe to show to the caller.
        param: Name of the offending request field, if one is to blame.
    """

    code: ErrorCode = ErrorCode.INTERNAL
    refusal: Refusal | None = None

    def __init__(self, message: str, *, param: str | None = None) -> None:
        """Keep the message and the field to blame."""
        super().__init__(message)
        self.message = message
        self.param = param


class InvalidArgumentError(MedleyError):
    """The request can never work as sent."""

    code = ErrorCode.INVALID_ARGUMENT


class UnauthenticatedError(MedleyError):
    """No or bad credentials."""

    code = ErrorCode.UNAUTHENTICATED


class PermissionDeniedError(MedleyError):
    """The caller is known but not allowed to do this."""

    code = ErrorCode.PERMISSION_DENIED


class NotFoundError(MedleyError):
    """No such adapter, version, alias or request."""

    code = ErrorCode.NOT_FOUND


class AlreadyExistsError(MedleyError):
    """The name or request id is taken."""

    code = ErrorCode.ALREADY_EXISTS


class FailedPreconditionError(MedleyError):
    """Well formed, but not possible in the present state."""

    code = ErrorCode.FAILED_PRECONDITION


class ResourceExhaustedError(MedleyError):
    """A bounded queue, a quota or a size limit is full; try again later or send less.

    Args:
        message: As for every error.
        param: As for every error.
        retry_after_s: When trying again may help, where that is known.
        refusal: Why, if a request was turned away.
    """

    code = ErrorCode.RESOURCE_EXHAUSTED

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: float | None = None,
        refusal: Refusal | None = None,
    ) -> None:
        """Keep what is said, and when to try again."""
        super().__init__(message, param=param)
        self.retry_after_s = retry_after_s
        self.refusal = refusal


class UnavailableError(MedleyError):
    """The server cannot take the request now: starting, draining, or its engine died."""

    code = ErrorCode.UNAVAILABLE


class DeadlineExceededError(MedleyError):
    """The caller's deadline passed before the answer was complete, or would have.

    Args:
        message: As for every error.
        param: As for every error.
        refusal: Why, if a request was turned away before its deadline.
    """

    code = ErrorCode.DEADLINE_EXCEEDED

    def __init__(self, message: str, *, param: str | None = None, refusal: Refusal | None = None) -> None:
        """Keep what is said."""
        super().__init__(message, param=param)
        self.refusal = refusal


class CancelledError(MedleyError):
    """The caller cancelled or went away."""

    code = ErrorCode.CANCELLED


class InternalError(MedleyError):
    """Our own mistake; the message says no more than a caller may know."""

    code = ErrorCode.INTERNAL


ADAPTER_ERROR_CODES: Mapping[type[adapter_errors.AdapterError], ErrorCode] = MappingProxyType(
    {
        adapter_errors.InvalidAdapterError: ErrorCode.INVALID_ARGUMENT,
        adapter_errors.InvalidAdapterReferenceError: ErrorCode.INVALID_ARGUMENT,
        adapter_errors.PromptTemplateError: ErrorCode.INVALID_ARGUMENT,
        adapter_errors.AdapterTooLargeError: ErrorCode.RESOURCE_EXHAUSTED,
        adapter_errors.WrongBaseError: ErrorCode.FAILED_PRECONDITION,
        adapter_errors.UnsupportedAdapterError: ErrorCode.FAILED_PRECONDITION,
        adapter_errors.InvalidBaseError: ErrorCode.FAILED_PRECONDITION,
        adapter_errors.AdapterNotFoundError: ErrorCode.NOT_FOUND,
        adapter_errors.AdapterNotReadyError: ErrorCode.FAILED_PRECONDITION,
        adapter_errors.AdapterInUseError: ErrorCode.FAILED_PRECONDITION,
        adapter_errors.RollbackError: ErrorCode.FAILED_PRECONDITION,
        adapter_errors.IdempotencyConflictError: ErrorCode.ALREADY_EXISTS,
        adapter_errors.SourceNotAllowedError: ErrorCode.PERMISSION_DENIED,
        adapter_errors.SourceError: ErrorCode.FAILED_PRECONDITION,
        adapter_errors.CorruptBlobError: ErrorCode.INTERNAL,
        adapter_errors.StoreError: ErrorCode.UNAVAILABLE,
    }
)


def code_of(error: Exception) -> ErrorCode:
    """Return the code an exception answers with; anything we do not know is ``INTERNAL``."""
    if isinstance(error, MedleyError):
        return error.code
    for kind in type(error).__mro__:
        if kind in ADAPTER_ERROR_CODES:
            return ADAPTER_ERROR_CODES[kind]
    return ErrorCode.INTERNAL
