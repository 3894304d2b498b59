"""The native engine in a process of its own gives the tokens it gives beside us, also after a death."""

import asyncio
import os
import signal
from functools import partial
from pathlib import Path

import pytest

pytestmark = pytest.mark.torch
pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("peft", reason="the adapters are made with PEFT")

from server.core.sampling import SamplingParams  # noqa: E402
from server.engine.base import Engine, EngineOutput, EngineRequest  # noqa: E402
from server.engine.factory import make_native  # noqa: E402
from server.engine.native.config import NativeEngineConfig  # noqa: E402
from server.engine.process.engine import ProcessEngine  # noqa: E402
from server.engine.supervisor import BackOff  # noqa: E402
from tests.fixtures.floods import check_flood_gives_way  # noqa: E402
from tests.fixtures.t5_models import LORAS, PROMPTS, TINY, resolved, write_loras, write_prompts, write_t5  # noqa: E402

WAYS = (
    SamplingParams(max_new_tokens=24, ignore_eos=True),
    SamplingParams(max_new_tokens=24, temperature=0.9, top_p=0.9, seed=7, num_logprobs=1),
    SamplingParams(max_new_tokens=12, repetition_penalty=1.3, min_new_tokens=6),
)


def requests(folder: Path) -> list[EngineRequest]:
    lora, other, prompt = (resolved(folder, name) for name in ("qv-2", "all-linear-8", "prompt-8"))
    adapters = ((None, None), (lora, None), (None, prompt), (other, prompt))
    return [
        EngineRequest(f"{number}-{way}", tuple(range(3 + number, 40)), sampling, *each)
        for number, each in enumerate(adapters)
        for way, sampling in enumerate(WAYS)
    ]


def answer(outputs: list[EngineOutput]) -> tuple[list[object], list[float]]:
    """What was chosen and why it ended; and the log-probabilities, which go a little by who else is in the batch."""
    chosen = [
        (output.token_ids, [entry.token_id for entry in output.logprobs], output.finish_reason, output.error)
        for output in outputs
    ]
    return chosen, [entry.logprob for output in outputs for entry in output.logprobs]


async def ask(engine: Engine, given: list[EngineRequest]) -> list[tuple[list[object], list[float]]]:
    async def read(request: EngineRequest) -> list[EngineOutput]:
        return [output async for output in engine.submit(request)]

    return [answer(outputs) for outputs in await asyncio.gather(*map(read, given))]


def assert_same(got: list[tuple[list[object], list[float]]], wanted: list[tuple[list[object], list[float]]]) -> None:
    assert [chosen for chosen, _ in got] == [chosen for chosen, _ in wanted]
    for (_, logprobs), (_, expected) in zip(got, wanted, strict=True):
        assert logprobs == pytest.approx(expected, abs=1e-4)


async def test_native_engine_in_its_own_process_gives_the_same_tokens_also_after_a_death(tmp_path: Path) -> None:
    base = write_t5(tmp_path / "base", TINY, is_tied=False, seed=1)
    write_loras(tmp_path, base, {name: LORAS[name] for name in ("qv-2", "all-linear-8")}, seed=2)
    write_prompts(tmp_path, base, {"prompt-8": PROMPTS["prompt-8"]}, seed=3)
    make = partial(make_native, NativeEngineConfig(str(base), device="cpu", dtype="float32", num_threads=1))
    given = requests(tmp_path)
    beside, apart = make(), ProcessEngine(make, BackOff(first_s=0.01))
    await beside.start()
    wanted = await ask(beside, given)
    await beside.stop()
    await apart.start()
    try:
        assert apart.info == beside.info
        assert_same(await ask(apart, given), wanted)
        assert apart.pid is not None
        os.kill(apart.pid, signal.SIGKILL)
        async with asyncio.timeout(60):
            while apart.stats().alive:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            while not apart.stats().alive:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert_same(await ask(apart, given), wanted)
    finally:
        await apart.stop()
    assert len({str(chosen) for chosen, _ in wanted}) == len(given), "answers that are all alike prove nothing"


async def test_flood_gives_way_to_another_tenant_in_a_full_queue(tmp_path: Path) -> None:
    base = write_t5(tmp_path / "base", TINY, is_tied=False, seed=1)
    sizes = {"device": "cpu", "dtype": "float32", "num_threads": 1, "max_num_seqs": 1, "max_num_waiting": 3}
    engine = ProcessEngine(partial(make_native, NativeEngineConfig(str(base), **sizes)))
    await engine.start()
    try:
        await check_flood_gives_way(engine)
    finally:
        await engine.stop()
