import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from adapters.errors import AdapterTooLargeError, UnsupportedAdapterError, WrongBaseError
from adapters.manifest import BaseModelSpec
from server.engine.vllm.soft_prompts import SoftPrompt, read_soft_prompt

pytestmark = pytest.mark.torch

BASE = BaseModelSpec("base", "LlamaForCausalLM", d_model=6, vocab_size=16, linear_shapes={"model.q": (6, 6)})


def written(folder: Path, rows_PD: np.ndarray) -> Path:
    config = {"peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": len(rows_PD)}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file({"prompt_embeddings": rows_PD}, folder / "adapter_model.safetensors")
    return folder


ROWS = np.arange(30, dtype=np.float32).reshape(5, 6) / 7


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("length", [5, 6, 1024, 1025, 5000])
def test_rows_stand_before_zeros_whatever_the_length(tmp_path: Path, dtype: torch.dtype, length: int) -> None:
    prompt = read_soft_prompt(written(tmp_path, ROWS), BASE, dtype, max_virtual_tokens=8)
    rows = prompt.rows(length)
    assert (rows.shape, rows.dtype) == ((length, 6), dtype)
    assert torch.equal(rows[:5], torch.from_numpy(ROWS).to(dtype))
    assert not rows[5:].any()
    assert rows.is_contiguous()


def test_requests_share_the_rows_and_a_longer_one_leaves_the_others_alone() -> None:
    prompt = SoftPrompt(torch.ones(2, 4))
    first, second = prompt.rows(10), prompt.rows(20)
    assert first.data_ptr() == second.data_ptr()
    longer = prompt.rows(3000)
    assert first.data_ptr() != longer.data_ptr()
    assert torch.equal(first, longer[:10])


def test_zeros_behind_the_rows_take_no_memory() -> None:
    status = Path("/proc/self/statm")
    page_bytes, width = 4096, 4096

    def resident_bytes() -> int:
        return int(status.read_text().split()[1]) * page_bytes

    before = resident_bytes()
    rows = SoftPrompt(torch.ones(2, width)).rows(60_000)
    assert rows.nbytes > 900e6
    assert resident_bytes() - before < 50e6


def test_too_long_soft_prompt_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AdapterTooLargeError):
        read_soft_prompt(written(tmp_path, ROWS), BASE, torch.float32, max_virtual_tokens=4)


def test_soft_prompt_of_another_base_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WrongBaseError):
        read_soft_prompt(written(tmp_path, ROWS[:, :4].copy()), BASE, torch.float32, max_virtual_tokens=8)


def test_lora_is_no_soft_prompt(tmp_path: Path) -> None:
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    tensors = {"A": np.ones((2, 6), np.float32), "B": np.ones((6, 2), np.float32)}
    save_file(
        {f"base_model.model.model.q.lora_{part}.weight": value for part, value in tensors.items()},
        tmp_path / "adapter_model.safetensors",
    )
    with pytest.raises(UnsupportedAdapterError, match="no soft prompt"):
        read_soft_prompt(tmp_path, BASE, torch.float32, max_virtual_tokens=8)
