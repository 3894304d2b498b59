"""The native engine on a CUDA device: the same tokens as on the CPU, for the same mixed rows."""

import asyncio
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
from tests.fixtures.t5_models import LORAS, PROMPTS, TINY, resolved, write_loras, write_prompts, write_t5  # noqa: E402


async def answers(folder: Path, device: str, dtype: str) -> list[list[int]]:
    """Serve base, every LoRA, every soft prompt and pairs of both at once."""
    engine = NativeEngine(NativeEngineConfig(str(folder / "base"), device=device, dtype=dtype))
    await engine.start()
    pairs = [(None, None), *((lora, None) for lora in LORAS), *((None, prompt) for prompt in PROMPTS)]
    pairs += list(zip(LORAS, PROMPTS, strict=False))

    async def one(index: int, lora: str | None, prompt: str | None) -> list[int]:
        request = EngineRequest(
            str(index),
            tuple(range(3, 20 + 7 * index)),
            SamplingParams(max_new_tokens=4 + index),
            weight_adapter=resolved(folder, lora) if lora else None,
            soft_prompt=resolved(folder, prompt) if prompt else None,
        )
        return [token async for output in engine.submit(request) for token in output.token_ids]

    try:
        return list(await asyncio.gather(*(one(index, *pair) for index, pair in enumerate(pairs))))
    finally:
        await engine.stop()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tiny")
    write_t5(made / "base", TINY, is_tied=False, seed=1)
    write_loras(made, made / "base", LORAS, seed=2)
    write_prompts(made, made / "base", PROMPTS, seed=3)
    return made


async def test_engine_on_cuda_float32_equals_cpu(folder: Path) -> None:
    assert await answers(folder, "cuda", "float32") == await answers(folder, "cpu", "float32")


async def test_engine_on_cuda_bfloat16_serves_every_row(folder: Path) -> None:
    found = await answers(folder, "cuda", "bfloat16")
    assert [len(tokens) for tokens in found] == [4 + index for index in range(len(found))]
