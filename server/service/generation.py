"""One accepted request: engine outputs in, text chunks out, and exactly one terminal chunk.

Used from one task on the event loop's thread. Whoever holds a :class:`Generation` must close it; closing releases the
leased adapters and frees the engine's row.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from itertools import chain

from server.core.errors import (
    CancelledError,
    DeadlineExceededError,
    InternalError,
    MedleyError,
)
from server.core.outputs import (
    AdapterUse,
    EchoedPrompt,
    FinishReason,
    GenerationChunk,
    GenerationResult,
    Timings,
    TokenLogprob,
    Usage,
)
from server.core.request import Echo
from server.core.sampling import SamplingParams
from server.engine.base import EngineOutput, Outputs
from server.observability.metrics import Metrics, RequestMetrics
from server.service.prompts import Prompt
from server.service.text import TextStream
from server.service.tokenizer import Tokenizer
from server.service.watch import Milestones

_log = logging.getLogger(__name__)
Scores = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Opened:
    """What opening a request has settled.

    Attributes:
        request_id: The request.
        adapters: The versions that serve it.
        prompt: The prompt.
        echo: Whether the prompt is told.
        sampling: What the engine was asked for.
        accepted_s: Monotonic time of acceptance.
    """

    request_id: str
    adapters: tuple[AdapterUse, ...]
    prompt: Prompt
    echo: Echo
    sampling: SamplingParams
    accepted_s: float


@dataclass(frozen=True, slots=True)
class Hooks:
    """What a generation tells the rest of the service.

    Attributes:
        abort: Frees the engine's row; called at most once, and only while the engine has not ended it.
        finished: Takes the whole text of a good answer and its last chunk; returns its scores to come, if any were
            asked for.
        closed: Called exactly once, however the request ended, with its last chunk or None if it was given up.
        told: Called right after, with the same and what was taken note of on the way.
    """

    abort: Callable[[], None]
    finished: Callable[[str, GenerationChunk], "Future[Scores] | None"]
    closed: Callable[[GenerationChunk | None], None]
    told: Callable[[GenerationChunk | None, Milestones], None]


class Generation:
    """An accepted request.

    Args:
        opened: What opening settled.
        outputs: The engine's outputs.
        tokenizer: Decodes them.
        is_continued: Whether the answer is the prompt's continuation, rather than a text of its own.
        hooks: Whom to tell.
        metrics: Where latencies between tokens are recorded.
        figures: Where all others are recorded, by adapter.
        score_wait_s: Longest wait for scores, after the whole text has been handed out.
    """

    def __init__(
        self,
        opened: Opened,
        outputs: Outputs,
        *,
        tokenizer: Tokenizer,
        is_continued: bool,
        hooks: Hooks,
        metrics: Metrics,
        figures: RequestMetrics,
        score_wait_s: float,
    ) -> None:
        """Begin before the first output."""
        self.request_id = opened.request_id
        self.adapters = opened.adapters
        self.num_prompt_tokens = len(opened.prompt.token_ids)
        self._opened = opened
        self._accepted_s = opened.accepted_s
        self._outputs = outputs
        self._tokenizer = tokenizer
        self._stream = TextStream(
            tokenizer,
            opened.sampling.stop,
            before=opened.prompt.token_ids if is_continued else (),
            min_new_tokens=opened.sampling.min_new_tokens,
        )
        self._hooks = hooks
        self._metrics = metrics
        self._figures = figures
        self._score_wait_s = score_wait_s
        self._pieces: list[str] = []
        self._num_tokens = 0
        self._num_told = 0
        self._has_begun = False
        self._queue_s: float | None = None
        self._first_token_s: float | None = None
        self._last_token_s = 0.0
        self._answered_s: float | None = None
        self._terminal: GenerationChunk | None = None
        self._engine_ended = False
        self._closed = False
        self._whole: asyncio.Future[EngineOutput] | None = None

    def __aiter__(self) -> AsyncIterator[GenerationChunk]:
        """Return the chunks still to come."""
        return self

    async def __anext__(self) -> GenerationChunk:
        """Return the next chunk; the last one, and only it, has a finish reason.

        Raises:
            StopAsyncIteration: After the terminal chunk, or once closed.
        """
        if self._closed:
            raise StopAsyncIteration
        if self._terminal is None:
            chunk = await self._advance()
            if chunk is not None:
                return chunk
        terminal = await self._with_scores()
        self._close(terminal)
        return terminal

    async def result(self) -> GenerationResult:
        """Wait for the whole answer and close.

        Raises:
            MedleyError: The error of a request that ended with ``error``, ``deadline`` or ``abort``.
        """
        # A stop string may end the answer at any token, so with any the text is looked at as it comes.
        if not (self._closed or self._terminal or self._opened.sampling.stop):
            self._gather()
        logprobs: list[TokenLogprob] = []
        prompt: EchoedPrompt | None = None
        try:
            async for chunk in self:
                logprobs.extend(chunk.logprobs)
                prompt = prompt or chunk.prompt
        finally:
            await self.aclose()
        terminal = self._terminal
        if terminal is None:
            raise CancelledError("the request was closed before its answer was complete")
        if terminal.error is not None:
            raise terminal.error
        assert terminal.finish_reason is not None
        assert terminal.usage is not None
        assert terminal.timings is not None
        return GenerationResult(
            request_id=self.request_id,
            text="".join(self._pieces),
            adapters=self.adapters,
            finish_reason=terminal.finish_reason,
            usage=terminal.usage,
            timings=terminal.timings,
            logprobs=tuple(logprobs),
            prompt=prompt,
            scores=terminal.scores,
        )

    async def aclose(self) -> None:
        """Give up what has not ended and release everything; safe to call again."""
        self._close(self._terminal)

    def _gather(self) -> None:
        """Have all outputs come as one: no task wakes at each token, and the text is decoded once."""
        parts: list[EngineOutput] = []
        self._whole = whole = asyncio.get_running_loop().create_future()

        def take(output: EngineOutput) -> None:
            if not whole.done():
                parts.append(self._seen(output))
                if output.finish_reason is not None:
                    whole.set_result(_joined(parts))

        self._outputs.forward(take)

    async def _advance(self) -> GenerationChunk | None:
        """Return the next chunk with something in it, or None once the terminal chunk is known.

        It holds whatever is there: a front end that falls behind catches up, as it has fewer and longer chunks to send.
        """
        text = ""
        logprobs: tuple[TokenLogprob, ...] = ()
        prompt: EchoedPrompt | None = None
        while True:
            output = await self._next_output()
            prompt = prompt or self._begin(output)
            text += self._take(output)
            if output.logprobs:
                logprobs += tuple(map(self._with_text, output.logprobs))
            if self._stream.stopped:
                self._end(output, FinishReason.STOP)
            elif output.finish_reason is not None:
                text += self._keep(self._stream.finish())
                self._end(output, FinishReason.STOP if self._stream.stopped else output.finish_reason)
            elif self._outputs.has_next:
                continue
            if text or logprobs or prompt:
                return GenerationChunk(text, logprobs, self._num_untold(), prompt)
            if self._terminal is not None:
                return None

    async def _next_output(self) -> EngineOutput:
        try:
            return await self._whole if self._whole is not None else self._seen(await anext(self._outputs))
        except StopAsyncIteration:
            _log.error("the engine gave no terminal output", extra={"request_id": self.request_id})
        except Exception:
            _log.exception("the engine failed", extra={"request_id": self.request_id})
        return EngineOutput(finish_reason=FinishReason.ERROR, error=InternalError("the engine failed"))

    def _begin(self, output: EngineOutput) -> EchoedPrompt | None:
        """Return the prompt, on the first output and where it is to be told."""
        if self._has_begun or output.error is not None:
            return None
        self._has_begun = True
        if self._opened.echo is Echo.NO and self._opened.sampling.num_prompt_logprobs is None:
            return None
        token_ids, text = self._opened.prompt.token_ids, self._opened.prompt.text
        if text is None:
            text = self._tokenizer.decode(token_ids, skip_special_tokens=False)
        tokens = tuple(map(self._tokenizer.piece, token_ids)) if output.prompt_logprobs else ()
        logprobs = tuple(entry and self._with_text(entry) for entry in output.prompt_logprobs)
        return EchoedPrompt(text, token_ids, tokens, logprobs)

    def _seen(self, output: EngineOutput) -> EngineOutput:
        """Take note of an output as it comes, and return what is told of it."""
        if self._opened.echo is Echo.ONLY:
            output = _without_answer(output)
        if output.queue_s is not None:
            self._queue_s = output.queue_s
            self._figures.queue.observe(output.queue_s)
        if output.token_ids:
            self._record_tokens(len(output.token_ids))
        return output

    def _take(self, output: EngineOutput) -> str:
        self._engine_ended = output.finish_reason is not None
        return self._keep(self._stream.feed(output.token_ids))

    def _record_tokens(self, num_tokens: int) -> None:
        now_s = time.monotonic()
        if self._first_token_s is None:
            self._first_token_s = now_s
            self._figures.ttft.observe(now_s - self._accepted_s)
        else:
            self._metrics.itl.observe((now_s - self._last_token_s) / num_tokens)
        self._last_token_s = now_s
        self._num_tokens += num_tokens

    def _num_untold(self) -> int:
        num_tokens, self._num_told = self._num_tokens - self._num_told, self._num_tokens
        return num_tokens

    def _keep(self, text: str) -> str:
        if text:
            self._pieces.append(text)
        return text

    def _with_text(self, entry: TokenLogprob) -> TokenLogprob:
        piece = self._tokenizer.piece
        top = tuple([TokenLogprob(other.token_id, other.logprob, piece(other.token_id)) for other in entry.top])
        return TokenLogprob(entry.token_id, entry.logprob, piece(entry.token_id), top)

    def _end(self, output: EngineOutput, reason: FinishReason) -> None:
        now_s = self._answered_s = time.monotonic()
        e2e_s = now_s - self._accepted_s
        queue_s = e2e_s if self._queue_s is None else self._queue_s
        ttft_s = e2e_s if self._first_token_s is None else self._first_token_s - self._accepted_s
        error = _error_of(reason, output.error)
        if error is None:
            self._figures.e2e.observe(e2e_s)
        self._terminal = GenerationChunk(
            text="",
            finish_reason=reason,
            error=error,
            usage=Usage(self.num_prompt_tokens, self._num_tokens),
            timings=Timings(queue_ms=queue_s * 1e3, ttft_ms=ttft_s * 1e3, e2e_ms=e2e_s * 1e3),
        )
        self._free_row()

    async def _with_scores(self) -> GenerationChunk:
        assert self._terminal is not None
        if num_tokens := self._num_untold():
            self._terminal = replace(self._terminal, num_tokens=num_tokens)
        if self._terminal.error is None:
            scoring = self._hooks.finished("".join(self._pieces), self._terminal)
            if scoring is not None:
                scores = await _scores_within(scoring, self._score_wait_s)
                self._terminal = replace(self._terminal, scores=scores)
        return self._terminal

    def _free_row(self) -> None:
        if not self._engine_ended:
            self._engine_ended = True
            self._hooks.abort()

    def _close(self, terminal: GenerationChunk | None) -> None:
        if not self._closed:
            self._closed = True
            try:
                self._free_row()
            finally:
                self._hooks.closed(terminal)
                self._hooks.told(terminal, self._milestones())

    def _milestones(self) -> Milestones:
        return Milestones(self._queue_s, self._first_token_s, self._answered_s, self._num_tokens, self._pieces)


def _error_of(reason: FinishReason, error: MedleyError | None) -> MedleyError | None:
    match reason:
        case FinishReason.STOP | FinishReason.LENGTH:
            return None
        case FinishReason.DEADLINE:
            return error or DeadlineExceededError("the deadline passed before the answer was complete")
        case FinishReason.ABORT:
            return error or CancelledError("the request was aborted")
        case FinishReason.ERROR:
            return error or InternalError("the engine failed")


def _without_answer(output: EngineOutput) -> EngineOutput:
    """Return what is left of an output where only the prompt is asked for: the one token it took is not told."""
    reason = FinishReason.LENGTH if output.finish_reason is FinishReason.STOP else output.finish_reason
    return replace(output, token_ids=(), logprobs=(), finish_reason=reason)


def _joined(parts: Sequence[EngineOutput]) -> EngineOutput:
    """Return all outputs of a request as one, what :meth:`Generation._seen` took note of left out."""
    return EngineOutput(
        tuple(chain.from_iterable(part.token_ids for part in parts)),
        tuple(chain.from_iterable(part.logprobs for part in parts)),
        tuple(chain.from_iterable(part.prompt_logprobs for part in parts)),
        parts[-1].finish_reason,
        parts[-1].error,
    )


async def _scores_within(scoring: "Future[Scores]", wait_s: float) -> Scores | None:
    waiter = asyncio.wrap_future(scoring)
    # Also retrieves an error that comes after we stopped waiting, so that asyncio does not complain of it.
    waiter.add_done_callback(lambda done: done.cancelled() or done.exception())
    done, _ = await asyncio.wait({waiter}, timeout=wait_s)
    with contextlib.suppress(MedleyError):
        return waiter.result() if done else None
    return None
