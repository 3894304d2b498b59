"""What can be wrong with an adapter, its name, its bytes or its place.

The tree::

    AdapterError
    ├── InvalidAdapterError            files that break the format: truncated, wrong shapes, NaN, unknown keys
    │   ├── UnsupportedAdapterError    a sound file of a family this server cannot serve per request
    │   └── WrongBaseError             a sound adapter for another base model
    ├── AdapterTooLargeError           over a size, rank or count limit
    ├── InvalidAdapterReferenceError   a name, version or alias that is not well formed
    ├── AdapterNotFoundError           no such name, version or alias
    ├── AdapterNotReadyError           known, but still uploading, or refused, or retired
    ├── AdapterInUseError              an alias or a running request holds the version
    ├── RollbackError                  an alias without an earlier target
    ├── IdempotencyConflictError       an idempotency key used before for something else
    ├── SourceNotAllowedError          a source the operator has not allowed
    ├── SourceError                    an allowed source that cannot be fetched
    ├── PromptTemplateError            a prompt template that does not render
    ├── InvalidBaseError               a base model's folder that cannot be read
    ├── StoreError                     the store cannot be read or written
    └── CorruptBlobError               bytes that no longer match their digest

This package knows no server: codes and statuses are given to these classes in ``server.core.errors``.
"""


class AdapterError(Exception):
    """Base of every adapter error.

    Args:
        message: What went wrong and what to do next; safe to show to the caller.
    """

    def __init__(self, message: str) -> None:
        """Keep the message."""
        super().__init__(message)
        self.message = message


class InvalidAdapterError(AdapterError):
    """The files break the adapter format."""


class UnsupportedAdapterError(InvalidAdapterError):
    """A sound file of an adapter family that cannot be served per request."""


class WrongBaseError(InvalidAdapterError):
    """A sound adapter, made for another base model."""


class AdapterTooLargeError(AdapterError):
    """Over a limit of size, rank, number of virtual tokens or number of files."""


class InvalidAdapterReferenceError(AdapterError):
    """A name, version or alias that is not well formed."""


class AdapterNotFoundError(AdapterError):
    """No such adapter name, version or alias."""


class AdapterNotReadyError(AdapterError):
    """The version is known but not ready to serve."""


class AdapterInUseError(AdapterError):
    """An alias or a running request holds the version, so it cannot be deleted."""


class RollbackError(AdapterError):
    """The alias has no earlier target that is still ready."""


class IdempotencyConflictError(AdapterError):
    """The idempotency key was used before, for another change."""


class SourceNotAllowedError(AdapterError):
    """The operator has not allowed uploads from this source."""


class SourceError(AdapterError):
    """An allowed source that cannot be fetched."""


class PromptTemplateError(AdapterError):
    """A prompt template that does not parse or render."""


class InvalidBaseError(AdapterError):
    """A base model's folder that is incomplete, malformed or of a kind Medley does not know."""


class StoreError(AdapterError):
    """The store cannot be read or written."""


class CorruptBlobError(AdapterError):
    """Stored bytes no longer match their digest."""
