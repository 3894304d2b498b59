"""The native engine on a base in int8 with LoRAs mixed: near the unquantized base, and no row changed by another.

Tolerances are for log-probabilities of the first token, whose logits' standard deviation is about 11; bfloat16 alone
parts them by up to 0.5.
"""

import asyncio
from pathlib import Path

import pytest

pytestmark = [pytest.mark.torch, pytest.mark.slow]

torch = pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("peft", reason="the adapters are made with it")

from server.core.errors import FailedPreconditionError  # noqa: E402
from server.core.outputs import TokenLogprob  # noqa: E402
from server.core.sampling import SamplingParams  # noqa: E402
from server.engine.base import EngineRequest  # noqa: E402
from server.engine.native.engine import NativeEngine, NativeEngineConfig  # noqa: E402
from server.engine.native.kernels import cpu  # noqa: E402
from tests.fixtures.t5_models import LORAS, resolved, write_loras, write_t5  # noqa: E402

needs_kernel = pytest.mark.skipif(
    not cpu.can_multiply_int8(torch.empty(16, 16)), reason="needs AVX512_VNNI and a build with a C++ compiler"
)
SHAPE = {
    "vocab_size": 320,
    "d_model": 128,
    "d_kv": 64,
    "d_ff": 256,
    "num_layers": 2,
    "num_heads": 2,
    "feed_forward_proj": "gated-gelu",
}
PROMPTS = [tuple(5 + (7 * row + 3 * place) % 300 for place in range(4 + 9 * row)) for row in range(len(LORAS) + 1)]
MIXED = list(zip(PROMPTS, [None, *LORAS], strict=True))
TOLERANCE = 2.0

Row = tuple[tuple[int, ...], str | None]
Answer = tuple[list[int], dict[int, float]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("int8")
    write_t5(made / "base", SHAPE, is_tied=False, seed=3)
    write_loras(made, made / "base", LORAS, seed=4)
    return made


async def serve(folder: Path, quantization: str, batches: list[list[Row]], *, dtype: str) -> tuple[list[Answer], int]:
    """Serve batches one after the other; return each row's tokens and first log-probabilities, and the base's bytes."""
    engine = NativeEngine(
        NativeEngineConfig(str(folder / "base"), device="cpu", dtype=dtype, quantization=quantization)
    )
    await engine.start()

    async def one(row: Row) -> Answer:
        prompt, lora = row
        adapter = resolved(folder, lora) if lora else None
        tokens: list[int] = []
        logprobs: list[TokenLogprob] = []
        sampling = SamplingParams(max_new_tokens=12, num_logprobs=20)
        async for output in engine.submit(EngineRequest(str(prompt), prompt, sampling, weight_adapter=adapter)):
            assert output.error is None, output.error
            tokens += output.token_ids
            logprobs += output.logprobs
        return tokens, {best.token_id: best.logprob for best in logprobs[0].top}

    try:
        answers = [answer for rows in batches for answer in await asyncio.gather(*map(one, rows))]
        return answers, engine.info.num_weight_bytes
    finally:
        await engine.stop()


def distance(found: Answer, expected: Answer) -> float:
    """Return how far the log-probabilities part of the tokens that are among the best of both."""
    shared = found[1].keys() & expected[1].keys()
    assert len(shared) > 5
    return max(abs(found[1][token] - expected[1][token]) for token in shared)


@needs_kernel
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
async def test_int8_base_with_mixed_loras_is_near_the_unquantized(folder: Path, dtype: str) -> None:
    expected, num_bytes = await serve(folder, "none", [MIXED], dtype="float32")
    found, num_int8_bytes = await serve(folder, "int8", [MIXED], dtype=dtype)
    distances = [distance(*pair) for pair in zip(found, expected, strict=True)]
    assert 0.01 < max(distances) < TOLERANCE, distances
    assert num_int8_bytes < 0.6 * num_bytes


@needs_kernel
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
async def test_int8_row_alone_is_exactly_what_it_is_beside_others(folder: Path, dtype: str) -> None:
    # Rows of the base only: an adapter's own sums may be taken in another order when it has several rows.
    together, _ = await serve(folder, "int8", [[(prompt, None) for prompt in PROMPTS]], dtype=dtype)
    alone, _ = await serve(folder, "int8", [[(prompt, None)] for prompt in PROMPTS], dtype=dtype)
    assert together == alone


async def test_int8_base_of_a_shape_not_in_sixteens_is_refused_at_start(tmp_path: Path) -> None:
    write_t5(tmp_path, SHAPE | {"vocab_size": 300}, is_tied=True, seed=3)
    engine = NativeEngine(NativeEngineConfig(str(tmp_path), device="cpu", quantization="int8"))
    with pytest.raises(FailedPreconditionError, match="use bitsandbytes-8bit or none"):
        await engine.start()
