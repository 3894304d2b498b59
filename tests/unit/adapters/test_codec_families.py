"""Every family as PEFT writes it: what the codec makes of it equals what PEFT computes, on a tiny random T5."""

import json
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch", reason="needs torch")

import peft  # noqa: E402
from peft.tuners.ia3 import IA3Layer  # noqa: E402
from peft.tuners.ln_tuning.layer import LNTuningLayer  # noqa: E402
from transformers import T5ForConditionalGeneration  # noqa: E402

from adapters.adapter_weights import (  # noqa: E402
    LinearChange,
    PrefixWeights,
    SoftPromptWeights,
    WeightAdapterWeights,
)
from adapters.base_spec import read_base_spec  # noqa: E402
from adapters.codec import CodecLimits, inspect_adapter, read_adapter  # noqa: E402
from adapters.errors import AdapterTooLargeError  # noqa: E402
from adapters.manifest import AdapterKind, BaseModelSpec  # noqa: E402
from tests.fixtures.adapter_families import FAMILIES, family_model, random_adapter, save  # noqa: E402
from tests.fixtures.t5_models import TINY, write_t5  # noqa: E402

LIMITS = CodecLimits()
KINDS = {
    "lora": (AdapterKind.LORA, 4, 0),
    "dora": (AdapterKind.LORA, 4, 0),
    "lora-bias": (AdapterKind.LORA, 3, 0),
    "adalora": (AdapterKind.LORA, 6, 0),
    "loha": (AdapterKind.LORA, 9, 0),
    "vera": (AdapterKind.LORA, 6, 0),
    "ia3": (AdapterKind.IA3, 0, 0),
    "ia3-query": (AdapterKind.IA3, 0, 0),
    "norm": (AdapterKind.NORM, 0, 0),
    "prompt": (AdapterKind.PROMPT, 0, 6),
    "p-tuning": (AdapterKind.PROMPT, 0, 4),
    "multitask": (AdapterKind.PROMPT, 0, 7),
    "prefix": (AdapterKind.PREFIX, 0, 5),
}
WEIGHT_FAMILIES = [family for family, (kind, _, _) in KINDS.items() if kind in (AdapterKind.LORA, AdapterKind.IA3)]


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Three layers and heads whose widths do not sum up to d_model: nothing fits by chance.
    shape = TINY | {"num_layers": 3, "num_heads": 3}
    return write_t5(tmp_path_factory.mktemp("base") / "tiny", shape, is_tied=False, seed=0)


@pytest.fixture(scope="module")
def base(base_folder: Path) -> BaseModelSpec:
    return read_base_spec(base_folder)


def _changed(change: LinearChange, weight: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The layer's output by the formula that ``LinearChange`` states."""
    x = x if change.input_scale is None else x * change.input_scale
    total = weight if change.lora is None else weight + change.lora.scaling * change.lora.lora_b @ change.lora.lora_a
    if change.magnitude is not None:
        total = total * (change.magnitude / np.linalg.norm(total, axis=1))[:, None]
    y = x @ total.T
    y = y if change.bias is None else y + change.bias
    return y if change.output_scale is None else y * change.output_scale


@pytest.mark.parametrize("family", WEIGHT_FAMILIES)
def test_read_adapter_changes_every_layer_as_peft_does(
    tmp_path: Path, base_folder: Path, base: BaseModelSpec, family: str
) -> None:
    model = family_model(family, base_folder, seed=3)
    save(model, tmp_path)
    weights = read_adapter(tmp_path, base, LIMITS)
    assert isinstance(weights, WeightAdapterWeights)
    assert not weights.norms
    modules = dict(model.base_model.model.named_modules())
    adapted = {path for path, module in modules.items() if hasattr(module, "base_layer")}
    assert set(weights.linears) == adapted
    for path, change in weights.linears.items():
        module = modules[path]
        x = np.random.default_rng(0).normal(size=(4, module.in_features)).astype(np.float32)
        with torch.inference_mode():
            wanted = module(torch.from_numpy(x)).numpy()
            plain = module.base_layer(torch.from_numpy(x)).numpy()
        found = _changed(change, module.base_layer.weight.detach().numpy(), x)
        assert np.abs(wanted - plain).max() > 0.01 * np.abs(plain).max()
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max())
        if family not in ("dora", "ia3", "ia3-query"):
            delta = change.lora.scaling * change.lora.lora_b @ change.lora.lora_a
            np.testing.assert_allclose(delta, module.get_delta_weight("default").detach().numpy(), atol=1e-5)
        if isinstance(module, IA3Layer):
            assert (change.input_scale is not None) == module.is_feedforward


def test_read_adapter_of_norms_has_pefts_gammas(tmp_path: Path, base_folder: Path, base: BaseModelSpec) -> None:
    model = family_model("norm", base_folder)
    save(model, tmp_path)
    weights = read_adapter(tmp_path, base, LIMITS)
    assert isinstance(weights, WeightAdapterWeights)
    assert not weights.linears
    tuned = {
        path: module.ln_tuning_layers["default"].weight.detach().numpy()
        for path, module in model.base_model.model.named_modules()
        if isinstance(module, LNTuningLayer)
    }
    assert set(weights.norms) == set(tuned) == base.norm_paths
    for path, gamma in weights.norms.items():
        np.testing.assert_array_equal(gamma, tuned[path])


@pytest.mark.parametrize("family", ["prompt", "p-tuning", "multitask"])
def test_read_adapter_of_soft_prompts_has_the_rows_pefts_encoder_gets(
    tmp_path: Path, base_folder: Path, base: BaseModelSpec, family: str
) -> None:
    model = family_model(family, base_folder)
    save(model, tmp_path)
    weights = read_adapter(tmp_path, base, LIMITS)
    assert isinstance(weights, SoftPromptWeights)
    with torch.inference_mode():
        wanted = model.get_prompt(batch_size=1, task_ids=torch.tensor([0]))[0].numpy()
    num_tokens = KINDS[family][2]
    assert weights.embeddings.shape == (num_tokens, base.d_model)
    np.testing.assert_allclose(weights.embeddings, wanted[:num_tokens], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("is_projected", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_read_adapter_of_prefix_equals_pefts_cache(tmp_path: Path, num_layers: int, is_projected: bool) -> None:
    shape = TINY | {"num_layers": 2, "num_decoder_layers": num_layers, "num_heads": 3}
    base_folder = write_t5(tmp_path / "base", shape, is_tied=False, seed=0)
    config = peft.PrefixTuningConfig(
        task_type="SEQ_2_SEQ_LM",
        num_virtual_tokens=5,
        num_layers=num_layers,
        num_attention_heads=3,
        token_dim=24,
        encoder_hidden_size=7,
        prefix_projection=is_projected,
    )
    model = random_adapter(T5ForConditionalGeneration.from_pretrained(base_folder), config)
    save(model, tmp_path / "adapter")
    weights = read_adapter(tmp_path / "adapter", read_base_spec(base_folder), LIMITS)
    assert isinstance(weights, PrefixWeights)
    with torch.inference_mode():
        layers = model.get_prompt(batch_size=1).self_attention_cache.layers
    assert len(layers) == num_layers == len(weights.keys) == len(weights.values)
    assert weights.keys.shape == weights.values.shape == (num_layers, 5, 3, 8)
    for layer, keys_PHK, values_PHK in zip(layers, weights.keys, weights.values, strict=True):
        np.testing.assert_allclose(keys_PHK, layer.keys[0].transpose(0, 1).numpy(), rtol=1e-6)
        np.testing.assert_allclose(values_PHK, layer.values[0].transpose(0, 1).numpy(), rtol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_inspect_adapter_of_every_family_makes_its_manifest(
    tmp_path: Path, base_folder: Path, base: BaseModelSpec, family: str
) -> None:
    model = family_model(family, base_folder)
    save(model, tmp_path)
    manifest = inspect_adapter(tmp_path, base, LIMITS, "x")
    assert (manifest.kind, manifest.rank, manifest.num_virtual_tokens) == KINDS[family]
    config = model.peft_config["default"]
    if family == "norm":
        assert manifest.target_modules == ("final_layer_norm", "layer_norm")
    elif config.is_prompt_learning:
        assert manifest.target_modules == ()
    else:
        leaves = {path.rpartition(".")[2] for path in base.linear_shapes}
        assert manifest.target_modules == tuple(sorted(leaves & set(config.target_modules)))


# PEFT takes AdaLoRA's rank_pattern, by parameter, for LoRA's, by module.
@pytest.mark.filterwarnings("ignore:The following rank_pattern keys")
def test_read_adapter_of_pruned_adalora_scales_as_peft_does_once_it_has_loaded_it(
    tmp_path: Path, base_folder: Path, base: BaseModelSpec
) -> None:
    model = family_model("adalora", base_folder)
    layers = {f"{path}.lora_E": path for path in base.linear_shapes if path.endswith(("SelfAttention.q", "wo"))}
    pruned = {name: [rank % 2 == 0 for rank in range(6)] for name in layers}
    gone = next(iter(pruned))
    pruned[gone] = [False] * 6
    model.peft_config["default"].rank_pattern = pruned
    save(model, tmp_path)
    loaded = peft.PeftModel.from_pretrained(T5ForConditionalGeneration.from_pretrained(base_folder), tmp_path)
    weights = read_adapter(tmp_path, base, LIMITS)
    assert isinstance(weights, WeightAdapterWeights)
    assert layers[gone] not in weights.linears
    for path, change in weights.linears.items():
        wanted = loaded.base_model.model.get_submodule(path).get_delta_weight("default").detach().numpy()
        np.testing.assert_allclose(change.lora.scaling * change.lora.lora_b @ change.lora.lora_a, wanted, atol=1e-5)
    assert {len(weights.linears[path].lora.lora_a) for path in layers.values() if path != layers[gone]} == {3}


def test_read_adapter_of_loha_with_patterns_scales_each_layer_by_its_own(
    tmp_path: Path, base_folder: Path, base: BaseModelSpec
) -> None:
    config = peft.LoHaConfig(
        task_type="SEQ_2_SEQ_LM",
        r=2,
        alpha=3,
        target_modules=["q", "wo"],
        rank_pattern={"wo": 4},
        alpha_pattern={"decoder.*q": 7},
    )
    model = random_adapter(T5ForConditionalGeneration.from_pretrained(base_folder), config)
    save(model, tmp_path)
    weights = read_adapter(tmp_path, base, LIMITS)
    assert isinstance(weights, WeightAdapterWeights)
    for path, change in weights.linears.items():
        wanted = model.base_model.model.get_submodule(path).get_delta_weight("default").detach().numpy()
        np.testing.assert_allclose(change.lora.scaling * change.lora.lora_b @ change.lora.lora_a, wanted, atol=1e-5)
    assert weights.max_rank == 16


def test_read_adapter_of_loha_counts_the_rank_it_is_served_with(
    tmp_path: Path, base_folder: Path, base: BaseModelSpec
) -> None:
    save(family_model("loha", base_folder), tmp_path)
    assert read_adapter(tmp_path, base, CodecLimits(max_rank=9))
    with pytest.raises(AdapterTooLargeError, match=r"rank 9 .a LoHa of rank 3"):
        read_adapter(tmp_path, base, CodecLimits(max_rank=8))


@pytest.mark.parametrize("family", FAMILIES)
def test_read_adapter_of_a_family_whose_config_says_another_is_refused(
    tmp_path: Path, base_folder: Path, base: BaseModelSpec, family: str
) -> None:
    from adapters.errors import AdapterError

    save(family_model(family, base_folder), tmp_path)
    config = tmp_path / "adapter_config.json"
    raw = json.loads(config.read_text())
    for other in ("LORA", "ADALORA", "LOHA", "VERA", "IA3", "LN_TUNING", "PREFIX_TUNING", "MULTITASK_PROMPT_TUNING"):
        # P-tuning and prompt tuning store the same rows with the same meaning.
        if other != raw["peft_type"]:
            config.write_text(json.dumps(raw | {"peft_type": other}))
            with pytest.raises(AdapterError):
                read_adapter(tmp_path, base, LIMITS)
