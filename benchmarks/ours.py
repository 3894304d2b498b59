"""Our side of every benchmark: the native engine, driven through its public face, its outputs timed as they arrive."""

import asyncio
import statistics
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from benchmarks.closed_batch import Tokens
from server.core.sampling import SamplingParams
from server.engine.base import Engine, EngineInfo, EngineRequest, EngineStats, ResolvedAdapter
from server.engine.native.engine import NativeEngine, NativeEngineConfig

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class ServedRow:
    """What one request got.

    Attributes:
        token_ids: Its tokens.
        arrival_s: Per token, seconds from the request's submission until it arrived.
        start_s: The submission, on ``time.perf_counter``'s clock.
    """

    token_ids: tuple[int, ...]
    arrival_s: tuple[float, ...]
    start_s: float


@dataclass(frozen=True, slots=True)
class ServedBatch:
    """What requests submitted at once got, in their order.

    Attributes:
        rows: One per request.
        duration_s: From the first submission to the last token.
    """

    rows: tuple[ServedRow, ...]
    duration_s: float

    def step_s(self) -> float | None:
        """Return the median time between two tokens of a row while every row decodes; None if they never all do."""
        first_s = max(row.start_s + row.arrival_s[0] for row in self.rows)
        last_s = min(row.start_s + row.arrival_s[-1] for row in self.rows)
        gaps_s = [
            later_s - earlier_s
            for row in self.rows
            for earlier_s, later_s in pairwise(row.arrival_s)
            if first_s <= row.start_s + earlier_s and row.start_s + later_s <= last_s
        ]
        return statistics.median(gaps_s) if gaps_s else None


def row_requests(
    prompts: Sequence[tuple[int, ...]],
    num_new_tokens: int,
    *,
    loras: Sequence[ResolvedAdapter | None] = (),
    soft_prompts: Sequence[ResolvedAdapter | None] = (),
) -> list[EngineRequest]:
    """Return one greedy request per prompt, with the LoRA and the soft prompt of its row where there are any."""
    none = [None] * len(prompts)
    rows = zip(prompts, loras or none, soft_prompts or none, strict=True)
    sampling = SamplingParams(max_new_tokens=num_new_tokens)
    return [EngineRequest(str(row), prompt, sampling, *adapters) for row, (prompt, *adapters) in enumerate(rows)]


def config_for(
    base: Path, batches: Sequence[Sequence[EngineRequest]], *, dtype: str, num_threads: int
) -> NativeEngineConfig:
    """Return a CPU engine just wide enough for these batches; the adapters of all of them stay resident."""
    requests = [request for batch in batches for request in batch]
    loras = {request.weight_adapter for request in requests if request.weight_adapter}
    soft_prompts = {request.soft_prompt for request in requests if request.soft_prompt}
    return NativeEngineConfig(
        str(base),
        device="cpu",
        dtype=dtype,
        max_num_seqs=max(len(batch) for batch in batches),
        max_model_len=max(
            len(request.prompt_token_ids) + (request.soft_prompt.num_virtual_tokens if request.soft_prompt else 0)
            for request in requests
        ),
        max_new_tokens=max(request.sampling.max_new_tokens for request in requests),
        max_loras=max(1, len(loras)),
        max_lora_rank=max((lora.rank for lora in loras), default=1),
        max_soft_prompts=max(1, len(soft_prompts)),
        max_virtual_tokens=max((prompt.num_virtual_tokens for prompt in soft_prompts), default=1),
        num_threads=num_threads,
    )


async def serve_row(engine: Engine, request: EngineRequest) -> ServedRow:
    """Serve one request to its end.

    Raises:
        MedleyError: If the engine refuses the request or fails it.
    """
    start_s = time.perf_counter()
    token_ids: list[int] = []
    arrival_s: list[float] = []
    async for output in engine.submit(request):
        if output.error is not None:
            raise output.error
        now_s = time.perf_counter() - start_s
        token_ids += output.token_ids
        arrival_s += [now_s] * len(output.token_ids)
    return ServedRow(tuple(token_ids), tuple(arrival_s), start_s)


async def serve_batch(engine: NativeEngine, requests: Sequence[EngineRequest]) -> ServedBatch:
    """Serve requests submitted all at once.

    Raises:
        MedleyError: If the engine refuses a request or fails it.
    """
    start_s = time.perf_counter()
    rows = await asyncio.gather(*(serve_row(engine, request) for request in requests))
    return ServedBatch(tuple(rows), time.perf_counter() - start_s)


class OurEngine:
    """A native engine for callers without an event loop; a context manager that starts and stops it.

    Args:
        config: Model, place and limits.
    """

    def __init__(self, config: NativeEngineConfig) -> None:
        self._loop = asyncio.Runner()
        self._engine = NativeEngine(config)

    def __enter__(self) -> Self:
        """Load the base and begin stepping."""
        self._loop.run(self._engine.start())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop stepping."""
        self._loop.run(self._engine.stop())
        self._loop.close()

    @property
    def info(self) -> EngineInfo:
        """What the engine is; valid inside the context."""
        return self._engine.info

    def serve(self, requests: Sequence[EngineRequest]) -> ServedBatch:
        """Serve requests submitted all at once; see :func:`serve_batch`."""
        return self.run(lambda engine: serve_batch(engine, requests))

    def run(self, drive: Callable[[NativeEngine], Coroutine[None, None, Result]]) -> Result:
        """Run a coroutine that drives the engine to its end."""
        return self._loop.run(drive(self._engine))

    def stats(self) -> EngineStats:
        """Return the engine's own counts."""
        return self._engine.stats()


class OurSide:
    """The same requests again and again on one engine: a side of a closed batch.

    Args:
        engine: A started engine.
        requests: What it serves, all at once.

    Attributes:
        steps_s: Median decode step of each pass so far, in seconds; None where the rows never all decoded at once.
    """

    def __init__(self, engine: OurEngine, requests: Sequence[EngineRequest]) -> None:
        self._engine = engine
        self._requests = requests
        self.steps_s: list[float | None] = []

    def serve(self) -> Tokens:
        """Serve all requests once."""
        served = self._engine.serve(self._requests)
        self.steps_s.append(served.step_s())
        return [list(row.token_ids) for row in served.rows]
