"""Takes a request from the caller's words to the engine's queue: resolve once, lease, render, tokenize, check, submit.

Every refusal is raised here, before any output. Event loop's thread only; what may block runs in a thread.
"""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from adapters import prompting
from adapters.errors import AdapterError
from adapters.manifest import AdapterRole
from server.core.errors import (
    DeadlineExceededError,
    ErrorCode,
    InvalidArgumentError,
    MedleyError,
    ResourceExhaustedError,
    UnavailableError,
    code_of,
)
from server.core.outputs import FinishReason, GenerationChunk
from server.core.principal import Principal
from server.core.request import GenerationRequest
from server.engine.base import Engine, EngineRequest
from server.evaluation.tally import BASE
from server.evaluation.window import FinishedRequest
from server.observability.metrics import Metrics, RequestMetrics
from server.service.directory import AdapterDirectory, ServableAdapter
from server.service.feedback import FeedbackService, check_references
from server.service.generation import Generation, Hooks, Opened, Scores
from server.service.health import HealthService
from server.service.tokenizer import Tokenizer

OK = "OK"
_MAX_NUM_TOKENIZING = 4


@dataclass(frozen=True, slots=True)
class InferenceConfig:
    """Limits of taking requests.

    Attributes:
        max_text_chars: Longest text looked at; longer ones are refused unread.
        inline_text_chars: Longest text tokenized on the event loop; longer ones go to a thread.
        max_num_opening: Most requests between arrival and the engine's queue.
        score_wait_s: Longest wait for scores after the whole text has been handed out.
    """

    max_text_chars: int = 200_000
    inline_text_chars: int = 4_000
    max_num_opening: int = 512
    score_wait_s: float = 0.25


class InferenceService:
    """Opens requests.

    Args:
        engine: Runs them.
        tokenizer: The base's.
        base_template: The base's prompt template.
        directory: Finds and leases adapters.
        feedback: Takes finished requests.
        health: Whether requests are welcome.
        metrics: Where they are counted.
        config: Limits.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        tokenizer: Tokenizer,
        base_template: str,
        directory: AdapterDirectory,
        feedback: FeedbackService,
        health: HealthService,
        metrics: Metrics,
        config: InferenceConfig,
    ) -> None:
        """Keep the parts."""
        self._engine = engine
        self._tokenizer = tokenizer
        self._base_template = base_template
        self._directory = directory
        self._feedback = feedback
        self._health = health
        self._metrics = metrics
        self._config = config
        self._num_opening = 0
        # Its own: in the common one, changes may wait for a database that does not answer.
        self._pool = ThreadPoolExecutor(_MAX_NUM_TOKENIZING, thread_name_prefix="tokenize")

    async def open(self, principal: Principal, request: GenerationRequest) -> Generation:
        """Accept a request; whoever gets a generation must close it.

        The versions that serve it are settled before anything is waited for.

        Raises:
            InvalidArgumentError: If the text is empty, too long or no valid Unicode, or a parameter is over a limit.
            ResourceExhaustedError: If a queue is full.
            DeadlineExceededError: If the deadline has passed already.
            UnavailableError: If the server is starting, draining or its engine died.
            AlreadyExistsError: If the request id is in flight.
            AdapterError: If an adapter reference is not well formed, unknown or not ready.
        """
        accepted_s = time.monotonic()
        figures = self._metrics.unresolved() if request.adapters else self._metrics.of(())
        try:
            self._check(request)
            self._num_opening += 1
            try:
                adapters = await self._lease(principal, request)
                try:
                    figures = self._metrics.of([adapter.use.name for adapter in adapters])
                    return await self._open(request, principal.who, adapters, figures, accepted_s)
                except BaseException:
                    self._directory.release(adapters)
                    raise
            finally:
                self._num_opening -= 1
        except asyncio.CancelledError:
            figures.ended(ErrorCode.CANCELLED)
            raise
        except (MedleyError, AdapterError) as error:
            figures.ended(code_of(error))
            raise

    def _check(self, request: GenerationRequest) -> None:
        """Refuse what can be refused without looking anything up."""
        readiness = self._health.ready()
        if not readiness.ready:
            raise UnavailableError(readiness.reason)
        _check_deadline(request)
        if len(request.text) > self._config.max_text_chars:
            raise InvalidArgumentError(
                f"the text has {len(request.text)} characters; at most {self._config.max_text_chars} are taken",
                param="text",
            )
        if not request.text.strip():
            raise InvalidArgumentError("the text is empty", param="text")
        check_unicode(request.text, "text")
        check_references(request.references)
        limit = self._engine.info.max_new_tokens
        if request.sampling.max_new_tokens > limit:
            raise InvalidArgumentError(
                f"max_new_tokens is {request.sampling.max_new_tokens}; at most {limit} are generated",
                param="max_new_tokens",
            )
        if self._num_opening >= self._config.max_num_opening:
            raise ResourceExhaustedError("too many requests arrive at once; try again later")

    async def _lease(self, principal: Principal, request: GenerationRequest) -> tuple[ServableAdapter, ...]:
        try:
            return await self._directory.lease(principal, request.adapters)
        except AdapterError as error:
            self._metrics.adapter_failed("lookup", error)
            raise

    async def _open(
        self,
        request: GenerationRequest,
        who: str,
        adapters: tuple[ServableAdapter, ...],
        figures: RequestMetrics,
        accepted_s: float,
    ) -> Generation:
        token_ids = await self._tokenize(self._prompt(request, adapters))
        self._check_length(len(token_ids), adapters)
        _check_deadline(request)
        outputs = self._engine.submit(_engine_request(request, token_ids, adapters))
        figures.prompt_tokens.inc(len(token_ids))
        uses = tuple(adapter.use for adapter in adapters)
        return Generation(
            Opened(request.request_id, uses, len(token_ids), request.sampling.stop, accepted_s),
            outputs,
            tokenizer=self._tokenizer,
            hooks=self._hooks(request, who, adapters, figures),
            metrics=self._metrics,
            figures=figures,
            score_wait_s=self._config.score_wait_s,
        )

    def _prompt(self, request: GenerationRequest, adapters: Sequence[ServableAdapter]) -> str:
        if not request.apply_template:
            return request.text
        # Weights before prompt: the weight adapter's template wins, whatever the order in the request.
        by_role = sorted(adapters, key=lambda adapter: list(AdapterRole).index(adapter.resolved.kind.role))
        own = (adapter.prompt_template for adapter in by_role if adapter.prompt_template)
        return prompting.render(next(own, self._base_template), request.text)

    async def _tokenize(self, prompt: str) -> list[int]:
        if len(prompt) <= self._config.inline_text_chars:
            return self._tokenizer.encode(prompt)
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._tokenizer.encode, prompt)

    def _check_length(self, num_tokens: int, adapters: Sequence[ServableAdapter]) -> None:
        num_virtual_tokens = sum(adapter.resolved.num_encoder_tokens for adapter in adapters)
        limit = self._engine.info.max_model_len
        if num_tokens + num_virtual_tokens > limit:
            virtual = f" and {num_virtual_tokens} virtual tokens" if num_virtual_tokens else ""
            raise InvalidArgumentError(
                f"the prompt has {num_tokens} tokens{virtual}; at most {limit} fit", param="text"
            )

    def _hooks(
        self, request: GenerationRequest, who: str, adapters: tuple[ServableAdapter, ...], figures: RequestMetrics
    ) -> Hooks:
        def finished(text: str) -> "Future[Scores] | None":
            label = "+".join(f"{adapter.use.name}:{adapter.use.version}" for adapter in adapters) or BASE
            digests = tuple(adapter.use.digest for adapter in adapters)
            return self._feedback.finished(
                FinishedRequest(request.request_id, text, label, digests, who), request.references
            )

        def closed(terminal: GenerationChunk | None) -> None:
            self._directory.release(adapters)
            self._record(terminal, adapters, figures)

        return Hooks(abort=lambda: self._engine.abort(request.request_id), finished=finished, closed=closed)

    def _record(
        self, terminal: GenerationChunk | None, adapters: Sequence[ServableAdapter], figures: RequestMetrics
    ) -> None:
        if terminal is None:
            figures.ended(ErrorCode.CANCELLED)
            return
        figures.ended(OK if terminal.error is None else terminal.error.code)
        if terminal.usage is not None:
            figures.generated_tokens.inc(terminal.usage.num_completion_tokens)
        if adapters and terminal.finish_reason is FinishReason.ERROR and terminal.error is not None:
            self._metrics.adapter_failed("serving", terminal.error)


def check_unicode(text: str, param: str) -> None:
    """Refuse text with lone surrogates, which JSON can carry and no tokenizer can encode.

    Raises:
        InvalidArgumentError: If there are any.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidArgumentError(f"{param} is not valid Unicode", param=param) from None


def _check_deadline(request: GenerationRequest) -> None:
    if request.deadline_s is not None and request.deadline_s <= time.monotonic():
        raise DeadlineExceededError("the deadline passed before the request was queued")


def _engine_request(
    request: GenerationRequest, token_ids: list[int], adapters: Sequence[ServableAdapter]
) -> EngineRequest:
    by_role = {adapter.resolved.kind.role: adapter.resolved for adapter in adapters}
    return EngineRequest(
        request_id=request.request_id,
        prompt_token_ids=tuple(token_ids),
        sampling=request.sampling,
        weight_adapter=by_role.get(AdapterRole.WEIGHTS),
        soft_prompt=by_role.get(AdapterRole.PROMPT),
        deadline_s=request.deadline_s,
    )
