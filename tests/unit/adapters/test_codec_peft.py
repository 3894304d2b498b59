"""The codec reads exactly what PEFT writes: tensors and scaling, on a tiny random T5."""

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from adapters.adapter_weights import SoftPromptWeights, WeightAdapterWeights
from adapters.base_spec import read_base_spec
from adapters.codec import CodecLimits, inspect_adapter, read_adapter
from adapters.manifest import AdapterKind, BaseModelSpec

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.torch

LIMITS = CodecLimits()


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=64,
        d_model=16,
        d_kv=4,
        num_heads=3,
        d_ff=24,
        num_layers=2,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )
    folder = tmp_path_factory.mktemp("base") / "tiny"
    transformers.T5ForConditionalGeneration(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(base_folder: Path) -> BaseModelSpec:
    return read_base_spec(base_folder)


def _wrapped(base_folder: Path, config: object, adapter_name: str = "default") -> object:
    model = transformers.T5ForConditionalGeneration.from_pretrained(base_folder)
    model = peft.get_peft_model(model, config, adapter_name=adapter_name)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name or "prompt" in name:
            parameter.data.normal_()
    return model


def _lora_layers(model: object) -> dict[str, object]:
    return {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if isinstance(module, peft.tuners.lora.LoraLayer)
    }


LORA_CONFIGS = {
    "default targets": {"r": 4, "lora_alpha": 8},
    "all linear": {"r": 2, "lora_alpha": 3, "target_modules": "all-linear"},
    "rslora": {"r": 8, "lora_alpha": 5, "use_rslora": True, "target_modules": ["q", "v", "wo"]},
    "patterns": {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q", "v", "wi_0"],
        "rank_pattern": {"wi_0": 3, "decoder.*q": 2, r"^encoder\.block\.\d+\.layer\.0\.SelfAttention\.q": 6},
        "alpha_pattern": {"block.1.layer.0.SelfAttention.(q|v)": 7, "v": 2},
    },
    "rslora and patterns": {
        "r": 4,
        "lora_alpha": 8,
        "use_rslora": True,
        "rank_pattern": {"q": 9},
        "alpha_pattern": {"v": 1},
    },
    "fan_in_fan_out": {"r": 4, "lora_alpha": 8, "fan_in_fan_out": True, "target_modules": ["wi_0", "q"]},
    "gaussian": {"r": 4, "lora_alpha": 8, "init_lora_weights": "gaussian", "bias": "all"},
}


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to True")
@pytest.mark.parametrize("fields", LORA_CONFIGS.values(), ids=LORA_CONFIGS)
def test_read_adapter_of_peft_lora_has_pefts_tensors_and_scaling(
    tmp_path: Path, base_folder: Path, base: BaseModelSpec, fields: dict[str, object]
) -> None:
    model = _wrapped(base_folder, peft.LoraConfig(task_type="SEQ_2_SEQ_LM", **fields))
    model.save_pretrained(tmp_path)
    layers = _lora_layers(model)

    weights = read_adapter(tmp_path, base, LIMITS)

    assert isinstance(weights, WeightAdapterWeights)
    assert set(weights.linears) == set(layers)
    for path, change in weights.linears.items():
        module = change.lora
        layer = layers[path]
        np.testing.assert_array_equal(module.lora_a, layer.lora_A["default"].weight.detach().numpy())
        np.testing.assert_array_equal(module.lora_b, layer.lora_B["default"].weight.detach().numpy())
        assert module.scaling == pytest.approx(layer.scaling["default"], rel=1e-12)
        delta = module.scaling * module.lora_b @ module.lora_a
        np.testing.assert_allclose(delta, layer.get_delta_weight("default").detach().numpy(), rtol=1e-4, atol=1e-5)
    assert weights.max_rank == max(layer.r["default"] for layer in layers.values())


def test_read_adapter_of_named_peft_adapter_looks_into_its_folder(
    tmp_path: Path, base_folder: Path, base: BaseModelSpec
) -> None:
    model = _wrapped(base_folder, peft.LoraConfig(task_type="SEQ_2_SEQ_LM", r=4), adapter_name="news")
    model.save_pretrained(tmp_path)
    assert (tmp_path / "news").is_dir()
    assert len(read_adapter(tmp_path, base, LIMITS).linears) == len(_lora_layers(model))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_read_adapter_of_half_precision_lora_widens_without_loss(
    tmp_path: Path, base_folder: Path, base: BaseModelSpec, dtype: str
) -> None:
    model = _wrapped(base_folder, peft.LoraConfig(task_type="SEQ_2_SEQ_LM", r=4)).to(getattr(torch, dtype))
    model.save_pretrained(tmp_path)
    layers = _lora_layers(model)
    for path, change in read_adapter(tmp_path, base, LIMITS).linears.items():
        np.testing.assert_array_equal(
            change.lora.lora_a, layers[path].lora_A["default"].weight.detach().float().numpy()
        )


def test_read_adapter_of_peft_prompt_has_the_rows_peft_uses(
    tmp_path: Path, base_folder: Path, base: BaseModelSpec
) -> None:
    model = _wrapped(base_folder, peft.PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=5))
    model.save_pretrained(tmp_path)
    weights = read_adapter(tmp_path, base, LIMITS)
    assert isinstance(weights, SoftPromptWeights)
    stored = model.prompt_encoder["default"].embedding.weight.detach().numpy()
    assert stored.shape == (10, 16)
    np.testing.assert_array_equal(weights.embeddings, stored[:5])
    used = model.get_prompt(batch_size=1)[0].detach().numpy()
    np.testing.assert_array_equal(weights.embeddings, used[:5])


def test_inspect_adapter_of_plain_peft_folders_makes_manifests(
    tmp_path: Path, base_folder: Path, base: BaseModelSpec
) -> None:
    _wrapped(base_folder, peft.LoraConfig(task_type="SEQ_2_SEQ_LM", r=4)).save_pretrained(tmp_path / "l")
    prompt = peft.PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=5)
    _wrapped(base_folder, prompt).save_pretrained(tmp_path / "p")
    lora = inspect_adapter(tmp_path / "l", base, LIMITS, "l")
    assert (lora.kind, lora.rank, lora.target_modules, lora.base_model) == (
        AdapterKind.LORA,
        4,
        ("q", "v"),
        str(base_folder),
    )
    soft = inspect_adapter(tmp_path / "p", base, LIMITS, "p")
    assert (soft.kind, soft.rank, soft.num_virtual_tokens) == (AdapterKind.PROMPT, 0, 5)


_KIND = {"task_type": "SEQ_2_SEQ_LM"}
# What fails by its config, and what by its tensors alone.
OTHERS: dict[str, tuple[Callable[[], object], str]] = {
    "embeddings": (lambda: peft.LoraConfig(target_modules=["q", "embed_tokens"], **_KIND), "LoRA on embeddings"),
    "modules_to_save": (lambda: peft.LoraConfig(modules_to_save=["lm_head"], **_KIND), "modules_to_save"),
    "trainable tokens": (lambda: peft.LoraConfig(trainable_token_indices=[1, 2], **_KIND), "trainable_token"),
    "pissa": (lambda: peft.LoraConfig(init_lora_weights="pissa", **_KIND), "changes the base"),
    "lokr": (lambda: peft.LoKrConfig(target_modules=["q"], **_KIND), "LOKR.*save_as_lora"),
    "oft": (lambda: peft.OFTConfig(oft_block_size=4, target_modules=["q"], **_KIND), "OFT.*train one of"),
    "fourierft": (
        lambda: peft.FourierFTConfig(n_frequency=4, target_modules=["q"], **_KIND),
        "FOURIERFT.*save_as_lora",
    ),
    "norms beside an IA3": (lambda: peft.IA3Config(modules_to_save=["final_layer_norm"], **_KIND), "modules_to_save"),
    "vera without projections": (
        lambda: peft.VeraConfig(target_modules=["q"], save_projection=False, **_KIND),
        "save_projection=True",
    ),
    "two tasks": (
        lambda: peft.MultitaskPromptTuningConfig(num_virtual_tokens=4, num_tasks=2, **_KIND),
        "2 tasks; save one adapter a task",
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", OTHERS)
def test_read_adapter_of_other_families_is_refused_by_name(
    tmp_path: Path, base_folder: Path, base: BaseModelSpec, family: str
) -> None:
    from adapters.errors import UnsupportedAdapterError

    make_config, match = OTHERS[family]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _wrapped(base_folder, make_config()).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedAdapterError, match=match):
        read_adapter(tmp_path, base, LIMITS)
    with pytest.raises(UnsupportedAdapterError, match=match):
        inspect_adapter(tmp_path, base, LIMITS, "x")


def test_read_base_spec_matches_the_loaded_model(base_folder: Path, base: BaseModelSpec) -> None:
    model = transformers.T5ForConditionalGeneration.from_pretrained(base_folder)
    linear = {
        name: tuple(module.weight.shape)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    }
    assert base.linear_shapes == linear
    assert (base.model_id, base.architecture, base.d_model, base.vocab_size) == (
        "tiny",
        "T5ForConditionalGeneration",
        16,
        64,
    )


def test_read_base_spec_of_shards_has_the_same_fingerprint(
    tmp_path: Path, base_folder: Path, base: BaseModelSpec
) -> None:
    model = transformers.T5ForConditionalGeneration.from_pretrained(base_folder)
    model.save_pretrained(tmp_path / "shards", max_shard_size="8KB")
    sharded = read_base_spec(tmp_path / "shards", model_id="named")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert sharded.fingerprint == base.fingerprint
    assert sharded.model_id == "named"
    assert sharded.weights_digest != base.weights_digest
