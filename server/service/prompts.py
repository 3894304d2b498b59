"""From what the caller wrote to the tokens the engine is given: text, token ids or a conversation.

Knows no engine: what it needs of the base it is told. Event loop's thread only; long texts are read in threads.
"""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from adapters import prompting
from adapters.manifest import AdapterRole
from server.core.errors import InvalidArgumentError
from server.core.request import Conversation, GenerationRequest
from server.service.chat import ChatTemplate
from server.service.directory import ServableAdapter
from server.service.tokenizer import Tokenizer

_MAX_NUM_TOKENIZING = 4


@dataclass(frozen=True, slots=True)
class BaseSpeech:
    """How the base is spoken to.

    Attributes:
        tokenizer: Its tokenizer.
        prompt_template: Wraps a text when the adapter brings no template of its own.
        chat_template: Makes a prompt of a conversation; None where the base was not made for any.
        vocab_size: Token ids are below.
        is_continued: Whether an answer is the prompt's continuation, rather than a text of its own.
    """

    tokenizer: Tokenizer
    prompt_template: str
    chat_template: ChatTemplate | None
    vocab_size: int
    is_continued: bool


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt as the engine is given it.

    Attributes:
        token_ids: Its tokens, not empty.
        text: Its text; None where the caller gave token ids.
    """

    token_ids: tuple[int, ...]
    text: str | None


class PromptReader:
    """Reads prompts.

    Args:
        speech: How the base is spoken to.
        max_text_chars: Longest text looked at; longer ones are refused unread.
        inline_text_chars: Longest text read on the event loop; longer ones go to a thread.
        max_num_tokens: Longest list of token ids looked at.
    """

    def __init__(self, speech: BaseSpeech, *, max_text_chars: int, inline_text_chars: int, max_num_tokens: int) -> None:
        """Keep the parts."""
        self._speech = speech
        self._max_text_chars = max_text_chars
        self._inline_text_chars = inline_text_chars
        self._max_num_tokens = max_num_tokens
        # Its own: in the common one, changes may wait for a database that does not answer.
        self._pool = ThreadPoolExecutor(_MAX_NUM_TOKENIZING, thread_name_prefix="tokenize")

    def check(self, request: GenerationRequest) -> None:
        """Refuse prompts that can be refused without reading them.

        Raises:
            InvalidArgumentError: If the prompt is missing, too long, no valid Unicode or not in the vocabulary.
        """
        if request.prompt_token_ids:
            self._check_token_ids(request.prompt_token_ids)
            return
        if request.conversation is not None and self._speech.chat_template is None:
            _check_plain(request.conversation)
        texts, param = _texts(request)
        num_chars = sum(map(len, texts))
        if num_chars > self._max_text_chars:
            raise InvalidArgumentError(
                f"the text has {num_chars} characters; at most {self._max_text_chars} are taken", param=param
            )
        # What is continued as it is may well be a space.
        is_raw = self._speech.is_continued and not request.apply_template and request.conversation is None
        if not is_raw and not any(text.strip() for text in texts):
            raise InvalidArgumentError("the text is empty", param=param)
        for text in texts:
            check_unicode(text, param)

    async def read(self, request: GenerationRequest, adapters: Sequence[ServableAdapter]) -> Prompt:
        """Return the prompt of a request that :meth:`check` let pass.

        Raises:
            InvalidArgumentError: If it comes to nothing, or the chat template refuses the conversation.
        """
        if request.prompt_token_ids:
            return Prompt(request.prompt_token_ids, None)
        read = partial(self._read_text, request, adapters)
        if sum(map(len, _texts(request)[0])) <= self._inline_text_chars:
            return read()
        return await asyncio.get_running_loop().run_in_executor(self._pool, read)

    def _read_text(self, request: GenerationRequest, adapters: Sequence[ServableAdapter]) -> Prompt:
        speech, add_special_tokens = self._speech, request.add_special_tokens
        if request.conversation is not None and speech.chat_template is not None:
            text = speech.chat_template.render(request.conversation, max_chars=2 * self._max_text_chars)
            add_special_tokens = False
        else:
            text = self._wrapped(request, adapters)
        token_ids = tuple(speech.tokenizer.encode(text, add_special_tokens=add_special_tokens))
        if not token_ids:
            raise InvalidArgumentError("the text is empty", param=_texts(request)[1])
        return Prompt(token_ids, text)

    def _wrapped(self, request: GenerationRequest, adapters: Sequence[ServableAdapter]) -> str:
        text = request.text if request.conversation is None else _joined(request.conversation)
        if not request.apply_template:
            return text
        # Weights before prompt: the weight adapter's template wins, whatever the order in the request.
        by_role = sorted(adapters, key=lambda adapter: list(AdapterRole).index(adapter.resolved.kind.role))
        own = (adapter.prompt_template for adapter in by_role if adapter.prompt_template)
        return prompting.render(next(own, self._speech.prompt_template), text)

    def _check_token_ids(self, token_ids: Sequence[int]) -> None:
        if len(token_ids) > self._max_num_tokens:
            raise InvalidArgumentError(
                f"the prompt has {len(token_ids)} tokens; at most {self._max_num_tokens} fit", param="prompt_token_ids"
            )
        if min(token_ids) < 0 or max(token_ids) >= self._speech.vocab_size:
            raise InvalidArgumentError(
                f"a token of the prompt is not in the vocabulary; ids are 0 to {self._speech.vocab_size - 1}",
                param="prompt_token_ids",
            )


def check_unicode(text: str, param: str) -> None:
    """Refuse text with lone surrogates, which JSON can carry and no tokenizer can encode.

    Raises:
        InvalidArgumentError: If there are any.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidArgumentError(f"{param} is not valid Unicode", param=param) from None


def _check_plain(conversation: Conversation) -> None:
    """Refuse what only a chat template understands."""
    asked = {
        "continue_final_message": conversation.continue_final_message,
        "add_generation_prompt": not conversation.add_generation_prompt,
        "chat_template_kwargs": bool(conversation.template_kwargs),
    }
    for param, is_asked in asked.items():
        if is_asked:
            raise InvalidArgumentError(f"this base has no chat template, so {param} means nothing", param=param)


def _texts(request: GenerationRequest) -> tuple[tuple[str, ...], str]:
    """Return the caller's words, and the field they came in."""
    if request.conversation is None:
        return (request.text,), "text"
    return tuple(message.content for message in request.conversation.messages), "messages"


def _joined(conversation: Conversation) -> str:
    return "\n".join(message.content for message in conversation.messages)
