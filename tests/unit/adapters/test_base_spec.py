"""The base's spec from its folder, without torch; against real models in ``test_codec_peft.py``."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from adapters.base_spec import read_base_spec
from adapters.digest import digest_files
from adapters.errors import InvalidBaseError
from tests.fixtures.adapters import safetensors_bytes

CONFIG = {
    "architectures": ["T5ForConditionalGeneration"],
    "d_model": 8,
    "vocab_size": 32,
    "num_layers": 2,
    "num_heads": 3,
    "d_kv": 4,
}
TENSORS = {
    name: np.zeros(shape, np.float32)
    for name, shape in {
        "shared.weight": (32, 8),
        "encoder.embed_tokens.weight": (32, 8),
        "lm_head.weight": (32, 8),
        "encoder.block.0.layer.0.SelfAttention.q.weight": (12, 8),
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": (4, 2),
        "encoder.block.0.layer.0.layer_norm.weight": (8,),
        "decoder.block.0.layer.1.EncDecAttention.o.weight": (8, 12),
    }.items()
}
SHAPES = {
    "encoder.block.0.layer.0.SelfAttention.q": (12, 8),
    "decoder.block.0.layer.1.EncDecAttention.o": (8, 12),
}


def write_base(folder: Path, config: object = CONFIG) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(safetensors_bytes(TENSORS))
    return folder


def test_read_base_spec_takes_linear_layers_only(tmp_path: Path) -> None:
    folder = write_base(tmp_path / "tiny")
    spec = read_base_spec(folder)
    assert spec.linear_shapes == SHAPES
    assert (spec.model_id, spec.architecture, spec.d_model, spec.vocab_size) == (
        "tiny",
        CONFIG["architectures"][0],
        8,
        32,
    )
    assert spec.weights_digest == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def test_read_base_spec_knows_norms_and_the_decoders_attention(tmp_path: Path) -> None:
    spec = read_base_spec(write_base(tmp_path / "a"))
    assert spec.norm_paths == {"encoder.block.0.layer.0.layer_norm"}
    assert (spec.num_decoder_layers, spec.num_heads, spec.d_kv) == (2, 3, 4)
    deeper = read_base_spec(write_base(tmp_path / "b", CONFIG | {"num_decoder_layers": 5}))
    assert deeper.num_decoder_layers == 5
    assert deeper.fingerprint == spec.fingerprint


def test_read_base_spec_names_the_model_by_argument_then_card_then_folder(tmp_path: Path) -> None:
    folder = write_base(tmp_path / "tiny")
    (folder / "medley.json").write_text('{"model_id": "medley-mini", "prompt_template": "{{ text }}"}')
    assert read_base_spec(folder).model_id == "medley-mini"
    assert read_base_spec(folder, "google/flan-t5-small").model_id == "google/flan-t5-small"


def test_read_base_spec_of_hub_snapshot_follows_its_links(tmp_path: Path) -> None:
    folder = write_base(tmp_path / "blobs")
    (tmp_path / "snapshot").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "snapshot" / name).symlink_to(folder / name)
    assert read_base_spec(tmp_path / "snapshot").linear_shapes == SHAPES


def test_read_base_spec_of_shards_joins_them(tmp_path: Path) -> None:
    whole = read_base_spec(write_base(tmp_path))
    (tmp_path / "model.safetensors").unlink()
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    keys = list(TENSORS)
    for name, part in zip(names, (keys[:4], keys[4:]), strict=True):
        (tmp_path / name).write_bytes(safetensors_bytes({key: TENSORS[key] for key in part}))
    weight_map = {key: names[number >= 4] for number, key in enumerate(keys)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    spec = read_base_spec(tmp_path)
    assert spec.fingerprint == whole.fingerprint
    assert spec.weights_digest == digest_files({name: tmp_path / name for name in names})


CAUSAL_CONFIG = {"architectures": ["LlamaForCausalLM"], "hidden_size": 8, "vocab_size": 32}
CAUSAL_TENSORS = {
    "model.embed_tokens.weight": (32, 8),
    "model.layers.0.self_attn.q_proj.weight": (12, 8),
    "model.layers.0.self_attn.q_proj.bias": (12,),
    "model.layers.0.self_attn.q_norm.weight": (4,),
    "model.layers.0.mlp.down_proj.weight": (8, 20),
    "model.layers.0.input_layernorm.weight": (8,),
    "model.norm.weight": (8,),
    "lm_head.weight": (32, 8),
}


def write_causal(folder: Path, left_out: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CAUSAL_CONFIG))
    tensors = {name: np.zeros(shape, np.float32) for name, shape in CAUSAL_TENSORS.items() if name != left_out}
    (folder / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    return folder


def test_read_base_spec_of_decoder_only_base_leaves_tables_head_and_biases_out(tmp_path: Path) -> None:
    spec = read_base_spec(write_causal(tmp_path / "tiny"))
    assert spec.linear_shapes == {"model.layers.0.self_attn.q_proj": (12, 8), "model.layers.0.mlp.down_proj": (8, 20)}
    assert spec.norm_paths == {"model.norm", "model.layers.0.input_layernorm"}
    assert (spec.architecture, spec.d_model, spec.vocab_size) == ("LlamaForCausalLM", 8, 32)
    assert (spec.is_encoder_decoder, spec.num_decoder_layers) == (False, 0)


def test_read_base_spec_of_decoder_only_base_with_tied_head_has_the_same_fingerprint(tmp_path: Path) -> None:
    tied = read_base_spec(write_causal(tmp_path / "tied", left_out="lm_head.weight"))
    assert tied.fingerprint == read_base_spec(write_causal(tmp_path / "untied")).fingerprint


# Each holds a layer that takes 64 and gives 96, four bits a weight.
QUANTIZED = {"awq": (64, 12), "gptq": (8, 96)}


@pytest.mark.parametrize("method", QUANTIZED)
def test_read_base_spec_of_quantized_base_tells_its_layers_sizes(tmp_path: Path, method: str) -> None:
    folder = write_causal(tmp_path)
    config = CAUSAL_CONFIG | {"quantization_config": {"quant_method": method, "bits": 4, "group_size": 32}}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {"q.qweight": np.zeros(QUANTIZED[method]), "q.scales": np.zeros((2, 96)), "q.qzeros": np.zeros((2, 12))}
    (folder / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    assert read_base_spec(folder).linear_shapes == {"q": (96, 64)}


@pytest.mark.parametrize("how", [None, {"quant_method": "other", "bits": 4}, {"quant_method": "awq", "bits": 0}])
def test_read_base_spec_of_base_quantized_otherwise_is_refused(tmp_path: Path, how: object) -> None:
    folder = write_causal(tmp_path)
    (folder / "config.json").write_text(json.dumps(CAUSAL_CONFIG | {"quantization_config": how}))
    (folder / "model.safetensors").write_bytes(safetensors_bytes({"q.qweight": np.zeros((64, 12))}))
    with pytest.raises(InvalidBaseError):
        read_base_spec(folder)


def test_fingerprint_of_shipped_base_is_what_its_adapters_carry() -> None:
    library = Path(__file__).parents[3] / "adapters/library"
    card = json.loads((library / "dialogsum/medley.json").read_text())
    assert read_base_spec(library / "medley-mini").fingerprint == card["base_fingerprint"]


def _index(weight_map: object) -> str:
    return json.dumps({"weight_map": weight_map})


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.json", None),
        ("config.json", "{"),
        ("config.json", json.dumps(CONFIG | {"architectures": []})),
        ("config.json", json.dumps(CONFIG | {"d_model": "8"})),
        ("config.json", json.dumps(CONFIG | {"vocab_size": 0})),
        ("config.json", json.dumps(CONFIG | {"num_heads": None})),
        ("config.json", json.dumps(CONFIG | {"d_kv": 0.5})),
        ("config.json", json.dumps(CONFIG | {"num_decoder_layers": -1})),
        ("model.safetensors", None),
        ("model.safetensors", "text"),
        ("model.safetensors.index.json", _index({"a": "../../etc/passwd"})),
        ("model.safetensors.index.json", _index({})),
        ("model.safetensors.index.json", _index({"a": "gone.safetensors"})),
        ("medley.json", '{"model_id": 1}'),
    ],
)
def test_read_base_spec_of_broken_folder_is_refused(tmp_path: Path, name: str, text: str | None) -> None:
    write_base(tmp_path)
    assert read_base_spec(tmp_path)
    if name.endswith("index.json"):
        (tmp_path / "model.safetensors").unlink()
    if text is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_text(text)
    with pytest.raises(InvalidBaseError, match="cannot be read"):
        read_base_spec(tmp_path)
