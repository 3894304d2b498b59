"""Scale, part three: what loading cold adapters costs those who are being served meanwhile.

Rows with resident adapters decode side by side, by turns undisturbed and while adapters that were never loaded before
come from disk at a steady pace. Loads come by pinning, so that no row joins the batch and the load alone is seen.
"""

import asyncio
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import count, pairwise
from pathlib import Path

import numpy as np

from benchmarks.many_loras import forget_cached, write_many_loras
from benchmarks.models import random_prompts
from benchmarks.ours import OurEngine, ServedBatch, row_requests, serve_batch
from benchmarks.scale_case import ScaleCase
from loadtest.histogram import distribution
from server.engine.base import EngineRequest, ResolvedAdapter
from server.engine.native.engine import NativeEngine

QUIET, LOADING = "quiet", "loading"


@dataclass(frozen=True, slots=True)
class ColdLoadPlan:
    """What is run.

    Attributes:
        num_rows: Rows that decode.
        num_new_tokens: Tokens of each in a pass.
        num_rounds: Passes of each kind, after one quiet one that is not counted.
        loads_per_s: Cold adapters a second.
        num_cold: Cold adapters at hand, at least as many as are loaded; each is loaded once.
        rank: Their rank.
    """

    num_rows: int = 8
    num_new_tokens: int = 256
    num_rounds: int = 8
    loads_per_s: float = 5.0
    num_cold: int = 600
    rank: int = 16


@dataclass(frozen=True, slots=True)
class ColdLoadResult:
    """Gaps between the tokens of a row.

    Attributes:
        plan: What was run.
        itl_ms: Every gap, by kind of pass.
        load_ms: How long each load took, from asking for it until it was resident.
    """

    plan: ColdLoadPlan
    itl_ms: dict[str, list[float]]
    load_ms: list[float]

    def headline(self) -> dict[str, float]:
        """Return the 99th percentiles and their difference."""
        quiet, loading = (float(np.percentile(self.itl_ms[kind], 99)) for kind in (QUIET, LOADING))
        loads = distribution(self.load_ms)
        return {
            "itl_p99_quiet_ms": quiet,
            "itl_p99_loading_ms": loading,
            "itl_p99_added_ms": loading - quiet,
            "num_loads": len(self.load_ms),
            "load_p50_ms": loads.p50 if loads else float("nan"),
        }

    def plot(self, picture: Path) -> None:
        """Write a PNG of the gaps' distributions, the tail spread out."""
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(figsize=(6, 4))
        for kind, values in self.itl_ms.items():
            axes.plot(np.sort(values), 1 - np.arange(len(values)) / len(values), label=kind)
        axes.set(xlabel="ITL, ms", ylabel="share of gaps at least as long", yscale="log")
        axes.grid(visible=True, alpha=0.3)
        axes.legend()
        figure.tight_layout()
        figure.savefig(picture, dpi=100)
        pyplot.close(figure)


def run_cold_load(case: ScaleCase, plan: ColdLoadPlan) -> ColdLoadResult:
    """Run every pass.

    Raises:
        RuntimeError: If more adapters were to be loaded than there are.
    """
    adapters = write_many_loras(case.folder, case.base, plan.num_rows + plan.num_cold, ranks=(plan.rank,))
    resident, cold = adapters[: plan.num_rows], adapters[plan.num_rows :]
    for adapter in cold:
        forget_cached(adapter)
    prompts = random_prompts(case.base, [64] * plan.num_rows, seed=case.seed)
    requests = row_requests(prompts, plan.num_new_tokens, loras=resident)
    result = ColdLoadResult(plan, {QUIET: [], LOADING: []}, [])
    fresh = iter(cold)
    config = replace(case, new_tokens=(1, plan.num_new_tokens)).engine_config(num_slots=2 * plan.num_rows)
    with OurEngine(config) as engine:
        engine.serve(requests)
        for _ in range(plan.num_rounds):
            result.itl_ms[QUIET].extend(_gaps_ms(engine.serve(requests)))
            served = engine.run(lambda native: _serve_and_load(native, requests, fresh, plan.loads_per_s, result))
            result.itl_ms[LOADING].extend(_gaps_ms(served))
    return result


async def _serve_and_load(
    engine: NativeEngine,
    requests: Sequence[EngineRequest],
    cold: Iterable[ResolvedAdapter],
    loads_per_s: float,
    result: ColdLoadResult,
) -> ServedBatch:
    """Serve the rows and load at a steady pace until they have ended."""
    over = asyncio.Event()
    loading = asyncio.create_task(_load_steadily(engine, cold, loads_per_s, over, result.load_ms))
    try:
        return await serve_batch(engine, requests)
    finally:
        over.set()
        await loading


async def _load_steadily(
    engine: NativeEngine,
    cold: Iterable[ResolvedAdapter],
    loads_per_s: float,
    over: asyncio.Event,
    load_ms: list[float],
) -> None:
    start_s = time.perf_counter()
    for index in count():
        await asyncio.sleep(start_s + index / loads_per_s - time.perf_counter())
        if over.is_set():
            return
        adapter = next(iter(cold), None)
        if adapter is None:
            raise RuntimeError("there are fewer cold adapters than loads; ask for more of them or for fewer rounds")
        asked_s = time.perf_counter()
        await engine.pin_adapter(adapter)
        load_ms.append((time.perf_counter() - asked_s) * 1e3)
        engine.unpin_adapter(adapter.digest)


def _gaps_ms(served: ServedBatch) -> list[float]:
    """Return the gaps between tokens from when every row has its first one."""
    first_s = max(row.start_s + row.arrival_s[0] for row in served.rows)
    return [
        (later_s - earlier_s) * 1e3
        for row in served.rows
        for earlier_s, later_s in pairwise(row.arrival_s)
        if row.start_s + earlier_s >= first_s
    ]
