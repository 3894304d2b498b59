"""The native engine on a quantized base against transformers, bitsandbytes and PEFT on the same base: QLoRA's way.

Both sides quantize the same layers with the same library, so logits differ by rounding only: LLM.int8 rounds inputs to
integers and the CPU kernel of NF4 rounds them to bfloat16, where the last bit of a float32 decides a whole step now and
then. The logits' standard deviation is about 11; serving in bfloat16 alone parts them by up to 0.5, NF4 by 6 to 15.
Tokens are compared up to the first choice of the oracle that is not clear of the tolerance.
"""

import asyncio
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = [pytest.mark.torch, pytest.mark.slow]

torch = pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("peft", reason="the oracle is PEFT")
pytest.importorskip("bitsandbytes", reason="the base is quantized with it")

from peft import PeftModel  # noqa: E402
from transformers import BitsAndBytesConfig, T5ForConditionalGeneration  # noqa: E402

from server.core.outputs import TokenLogprob  # noqa: E402
from server.core.sampling import SamplingParams  # noqa: E402
from server.engine.base import EngineRequest  # noqa: E402
from server.engine.native.engine import NativeEngine, NativeEngineConfig  # noqa: E402
from tests.fixtures.t5_models import LORAS, resolved, write_loras, write_t5  # noqa: E402

SHAPE = {
    "vocab_size": 320,
    "d_model": 128,
    "d_kv": 64,
    "d_ff": 256,
    "num_layers": 2,
    "num_heads": 2,
    "feed_forward_proj": "gated-gelu",
}
NUM_NEW_TOKENS = 12
NUM_LOGPROBS = 20
BFLOAT16_TOLERANCE = 1.0
PROMPTS = [tuple(5 + (7 * row + 3 * place) % 300 for place in range(4 + 9 * row)) for row in range(len(LORAS) + 1)]


@dataclass(frozen=True)
class Answer:
    """Tokens, log-probabilities of the best first tokens, and the oracle's gap between its two best at each step."""

    tokens: list[int]
    first: dict[int, float]
    margins: tuple[float, ...] = ()


@dataclass(frozen=True)
class Quantization:
    """One kind, as both sides name it; how far log-probabilities may part."""

    name: str
    theirs: BitsAndBytesConfig
    tolerance: float


EIGHT_BIT = Quantization("bitsandbytes-8bit", BitsAndBytesConfig(load_in_8bit=True), tolerance=0.5)
NF4 = Quantization(
    "bitsandbytes-4bit",
    BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32),
    tolerance=0.5,
)
# Wider: the engine quantizes the scales of a fused layer together, transformers those of its parts.
DOUBLE_NF4 = Quantization(
    "bitsandbytes-4bit-double",
    BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    ),
    tolerance=1.5,
)
KINDS = pytest.mark.parametrize("kind", [EIGHT_BIT, NF4, DOUBLE_NF4], ids=lambda kind: kind.name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("quantized")
    write_t5(made / "base", SHAPE, is_tied=False, seed=3)
    write_loras(made, made / "base", LORAS, seed=4)
    return made


@pytest.fixture(autouse=True)
def _quiet_library() -> Iterator[None]:
    # The oracle's 8-bit layers log a warning at every call whose input is not in half precision.
    logger = logging.getLogger("bitsandbytes.autograd._functions")
    logger.disabled = True
    yield
    logger.disabled = False


@torch.inference_mode()
def oracle(folder: Path, kind: Quantization | None, dtype: torch.dtype = torch.float32) -> list[Answer]:
    """Return what each row gets alone from transformers, the base first, then each LoRA."""
    options = {} if kind is None else {"quantization_config": kind.theirs, "device_map": "cpu"}
    base = T5ForConditionalGeneration.from_pretrained(folder / "base", dtype=dtype, **options).eval()
    names = list(LORAS)
    model = PeftModel.from_pretrained(base, folder / names[0], adapter_name=names[0])
    for name in names[1:]:
        model.load_adapter(folder / name, adapter_name=name)
    model.eval()
    with model.disable_adapter():
        answers = [_generate(model, PROMPTS[0])]
    for name, prompt in zip(names, PROMPTS[1:], strict=True):
        model.set_adapter(name)
        answers.append(_generate(model, prompt))
    return answers


def _generate(model: PeftModel, prompt: tuple[int, ...]) -> Answer:
    token_ids = torch.tensor([prompt])
    output = model.generate(
        input_ids=token_ids,
        attention_mask=torch.ones_like(token_ids),
        max_new_tokens=NUM_NEW_TOKENS,
        do_sample=False,
        num_beams=1,
        output_logits=True,
        return_dict_in_generate=True,
    )
    first = output.logits[0][0].float().log_softmax(-1)
    best = torch.stack(output.logits)[:, 0].float().topk(2, dim=-1).values
    margins = tuple((best[:, 0] - best[:, 1]).tolist())
    return Answer(output.sequences[0, 1:].tolist(), dict(enumerate(first.tolist())), margins)


async def ours(folder: Path, quantization: str, *, dtype: str = "float32") -> list[Answer]:
    """Return what the rows get from the engine, all in one batch."""
    engine = NativeEngine(
        NativeEngineConfig(str(folder / "base"), device="cpu", dtype=dtype, quantization=quantization)
    )
    await engine.start()

    async def one(row: int) -> Answer:
        sampling = SamplingParams(max_new_tokens=NUM_NEW_TOKENS, num_logprobs=NUM_LOGPROBS)
        lora = resolved(folder, list(LORAS)[row - 1]) if row else None
        tokens: list[int] = []
        logprobs: list[TokenLogprob] = []
        async for output in engine.submit(EngineRequest(str(row), PROMPTS[row], sampling, weight_adapter=lora)):
            assert output.error is None, output.error
            tokens += output.token_ids
            logprobs += output.logprobs
        return Answer(tokens, {best.token_id: best.logprob for best in logprobs[0].top})

    try:
        return list(await asyncio.gather(*(one(row) for row in range(len(PROMPTS)))))
    finally:
        await engine.stop()


def distance(found: Answer, expected: Answer) -> float:
    return max(abs(logprob - expected.first[token]) for token, logprob in found.first.items())


def num_clear(expected: Answer, tolerance: float) -> int:
    """Return how many of the oracle's first choices no difference within the tolerance could change."""
    return next((step for step, margin in enumerate(expected.margins) if margin < 2 * tolerance), NUM_NEW_TOKENS)


@KINDS
async def test_quantized_base_with_mixed_loras_agrees_with_transformers_and_peft(
    folder: Path, kind: Quantization
) -> None:
    found, expected = await ours(folder, kind.name), oracle(folder, kind)
    distances = [distance(*pair) for pair in zip(found, expected, strict=True)]
    assert max(distances) < kind.tolerance, distances
    clear = [num_clear(answer, kind.tolerance) for answer in expected]
    assert sum(clear) >= len(clear), "too few clear choices prove nothing"
    for mine, theirs, stop in zip(found, expected, clear, strict=True):
        assert mine.tokens[:stop] == theirs.tokens[:stop]


@KINDS
async def test_quantized_base_is_another_than_the_unquantized(folder: Path, kind: Quantization) -> None:
    distances = [distance(*pair) for pair in zip(await ours(folder, kind.name), oracle(folder, None), strict=True)]
    assert sum(distances) / len(distances) > 1.5 * kind.tolerance, distances


@KINDS
async def test_quantized_base_in_bfloat16_agrees_with_transformers_and_peft(folder: Path, kind: Quantization) -> None:
    found = await ours(folder, kind.name, dtype="bfloat16")
    distances = [distance(*pair) for pair in zip(found, oracle(folder, kind, torch.bfloat16), strict=True)]
    assert max(distances) < kind.tolerance + BFLOAT16_TOLERANCE, distances


@pytest.mark.parametrize(("kind", "most"), [(EIGHT_BIT, 0.8), (NF4, 0.7)], ids=["8-bit", "4-bit"])
async def test_quantized_base_takes_less_memory(folder: Path, kind: Quantization, most: float) -> None:
    sizes = []
    for quantization in ("none", kind.name):
        engine = NativeEngine(NativeEngineConfig(str(folder / "base"), device="cpu", quantization=quantization))
        await engine.start()
        assert engine.info.quantization == quantization
        sizes.append(engine.info.num_weight_bytes)
        await engine.stop()
    assert 0 < sizes[1] < most * sizes[0]
