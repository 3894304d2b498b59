"""What an operator may set, against vLLM's own list of arguments and its own checks."""

import dataclasses
import typing
import warnings
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="needs the vLLM environment (make test-vllm)")
with warnings.catch_warnings():
    # What vLLM imports warns of what it imports.
    warnings.simplefilter("default")
    from vllm import AsyncEngineArgs
    from vllm.config.lora import MaxLoRARanks
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS
    from vllm.platforms import current_platform

from adapters.base_spec import read_base_spec
from server.core.errors import FailedPreconditionError, InvalidArgumentError
from server.engine.vllm import config as config_module
from server.engine.vllm.config import LORA_RANKS, QUANTIZATIONS, VllmEngineConfig, engine_arguments, engine_config
from server.engine.vllm.logs import write_logging_config
from tests.fixtures.causal_models import write_llama

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_llama(tmp_path_factory.mktemp("model"), seed=1)
    write_logging_config(folder / "logging.json")
    return folder


def arguments(model: Path, **changes: object) -> AsyncEngineArgs:
    config = VllmEngineConfig(str(model), **changes)  # type: ignore[arg-type]
    return engine_arguments(config, model, read_base_spec(model), model / "logging.json")


def test_names_that_medley_sets_are_vllms() -> None:
    known = {field.name for field in dataclasses.fields(AsyncEngineArgs)}
    assert set(config_module._SET_BY_MEDLEY) <= known


def test_ranks_and_quantizations_are_vllms() -> None:
    assert typing.get_args(MaxLoRARanks) == LORA_RANKS
    assert {method for method in QUANTIZATIONS.values() if method} <= set(QUANTIZATION_METHODS)


def test_limits_reach_vllm(model: Path) -> None:
    made = engine_config(
        arguments(
            model,
            max_model_len=300,
            max_num_seqs=7,
            max_lora_rank=20,
            max_loras=3,
            arguments={"block_size": 32, "kv_cache_memory_bytes": 1 << 26, "enforce_eager": True},
        )
    )
    assert made.model_config.max_model_len == 300
    assert made.scheduler_config.max_num_seqs == 7
    assert made.lora_config.max_lora_rank == 32
    assert made.lora_config.max_loras >= 3
    assert made.cache_config.block_size == 32
    assert made.model_config.enable_prompt_embeds
    assert made.model_config.enforce_eager


def test_context_of_the_model_is_the_default(model: Path) -> None:
    assert engine_config(arguments(model)).model_config.max_model_len == 2048


@pytest.mark.parametrize(
    "given",
    [
        {"tensor_paralel_size": 2},
        {"tensor_parallel_size": "two"},
        {"compilation_config": {"no_such_field": 1}},
        {"load_format": "pt"},
    ],
)
def test_argument_that_vllm_does_not_take_is_refused_before_anything_is_read(
    model: Path, given: dict[str, object]
) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        arguments(model, arguments=given)
    assert refused.value.param == f"engine.vllm.{next(iter(given))}"


def test_quantization_is_set_in_one_place(model: Path) -> None:
    assert arguments(model, quantization="int8").quantization == "int8_per_channel_weight_only"
    assert arguments(model, arguments={"quantization": "fp8"}).quantization == "fp8"
    with pytest.raises(InvalidArgumentError, match="both set"):
        arguments(model, quantization="int8", arguments={"quantization": "fp8"})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"arguments": {"quantization": "awq"}}, "awq"),
        ({"max_model_len": 1_000_000}, "max_model_len"),
        ({"arguments": {"max_num_batched_tokens": 8, "enable_chunked_prefill": False}}, "max_num_batched_tokens"),
    ],
)
def test_configuration_that_vllm_refuses_is_a_failed_precondition_in_its_words(
    model: Path, changes: dict[str, object], words: str
) -> None:
    with pytest.raises(FailedPreconditionError, match=words):
        engine_config(arguments(model, **changes))


def test_base_without_safetensors_is_refused(model: Path, tmp_path: Path) -> None:
    for file in model.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickled")
    config = VllmEngineConfig(str(tmp_path))
    with pytest.raises(FailedPreconditionError, match="safetensors"):
        engine_arguments(config, tmp_path, read_base_spec(model), model / "logging.json")


def test_vllm_of_another_device_is_refused(model: Path) -> None:
    other = "cuda" if current_platform.device_type == "cpu" else "cpu"
    with pytest.raises(FailedPreconditionError, match=f"engine.device is {other}"):
        arguments(model, device=other)
