"""What the service needs of the base beside the engine: its tokenizer and its templates. Knows no weights.

Source:
    transformers 5.19 ``tokenization_utils_base.py``: where a chat template and the special tokens' names are looked
    for, and which place goes before which.
"""

from dataclasses import dataclass
from pathlib import Path

from adapters.errors import AdapterError
from adapters.manifest import MANIFEST_FILE
from adapters.prompting import DEFAULT_TEMPLATE, check_template
from adapters.strict_json import parse_object
from server.core.errors import FailedPreconditionError
from server.engine.model_folder import model_folder
from server.service.chat import ChatTemplate
from server.service.tokenizer import ByteTokenizer, FileTokenizer, Tokenizer

_TOKENIZER_FILE = "tokenizer.json"
_TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
_SPECIAL_TOKENS_FILE = "special_tokens_map.json"
_CHAT_TEMPLATE_FILE = "chat_template.jinja"
_FILES = (_TOKENIZER_FILE, _TOKENIZER_CONFIG_FILE, _SPECIAL_TOKENS_FILE, _CHAT_TEMPLATE_FILE, MANIFEST_FILE)


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
    """Read the tokenizer and the templates of a base.

    Args:
        model: A model folder or a hub id; empty means the toy base of the fake engine, which speaks bytes.

    Raises:
        FailedPreconditionError: If there is no such model, it has no ``tokenizer.json``, or its chat template or
            ``tokenizer_config.json`` is malformed.
        AdapterError: If ``medley.json`` is malformed.
    """
    if not model:
        return BaseText(ByteTokenizer(), "{{ text }}")
    folder = model_folder(model, only=_FILES)
    tokenizer = folder / _TOKENIZER_FILE
    if not tokenizer.is_file():
        raise FailedPreconditionError(
            f"{model} has no {_TOKENIZER_FILE}; transformers makes one of older kinds of tokenizers: "
            "AutoTokenizer.from_pretrained(…).save_pretrained(FOLDER)"
        )
    return BaseText(FileTokenizer(tokenizer), _prompt_template(folder / MANIFEST_FILE), _chat_template(folder))


def _prompt_template(card: Path) -> str:
    if not card.is_file():
        return DEFAULT_TEMPLATE
    template = str(parse_object(card.read_bytes(), MANIFEST_FILE).get("prompt_template") or DEFAULT_TEMPLATE)
    check_template(template)
    return template


def _chat_template(folder: Path) -> ChatTemplate | None:
    config = _read(folder / _TOKENIZER_CONFIG_FILE)
    file = folder / _CHAT_TEMPLATE_FILE
    try:
        source = file.read_text("utf-8") if file.is_file() else _default_of(config.get("chat_template"))
    except (OSError, UnicodeDecodeError) as error:
        raise FailedPreconditionError(f"cannot read the base's {_CHAT_TEMPLATE_FILE}: {error}") from error
    if not source:
        return None
    special_tokens = _special_tokens(config)
    if "added_tokens_decoder" not in config:
        special_tokens |= _special_tokens(_read(folder / _SPECIAL_TOKENS_FILE))
    return ChatTemplate(source, special_tokens)


def _default_of(templates: object) -> str | None:
    """Return the chat template for conversations without tools: the only one, or that of the name ``default``."""
    if templates is None or isinstance(templates, str):
        return templates
    named = {
        str(each.get("name")): each.get("template")
        for each in (templates if isinstance(templates, list) else [templates])
        if isinstance(each, dict)
    }
    if not named or not all(isinstance(template, str) for template in named.values()):
        raise FailedPreconditionError(
            f"chat_template in {_TOKENIZER_CONFIG_FILE} must be text or a list of named texts"
        )
    return named.get("default")


def _special_tokens(config: dict[str, object]) -> dict[str, str]:
    """Return the tokens that a configuration names, as ``bos_token``: each text, or an object with its ``content``."""
    contents = {
        name: token.get("content") if isinstance(token, dict) else token
        for name, token in config.items()
        if name.endswith("_token")
    }
    return {name: content for name, content in contents.items() if isinstance(content, str)}


def _read(file: Path) -> dict[str, object]:
    if not file.is_file():
        return {}
    try:
        return parse_object(file.read_bytes(), file.name)
    except (OSError, AdapterError) as error:
        raise FailedPreconditionError(f"cannot read the base's {file.name}: {error}") from error
