"""Hostile files of every family beside plain LoRA: each is refused with one clear error, by both readers."""

import tracemalloc
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from adapters.codec import CodecLimits, inspect_adapter, read_adapter
from adapters.errors import (
    AdapterError,
    AdapterTooLargeError,
    InvalidAdapterError,
    UnsupportedAdapterError,
    WrongBaseError,
)
from tests.fixtures.adapters import (
    BASE,
    NORM,
    WEIGHTS,
    WI,
    Q,
    lora_config,
    prompt_config,
    safetensors_bytes,
    write_adapter,
)

LIMITS = CodecLimits(max_file_bytes=1 << 20, max_text_bytes=1 << 16, max_rank=16, max_virtual_tokens=8)
Tensors = Mapping[str, np.ndarray]

# BASE has Q of (12, 8) and WI of (20, 8), d_model 8, and 3 decoder layers of 3 heads, 4 wide.
_Q, _WI = f"base_model.model.{Q}", f"base_model.model.{WI}"
_PAIR = {f"{_Q}.lora_A.weight": (4, 8), f"{_Q}.lora_B.weight": (12, 4)}


def _config(peft_type: str, **fields: object) -> dict[str, object]:
    return {"peft_type": peft_type, "task_type": "SEQ_2_SEQ_LM", "target_modules": ["q"], **fields}


def _prefix_config(**fields: object) -> dict[str, object]:
    sizes = {"num_layers": 3, "num_attention_heads": 3, "token_dim": 12}
    return prompt_config(3) | {"peft_type": "PREFIX_TUNING"} | sizes | fields


# Family → config and the shapes of its tensors, sound for BASE.
SOUND: dict[str, tuple[dict[str, object], dict[str, tuple[int, ...]]]] = {
    "dora": (lora_config(use_dora=True), _PAIR | {f"{_Q}.lora_magnitude_vector": (12,)}),
    "lora_bias": (lora_config(lora_bias=True), _PAIR | {f"{_Q}.lora_B.bias": (12,)}),
    "adalora": (
        _config("ADALORA", init_r=4, lora_alpha=8, r=8),
        {f"{_Q}.lora_A": (4, 8), f"{_Q}.lora_B": (12, 4), f"{_Q}.lora_E": (4, 1)},
    ),
    "loha": (
        _config("LOHA", r=3, alpha=6),
        {
            f"{_Q}.hada_w1_a": (12, 3),
            f"{_Q}.hada_w1_b": (3, 8),
            f"{_Q}.hada_w2_a": (12, 3),
            f"{_Q}.hada_w2_b": (3, 8),
        },
    ),
    "vera": (
        _config("VERA", r=5, save_projection=True),
        {
            "base_model.vera_A": (5, 8),
            "base_model.vera_B": (20, 5),
            f"{_Q}.vera_lambda_b": (12,),
            f"{_Q}.vera_lambda_d": (5,),
        },
    ),
    "ia3": (_config("IA3", feedforward_modules=["wi"]), {f"{_Q}.ia3_l": (12, 1), f"{_WI}.ia3_l": (1, 8)}),
    "norm": (_config("LN_TUNING"), {f"base_model.model.{NORM}.ln_tuning_layers.weight": (8,)}),
    "p-tuning": (
        prompt_config(3) | {"peft_type": "P_TUNING", "encoder_hidden_size": 9},
        {"prompt_embeddings": (6, 8)},
    ),
    "multitask": (
        prompt_config(3) | {"peft_type": "MULTITASK_PROMPT_TUNING", "num_tasks": 1, "num_ranks": 2},
        {"prompt_embeddings": (6, 8), "prefix_task_cols": (1, 6, 2), "prefix_task_rows": (1, 2, 8)},
    ),
    "prefix": (_prefix_config(), {"prompt_embeddings": (3, 72)}),
}


def _values(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    draws = np.random.default_rng(0)
    return {name: draws.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def _refuse(folder: Path, error: type[AdapterError], match: str) -> None:
    for read in (lambda: read_adapter(folder, BASE, LIMITS), lambda: inspect_adapter(folder, BASE, LIMITS, "x")):
        with pytest.raises(error, match=match) as caught:
            read()
        assert caught.type is error
        assert caught.value.message.isprintable()
        assert len(caught.value.message) < 500


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("family", SOUND)
def test_read_adapter_of_a_sound_family_is_taken(tmp_path: Path, family: str, dtype: str) -> None:
    config, shapes = SOUND[family]
    write_adapter(tmp_path, config, _values(shapes), dtype=dtype)
    assert read_adapter(tmp_path, BASE, LIMITS)
    assert inspect_adapter(tmp_path, BASE, LIMITS, "x").name == "x"


_TENSORS = [(family, name) for family, (_, shapes) in SOUND.items() for name in shapes]


@pytest.mark.parametrize("value", [np.nan, -np.inf, 1e5])
@pytest.mark.parametrize(("family", "name"), _TENSORS)
def test_read_adapter_with_a_value_that_cannot_be_served_is_refused(
    tmp_path: Path, family: str, name: str, value: float
) -> None:
    config, shapes = SOUND[family]
    tensors = _values(shapes)
    tensors[name].flat[-1] = value
    _refuse(write_adapter(tmp_path, config, tensors), InvalidAdapterError, "NaN, infinity or values too large")


@pytest.mark.parametrize(("family", "name"), _TENSORS)
def test_read_adapter_without_one_of_its_tensors_is_refused(tmp_path: Path, family: str, name: str) -> None:
    config, shapes = SOUND[family]
    tensors = _values({other: shape for other, shape in shapes.items() if other != name})
    write_adapter(tmp_path, config, tensors)
    if family == "ia3":
        assert read_adapter(tmp_path, BASE, LIMITS)  # each of its vectors stands alone
        return
    with pytest.raises((InvalidAdapterError, UnsupportedAdapterError), match=r"has no|no tensors|tensors are|not in"):
        read_adapter(tmp_path, BASE, LIMITS)


@pytest.mark.parametrize(("family", "name"), _TENSORS)
def test_read_adapter_with_a_tensor_of_another_shape_is_refused(tmp_path: Path, family: str, name: str) -> None:
    config, shapes = SOUND[family]
    for shape in ((), (7,), (0,), (7, 7), (0, 8), (12, 0), (1, 1, 1), (1, 6, 0), (2, 6, 2), (2**20, 0)):
        write_adapter(tmp_path, config, _values(shapes | {name: shape}))
        with pytest.raises((InvalidAdapterError, AdapterTooLargeError)):
            read_adapter(tmp_path, BASE, LIMITS)
        with pytest.raises((InvalidAdapterError, AdapterTooLargeError)):
            inspect_adapter(tmp_path, BASE, LIMITS, "x")


@pytest.mark.parametrize("family", SOUND)
def test_read_adapter_with_a_tensor_of_no_float_dtype_is_refused(tmp_path: Path, family: str) -> None:
    config, shapes = SOUND[family]
    _refuse(write_adapter(tmp_path, config, _values(shapes), dtype="F64"), InvalidAdapterError, "F64")


@pytest.mark.parametrize("family", [family for family in SOUND if family not in ("p-tuning", "multitask", "prefix")])
def test_read_adapter_for_a_layer_the_base_has_not_is_refused(tmp_path: Path, family: str) -> None:
    config, shapes = SOUND[family]
    moved = {name.replace("block.0", "block.9").replace("final_layer", "last_layer"): s for name, s in shapes.items()}
    _refuse(write_adapter(tmp_path, config, _values(moved)), WrongBaseError, "has no (linear layer|norm)")


@pytest.mark.parametrize("family", SOUND)
def test_read_adapter_whose_config_switches_on_more_is_refused(tmp_path: Path, family: str) -> None:
    config, shapes = SOUND[family]
    for field in ("modules_to_save", "a_field_of_the_future"):
        folder = write_adapter(tmp_path, config | {field: ["lm_head"]}, _values(shapes))
        _refuse(folder, UnsupportedAdapterError, f"{field}.*not supported")


def _sound(
    family: str, fields: Mapping[str, object] | None = None, **shapes: tuple[int, ...]
) -> tuple[object, Tensors]:
    config, sound = SOUND[family]
    return config | (fields or {}), _values(sound | shapes)


def _with_huge(family: str, names: tuple[str, ...]) -> tuple[object, Tensors]:
    config, tensors = _sound(family)
    return config, {
        name: np.full_like(array, 6e4) if name.endswith(names) else array for name, array in tensors.items()
    }


BROKEN: dict[str, tuple[tuple[object, Tensors], type[AdapterError], str]] = {
    "magnitude without use_dora": (_sound("dora", {"use_dora": False}), InvalidAdapterError, "does not belong"),
    "use_dora without magnitude": (
        (lora_config(use_dora=True), _values(_PAIR)),
        InvalidAdapterError,
        "no lora_magnitude_vector",
    ),
    "bias without lora_bias": (_sound("lora_bias", {"lora_bias": False}), InvalidAdapterError, "does not belong"),
    "bias too large once scaled": (_with_huge("lora_bias", ("B.bias",)), InvalidAdapterError, "too large"),
    "scaling of infinity on zeros": (
        (lora_config(lora_alpha=1e300, lora_bias=True), {k: v * 0 for k, v in _values(SOUND["lora_bias"][1]).items()}),
        InvalidAdapterError,
        "too large",
    ),
    "adalora over init_r": (_sound("adalora", {"init_r": 3}), InvalidAdapterError, "init_r 3"),
    "adalora without init_r": (_sound("adalora", {"init_r": None}), InvalidAdapterError, "init_r"),
    "adalora half pruned": (
        _sound("adalora", **{f"{_Q}.lora_E": (0, 1)}),
        WrongBaseError,
        "lora_E.*shape",
    ),
    "adalora pruned away": (
        _sound("adalora", **{f"{_Q}.lora_A": (0, 8), f"{_Q}.lora_B": (12, 0), f"{_Q}.lora_E": (0, 1)}),
        InvalidAdapterError,
        "changes nothing",
    ),
    "adalora folded too large": (_with_huge("adalora", ("lora_A", "lora_E")), InvalidAdapterError, "too large"),
    "loha of two ranks": (
        _sound("loha", **{f"{_Q}.hada_w2_a": (12, 2), f"{_Q}.hada_w2_b": (2, 8)}),
        InvalidAdapterError,
        "config.json says 3",
    ),
    "loha folded over the limit": (
        (
            SOUND["loha"][0] | {"r": 5},
            _values({name: tuple(5 if n == 3 else n for n in s) for name, s in SOUND["loha"][1].items()}),
        ),
        AdapterTooLargeError,
        "rank 25 .a LoHa of rank 5",
    ),
    "loha folded too large": (_with_huge("loha", ("w1_b", "w2_b")), InvalidAdapterError, "too large"),
    "vera of other ranks": (_sound("vera", **{"base_model.vera_B": (20, 4)}), InvalidAdapterError, "vera_B 4"),
    "vera of a smaller base": (_sound("vera", **{"base_model.vera_A": (5, 7)}), WrongBaseError, "too small"),
    "vera of a larger base": (_sound("vera", **{"base_model.vera_A": (5, 9)}), WrongBaseError, "larger than any"),
    "vera over the limit": (
        _sound(
            "vera",
            {"r": 17},
            **{"base_model.vera_A": (17, 8), "base_model.vera_B": (20, 17), f"{_Q}.vera_lambda_d": (17,)},
        ),
        AdapterTooLargeError,
        "rank 17",
    ),
    "vera folded too large": (_with_huge("vera", ("vera_A", "lambda_d")), InvalidAdapterError, "too large"),
    "ia3 the wrong way round": (_sound("ia3", **{f"{_Q}.ia3_l": (1, 12)}), WrongBaseError, "does not fit"),
    "ia3 twice": (
        (SOUND["ia3"][0], _values({f"{_Q}.ia3_l": (12, 1), f"{_Q}.ia3_l.other": (12, 1)})),
        InvalidAdapterError,
        "more than one adapter",
    ),
    "norm with a bias": (
        _sound("norm", **{f"base_model.model.{NORM}.ln_tuning_layers.bias": (8,)}),
        InvalidAdapterError,
        "does not belong",
    ),
    "linear layer as a norm": (
        (SOUND["norm"][0], _values({f"{_Q}.ln_tuning_layers.weight": (12, 8)})),
        WrongBaseError,
        "has no norm",
    ),
    "several tasks": (
        _sound("multitask", prefix_task_cols=(2, 6, 2), prefix_task_rows=(2, 2, 8)),
        UnsupportedAdapterError,
        "2 tasks",
    ),
    "tasks of other ranks": (_sound("multitask", prefix_task_rows=(1, 3, 8)), InvalidAdapterError, "do not fit"),
    "task tensors on a plain prompt": (
        _sound("multitask", {"peft_type": "PROMPT_TUNING"}),
        InvalidAdapterError,
        "PROMPT_TUNING",
    ),
    "multitask folded too large": (
        _with_huge("multitask", ("cols", "rows")),
        InvalidAdapterError,
        "too large",
    ),
    "prefix of other heads": (
        _sound("prefix", {"num_attention_heads": 4}),
        WrongBaseError,
        "needs num_layers 3, num_attention_heads 3, token_dim 12",
    ),
    "prefix of other layers": (_sound("prefix", {"num_layers": 2, "token_dim": 18}), WrongBaseError, "2 layers"),
    "prefix of other width": (_sound("prefix", prompt_embeddings=(3, 70)), InvalidAdapterError, "says .3, 72"),
    "prefix too long": (
        _sound("prefix", {"num_virtual_tokens": 9}, prompt_embeddings=(9, 72)),
        AdapterTooLargeError,
        "9 virtual tokens",
    ),
    "prefix for a decoder": (
        _sound("prefix", {"num_transformer_submodules": 1}),
        UnsupportedAdapterError,
        "num_transformer_submodules",
    ),
    "prefix for another task": (_sound("prefix", {"task_type": "CAUSAL_LM"}), UnsupportedAdapterError, "CAUSAL_LM"),
    "prefix without sizes": (_sound("prefix", {"token_dim": None}), InvalidAdapterError, "token_dim"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_read_adapter_of_a_broken_family_is_refused(tmp_path: Path, case: str) -> None:
    (config, tensors), error, match = BROKEN[case]
    _refuse(write_adapter(tmp_path, config, tensors), error, match)


def test_read_adapter_of_prefix_for_a_base_of_unknown_heads_is_refused(tmp_path: Path) -> None:
    config, shapes = SOUND["prefix"]
    write_adapter(tmp_path, config, _values(shapes))
    with pytest.raises(WrongBaseError, match="num_layers 0"):
        read_adapter(tmp_path, replace(BASE, num_decoder_layers=0, num_heads=0, d_kv=0), LIMITS)


@pytest.mark.parametrize("family", ["loha", "vera"])
def test_inspect_adapter_of_folded_families_holds_one_layer_at_a_time(tmp_path: Path, family: str) -> None:
    num_layers, width = 40, 512
    base = replace(BASE, linear_shapes={f"layer.{number}.q": (width, width) for number in range(num_layers)})
    shapes: dict[str, tuple[int, ...]] = {}
    for number in range(num_layers):
        path = f"base_model.model.layer.{number}.q"
        if family == "loha":
            shapes |= {f"{path}.hada_w{side}_a": (width, 4) for side in (1, 2)}
            shapes |= {f"{path}.hada_w{side}_b": (4, width) for side in (1, 2)}
        else:
            shapes |= {f"{path}.vera_lambda_b": (width,), f"{path}.vera_lambda_d": (16,)}
    if family == "vera":
        shapes |= {"base_model.vera_A": (16, width), "base_model.vera_B": (width, 16)}
    fields = {"r": 4, "alpha": 8} if family == "loha" else {"r": 16}
    write_adapter(tmp_path, _config(family.upper(), **fields), safetensors_bytes(_values(shapes)))
    inspect_adapter(tmp_path, base, CodecLimits(), "x")
    tracemalloc.start()
    assert inspect_adapter(tmp_path, base, CodecLimits(), "x").rank == 16
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # Folded, all layers would take 40 pairs of 16 · 512 values of 4 bytes: 2.6 MB.
    assert (tmp_path / WEIGHTS).stat().st_size > 50_000
    assert peak_bytes < 600_000
