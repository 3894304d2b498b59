"""LoRA's and QLoRA's figures: parameters counted, merging exact, the 4-bit code book, bits a weight, gradients."""

from pathlib import Path
from statistics import NormalDist

import pytest

import training.config
from training.config import load_adapter_recipe
from training.methods import METHODS, LoraMethod

pytestmark = pytest.mark.torch
CONFIGS = Path(training.config.__file__).parent / "configs"


def _base(model, tokenizer=None):
    from training.base_model import Base

    return Base(model.requires_grad_(requires_grad=False).eval(), tokenizer, Path(), None)


def _t5(**shape):
    from transformers import T5Config, T5ForConditionalGeneration

    return T5ForConditionalGeneration(T5Config(feed_forward_proj="gated-gelu", decoder_start_token_id=0, **shape))


def _num_trained(model):
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def test_lora_of_a_512_by_64_layer_trains_4608_of_32768():
    from training.recipes.lora import with_lora

    base = _base(_t5(vocab_size=16, d_model=512, d_kv=64, num_heads=1, d_ff=8, num_layers=1))
    layer = "encoder.block.0.layer.0.SelfAttention.q"
    assert base.model.get_submodule(layer).weight.numel() == 32_768
    prepared = with_lora(base, LoraMethod(rank=8, alpha=8, target_modules=(layer,)))
    assert _num_trained(prepared.model) == 4_608


@pytest.mark.parametrize("method", [LoraMethod(rank=8, alpha=16), LoraMethod(rank=4, alpha=8, rslora=True)])
def test_lora_merged_and_unmerged_logits_are_equal(method):
    import torch

    from training.recipes.lora import with_lora

    torch.manual_seed(0)
    base = _base(_t5(vocab_size=64, d_model=64, d_kv=16, num_heads=2, d_ff=32, num_layers=2))
    model = with_lora(base, method).model.eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    ids = torch.randint(3, 64, (3, 12))
    with torch.no_grad():
        unmerged = model(input_ids=ids, labels=ids).logits
        with model.disable_adapter():
            plain = model(input_ids=ids, labels=ids).logits
        merged = model.merge_and_unload()(input_ids=ids, labels=ids).logits
    assert (merged - unmerged).abs().max() < 1e-5
    assert (plain - unmerged).abs().max() > 1e-3


def test_lora_of_the_courses_recipe_trains_3538944_of_251116800():
    import torch

    from training.recipes.lora import lora_config

    recipe = load_adapter_recipe("lora", METHODS, CONFIGS / "flan-t5-base-dialogsum-lora.yaml")
    shape = {"vocab_size": 32128, "d_model": 768, "d_kv": 64, "num_heads": 12, "d_ff": 2048, "num_layers": 12}
    with torch.device("meta"):
        from peft import get_peft_model

        base = _base(_t5(**shape))
        # FLAN-T5's output head is a table of its own.
        base.model.lm_head.weight = torch.nn.Parameter(torch.empty(32128, 768), requires_grad=False)
        model = get_peft_model(base.model, lora_config(base, recipe.method))
    assert _num_trained(model) == 3_538_944
    assert sum(parameter.numel() for parameter in model.parameters()) == 251_116_800
    assert (recipe.base, recipe.method.rank, recipe.method.alpha) == ("google/flan-t5-base", 32, 32)
    assert (recipe.method.dropout, recipe.loop.learning_rate) == (0.05, 1e-3)


def _nf4_code_book():
    """Build the code book as arXiv:2305.14314, section 3, describes it.

    Quantiles of a normal variable at equal steps of probability, 8 above zero and 7 below, and zero itself; the
    outermost probability is the mean of that of 15 and of 16 steps; scaled to a largest value of 1.
    """
    outermost = 1 - 0.5 * (1 / 32 + 1 / 30)
    above = [NormalDist().inv_cdf(outermost + (0.5 - outermost) * step / 8) for step in range(8)]
    below = [-NormalDist().inv_cdf(outermost + (0.5 - outermost) * step / 7) for step in range(7)]
    return sorted(value / max(above) for value in (*above, 0.0, *below))


def test_nf4_code_book_is_the_papers():
    from bitsandbytes.functional import get_4bit_type

    # bitsandbytes keeps them as constants that were once computed in float32.
    assert get_4bit_type("nf4", device="cpu").tolist() == pytest.approx(_nf4_code_book(), abs=2e-7)


@pytest.mark.parametrize(("double_quantization", "expected_bits"), [(True, 4.127), (False, 4.5)])
def test_qlora_bits_per_weight_are_the_papers(double_quantization, expected_bits):
    import torch
    from bitsandbytes.nn import Params4bit

    weight = Params4bit(
        torch.randn(1024, 1024), requires_grad=False, quant_type="nf4", compress_statistics=double_quantization
    ).to("cpu")
    constants = [weight.quant_state.absmax]
    if double_quantization:
        constants.append(weight.quant_state.state2.absmax)
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in (weight.data, *constants))
    assert weight.quant_state.nested == double_quantization
    assert 8 * num_bytes / 1024**2 == pytest.approx(expected_bits, abs=0.005)


def test_prepare_qlora_base_is_in_nf4_and_gradients_go_to_a_and_b_alone(tiny_base, tmp_path):
    import torch
    from bitsandbytes.nn import Linear4bit

    from tests.unit.training.test_methods import _recipe
    from training.recipes.train import prepare

    model = prepare(_recipe(tmp_path, tiny_base, "qlora: {rank: 2, alpha: 4}")).model.train()
    layers = [module for module in model.modules() if isinstance(module, Linear4bit)]
    assert layers
    assert {layer.weight.quant_state.quant_type for layer in layers} == {"nf4"}
    assert all(layer.weight.quant_state.nested for layer in layers)
    ids = torch.arange(3, 12).reshape(1, -1)
    model(input_ids=ids, labels=ids).loss.backward()
    touched = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert touched == {name for name, _ in model.named_parameters() if ".lora_A." in name or ".lora_B." in name}


def test_prepare_qlora_quantization_stays_the_same_over_an_evaluation(tiny_base, tmp_path):
    import torch
    from bitsandbytes.nn import Linear4bit

    from tests.unit.training.test_methods import _recipe
    from training.recipes.train import prepare

    model = prepare(_recipe(tmp_path, tiny_base, "qlora: {rank: 2, alpha: 4}")).model
    weights = [module.weight for module in model.modules() if isinstance(module, Linear4bit)]
    before = [weight.data.clone() for weight in weights]
    ids = torch.arange(3, 12).reshape(1, -1)
    with torch.no_grad():
        model.eval()(input_ids=ids, labels=ids)
    assert all(torch.equal(weight.data, old) for weight, old in zip(weights, before, strict=True))
