"""What the service needs of the base beside the engine: its tokenizer and its prompt template. Knows no weights."""

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from adapters.manifest import MANIFEST_FILE
from adapters.prompting import DEFAULT_TEMPLATE, check_template
from adapters.strict_json import parse_object
from server.core.errors import FailedPreconditionError
from server.service.chat import ChatTemplate
from server.service.tokenizer import ByteTokenizer, FileTokenizer, Tokenizer

_TOKENIZER_FILE = "tokenizer.json"


@dataclass(frozen=True, slots=True)
class BaseText:
    """How the base reads and is spoken to.

    Attributes:
        tokenizer: Its tokenizer.
        prompt_template: Wraps a text when the adapter brings no template of its own.
        chat_template: Makes a prompt of a conversation; None where the base was not made for any.
    """

    tokenizer: Tokenizer
    prompt_template: str
    chat_template: ChatTemplate | None = None


def read_base_text(model: str) -> BaseText:
    """Read the tokenizer and the template of a base.

    Args:
        model: A model folder or a hub id; empty means the toy base of the fake engine, which speaks bytes.

    Raises:
        FailedPreconditionError: If there is no such folder and the hub cannot give its tokenizer.
        AdapterError: If ``medley.json`` is malformed.
    """
    if not model:
        return BaseText(ByteTokenizer(), "{{ text }}")
    folder = Path(model)
    if not folder.is_dir():
        return BaseText(FileTokenizer(_from_hub(model)), DEFAULT_TEMPLATE)
    return BaseText(FileTokenizer(folder / _TOKENIZER_FILE), _template(folder / MANIFEST_FILE))


def _template(card: Path) -> str:
    if not card.is_file():
        return DEFAULT_TEMPLATE
    template = str(parse_object(card.read_bytes(), MANIFEST_FILE).get("prompt_template") or DEFAULT_TEMPLATE)
    check_template(template)
    return template


def _from_hub(model: str) -> Path:
    try:
        return Path(hf_hub_download(model, _TOKENIZER_FILE))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise FailedPreconditionError(
            f"there is no model folder {model!r}, and the hub gives no tokenizer for a model of this name"
        ) from error
