"""The native engine against transformers + PEFT, token for token, in float32 greedy.

A mixed crowd of requests arrives at random steps of one engine; each must get exactly the tokens it gets alone from
``generate``. The oracle also states how clear its choices were: a tie within rounding would prove nothing.
"""

import asyncio
import os
import random
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

pytestmark = [pytest.mark.torch, pytest.mark.slow]

torch = pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("peft", reason="the oracle is PEFT")

from peft import PeftModel  # noqa: E402
from transformers import T5ForConditionalGeneration  # noqa: E402

from server.core.sampling import SamplingParams  # noqa: E402
from server.engine.base import EngineRequest  # noqa: E402
from server.engine.native.engine import NativeEngine, NativeEngineConfig  # noqa: E402
from server.engine.native.kernels import cpu  # noqa: E402
from tests.fixtures.t5_models import (  # noqa: E402
    FLAN_T5_SMALL,
    LORAS,
    PROMPTS,
    T5_SMALL,
    resolved,
    write_loras,
    write_prompts,
    write_t5,
)

MINI = Path(os.environ.get("MEDLEY_MINI", Path(__file__).parents[2] / "adapters/library/medley-mini"))
NUM_ROWS = 66
MIN_MARGIN = 1e-4


@dataclass(frozen=True)
class Case:
    """One request of the crowd."""

    token_ids: tuple[int, ...]
    max_new_tokens: int
    lora: str | None
    prompt: str | None


class Oracle:
    """Each request alone through transformers and PEFT."""

    def __init__(self, model_folder: Path, adapters: Path) -> None:
        self._with_lora = self._peft_model(model_folder, adapters, list(LORAS))
        self._with_prompt = self._peft_model(model_folder, adapters, list(PROMPTS))
        self._eos = self._with_lora.generation_config.eos_token_id

    @staticmethod
    def _peft_model(model_folder: Path, adapters: Path, names: list[str]) -> PeftModel:
        model = T5ForConditionalGeneration.from_pretrained(model_folder, dtype=torch.float32).eval()
        peft_model = PeftModel.from_pretrained(model, adapters / names[0], adapter_name=names[0])
        for name in names[1:]:
            peft_model.load_adapter(adapters / name, adapter_name=name)
        return peft_model.eval()

    @torch.inference_mode()
    def generate(self, case: Case) -> tuple[list[int], float]:
        """Return the tokens, end token left out, and the smallest gap between the two best logits."""
        token_ids = torch.tensor([case.token_ids])
        if case.prompt is not None and case.lora is None:
            self._with_prompt.set_adapter(case.prompt)
            return self._run(self._with_prompt, case, input_ids=token_ids, attention_mask=torch.ones_like(token_ids))
        # PEFT cannot mix the two kinds in one model: the soft prompt goes in as embeddings.
        embeds = self._with_lora.get_input_embeddings()(token_ids)
        if case.prompt is not None:
            rows = self._with_prompt.prompt_encoder[case.prompt].embedding.weight[: PROMPTS[case.prompt]]
            embeds = torch.cat([rows.unsqueeze(0), embeds], dim=1)
        inputs = {"inputs_embeds": embeds, "attention_mask": torch.ones(embeds.shape[:2], dtype=torch.long)}
        if case.lora is None:
            with self._with_lora.disable_adapter():
                return self._run(self._with_lora, case, **inputs)
        self._with_lora.set_adapter(case.lora)
        return self._run(self._with_lora, case, **inputs)

    def _run(self, model: PeftModel, case: Case, **inputs: torch.Tensor) -> tuple[list[int], float]:
        output = model.generate(
            **inputs,
            max_new_tokens=case.max_new_tokens,
            do_sample=False,
            num_beams=1,
            output_logits=True,
            return_dict_in_generate=True,
        )
        best = torch.stack(output.logits)[:, 0].topk(2, dim=-1).values
        tokens = output.sequences[0, 1:].tolist()
        return [token for token in tokens if token != self._eos], float((best[:, 0] - best[:, 1]).min())


def crowd(vocab_size: int, seed: int) -> list[Case]:
    """Return requests of every kind: base, each LoRA, each soft prompt, both together; 1 to 500 tokens."""
    draw = random.Random(seed)
    loras, prompts = list(LORAS), list(PROMPTS)
    pairs: list[tuple[str | None, str | None]] = [(None, None)] * 8
    pairs += [(lora, None) for lora in loras for _ in range(3)]
    pairs += [(None, prompt) for prompt in prompts for _ in range(3)]
    pairs += [(draw.choice(loras), prompts[index % len(prompts)]) for index in range(NUM_ROWS - len(pairs))]
    lengths = [1, 2, 500, 499] + [int(draw.triangular(3, 400, 40)) for _ in range(NUM_ROWS - 4)]
    draw.shuffle(lengths)
    return [
        Case(
            token_ids=(*(draw.randrange(3, vocab_size) for _ in range(length - 1)), 1),
            max_new_tokens=draw.choice([1, 2, 5, 9, 14, 20, 24]),
            lora=lora,
            prompt=prompt,
        )
        for length, (lora, prompt) in zip(lengths, pairs, strict=True)
    ]


async def serve(engine: NativeEngine, cases: list[Case], adapters: Path, seed: int) -> list[list[int]]:
    """Send the cases in a random order at random steps; return their tokens in the given order."""
    draw = random.Random(seed)
    order = draw.sample(range(len(cases)), len(cases))

    async def send(index: int) -> list[int]:
        case = cases[index]
        request = EngineRequest(
            f"{seed}-{index}",
            case.token_ids,
            SamplingParams(max_new_tokens=case.max_new_tokens),
            weight_adapter=resolved(adapters, case.lora) if case.lora else None,
            soft_prompt=resolved(adapters, case.prompt) if case.prompt else None,
        )
        tokens: list[int] = []
        async for output in engine.submit(request):
            tokens.extend(output.token_ids)
            assert output.error is None, output.error
        return tokens

    tasks = {}
    for index in order:
        tasks[index] = asyncio.create_task(send(index))
        steps = engine.stats().num_steps + draw.choice([0, 0, 0, 1, 2])
        while engine.stats().num_steps < steps and engine.stats().num_running:  # noqa: ASYNC110
            await asyncio.sleep(0.002)
    return [await tasks[index] for index in range(len(cases))]


def config(folder: Path, dtype: str = "float32", device: str = "cpu") -> NativeEngineConfig:
    return NativeEngineConfig(
        model=str(folder),
        device=device,
        dtype=dtype,
        max_num_seqs=24,
        max_num_batched_tokens=1500,
        max_model_len=620,
        max_new_tokens=32,
        max_loras=5,
        max_soft_prompts=3,
    )


async def compare(folder: Path, adapters: Path, vocab_size: int, device: str = "cpu") -> None:
    """Serve the crowd on a device and compare it with the oracle, which runs on the CPU."""
    cases = crowd(vocab_size, seed=11)
    engine = NativeEngine(config(folder, device=device))
    await engine.start()
    try:
        first = await serve(engine, cases, adapters, seed=1)
        second = await serve(engine, cases, adapters, seed=2)
        assert engine.stats().num_adapter_evictions > 0
    finally:
        await engine.stop()
    oracle = Oracle(folder, adapters)
    wanted = [oracle.generate(case) for case in cases]
    assert min(margin for _, margin in wanted) > MIN_MARGIN
    for case, tokens, (expected, _) in zip(cases, first, wanted, strict=True):
        assert tokens == expected, replace(case, token_ids=())
    assert second == first, "the order of arrival or the neighbours changed an answer"
    assert len({tuple(tokens) for tokens in first}) > 25, "degenerate outputs prove nothing"


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("shape", "is_tied"), [(FLAN_T5_SMALL, False), (T5_SMALL, True)], ids=["flan", "t5-v1.0"])
async def test_engine_mixed_crowd_equals_each_request_alone(
    tmp_path: Path, shape: dict[str, object], is_tied: bool
) -> None:
    folder = write_t5(tmp_path / "base", shape, is_tied=is_tied, seed=5)
    write_loras(tmp_path / "adapters", folder, LORAS, seed=6)
    write_prompts(tmp_path / "adapters", folder, PROMPTS, seed=7)
    await compare(folder, tmp_path / "adapters", 32128)


@pytest.mark.timeout(600)
@pytest.mark.skipif(not (MINI / "model.safetensors").exists(), reason="medley-mini is not in the library yet")
@pytest.mark.parametrize("has_kernels", [True, False], ids=["kernels", "torch"])
async def test_engine_mixed_crowd_on_medley_mini_equals_each_request_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_kernels: bool
) -> None:
    if not has_kernels:
        # As on a processor without AVX-512, or where no C++ compiler was at hand.
        monkeypatch.setattr(cpu, "_cpu", None)
    write_loras(tmp_path, MINI, LORAS, seed=6)
    write_prompts(tmp_path, MINI, PROMPTS, seed=7)
    vocab_size = T5ForConditionalGeneration.from_pretrained(MINI).config.vocab_size
    await compare(MINI, tmp_path, vocab_size)
