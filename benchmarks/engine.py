"""The native engine against PEFT's mixed batch, on random weights of FLAN-T5-small's shape.

Both serve the same rows over the same LoRAs, greedy, in the same dtype, measured in turn in one process. PEFT's mixed
batch is ``generate(..., adapter_names=[...])``: one adapter per row, one padded batch. In float32 the tokens of both
are compared as well: a fast wrong answer is no result.
"""

import asyncio
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration
from transformers.utils import logging

from adapters.manifest import AdapterKind
from server.core.sampling import SamplingParams
from server.engine.base import EngineRequest, ResolvedAdapter
from server.engine.native.engine import NativeEngine, NativeEngineConfig

Tokens = list[list[int]]


@dataclass(frozen=True)
class EngineWorkload:
    """What is measured.

    Attributes:
        num_rows: Requests at once.
        num_loras: Adapters they are spread over.
        rank: Their rank, on q and v.
        num_prompt_tokens: Encoder tokens of a request.
        num_new_tokens: Tokens it generates.
        num_rounds: Measurements of each side.
        num_threads: CPU threads; 0 is torch's own choice.
        seed: Seed of weights and prompts.
    """

    num_rows: int = 16
    num_loras: int = 8
    rank: int = 16
    num_prompt_tokens: int = 200
    num_new_tokens: int = 48
    num_rounds: int = 3
    num_threads: int = 0
    seed: int = 0


def run_engine_benchmark(dtype: str, workload: EngineWorkload) -> dict[str, object]:
    """Measure both sides, print one line, and return every figure."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.manual_seed(workload.seed)
    if workload.num_threads:
        torch.set_num_threads(workload.num_threads)
    with tempfile.TemporaryDirectory(prefix="medley-bench-") as name:
        folder = Path(name)
        _write_base(folder / "base")
        peft_model = _write_loras(folder, workload).to(getattr(torch, dtype))
        prompts = torch.randint(3, 32128, (workload.num_rows, workload.num_prompt_tokens)).tolist()
        ours, theirs = asyncio.run(_measure(folder, peft_model, prompts, dtype, workload))
    result = {
        "workload": asdict(workload),
        "dtype": dtype,
        "num_threads": torch.get_num_threads(),
        "native_tokens_per_s": ours,
        "peft_tokens_per_s": theirs,
        "native_median": statistics.median(ours),
        "peft_median": statistics.median(theirs),
        "ratio": statistics.median(ours) / statistics.median(theirs),
    }
    print(
        f"{dtype}: native {result['native_median']:.0f} tokens/s, "
        f"PEFT mixed batch {result['peft_median']:.0f} tokens/s, "
        f"ratio {result['ratio']:.2f} (medians of {workload.num_rounds})",
        flush=True,
    )
    return result


async def _measure(
    folder: Path, peft_model: PeftModel, prompts: Tokens, dtype: str, workload: EngineWorkload
) -> tuple[list[float], list[float]]:
    names = [f"lora-{row % workload.num_loras}" for row in range(workload.num_rows)]
    adapters = [ResolvedAdapter(name, AdapterKind.LORA, folder / name, rank=workload.rank) for name in names]
    config = NativeEngineConfig(str(folder / "base"), device="cpu", dtype=dtype, num_threads=workload.num_threads)
    engine = NativeEngine(config)
    await engine.start()
    ours, theirs = [], []
    try:
        for measured in range(workload.num_rounds + 1):
            start_s = time.perf_counter()
            tokens = await _serve(engine, adapters, prompts, workload, measured)
            middle_s = time.perf_counter()
            expected = await asyncio.to_thread(_generate, peft_model, names, prompts, workload)
            end_s = time.perf_counter()
            _compare(tokens, expected, dtype)
            # The first round warms both up: it loads the adapters and lays out memory.
            if measured:
                ours.append(_num_tokens(tokens) / (middle_s - start_s))
                theirs.append(_num_tokens(expected) / (end_s - middle_s))
    finally:
        await engine.stop()
    return ours, theirs


async def _serve(
    engine: NativeEngine, adapters: Sequence[ResolvedAdapter], prompts: Tokens, workload: EngineWorkload, turn: int
) -> Tokens:
    async def one(row: int) -> list[int]:
        sampling = SamplingParams(max_new_tokens=workload.num_new_tokens)
        request = EngineRequest(f"{turn}-{row}", tuple(prompts[row]), sampling, weight_adapter=adapters[row])
        return [token async for output in engine.submit(request) for token in output.token_ids]

    return list(await asyncio.gather(*(one(row) for row in range(workload.num_rows))))


@torch.inference_mode()
def _generate(model: PeftModel, names: list[str], prompts: Tokens, workload: EngineWorkload) -> Tokens:
    input_ids = torch.tensor(prompts)
    output = model.generate(
        input_ids=input_ids,
        attention_mask=torch.ones_like(input_ids),
        adapter_names=names,
        max_new_tokens=workload.num_new_tokens,
        do_sample=False,
        num_beams=1,
    )
    return output[:, 1:].tolist()


def _compare(tokens: Tokens, expected: Tokens, dtype: str) -> None:
    if dtype == "float32" and tokens != expected:
        raise RuntimeError("the engine and PEFT disagree on a token")


def _num_tokens(tokens: Tokens) -> int:
    return sum(len(row) for row in tokens)


def _write_base(folder: Path) -> None:
    """Write FLAN-T5-small's shape with random weights; the scales keep outputs varied and clear of rounding."""
    config = T5Config(
        vocab_size=32128,
        d_model=512,
        d_kv=64,
        d_ff=1024,
        num_layers=8,
        num_heads=6,
        feed_forward_proj="gated-gelu",
        decoder_start_token_id=0,
        tie_word_embeddings=False,
    )
    model = T5ForConditionalGeneration(config)
    with torch.no_grad():
        model.shared.weight.mul_(0.05)
    model.lm_head.weight = nn.Parameter(torch.randn_like(model.shared.weight))
    model.save_pretrained(folder)


def _write_loras(folder: Path, workload: EngineWorkload) -> PeftModel:
    model = T5ForConditionalGeneration.from_pretrained(folder / "base")
    options = {"r": workload.rank, "lora_alpha": workload.rank, "target_modules": ["q", "v"]}
    config = LoraConfig(task_type=TaskType.SEQ_2_SEQ_LM, **options)
    peft_model = get_peft_model(model, config, adapter_name="lora-0")
    for index in range(1, workload.num_loras):
        peft_model.add_adapter(f"lora-{index}", config)
    for path, weight in peft_model.named_parameters():
        if ".lora_B." in path:
            nn.init.normal_(weight, std=0.01)
    peft_model.save_pretrained(folder)
    for index in range(workload.num_loras):
        (folder / f"lora-{index}" / "README.md").unlink(missing_ok=True)
    return peft_model.eval()
