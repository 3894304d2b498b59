"""Scale, part four: the process's memory over thousands of load and evict cycles.

More adapters than slots are loaded one after the other, round and round, so each load evicts one; host memory holds
only some of them, so adapters leave it as well. Now and then a request runs with the adapter just loaded.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from benchmarks.many_loras import write_many_loras
from benchmarks.models import random_prompts
from benchmarks.ours import OurEngine, row_requests, serve_batch
from benchmarks.scale_case import ScaleCase
from server.engine.base import ResolvedAdapter
from server.engine.native.engine import NativeEngine

# What a process has when it begins to cycle is not what it keeps: allocators fill their pools first.
_WARM_UP_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What is run.

    Attributes:
        num_cycles: Loads, each but the first few with an eviction.
        num_adapters: Adapters they go round.
        num_slots: Slots on the device.
        num_kept: Adapters host memory has room for, about.
        num_cycles_per_sample: Cycles between two looks at the process's memory, with one request each.
    """

    num_cycles: int = 10_000
    num_adapters: int = 64
    num_slots: int = 8
    num_kept: int = 24
    num_cycles_per_sample: int = 50


@dataclass(frozen=True, slots=True)
class MemoryResult:
    """Resident memory by cycle.

    Attributes:
        plan: What was run.
        cycles: When it was looked at.
        rss_bytes: What it was.
        num_loads: Loads into a slot.
        num_evictions: Evictions from a slot.
    """

    plan: MemoryPlan
    cycles: list[int]
    rss_bytes: list[int]
    num_loads: int
    num_evictions: int

    def headline(self) -> dict[str, float]:
        """Return growth after the warm-up: in all, and by a straight line through the samples."""
        cycles, rss_bytes = np.array(self.cycles), np.array(self.rss_bytes)
        is_warm = cycles >= _WARM_UP_SHARE * self.plan.num_cycles
        slope = float(np.polyfit(cycles[is_warm], rss_bytes[is_warm], 1)[0])
        quarter = max(1, int(is_warm.sum()) // 4)
        grown = float(np.median(rss_bytes[-quarter:]) - np.median(rss_bytes[is_warm][:quarter]))
        return {
            "num_loads": self.num_loads,
            "num_evictions": self.num_evictions,
            "rss_end_mb": float(rss_bytes[-1] / 1e6),
            "rss_last_over_first_quarter_mb": grown / 1e6,
            "rss_slope_bytes_per_cycle": slope,
        }

    def plot(self, picture: Path) -> None:
        """Write a PNG of memory over cycles."""
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(figsize=(6, 4))
        axes.plot(self.cycles, np.array(self.rss_bytes) / 1e6)
        axes.set(xlabel="load and evict cycles", ylabel="resident memory, MB", ylim=(0, None))
        axes.grid(visible=True, alpha=0.3)
        figure.tight_layout()
        figure.savefig(picture, dpi=100)
        pyplot.close(figure)


def run_memory(case: ScaleCase, plan: MemoryPlan) -> MemoryResult:
    """Run every cycle."""
    adapters = write_many_loras(case.folder, case.base, plan.num_adapters)
    prompt = random_prompts(case.base, [16], seed=case.seed)
    # A file is float16: as many bytes as the adapter in bfloat16, half of it in float32; and a little more.
    file_bytes = (adapters[0].path / "adapter_model.safetensors").stat().st_size
    kept_bytes = plan.num_kept * file_bytes * (1 if case.dtype == "bfloat16" else 2)
    process = psutil.Process()
    cycles, rss_bytes = [], []
    with OurEngine(case.engine_config(num_slots=plan.num_slots, max_host_adapter_bytes=kept_bytes)) as engine:
        for first in range(0, plan.num_cycles, plan.num_cycles_per_sample):
            last = min(first + plan.num_cycles_per_sample, plan.num_cycles)
            turns = [adapters[cycle % len(adapters)] for cycle in range(first, last)]
            engine.run(lambda native, turns=turns: _cycle(native, turns, prompt))
            cycles.append(last)
            rss_bytes.append(process.memory_info().rss)
        stats = engine.stats()
    return MemoryResult(plan, cycles, rss_bytes, stats.num_adapter_loads, stats.num_adapter_evictions)


async def _cycle(engine: NativeEngine, adapters: Sequence[ResolvedAdapter], prompt: Sequence[tuple[int, ...]]) -> None:
    for adapter in adapters:
        await engine.pin_adapter(adapter)
        engine.unpin_adapter(adapter.digest)
    await serve_batch(engine, row_requests(prompt, 8, loras=adapters[-1:]))
