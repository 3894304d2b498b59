"""A whole engine on the Triton kernels, interpreted on the CPU, gives the tokens it gives without them."""

import asyncio
from pathlib import Path

import pytest

pytestmark = [pytest.mark.torch, pytest.mark.slow]

torch = pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("peft", reason="the adapters are made with PEFT")
pytest.importorskip("triton", reason="Triton offers no build for this platform")

from server.core.sampling import SamplingParams  # noqa: E402
from server.engine.base import EngineRequest  # noqa: E402
from server.engine.native import prefill, runner  # noqa: E402
from server.engine.native.engine import NativeEngine, NativeEngineConfig  # noqa: E402
from tests.fixtures.interpreted_triton import interpreted_lora_triton  # noqa: E402
from tests.fixtures.t5_models import LORAS, TINY, resolved, write_loras, write_t5  # noqa: E402


async def serve(folder: Path) -> list[tuple[int, ...]]:
    """Serve two rows of every LoRA and of the base at once, with fewer slots than LoRAs."""
    engine = NativeEngine(NativeEngineConfig(str(folder / "base"), device="cpu", max_loras=5))
    await engine.start()

    async def one(index: int, lora: str | None) -> tuple[int, ...]:
        adapter = resolved(folder, lora) if lora else None
        sampling = SamplingParams(max_new_tokens=4 + index)
        request = EngineRequest(str(index), tuple(range(3, 6 + 5 * index)), sampling, weight_adapter=adapter)
        return tuple([token async for output in engine.submit(request) for token in output.token_ids])

    try:
        return list(await asyncio.gather(*(one(index, lora) for index, lora in enumerate([None, *LORAS] * 2))))
    finally:
        await engine.stop()


async def test_engine_on_interpreted_kernels_gives_the_same_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_t5(tmp_path / "base", TINY, is_tied=False, seed=1)
    write_loras(tmp_path, tmp_path / "base", LORAS, seed=2)
    wanted = await serve(tmp_path)
    kernels = interpreted_lora_triton().GroupedLora
    num_deltas = 0

    class Counted(kernels):
        def delta(self, segments: list[tuple[int, int, object]]) -> object:
            nonlocal num_deltas
            num_deltas += 1
            return super().delta(segments)

    for module in (prefill, runner):
        monkeypatch.setattr(module, "grouped_lora", lambda *_: Counted(device=torch.device("cpu"), dtype=torch.float32))
    assert await serve(tmp_path) == wanted
    assert num_deltas > 2
    assert len(set(wanted)) > 10, "degenerate outputs prove nothing"
