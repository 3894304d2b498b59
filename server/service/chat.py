"""A base's chat template: from a conversation to the text that is its prompt, as ``transformers`` renders it.

The template comes with the model, so it is the operator's choice; it runs in Jinja's sandbox nevertheless, and what it
writes is bounded. Callers' words are values to it and never read as template. Knows no tokens. Any thread.

Source:
    transformers 5.19 ``utils/chat_template_utils.py``: the environment, the names a template may use, and how a last
    message is continued.
"""

import json
from collections.abc import Callable, Mapping
from datetime import datetime

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from adapters.strict_json import show
from server.core.errors import FailedPreconditionError, InvalidArgumentError
from server.core.request import Conversation

MAX_CHAT_TEMPLATE_CHARS = 1_000_000
_OWN_NAMES = frozenset({"messages", "tools", "documents", "add_generation_prompt"})
# Behind it stands a space, so that one sees whether the template strips what it is given.
_END_MARK = "\ue000end of the last message\ue000"
# What a template can run into when it is given words it was not made for.
_RENDER_ERRORS = (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError)


class _Generation(Extension):
    """``{% generation %}``: marks the assistant's words for those who train; renders what is inside."""

    tags = {"generation"}  # noqa: RUF012 -- as Jinja declares it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_inside"), [], [], body).set_lineno(line)

    def _inside(self, caller: Callable[[], str]) -> str:
        return caller()


class ChatTemplate:
    """A chat template.

    Args:
        source: The template's text.
        special_tokens: Names such as ``bos_token`` and what they stand for.

    Raises:
        FailedPreconditionError: If it is too long or does not parse.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """Compile the template."""
        if len(source) > MAX_CHAT_TEMPLATE_CHARS:
            raise FailedPreconditionError(f"the chat template has over {MAX_CHAT_TEMPLATE_CHARS} characters")
        try:
            self._template = _environment().from_string(source)
        except (TemplateError, RecursionError) as error:
            raise FailedPreconditionError(f"the chat template does not parse: {show(str(error))}") from error
        self._special_tokens = dict(special_tokens)
        # OpenAI's newer word for system; templates that were written before it refuse it, or lose what it says.
        self._role_of = {} if "developer" in source else {"developer": "system"}

    def render(self, conversation: Conversation, *, max_chars: int) -> str:
        """Return a conversation's prompt.

        Args:
            conversation: The conversation.
            max_chars: Longest prompt to write.

        Raises:
            InvalidArgumentError: If the template refuses it, or the prompt gets too long.
        """
        if taken := sorted(_OWN_NAMES & conversation.template_kwargs.keys()):
            raise InvalidArgumentError(f"{taken[0]} has a field of its own", param="chat_template_kwargs")
        messages = [
            {"role": self._role_of.get(message.role, message.role), "content": message.content}
            for message in conversation.messages
        ]
        if not conversation.continue_final_message:
            return self._render(conversation, messages, max_chars)
        messages[-1]["content"] += _END_MARK + " "
        before, mark, after = self._render(conversation, messages, max_chars).rpartition(_END_MARK)
        if not mark:
            raise InvalidArgumentError(
                "the chat template does not show the last message as it is, so it cannot be continued",
                param="continue_final_message",
            )
        return before if after.startswith(" ") else before.rstrip()

    def _render(self, conversation: Conversation, messages: list[dict[str, str]], max_chars: int) -> str:
        names = {
            **self._special_tokens,
            **conversation.template_kwargs,
            "messages": messages,
            "tools": None,
            "documents": None,
            "add_generation_prompt": conversation.add_generation_prompt,
        }
        pieces: list[str] = []
        num_chars = 0
        try:
            for piece in self._template.generate(names):
                pieces.append(piece)
                num_chars += len(piece)
                if num_chars > max_chars:
                    raise InvalidArgumentError(
                        f"the conversation comes to over {max_chars} characters", param="messages"
                    )
        except _RENDER_ERRORS as error:
            raise InvalidArgumentError(
                f"the chat template does not take this conversation: {show(str(error))}", param="messages"
            ) from error
        return "".join(pieces)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols], autoescape=False
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _to_json(
    # In this order, as templates may give them by place.
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().astimezone().strftime(pattern)
