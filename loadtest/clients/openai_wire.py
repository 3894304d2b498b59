"""The answers of OpenAI's routes that the client reads. Fields it does not need are left alone.

Source:
    https://platform.openai.com/docs/api-reference (completions, chat, models).
"""

from pydantic import BaseModel, Field


class Usage(BaseModel):
    """Token counts."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


class Message(BaseModel):
    """A message, or what a piece adds to it."""

    content: str | None = None


class Choice(BaseModel):
    """One answer, or a piece of one; text stands in another place on each route."""

    text: str | None = None
    message: Message | None = None
    delta: Message | None = None
    finish_reason: str | None = None

    @property
    def content(self) -> str:
        """The text, wherever it stands."""
        said = self.message or self.delta
        return self.text or (said.content if said else None) or ""


class Error(BaseModel):
    """An error; servers differ in what they put into ``code``."""

    message: str = ""
    code: str | int | None = None
    type: str | None = None


class Answer(BaseModel):
    """A whole answer, or one event of a stream."""

    id: str = ""
    choices: list[Choice] = Field(default_factory=list)
    usage: Usage | None = None
    error: Error | None = None


class Refusal(BaseModel):
    """The body of a refused request."""

    error: Error


class Model(BaseModel):
    """One entry of the list of models."""

    id: str


class Models(BaseModel):
    """The answer of ``GET /v1/models``."""

    data: list[Model]
