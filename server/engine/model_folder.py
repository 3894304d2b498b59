"""Where a base model's files are on local disk. Imports no torch."""

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from server.core.errors import FailedPreconditionError

_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
# In this order: a hub model behind a gate counts as not found, too.
_REASONS: tuple[tuple[type[Exception], str], ...] = (
    (GatedRepoError, "its owner lets in only those who asked: accept its terms on the hub and set HF_TOKEN"),
    (RepositoryNotFoundError, "the hub has no model of this name, or HF_TOKEN may not see it"),
    (HFValidationError, "it is no hub id either"),
    (LocalEntryNotFoundError, "the hub cannot be reached, and it was not fetched whole before"),
)


def model_folder(model: str, only: Sequence[str] = _FILES) -> Path:
    """Return the folder of a model: itself, or the local snapshot of a hub id, fetched if need be.

    Args:
        model: A folder or a hub id.
        only: Patterns of the files that are needed; a hub model's others may be missing.

    Raises:
        FailedPreconditionError: If there is no such folder and the hub does not give it; the message says why.
    """
    folder = Path(model)
    if folder.is_dir():
        return folder
    try:
        return Path(snapshot_download(model, allow_patterns=list(only)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = next((reason for kind, reason in _REASONS if isinstance(error, kind)), str(error))
        raise FailedPreconditionError(f"model {model!r} is no folder here, and {reason}") from error
