"""The memory of a step: a plan made without data is what the allocator then records."""

import pytest

from training.errors import TrainingConfigError
from training.studies.config import MemoryConfig, MemoryShape, StudyPlaces, load_study

pytestmark = pytest.mark.torch
MINI = "adapters/library/medley-mini"


SMALL, LARGE = MemoryShape(2, 24, 8), MemoryShape(6, 64, 24)


@pytest.mark.parametrize(
    ("method", "batch", "dtype"),
    [
        ("full", SMALL, "float32"),
        ("full", LARGE, "float32"),
        ("lora", SMALL, "float32"),
        ("lora", LARGE, "float32"),
        ("full", LARGE, "bfloat16"),
        ("lora", LARGE, "bfloat16"),
        ("prompt", LARGE, "float32"),
    ],
)
def test_plan_of_tiny_t5_is_within_ten_percent_of_the_measure(tiny_shape, method, batch, dtype):
    from training.studies.memory import measure, plan

    config = MemoryConfig(rank=4, num_virtual_tokens=5, dtype=dtype)
    planned, measured = plan(tiny_shape, method, batch, config), measure(tiny_shape, method, batch, config)
    assert planned.peak == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("batch", [MemoryShape(2, 32, 8), MemoryShape(4, 96, 16)])
def test_plan_of_medley_mini_is_within_ten_percent_of_the_measure(method, batch):
    from transformers import AutoConfig

    from training.studies.memory import measure, plan

    config, shape = MemoryConfig(rank=8), AutoConfig.from_pretrained(MINI)
    assert plan(shape, method, batch, config).peak == pytest.approx(measure(shape, method, batch, config), rel=0.1)


@pytest.mark.gpu
def test_plan_is_within_ten_percent_of_the_measure_on_a_gpu():
    import torch
    from transformers import AutoConfig

    from training.studies.memory import measure, plan

    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    config, batch = MemoryConfig(rank=8, device="cuda"), MemoryShape(16, 512, 64)
    shape = AutoConfig.from_pretrained(MINI)
    for method in ("full", "lora"):
        planned = plan(shape, method, batch, config)
        assert planned.peak == pytest.approx(measure(shape, method, batch, config), rel=0.1)


def test_plan_counts_weights_gradients_and_states_exactly(tiny_shape):
    from training.studies.memory import plan

    full = plan(tiny_shape, "full", MemoryShape(2, 8, 4), MemoryConfig())
    assert full.num_trainable == full.num_total
    assert (full.weights, full.gradients, full.optimizer) == tuple(full.num_total * size for size in (4, 4, 8))
    narrow = plan(tiny_shape, "full", MemoryShape(2, 8, 4), MemoryConfig(dtype="bfloat16"))
    assert (narrow.weights, narrow.gradients, narrow.optimizer) == tuple(full.num_total * size for size in (2, 2, 12))


def test_plan_checkpointing_keeps_fewer_activations(tiny_shape):
    from training.studies.memory import plan

    batch = MemoryShape(6, 64, 24)
    plain, lean = (plan(tiny_shape, "full", batch, MemoryConfig(gradient_checkpointing=on)) for on in (False, True))
    assert lean.activations < 0.5 * plain.activations
    assert lean.weights == plain.weights


def test_plan_qlora_holds_the_base_in_four_bits_and_trains_the_same_parameters():
    from transformers import AutoConfig

    from training.studies.memory import plan

    shape, batch = AutoConfig.from_pretrained(MINI), MemoryShape(2, 16, 4)
    lora, qlora = (plan(shape, method, batch, MemoryConfig(rank=8)) for method in ("lora", "qlora"))
    assert (qlora.num_trainable, qlora.num_total) == (lora.num_trainable, lora.num_total)
    # 36 projections of attention and 12 of feed-forward blocks; wo stays wide.
    quantized = 36 * 256 * 256 + 12 * 256 * 640
    saved_bits = 8 * (lora.weights - qlora.weights) / quantized
    assert 32 - saved_bits == pytest.approx(4.13, abs=0.01)
    assert lora.activations == pytest.approx(qlora.activations, rel=0.02)


def test_plan_of_qlora_is_within_ten_percent_of_what_bitsandbytes_takes(tiny_base):
    import torch
    from transformers import AutoConfig

    from training.config import AdapterRecipe, LoopConfig
    from training.methods import QloraMethod
    from training.model import speed_up
    from training.recipes.qlora import prepare_qlora
    from training.studies.memory import plan
    from training.studies.memory_measured import measure_steps

    pytest.importorskip("bitsandbytes", reason="qlora needs the quantization extra")
    targets, batch = ("q", "v", "wi_0"), MemoryShape(6, 64, 24)
    recipe = AdapterRecipe(None, None, LoopConfig(bfloat16=False), QloraMethod(4, 4, targets), str(tiny_base))

    def make():
        model = prepare_qlora(recipe).model
        speed_up(model)
        return model

    config = MemoryConfig(rank=4, target_modules=targets)
    planned = plan(AutoConfig.from_pretrained(tiny_base), "qlora", batch, config)
    assert planned.peak == pytest.approx(measure_steps(make, batch, torch.float32), rel=0.1)


def test_plan_of_a_decoder_only_model_reads_one_sequence():
    from transformers import LlamaConfig

    from training.studies.memory import measure, plan

    shape = LlamaConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    config, batch = MemoryConfig(rank=4, target_modules=("q_proj", "v_proj")), MemoryShape(3, 40, 8)
    assert plan(shape, "lora", batch, config).peak == pytest.approx(measure(shape, "lora", batch, config), rel=0.1)


def test_headline_counts_of_the_courses_lora_on_flan_t5_base():
    from training.studies.memory import headline_counts

    counts = headline_counts()
    assert (counts["num_trainable"], counts["num_total"]) == (3_538_944, 251_116_800)
    assert round(counts["adapter_bytes"] / 1e6) == 14
    assert round(counts["base_bytes"] / 2**20) in {944, 945}


def test_memory_study_writes_a_report_with_plan_beside_measure(tmp_path, tiny_shape):
    from training.studies.memory import run

    tiny_shape.save_pretrained(tmp_path)
    config = MemoryConfig(str(tmp_path), shapes=(MemoryShape(1, 8, 4),), methods=("lora",), measured=("lora",), rank=2)
    report = run(config, StudyPlaces(tmp_path, tmp_path / "out")).read_text()
    assert "| lora | 1 x (8 + 4) |" in report
    assert "3,538,944 of 251,116,800" in report
    assert (tmp_path / "out" / "figures.json").is_file()


def test_memory_unknown_method_or_measured_qlora_is_refused(tiny_shape):
    from training.studies.memory import measure, plan

    with pytest.raises(TrainingConfigError, match="not 'lorra'"):
        plan(tiny_shape, "lorra", MemoryShape(1, 4, 4), MemoryConfig())
    with pytest.raises(TrainingConfigError, match="planned only"):
        measure(tiny_shape, "qlora", MemoryShape(1, 4, 4), MemoryConfig())


def test_load_study_quick_takes_the_files_own_short_form_before_the_callers(tmp_path):
    path = tmp_path / "memory.yaml"
    path.write_text('rank: 4\nquick: ["rank=2", "dtype=bfloat16"]\n')
    assert load_study(MemoryConfig, path, [], quick=False).rank == 4
    quick = load_study(MemoryConfig, path, ["rank=1"], quick=True)
    assert (quick.rank, quick.dtype) == (1, "bfloat16")
