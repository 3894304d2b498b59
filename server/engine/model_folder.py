"""Where a base model's files are on local disk. Imports no torch."""

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from server.core.errors import FailedPreconditionError

_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]


def model_folder(model: str) -> Path:
    """Return the folder of a model: itself, or the local snapshot of a hub id, fetched if need be.

    Raises:
        FailedPreconditionError: If there is no such folder and the hub does not give it.
    """
    folder = Path(model)
    if folder.is_dir():
        return folder
    try:
        return Path(snapshot_download(model, allow_patterns=_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise FailedPreconditionError(f"model {model!r} is neither a folder nor available from the hub") from error
