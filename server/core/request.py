"""What a caller asks for, free of any protocol."""

import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from server.core.errors import InvalidArgumentError
from server.core.sampling import SamplingParams

REQUEST_ID_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}"
_REQUEST_ID = re.compile(REQUEST_ID_PATTERN)
MAX_REFERENCES = 16
FIRST_PRIORITY, LAST_PRIORITY = -2, 2
"""The classes of requests, of which the smaller are served earlier; 0 is what a request has that says nothing."""


class Echo(StrEnum):
    """Whether the answer begins with the prompt, or is nothing else: then no token of an answer is reported."""

    NO = "no"
    BEFORE = "before"
    ONLY = "only"


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a chat template is filled with.

    Attributes:
        messages: The turns, oldest first, not empty.
        add_generation_prompt: Whether the answer's turn is opened behind them.
        continue_final_message: Whether the answer goes on with the last turn instead of opening one.
        template_kwargs: Further names the template knows, as ``enable_thinking``; values are JSON's.

    Raises:
        InvalidArgumentError: If there are no messages, or the last turn is to be continued and another one opened.
    """

    messages: tuple[Message, ...]
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    template_kwargs: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what no template can make a prompt of."""
        if not self.messages:
            raise InvalidArgumentError("there are no messages", param="messages")
        if self.continue_final_message and self.add_generation_prompt:
            raise InvalidArgumentError(
                "continue_final_message needs add_generation_prompt to be false", param="continue_final_message"
            )


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One user call. The prompt is given as a text, as token ids, or as a conversation.

    Attributes:
        request_id: The caller's id or one drawn by the front end: letters, digits and ``._:-``, at most 128.
        text: The user's text; the prompt itself when ``apply_template`` is false.
        prompt_token_ids: The prompt itself; empty where it is given otherwise.
        conversation: What the base's chat template turns into the prompt, or None. Where the base has none, the
            messages' texts, one under the other, go into the prompt template as ``text`` does.
        echo: Whether the answer begins with the prompt.
        adapters: Adapter references as the caller wrote them; empty means the base.
        sampling: How to choose tokens.
        apply_template: Whether the adapter's (else the base's) prompt template wraps ``text``.
        stream: Whether the answer is read as it comes.
        add_special_tokens: Whether ``text`` gets the tokens that the model expects around every text. Token ids get
            none, and a chat template writes its own.
        references: Reference texts to score the answer against; empty means no scoring.
        deadline_s: Monotonic time (``time.monotonic``) by which the answer must be complete, or None.
        routing_key: Requests with the same key stay on the same side of a rollout, as those of one user; empty for
            any side.
        priority: Its class in the queue, from ``FIRST_PRIORITY`` to ``LAST_PRIORITY``.

    Raises:
        InvalidArgumentError: If the id, the number of references or the priority is out of range.
    """

    request_id: str
    text: str = ""
    prompt_token_ids: tuple[int, ...] = ()
    conversation: Conversation | None = None
    echo: Echo = Echo.NO
    adapters: tuple[str, ...] = ()
    sampling: SamplingParams = field(default_factory=SamplingParams)
    apply_template: bool = True
    stream: bool = False
    add_special_tokens: bool = True
    references: tuple[str, ...] = ()
    deadline_s: float | None = None
    routing_key: str = ""
    priority: int = 0

    def __post_init__(self) -> None:
        """Refuse ids that could confuse logs or headers, floods of references, and classes that are none."""
        check_request_id(self.request_id)
        if len(self.references) > MAX_REFERENCES:
            raise InvalidArgumentError(f"at most {MAX_REFERENCES} references", param="references")
        if not FIRST_PRIORITY <= self.priority <= LAST_PRIORITY:
            raise InvalidArgumentError(
                f"priority is {FIRST_PRIORITY} (first) to {LAST_PRIORITY} (last)", param="priority"
            )


def check_request_id(request_id: str) -> str:
    """Return ``request_id`` if it may be one.

    Raises:
        InvalidArgumentError: Unless it is well formed.
    """
    if not _REQUEST_ID.fullmatch(request_id):
        raise InvalidArgumentError(
            "request_id must be 1 to 128 letters, digits or ._:- and start with a letter or digit",
            param="request_id",
        )
    return request_id


def new_request_id() -> str:
    """Return an id for a request whose caller gave none."""
    return uuid.uuid4().hex
