"""How one request ended, told to evaluation exactly once. Used from the event loop's thread only."""

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future

from adapters.scoring.plugins import joined_metrics
from server.core.errors import ErrorCode
from server.core.outputs import GenerationChunk
from server.core.request import GenerationRequest
from server.evaluation.outcome import OK, Outcome
from server.evaluation.records import hash_text
from server.observability.adapter_labels import BASE
from server.service.directory import ServableAdapter
from server.service.feedback import FeedbackService


class Ending:
    """The end of one request.

    Args:
        feedback: Whom to tell.
        request: The request.
        who: Who asked.
        adapters: What serves it.
        num_prompt_tokens: Of the rendered prompt.
        accepted_s: Monotonic time of acceptance.
    """

    def __init__(
        self,
        feedback: FeedbackService,
        request: GenerationRequest,
        *,
        who: str,
        adapters: Sequence[ServableAdapter],
        num_prompt_tokens: int,
        accepted_s: float,
    ) -> None:
        """Begin before the end."""
        self._feedback = feedback
        self._request = request
        self._who = who
        self._adapters = sorted(adapters, key=lambda adapter: adapter.use.name)
        self._num_prompt_tokens = num_prompt_tokens
        self._accepted_s = accepted_s
        self._is_told = False

    def finished(self, text: str, terminal: GenerationChunk) -> "Future[Mapping[str, float]] | None":
        """Tell of a good answer and return its scores to come, if any were asked for."""
        return self._tell(terminal, text, self._request.references)

    def closed(self, terminal: GenerationChunk | None) -> None:
        """Tell of any other end: a failure, or a caller who went away, be it before the last word of a good answer."""
        if not self._is_told:
            self._tell(None if terminal is None or terminal.error is None else terminal)

    def _tell(
        self, terminal: GenerationChunk | None, text: str = "", references: Sequence[str] = ()
    ) -> "Future[Mapping[str, float]] | None":
        self._is_told = True
        source = source_of(self._request)
        metrics = joined_metrics(adapter.metrics for adapter in self._adapters)
        return self._feedback.ended(self._outcome(terminal, text, source), source, references, metrics)

    def _outcome(self, terminal: GenerationChunk | None, text: str, source: str) -> Outcome:
        uses = [adapter.use for adapter in self._adapters]
        timings = None if terminal is None else terminal.timings
        num_tokens = 0 if terminal is None or terminal.usage is None else terminal.usage.num_completion_tokens
        return Outcome(
            request_id=self._request.request_id,
            who=self._who,
            adapters="+".join(f"{use.name}:{use.version}" for use in uses) or BASE,
            digests=tuple(use.digest for use in uses),
            code=_code(terminal),
            input_sha256=hash_text(source or " ".join(map(str, self._request.prompt_token_ids))),
            num_prompt_tokens=self._num_prompt_tokens,
            num_completion_tokens=num_tokens,
            ttft_s=timings.ttft_ms / 1e3 if timings is not None and num_tokens else None,
            e2e_s=time.monotonic() - self._accepted_s if timings is None else timings.e2e_ms / 1e3,
            finished_s=time.time(),
            text=text,
            rollout=next((each.rollout for each in self._adapters if each.rollout is not None), None),
        )


def source_of(request: GenerationRequest) -> str:
    """Return the caller's own words: the text, or a conversation's texts, one under the other; none of token ids."""
    if request.conversation is None:
        return request.text
    return "\n".join(message.content for message in request.conversation.messages)


def _code(terminal: GenerationChunk | None) -> str:
    if terminal is None:
        return str(ErrorCode.CANCELLED)
    return OK if terminal.error is None else str(terminal.error.code)
