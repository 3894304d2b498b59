"""Thousands of adapters come and go: what is kept stays within its bounds, and so does the process."""

import gc
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from weakref import WeakValueDictionary

import pytest

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch", reason="needs torch")

from adapters.manifest import AdapterKind, AdapterRole  # noqa: E402
from server.core.sampling import SamplingParams  # noqa: E402
from server.engine.base import EngineRequest, ResolvedAdapter  # noqa: E402
from server.engine.native.adapter_tiers import AdapterTiers  # noqa: E402
from server.engine.native.batch import Batch, Row, StepOutput  # noqa: E402
from server.engine.native.scheduler import Scheduler  # noqa: E402
from server.engine.native.step_loop import StepLoop  # noqa: E402

NUM_CYCLES = 2000
NUM_ADAPTERS = 50
NUM_SLOTS = 4
PAYLOAD_BYTES = 4096
HOST_BYTES = 10 * PAYLOAD_BYTES


class Files:
    """Adapters of one size, and those read from it that are still somewhere."""

    def __init__(self) -> None:
        self.alive: WeakValueDictionary[int, torch.Tensor] = WeakValueDictionary()
        self._num_read = 0

    def __call__(self, _: ResolvedAdapter) -> torch.Tensor:
        payload = torch.zeros(PAYLOAD_BYTES // 4)
        self._num_read += 1
        self.alive[self._num_read] = payload
        return payload


class OneToken:
    """A runner whose rows end with their first token."""

    def execute(self, batch: Batch) -> StepOutput:
        return StepOutput((1,) * len(batch.rows))

    def reset(self) -> None:
        raise AssertionError("no step breaks here")


def adapter(number: int) -> ResolvedAdapter:
    return ResolvedAdapter(f"digest-{number}", AdapterKind.LORA, Path("x"), rank=1)


def test_loading_and_evicting_thousands_of_times_leaves_nothing_behind() -> None:
    files = Files()
    tiers = AdapterTiers(files, torch.device("cpu"), HOST_BYTES)
    scheduler = Scheduler(
        max_num_seqs=2, max_num_batched_tokens=64, max_prefill_tokens_per_step=8, num_stages=2, eos_token_ids=[1]
    )
    ended: SimpleQueue[str] = SimpleQueue()
    executor = ThreadPoolExecutor(max_workers=1)
    loop = StepLoop(
        scheduler,
        num_slots={AdapterRole.WEIGHTS: NUM_SLOTS, AdapterRole.PROMPT: 1},
        tiers=tiers,
        executor=executor,
        deliver=lambda outputs: [ended.put(request_id) for request_id, _ in outputs],
        max_num_waiting=8,
    )
    steps = threading.Thread(target=loop.run, args=(OneToken(),))

    def serve(count: int) -> int:
        for number in range(count):
            request = EngineRequest("r", (5,), SamplingParams(), weight_adapter=adapter(number * 7 % NUM_ADAPTERS))
            loop.add(Row(request, arrival_s=0.0, seed=0))
            ended.get(timeout=5)
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    steps.start()
    try:
        before = serve(NUM_CYCLES // 4)
        after = serve(NUM_CYCLES)
    finally:
        loop.stop()
        steps.join()
        executor.shutdown()
        tracemalloc.stop()
    assert loop.adapters.num_evictions > NUM_CYCLES
    assert len(loop.adapters.resident) == NUM_SLOTS
    assert tiers.host.num_bytes == HOST_BYTES
    assert (scheduler.num_waiting, scheduler.num_running) == (0, 0)
    assert after - before < 16_384
    assert len(files.alive) <= NUM_SLOTS + HOST_BYTES // PAYLOAD_BYTES
