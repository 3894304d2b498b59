"""Takes a request from the caller's words to the engine's queue: resolve once, lease, render, tokenize, check, submit.

Every refusal is raised here, before any output. Event loop's thread only; what may block runs in a thread.
"""

import asyncio
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial

from adapters.errors import AdapterError
from adapters.manifest import AdapterRole
from server.core.errors import (
    DeadlineExceededError,
    ErrorCode,
    InvalidArgumentError,
    MedleyError,
    Refusal,
    ResourceExhaustedError,
    UnavailableError,
    code_of,
)
from server.core.outputs import FinishReason, GenerationChunk
from server.core.principal import Principal
from server.core.request import Echo, GenerationRequest
from server.core.sampling import SamplingParams
from server.engine.base import Engine, EngineRequest
from server.evaluation.outcome import OK, RolloutPart
from server.observability.logging import LogConfig
from server.observability.metrics import Metrics, RequestMetrics
from server.service.access import AccessService
from server.service.capabilities import check_adapter, check_priority, check_sampling, fitted
from server.service.directory import AdapterDirectory, ServableAdapter
from server.service.ending import Ending
from server.service.feedback import FeedbackService, check_references
from server.service.generation import Generation, Hooks, Opened
from server.service.health import HealthService
from server.service.prompts import BaseSpeech, Prompt, PromptReader
from server.service.several import Several, named_apart
from server.service.shadows import Shadows
from server.service.watch import RequestWatch

_NO_LINES = LogConfig()


@dataclass(frozen=True, slots=True)
class InferenceConfig:
    """Limits of taking requests.

    Attributes:
        max_text_chars: Longest text looked at; longer ones are refused unread.
        inline_text_chars: Longest text tokenized on the event loop; longer ones go to a thread.
        max_num_opening: Most requests between arrival and the engine's queue.
        max_num_open: Most requests accepted and not closed: those the engine holds, and streams it is done with whose
            callers have yet to take the end.
        max_num_per_call: Most requests that one call may ask for: prompts times answers to each.
        score_wait_s: Longest wait for scores after the whole text has been handed out.
    """

    max_text_chars: int = 200_000
    inline_text_chars: int = 4_000
    max_num_opening: int = 512
    max_num_open: int = 4096
    max_num_per_call: int = 128
    score_wait_s: float = 0.25


class InferenceService:
    """Opens requests.

    Args:
        engine: Runs them.
        speech: How the base is spoken to.
        directory: Finds and leases adapters.
        feedback: Takes finished requests.
        access: Counts what one call asks for beyond one request.
        health: Whether requests are welcome.
        metrics: Where they are counted.
        config: Limits.
        shadows: Run candidates beside the requests of shadow rollouts; None where there are no rollouts.
        log: What is logged of each request.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        speech: BaseSpeech,
        directory: AdapterDirectory,
        feedback: FeedbackService,
        access: AccessService,
        health: HealthService,
        metrics: Metrics,
        config: InferenceConfig,
        shadows: Shadows | None = None,
        log: LogConfig = _NO_LINES,
    ) -> None:
        """Keep the parts."""
        self._log = log
        self._engine = engine
        self._speech = speech
        self._directory = directory
        self._feedback = feedback
        self._access = access
        self._health = health
        self._metrics = metrics
        self._config = config
        self._shadows = shadows
        self._num_opening = 0
        self._num_open = 0
        self._prompts = PromptReader(
            speech,
            max_text_chars=config.max_text_chars,
            inline_text_chars=config.inline_text_chars,
            max_num_tokens=engine.info.max_model_len,
        )

    async def open(self, principal: Principal, request: GenerationRequest) -> Generation:
        """Accept a request; whoever gets a generation must close it.

        The versions that serve it are settled before anything is waited for.

        Raises:
            InvalidArgumentError: If the prompt is empty, too long, no valid Unicode or not in the vocabulary, or a
                parameter is over a limit or none that the engine honours.
            PermissionDeniedError: If the caller's requests may not have this priority.
            ResourceExhaustedError: If a queue is full.
            DeadlineExceededError: If the deadline has passed already, or cannot be met.
            UnavailableError: If the server is starting, draining or its engine died.
            AlreadyExistsError: If the request id is in flight.
            AdapterError: If an adapter reference is not well formed, unknown, not ready, or not for this engine.
        """
        accepted_s = time.monotonic()
        figures = self._metrics.unresolved() if request.adapters else self._metrics.of(())
        watch = RequestWatch(request, principal.who, accepted_s, self._engine.stats, self._log)
        try:
            self._check(request)
            check_priority(self._engine.info, principal, request.priority)
            self._num_opening += 1
            try:
                adapters = await self._lease(principal, request)
                watch.leased(adapters)
                try:
                    figures = self._metrics.of([adapter.use.name for adapter in adapters])
                    return await self._open(request, principal, adapters, figures, watch)
                except BaseException:
                    self._directory.release(adapters)
                    raise
            finally:
                self._num_opening -= 1
        except asyncio.CancelledError:
            figures.ended(ErrorCode.CANCELLED)
            watch.refused(ErrorCode.CANCELLED)
            raise
        except (MedleyError, AdapterError) as error:
            figures.ended(code_of(error))
            watch.refused(code_of(error))
            if isinstance(error, MedleyError):
                self._count_refusal(error)
            raise

    async def open_several(self, principal: Principal, requests: Sequence[GenerationRequest]) -> Several:
        """Accept all requests of one call, or none; whoever gets them must close them.

        They share the call's ``request_id``; where there are more than one, each goes by ``<id>-<index>``. The caller's
        quota counts each; the call itself, and so the first, is counted at the front end's door.

        Raises:
            InvalidArgumentError: If there are none or too many, or as :meth:`open`.
            ResourceExhaustedError: If they are more than the caller's quota has left, or as :meth:`open`.
            MedleyError: As :meth:`open`.
            AdapterError: As :meth:`open`.
        """
        if not 1 <= len(requests) <= self._config.max_num_per_call:
            raise InvalidArgumentError(
                f"one call may ask for 1 to {self._config.max_num_per_call} answers, not {len(requests)}", param="n"
            )
        generations: list[Generation] = []
        async with AsyncExitStack() as opened:
            opened.enter_context(self._access.admit(principal, len(requests) - 1))
            for request in named_apart(requests):
                generations.append(await self.open(principal, request))
                opened.push_async_callback(generations[-1].aclose)
            return Several(requests[0].request_id, generations, opened.pop_all())

    async def _open_shadow(self, principal: Principal, request: GenerationRequest, part: RolloutPart) -> Generation:
        """Open a request that a rollout makes, of versions named one by one; it counts under a label of its own."""
        if not self._health.ready().ready:
            raise UnavailableError("the server is not ready")
        leased = await self._directory.lease(principal, request.adapters)
        adapters = (replace(leased[0], rollout=part), *leased[1:])
        figures = self._metrics.of([f"{adapter.use.name}~shadow" for adapter in adapters])
        watch = RequestWatch(request, principal.who, time.monotonic(), self._engine.stats, self._log)
        watch.leased(adapters)
        try:
            return await self._open(request, principal, adapters, figures, watch)
        except BaseException:
            self._directory.release(adapters)
            raise

    def _check(self, request: GenerationRequest) -> None:
        """Refuse what can be refused without looking anything up."""
        readiness = self._health.ready()
        if not readiness.ready:
            raise UnavailableError(readiness.reason)
        _check_deadline(request)
        self._prompts.check(request)
        check_references(request.references)
        check_sampling(self._engine.info, request.sampling)
        if self._num_opening >= self._config.max_num_opening:
            raise ResourceExhaustedError("too many requests arrive at once; try again later", refusal=Refusal.ARRIVING)
        if self._num_open + self._num_opening >= self._config.max_num_open:
            raise ResourceExhaustedError("too many requests are open; try again later", refusal=Refusal.OPEN)

    async def _lease(self, principal: Principal, request: GenerationRequest) -> tuple[ServableAdapter, ...]:
        try:
            key = request.routing_key or f"{principal.who} {request.request_id}"
            return await self._directory.lease(principal, request.adapters, key)
        except AdapterError as error:
            self._metrics.adapter_failed("lookup", error)
            raise

    async def _open(
        self,
        request: GenerationRequest,
        principal: Principal,
        adapters: tuple[ServableAdapter, ...],
        figures: RequestMetrics,
        watch: RequestWatch,
    ) -> Generation:
        for adapter in adapters:
            check_adapter(self._engine.info, adapter.resolved)
        prompt = await self._prompts.read(request, adapters)
        num_virtual_tokens = sum(adapter.resolved.num_encoder_tokens for adapter in adapters)
        sampling = fitted(self._engine.info, _wanted(request), len(prompt.token_ids), num_virtual_tokens)
        _check_deadline(request)
        submitted_s = time.monotonic()
        outputs = self._engine.submit(_engine_request(request, principal.who, prompt, sampling, adapters))
        watch.submitted(submitted_s, len(prompt.token_ids))
        figures.prompt_tokens.inc(len(prompt.token_ids))
        uses = tuple(adapter.use for adapter in adapters)
        ending = Ending(
            self._feedback,
            request,
            who=principal.who,
            adapters=adapters,
            num_prompt_tokens=len(prompt.token_ids),
            accepted_s=watch.accepted_s,
        )
        generation = Generation(
            Opened(request.request_id, uses, prompt, request.echo, sampling, watch.accepted_s),
            outputs,
            tokenizer=self._speech.tokenizer,
            is_continued=self._speech.is_continued,
            hooks=self._hooks(request, principal, ending, adapters, figures, watch=watch),
            metrics=self._metrics,
            figures=figures,
            score_wait_s=self._config.score_wait_s,
        )
        self._num_open += 1
        return generation

    def _hooks(
        self,
        request: GenerationRequest,
        principal: Principal,
        ending: Ending,
        adapters: tuple[ServableAdapter, ...],
        figures: RequestMetrics,
        *,
        watch: RequestWatch,
    ) -> Hooks:
        def closed(terminal: GenerationChunk | None) -> None:
            self._num_open -= 1
            self._directory.release(adapters)
            self._record(terminal, adapters, figures)
            ending.closed(terminal)
            if self._shadows is not None:
                self._shadows.follow(principal, request, adapters, terminal, self._open_shadow)

        abort = partial(self._engine.abort, request.request_id)
        return Hooks(abort=abort, finished=ending.finished, closed=closed, told=watch.ended)

    def _record(
        self, terminal: GenerationChunk | None, adapters: Sequence[ServableAdapter], figures: RequestMetrics
    ) -> None:
        if terminal is None:
            figures.ended(ErrorCode.CANCELLED)
            return
        error = terminal.error
        figures.ended(OK if error is None else error.code)
        if terminal.usage is not None:
            figures.generated_tokens.inc(terminal.usage.num_completion_tokens)
        if error is not None and error.refusal is not None:
            self._count_refusal(error)
        elif adapters and terminal.finish_reason is FinishReason.ERROR and error is not None:
            self._metrics.adapter_failed("serving", error)

    def _count_refusal(self, error: MedleyError) -> None:
        if error.refusal is not None:
            self._metrics.refused.labels(reason=error.refusal).inc()


def _check_deadline(request: GenerationRequest) -> None:
    if request.deadline_s is not None and request.deadline_s <= time.monotonic():
        raise DeadlineExceededError("the deadline passed before the request was queued")


def _wanted(request: GenerationRequest) -> SamplingParams:
    if request.echo is Echo.ONLY:
        # An engine looks at a prompt only to go on with it.
        return replace(request.sampling, max_new_tokens=1, min_new_tokens=0)
    return request.sampling


def _engine_request(
    request: GenerationRequest,
    tenant: str,
    prompt: Prompt,
    sampling: SamplingParams,
    adapters: Sequence[ServableAdapter],
) -> EngineRequest:
    by_role = {adapter.resolved.kind.role: adapter.resolved for adapter in adapters}
    return EngineRequest(
        request_id=request.request_id,
        prompt_token_ids=prompt.token_ids,
        sampling=sampling,
        weight_adapter=by_role.get(AdapterRole.WEIGHTS),
        soft_prompt=by_role.get(AdapterRole.PROMPT),
        # A stop string may end the answer at any token.
        stream=request.stream or bool(sampling.stop),
        deadline_s=request.deadline_s,
        tenant=tenant,
        priority=request.priority,
    )
