import enum
from typing import Any, Literal

import pytest

from server.core.errors import InvalidArgumentError
from server.engine.vllm.config import VllmEngineConfig, check_arguments, engine_environment


class Backend(enum.Enum):
    FLASH = "some.module.Flash"
    PLAIN = "some.module.Plain"


KNOWN: dict[str, Any] = {
    "tensor_parallel_size": int,
    "pipeline_parallel_size": int,
    "gpu_memory_utilization": float,
    "enforce_eager": bool,
    "kv_cache_dtype": Literal["auto", "fp8"],
    "attention_backend": Backend | None,
    "quantization_config": "dict[str, Whatever]",
    "max_loras": int,
    "dtype": str,
    "_rank": int,
}


def test_argument_of_vllms_comes_out_in_its_type() -> None:
    given = {
        "tensor_parallel_size": "2",
        "gpu_memory_utilization": 1,
        "enforce_eager": "true",
        "attention_backend": "FLASH",
        "quantization_config": {"a": 1},
    }
    assert check_arguments(given, KNOWN) == {
        "tensor_parallel_size": 2,
        "gpu_memory_utilization": 1.0,
        "enforce_eager": True,
        "attention_backend": "FLASH",
        "quantization_config": {"a": 1},
    }


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("tensor_paralel_size", 2, ["no engine argument tensor_paralel_size", "did you mean tensor_parallel_size"]),
        ("colour", 2, ["no engine argument colour"]),
        ("rank", 2, ["no engine argument rank"]),
        ("_rank", 2, ["no engine argument _rank"]),
        ("tensor_parallel_size", "two", ["engine.vllm.tensor_parallel_size", "integer"]),
        ("gpu_memory_utilization", [], ["engine.vllm.gpu_memory_utilization", "number"]),
        ("kv_cache_dtype", "fp9", ["'auto' or 'fp8'"]),
        ("attention_backend", "FAST", ["must be one of FLASH, PLAIN"]),
        ("max_loras", 3, ["Medley's own", "engine.max_loras"]),
        ("lora_target_modules", ["embed_tokens"], ["Medley's own"]),
        ("dtype", "float32", ["Medley's own", "engine.dtype"]),
    ],
)
def test_argument_that_cannot_be_passed_on_is_refused_by_name(name: str, value: object, words: list[str]) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        check_arguments({name: value}, KNOWN)
    assert refused.value.param == f"engine.vllm.{name}"
    for word in words:
        assert word in refused.value.message
    assert "_rank" not in refused.value.message.replace(name, "")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("device", "tpu"),
        ("dtype", "int8"),
        ("quantization", "bitsandbytes-4bit"),
        ("max_num_seqs", -1),
        ("max_model_len", -1),
        ("num_threads", -1),
        ("max_loras", 0),
        ("max_num_waiting", 0),
        ("max_virtual_tokens", 0),
        ("max_lora_rank", 513),
    ],
)
def test_setting_that_no_engine_could_start_with_is_refused(field: str, value: object) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        VllmEngineConfig("model", **{field: value})  # type: ignore[arg-type]
    assert refused.value.param == field


def test_vllm_holds_as_many_loras_as_the_device_unless_told_otherwise() -> None:
    assert VllmEngineConfig("model", max_loras=3).max_resident_loras == 3
    assert VllmEngineConfig("model", max_loras=3, arguments={"max_cpu_loras": 9}).max_resident_loras == 9


def test_environment_says_nothing_of_threads_unless_told() -> None:
    assert not any("OMP" in name for name in engine_environment(VllmEngineConfig("model")))
    assert engine_environment(VllmEngineConfig("model", num_threads=3))["OMP_NUM_THREADS"] == "3"


def test_vllm_neither_forks_nor_calls_home() -> None:
    environment = engine_environment(VllmEngineConfig("model"))
    assert environment["VLLM_WORKER_MULTIPROC_METHOD"] == "spawn"
    assert environment["VLLM_NO_USAGE_STATS"] == "1"
