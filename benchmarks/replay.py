"""Our side of a trace: the native engine, fed as time passes or as answers come, each token timed on arrival."""

import asyncio
import time
from collections.abc import Coroutine, Iterable, Sequence

from benchmarks.latency import answered
from benchmarks.trace import TraceRequest
from loadtest.records import RequestRecord
from server.core.sampling import SamplingParams
from server.engine.base import EngineRequest, ResolvedAdapter
from server.engine.native.engine import NativeEngine


async def replay(
    engine: NativeEngine, trace: Sequence[TraceRequest], adapters: Sequence[ResolvedAdapter]
) -> list[RequestRecord]:
    """Send every request when the trace says, however busy the engine is.

    Raises:
        MedleyError: If the engine refuses a request or fails it.
    """
    start_s = time.perf_counter()

    async def arrive(index: int, request: TraceRequest) -> RequestRecord:
        await asyncio.sleep(start_s + request.arrival_s - time.perf_counter())
        return await _serve(engine, index, request, adapters, start_s, arrival_s=request.arrival_s)

    return await _all(arrive(index, request) for index, request in enumerate(trace))


async def replay_in_flight(
    engine: NativeEngine, trace: Sequence[TraceRequest], adapters: Sequence[ResolvedAdapter], *, num_in_flight: int
) -> list[RequestRecord]:
    """Send the requests in order, the next whenever one ends, so many at a time; arrival times are passed over.

    Raises:
        MedleyError: If the engine refuses a request or fails it.
    """
    start_s = time.perf_counter()
    places = asyncio.Semaphore(num_in_flight)

    async def follow(index: int, request: TraceRequest) -> RequestRecord:
        async with places:
            arrival_s = time.perf_counter() - start_s
            return await _serve(engine, index, request, adapters, start_s, arrival_s=arrival_s)

    return await _all(follow(index, request) for index, request in enumerate(trace))


async def _all(served: Iterable[Coroutine[None, None, RequestRecord]]) -> list[RequestRecord]:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one) for one in served]
    return [task.result() for task in tasks]


async def _serve(
    engine: NativeEngine,
    index: int,
    request: TraceRequest,
    adapters: Sequence[ResolvedAdapter],
    start_s: float,
    *,
    arrival_s: float,
) -> RequestRecord:
    adapter = adapters[request.adapter]
    sampling = SamplingParams(max_new_tokens=request.num_new_tokens)
    token_times_s: list[float] = []
    submitted = EngineRequest(str(index), request.prompt_token_ids, sampling, weight_adapter=adapter)
    async for output in engine.submit(submitted):
        if output.error is not None:
            raise output.error
        token_times_s += [time.perf_counter() - start_s] * len(output.token_ids)
    return answered(arrival_s, token_times_s, request.num_new_tokens, adapter.digest)
