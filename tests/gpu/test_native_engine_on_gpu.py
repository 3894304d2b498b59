"""The native engine on a CUDA device: against transformers and PEFT, against itself on the CPU, and in bfloat16.

Runs without pytest's plugins, see ``make gpu``; so no test is a coroutine.
"""

import asyncio
from dataclasses import dataclass
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("peft", reason="the adapters are made with PEFT")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.torch,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

from server.core.sampling import SamplingParams  # noqa: E402
from server.engine.base import EngineRequest  # noqa: E402
from server.engine.native.engine import NativeEngine, NativeEngineConfig  # noqa: E402
from tests.fixtures.t5_models import (  # noqa: E402
    FLAN_T5_SMALL,
    LORAS,
    PROMPTS,
    T5_SMALL,
    TINY,
    resolved,
    write_loras,
    write_prompts,
    write_t5,
)
from tests.integration.test_native_oracle import compare  # noqa: E402

# bfloat16 keeps 8 bits, and the error grows through the layers; measured on the CPU the largest is 0.05.
BF16_LOGPROB_TOLERANCE = 0.15


@pytest.fixture(autouse=True)
def no_tf32() -> None:
    """Float32 products must be float32: tokens are compared one by one."""
    assert not torch.backends.cuda.matmul.allow_tf32


@dataclass(frozen=True)
class Answer:
    """Tokens of a request, and the log-probability of each."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]


def serve(
    folder: Path, pairs: list[tuple[str | None, str | None]], device: str, dtype: str, max_loras: int = 16
) -> list[Answer]:
    """Serve a request per (LoRA, soft prompt), all at once."""
    return asyncio.run(
        _serve(folder, pairs, NativeEngineConfig(str(folder / "base"), device, dtype, max_loras=max_loras))
    )


async def _serve(folder: Path, pairs: list[tuple[str | None, str | None]], config: NativeEngineConfig) -> list[Answer]:
    engine = NativeEngine(config)
    await engine.start()

    async def one(index: int, lora: str | None, prompt: str | None) -> Answer:
        request = EngineRequest(
            str(index),
            tuple(range(3, 20 + 7 * (index % 20))),
            SamplingParams(max_new_tokens=4 + index % 12, num_logprobs=1),
            weight_adapter=resolved(folder, lora) if lora else None,
            soft_prompt=resolved(folder, prompt) if prompt else None,
        )
        outputs = [output async for output in engine.submit(request)]
        assert [output.error for output in outputs if output.error] == []
        return Answer(
            tuple(token for output in outputs for token in output.token_ids),
            tuple(logprob.logprob for output in outputs for logprob in output.logprobs),
        )

    try:
        return list(await asyncio.gather(*(one(index, *pair) for index, pair in enumerate(pairs))))
    finally:
        await engine.stop()


MIXED: list[tuple[str | None, str | None]] = [
    (None, None),
    *((lora, None) for lora in LORAS),
    *((None, prompt) for prompt in PROMPTS),
    *zip(LORAS, PROMPTS, strict=False),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tiny")
    write_t5(made / "base", TINY, is_tied=False, seed=1)
    write_loras(made, made / "base", LORAS, seed=2)
    write_prompts(made, made / "base", PROMPTS, seed=3)
    return made


@pytest.mark.parametrize(("shape", "is_tied"), [(FLAN_T5_SMALL, False), (T5_SMALL, True)], ids=["flan", "t5-v1.0"])
def test_engine_on_cuda_mixed_crowd_equals_each_request_alone(
    tmp_path: Path, shape: dict[str, object], is_tied: bool
) -> None:
    base = write_t5(tmp_path / "base", shape, is_tied=is_tied, seed=5)
    write_loras(tmp_path / "adapters", base, LORAS, seed=6)
    write_prompts(tmp_path / "adapters", base, PROMPTS, seed=7)
    asyncio.run(compare(base, tmp_path / "adapters", 32128, device="cuda"))


def test_engine_on_cuda_float32_equals_cpu(folder: Path) -> None:
    found, wanted = (serve(folder, MIXED, device, "float32") for device in ("cuda", "cpu"))
    assert [answer.token_ids for answer in found] == [answer.token_ids for answer in wanted]
    assert len({answer.token_ids for answer in found}) > 8, "degenerate outputs prove nothing"


def test_engine_on_cuda_bfloat16_first_tokens_are_as_likely_as_in_float32(folder: Path) -> None:
    found, wanted = (serve(folder, MIXED, "cuda", dtype) for dtype in ("bfloat16", "float32"))
    for answer, exact in zip(found, wanted, strict=True):
        assert len(answer.token_ids) == len(exact.token_ids)
        assert abs(answer.logprobs[0] - exact.logprobs[0]) < BF16_LOGPROB_TOLERANCE


def test_engine_on_cuda_more_adapters_than_slots_answers_as_with_room_for_all(folder: Path) -> None:
    pairs = [(lora, None) for _ in range(5) for lora in LORAS]
    crowded, roomy = (serve(folder, pairs, "cuda", "float32", max_loras=slots) for slots in (3, 16))
    assert [answer.token_ids for answer in crowded] == [answer.token_ids for answer in roomy]


def test_engine_on_cuda_loading_and_evicting_leaves_no_memory_behind(folder: Path) -> None:
    request = [(lora, None) for _ in range(4) for lora in LORAS]

    async def allocated_bytes() -> list[int]:
        engine = NativeEngine(NativeEngineConfig(str(folder / "base"), "cuda", "float32", max_loras=2))
        await engine.start()
        try:
            found = []
            for turn in range(4):
                for index, (lora, _) in enumerate(request):
                    sampling = SamplingParams(max_new_tokens=2)
                    adapter = resolved(folder, lora)
                    one = EngineRequest(f"{turn}-{index}", (5, 6, 7), sampling, weight_adapter=adapter)
                    assert [output.error async for output in engine.submit(one)][-1] is None
                found.append(torch.cuda.memory_allocated())
            assert engine.stats().num_adapter_evictions > len(request)
            return found
        finally:
            await engine.stop()

    _, second, *_, last = asyncio.run(allocated_bytes())
    assert last <= second, "memory grows with every turn"
