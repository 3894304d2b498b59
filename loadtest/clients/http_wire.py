"""The HTTP answers this client reads, checked as they are parsed. Fields it does not need are left alone."""

from pydantic import BaseModel

from loadtest.clients.base import AdapterVersion, ServerTimings, SummaryAnswer


class AdapterUseBody(BaseModel):
    """Which adapter version served a request."""

    name: str
    version: int


class UsageBody(BaseModel):
    """Token counts."""

    prompt_tokens: int
    completion_tokens: int


class TimingsBody(BaseModel):
    """Durations the server measured, in milliseconds."""

    queue_ms: float
    ttft_ms: float
    e2e_ms: float


class EndBody(BaseModel):
    """What every whole answer and every last event carries."""

    request_id: str
    adapters: list[AdapterUseBody] = []
    finish_reason: str
    usage: UsageBody
    timings: TimingsBody
    scores: dict[str, float] | None = None

    def answer(self, summary: str, adapters: list[AdapterUseBody]) -> SummaryAnswer:
        """Return the answer as both clients hand it over."""
        return SummaryAnswer(
            request_id=self.request_id,
            summary=summary,
            adapters=tuple(f"{use.name}:{use.version}" for use in adapters),
            finish_reason=self.finish_reason,
            num_prompt_tokens=self.usage.prompt_tokens,
            num_output_tokens=self.usage.completion_tokens,
            timings=ServerTimings(self.timings.queue_ms, self.timings.ttft_ms, self.timings.e2e_ms),
            scores=self.scores or {},
        )


class SummaryBody(EndBody):
    """The answer of ``POST /v1/summarize`` without streaming."""

    summary: str


class ErrorBody(BaseModel):
    """The error object, as OpenAI defines it."""

    code: str
    message: str


class EventBody(BaseModel):
    """One server-sent event of a streamed summary; the last has a finish reason and everything of ``EndBody``."""

    delta: str = ""
    adapters: list[AdapterUseBody] | None = None
    finish_reason: str | None = None
    error: ErrorBody | None = None


class ErrorAnswer(BaseModel):
    """The body of a refused request."""

    error: ErrorBody


class ScoresBody(BaseModel):
    """The answer of ``POST /v1/references``."""

    scores: dict[str, float]


class VersionBody(BaseModel):
    """One adapter version."""

    name: str
    version: int
    digest: str
    kind: str
    state: str

    def version_of(self) -> AdapterVersion:
        """Return the version as both clients hand it over."""
        return AdapterVersion(self.name, self.version, self.digest, self.kind, self.state)


class AdapterBody(BaseModel):
    """One adapter with its versions."""

    versions: list[VersionBody]


class AdaptersBody(BaseModel):
    """The answer of ``GET /v1/adapters``."""

    adapters: list[AdapterBody]
