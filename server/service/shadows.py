"""Runs the candidate of a shadow rollout beside the requests of its alias: never answered, never in anybody's way.

A shadow begins when the answer it follows is complete, and only while the engine has a free row and no queue; a few run
at once, and what finds no room is dropped and counted. It is measured and scored like any request, under an id of its
own, and no quota counts it. Event loop's thread only.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from dataclasses import replace

from adapters.errors import AdapterError
from server.core.errors import MedleyError
from server.core.outputs import GenerationChunk
from server.core.principal import Principal
from server.core.request import Echo, GenerationRequest, new_request_id
from server.engine.base import Engine
from server.evaluation.outcome import Arm, RolloutPart
from server.evaluation.rollouts.store import RolloutStore
from server.observability.metrics import Metrics
from server.service.directory import ServableAdapter
from server.service.generation import Generation

_log = logging.getLogger(__name__)

Open = Callable[[Principal, GenerationRequest, RolloutPart], Awaitable[Generation]]


class Shadows:
    """The shadows of this server.

    Args:
        rollouts: Says which requests have one.
        engine: Says whether there is room.
        metrics: Where dropped ones are counted.
        max_num_shadows: Most that run at once.
        timeout_s: Longest time one may take.
    """

    def __init__(
        self, rollouts: RolloutStore, engine: Engine, metrics: Metrics, *, max_num_shadows: int, timeout_s: float
    ) -> None:
        """Run none yet."""
        self._rollouts = rollouts
        self._engine = engine
        self._metrics = metrics
        self._max_num_shadows = max_num_shadows
        self._timeout_s = timeout_s
        self._tasks: set[asyncio.Task[None]] = set()

    def follow(
        self,
        principal: Principal,
        request: GenerationRequest,
        adapters: Sequence[ServableAdapter],
        terminal: GenerationChunk | None,
        open_shadow: Open,
    ) -> None:
        """Run the candidate on what was just answered well, if it is to be and there is room; waits for nothing."""
        if terminal is None or terminal.error is not None or request.echo is Echo.ONLY:
            return
        part = next((adapter.rollout for adapter in adapters if adapter.rollout is not None), None)
        if part is None or part.arm is not Arm.STABLE:  # a shadow has none itself
            return
        version = self._rollouts.routes.shadow_version(part.rollout_id)
        if version is None:
            return
        if not self._has_room():
            self._metrics.shadows_dropped.inc()
            return
        named = tuple(_reference(adapter, version if adapter.rollout is part else None) for adapter in adapters)
        deadline_s = time.monotonic() + self._timeout_s
        shadow = replace(request, request_id=new_request_id(), adapters=named, deadline_s=deadline_s)
        run = self._run(principal, shadow, RolloutPart(part.rollout_id, Arm.SHADOW), open_shadow)
        # In a context of its own: it is no part of the call it follows.
        task = asyncio.create_task(run, name=f"shadow-{request.request_id}", context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        """Give up those that run."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _has_room(self) -> bool:
        stats = self._engine.stats()
        is_free = not stats.num_waiting and stats.num_running < self._engine.info.max_num_seqs
        return is_free and len(self._tasks) < self._max_num_shadows

    async def _run(
        self, principal: Principal, request: GenerationRequest, part: RolloutPart, open_shadow: Open
    ) -> None:
        try:
            await (await open_shadow(principal, request, part)).result()
        except (MedleyError, AdapterError) as error:
            _log.info("a shadow failed: %s", error.message, extra={"rollout_id": part.rollout_id})
        except Exception:  # a mistake of ours must not go unseen, and nobody waits for this task
            _log.exception("a shadow failed", extra={"rollout_id": part.rollout_id})


def _reference(adapter: ServableAdapter, version: int | None) -> str:
    return f"{adapter.use.name}:{version or adapter.use.version}"
