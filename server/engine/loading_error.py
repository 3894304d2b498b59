"""What a request is told whose adapter could not be loaded, whichever engine tried. Any thread."""

from adapters.errors import AdapterError
from server.core.errors import ErrorCode, FailedPreconditionError, InternalError, MedleyError, code_of


def loading_error(error: Exception) -> MedleyError:
    """Return the error of a request whose adapter could not be loaded."""
    if isinstance(error, MedleyError):
        return error
    if not isinstance(error, AdapterError):
        return InternalError("the adapter could not be loaded")
    code = code_of(error)
    kinds: dict[ErrorCode, type[MedleyError]] = {kind.code: kind for kind in MedleyError.__subclasses__()}
    return kinds.get(code, FailedPreconditionError)(error.message)
