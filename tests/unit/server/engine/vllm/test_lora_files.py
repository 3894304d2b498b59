import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from adapters.errors import AdapterTooLargeError, InvalidAdapterError, UnsupportedAdapterError, WrongBaseError
from adapters.manifest import BaseModelSpec
from server.engine.vllm.lora_files import check_lora

LAYER = "model.layers.0.self_attn.q_proj"
BASE = BaseModelSpec("base", "LlamaForCausalLM", d_model=8, vocab_size=16, linear_shapes={LAYER: (8, 8)})


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    """A plain LoRA of rank 4."""
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "bias": "none"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(0)
    tensors = {
        f"base_model.model.{LAYER}.lora_{part}.weight": rng.standard_normal(shape).astype(np.float32)
        for part, shape in (("A", (4, 8)), ("B", (8, 4)))
    }
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    return tmp_path


def change_config(lora: Path, **changes: object) -> None:
    file = lora / "adapter_config.json"
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


def change_tensors(lora: Path, **changes: np.ndarray | str | None) -> None:
    """Rename tensors by their part (a text), or add some beside it (an array)."""
    file = lora / "adapter_model.safetensors"
    tensors = load_file(file)
    for part, change in changes.items():
        name = f"base_model.model.{LAYER}.{part}"
        if isinstance(change, np.ndarray):
            tensors[name] = change
        else:
            tensors[f"base_model.model.{LAYER}.{change}"] = tensors.pop(f"{name}.weight")
    save_file(tensors, file)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_rslora": True, "lora_dropout": 0.1, "use_dora": False},
        {"r": 2, "rank_pattern": {"q_proj": 4}, "alpha_pattern": {"q_proj": 3}},
    ],
)
def test_plain_lora_is_served(lora: Path, changes: dict[str, object]) -> None:
    change_config(lora, **changes)
    check_lora(lora, BASE, max_lora_rank=4)


def test_dora_is_refused_by_name(lora: Path) -> None:
    change_config(lora, use_dora=True)
    change_tensors(lora, lora_magnitude_vector=np.ones(8, np.float32))
    with pytest.raises(UnsupportedAdapterError, match=r"DoRA \(use_dora\)"):
        check_lora(lora, BASE, max_lora_rank=4)


def test_lora_with_a_bias_beside_b_is_refused_by_name(lora: Path) -> None:
    change_config(lora, lora_bias=True)
    change_tensors(lora, **{"lora_B.bias": np.ones(8, np.float32)})
    with pytest.raises(UnsupportedAdapterError, match="lora_bias"):
        check_lora(lora, BASE, max_lora_rank=4)


def test_family_that_is_folded_into_a_lora_is_refused_by_name(lora: Path) -> None:
    change_config(lora, peft_type="ADALORA", target_r=4, init_r=4)
    change_tensors(lora, lora_A="lora_A", lora_B="lora_B", lora_E=np.ones((4, 1), np.float32))
    with pytest.raises(UnsupportedAdapterError, match="ADALORA"):
        check_lora(lora, BASE, max_lora_rank=4)


def test_bias_setting_that_vllm_refuses_is_refused_by_name(lora: Path) -> None:
    change_config(lora, bias="all")
    with pytest.raises(UnsupportedAdapterError, match="bias 'all'"):
        check_lora(lora, BASE, max_lora_rank=4)


def test_config_without_target_modules_is_refused(lora: Path) -> None:
    change_config(lora, target_modules=...)
    with pytest.raises(UnsupportedAdapterError, match="target_modules"):
        check_lora(lora, BASE, max_lora_rank=4)


def test_tensor_named_after_the_adapter_is_refused(lora: Path) -> None:
    change_tensors(lora, lora_A="lora_A.mine.weight", lora_B="lora_B.mine.weight")
    with pytest.raises(UnsupportedAdapterError, match=r"lora_A\.mine\.weight"):
        check_lora(lora, BASE, max_lora_rank=4)


def test_rank_of_the_config_counts_even_where_no_layer_has_it(lora: Path) -> None:
    change_config(lora, r=8, rank_pattern={"q_proj": 4})
    check_lora(lora, BASE, max_lora_rank=8)
    with pytest.raises(AdapterTooLargeError, match="rank 8"):
        check_lora(lora, BASE, max_lora_rank=4)


def test_what_the_codec_refuses_is_refused(lora: Path) -> None:
    with pytest.raises(AdapterTooLargeError):
        check_lora(lora, BASE, max_lora_rank=2)
    with pytest.raises(WrongBaseError):
        check_lora(lora, BaseModelSpec("other", "LlamaForCausalLM", 8, 16, {"lm_head": (16, 8)}), max_lora_rank=4)
    tensors = load_file(lora / "adapter_model.safetensors")
    tensors[f"base_model.model.{LAYER}.lora_B.weight"][0, 0] = np.nan
    save_file(tensors, lora / "adapter_model.safetensors")
    with pytest.raises(InvalidAdapterError):
        check_lora(lora, BASE, max_lora_rank=4)
