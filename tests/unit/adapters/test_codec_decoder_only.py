"""Adapters for decoder-only bases, as PEFT writes them for CAUSAL_LM; no torch."""

from pathlib import Path

import numpy as np
import pytest

from adapters.adapter_weights import SoftPromptWeights, WeightAdapterWeights
from adapters.codec import CodecLimits, inspect_adapter, read_adapter
from adapters.errors import AdapterError, InvalidAdapterError, UnsupportedAdapterError, WrongBaseError
from adapters.manifest import AdapterKind, BaseModelSpec
from tests.fixtures.adapters import lora_config, lora_tensors, prompt_config, write_adapter

Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj"
BASE = BaseModelSpec(
    model_id="tiny-llama",
    architecture="LlamaForCausalLM",
    d_model=8,
    vocab_size=32,
    linear_shapes={Q: (12, 8), DOWN: (8, 20)},
)
LIMITS = CodecLimits(max_rank=16, max_virtual_tokens=8)
_KIND = {"task_type": "CAUSAL_LM"}


def write_causal_prompt(folder: Path, num_rows: int, **fields: object) -> Path:
    config = prompt_config(3, **(_KIND | {"num_transformer_submodules": 1} | fields))
    rows = np.arange(num_rows * 8, dtype=np.float32).reshape(num_rows, 8)
    return write_adapter(folder, config, {"prompt_embeddings": rows})


def test_read_adapter_of_soft_prompt_takes_every_row(tmp_path: Path) -> None:
    weights = read_adapter(write_causal_prompt(tmp_path, 3), BASE, LIMITS)
    assert isinstance(weights, SoftPromptWeights)
    np.testing.assert_array_equal(weights.embeddings, np.arange(24, dtype=np.float32).reshape(3, 8))


def test_read_adapter_of_lora_keeps_the_bases_paths(tmp_path: Path) -> None:
    config = lora_config(**_KIND, target_modules=["q_proj", "down_proj"], rank_pattern={"down_proj": 2})
    folder = write_adapter(tmp_path, config, lora_tensors({Q: 4, DOWN: 2}, BASE))
    weights = read_adapter(folder, BASE, LIMITS)
    assert isinstance(weights, WeightAdapterWeights)
    assert {path: change.lora.scaling for path, change in weights.linears.items() if change.lora} == {Q: 2.0, DOWN: 4.0}
    manifest = inspect_adapter(folder, BASE, LIMITS, "mine")
    assert (manifest.kind, manifest.rank, manifest.target_modules) == (AdapterKind.LORA, 4, ("down_proj", "q_proj"))


PREFIX = {"peft_type": "PREFIX_TUNING", "num_layers": 1, "num_attention_heads": 2, "token_dim": 4}
REFUSED: dict[str, tuple[int, dict[str, object], type[AdapterError], str]] = {
    "rows for an encoder too": (6, {}, InvalidAdapterError, "6 rows"),
    "made for an encoder-decoder": (3, {"task_type": "SEQ_2_SEQ_LM"}, UnsupportedAdapterError, "decoder-only: CAUSAL"),
    "prefix": (3, PREFIX, UnsupportedAdapterError, "not served on a decoder-only base"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_read_adapter_of_prompt_for_another_kind_of_base_is_refused(tmp_path: Path, case: str) -> None:
    num_rows, fields, error, match = REFUSED[case]
    with pytest.raises(error, match=match):
        read_adapter(write_causal_prompt(tmp_path, num_rows, **fields), BASE, LIMITS)


@pytest.mark.parametrize("layer", ["model.embed_tokens", "lm_head"])
def test_read_adapter_of_lora_on_the_output_head_or_the_table_is_refused(tmp_path: Path, layer: str) -> None:
    wider = BaseModelSpec("x", "LlamaForCausalLM", 8, 32, linear_shapes={layer: (32, 8)})
    folder = write_adapter(tmp_path, lora_config(**_KIND), lora_tensors({layer: 4}, wider))
    with pytest.raises(WrongBaseError, match="no linear layer"):
        read_adapter(folder, BASE, LIMITS)
