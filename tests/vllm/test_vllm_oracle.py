"""The vLLM engine against transformers + PEFT, token for token, in float32 greedy.

A mixed crowd of requests arrives at random times; each must get exactly the tokens it gets alone. The oracle also
states how clear its choices were.
"""

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

# What vLLM imports warns of what it imports.
pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.filterwarnings("default")]

pytest.importorskip("vllm", reason="needs the vLLM environment (make test-vllm)")

from server.core.sampling import SamplingParams  # noqa: E402
from server.engine.base import EngineOutput, EngineRequest  # noqa: E402
from server.engine.vllm.config import VllmEngineConfig  # noqa: E402
from server.engine.vllm.engine import VllmEngine  # noqa: E402
from tests.fixtures.causal_models import (  # noqa: E402
    LORAS,
    MAX_RANK,
    PROMPTS,
    resolved,
    write_causal_adapters,
    write_llama,
    write_qwen,
)
from tests.fixtures.causal_oracle import Answer, Case, CausalOracle  # noqa: E402

VOCAB_SIZE = 512
NUM_REQUESTS = 32
MIN_MARGIN = 1e-3
MAX_LOGPROB_ERROR = 1e-3


def crowd(seed: int) -> list[Case]:
    """Return requests of every kind: base, each LoRA, each soft prompt, both together; 1 to 300 tokens."""
    draw = random.Random(seed)
    loras, prompts = list(LORAS), list(PROMPTS)
    pairs: list[tuple[str | None, str | None]] = [(None, None)] * 4
    pairs += [(lora, None) for lora in loras] * 2 + [(None, prompt) for prompt in prompts] * 2
    pairs += [(loras[index % 4], prompts[(index + index // 4) % 4]) for index in range(NUM_REQUESTS - len(pairs))]
    lengths = [1, 2, 300] + [int(draw.triangular(3, 250, 40)) for _ in range(NUM_REQUESTS - 3)]
    draw.shuffle(lengths)
    return [
        Case(tuple(draw.randrange(3, VOCAB_SIZE) for _ in range(length)), draw.choice([1, 2, 5, 12, 24, 40]), *pair)
        for length, pair in zip(lengths, pairs, strict=True)
    ]


async def serve(engine: VllmEngine, cases: list[Case], adapters: Path, seed: int) -> list[list[EngineOutput]]:
    """Send the cases in a random order at random times; return their outputs in the given order."""
    draw = random.Random(seed)

    async def send(index: int) -> list[EngineOutput]:
        case = cases[index]
        request = EngineRequest(
            f"{seed}-{index}",
            case.token_ids,
            SamplingParams(max_new_tokens=case.max_new_tokens, num_logprobs=0),
            weight_adapter=resolved(adapters, case.lora) if case.lora else None,
            soft_prompt=resolved(adapters, case.prompt) if case.prompt else None,
        )
        return [output async for output in engine.submit(request)]

    tasks = {}
    for index in draw.sample(range(len(cases)), len(cases)):
        tasks[index] = asyncio.create_task(send(index))
        await asyncio.sleep(draw.choice([0.0, 0.0, 0.01, 0.03]))
    return [await tasks[index] for index in range(len(cases))]


def compare(case: Case, outputs: list[EngineOutput], expected: Answer) -> None:
    """Check that one request got the oracle's answer."""
    kind = replace(case, token_ids=())
    assert outputs[-1].error is None, (kind, outputs[-1].error)
    assert tuple(token for output in outputs for token in output.token_ids) == expected.token_ids, kind
    logprobs = [each.logprob for output in outputs for each in output.logprobs]
    assert logprobs == pytest.approx(expected.logprobs, abs=MAX_LOGPROB_ERROR), kind


@pytest.mark.timeout(600)
@pytest.mark.parametrize("write", [write_llama, write_qwen])
async def test_engine_mixed_crowd_equals_each_request_alone(tmp_path: Path, write: Callable[..., Path]) -> None:
    folder = write(tmp_path / "base", seed=1)
    adapters = write_causal_adapters(tmp_path / "adapters", folder, seed=2)
    cases = crowd(seed=11)
    oracle = CausalOracle(folder, adapters)
    wanted = [oracle.answer(case) for case in cases]
    assert min(answer.margin for answer in wanted) > MIN_MARGIN
    assert len({answer.token_ids for answer in wanted}) > 25, "degenerate answers prove nothing"
    # Fewer places than adapters: they come and go while the crowd is served.
    config = VllmEngineConfig(
        str(folder), max_num_seqs=12, max_loras=3, max_lora_rank=MAX_RANK, max_soft_prompts=3, max_virtual_tokens=40
    )
    engine = VllmEngine(config)
    await engine.start()
    try:
        first = await serve(engine, cases, adapters, seed=1)
        # Now out of the prefix cache in part, beside other neighbours.
        second = await serve(engine, cases, adapters, seed=2)
        assert engine.stats().num_adapter_evictions > 0
    finally:
        await engine.stop()
    for outputs in (first, second):
        for case, got, expected in zip(cases, outputs, wanted, strict=True):
            compare(case, got, expected)
