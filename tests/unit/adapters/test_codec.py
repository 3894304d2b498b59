"""PEFT folders, sound and hostile. What PEFT itself writes is in ``test_codec_peft.py``."""

import pickle
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from adapters.adapter_weights import SoftPromptWeights, WeightAdapterWeights
from adapters.codec import CodecLimits, inspect_adapter, read_adapter
from adapters.errors import (
    AdapterError,
    AdapterTooLargeError,
    InvalidAdapterError,
    UnsupportedAdapterError,
    WrongBaseError,
)
from adapters.manifest import AdapterKind, AdapterManifest
from tests.fixtures.adapters import (
    BASE,
    CONFIG,
    WEIGHTS,
    WI,
    Q,
    V,
    lora_config,
    lora_tensors,
    prompt_config,
    safetensors_bytes,
    write_adapter,
    write_lora,
    write_prompt,
)

LIMITS = CodecLimits(max_file_bytes=1 << 20, max_text_bytes=1 << 16, max_rank=16, max_virtual_tokens=8)
A, B = f"base_model.model.{Q}.lora_A.weight", f"base_model.model.{Q}.lora_B.weight"


def refuse(folder: Path, error: type[AdapterError], match: str, base: object = BASE) -> None:
    """Both readers must refuse with exactly this error and a message fit for people."""
    for read in (lambda: read_adapter(folder, base, LIMITS), lambda: inspect_adapter(folder, base, LIMITS, "x")):
        with pytest.raises(error, match=match) as caught:
            read()
        assert caught.type is error
        assert caught.value.message.isprintable()
        assert len(caught.value.message) < 500


def test_read_adapter_of_lora_gives_its_pairs(tmp_path: Path) -> None:
    tensors = lora_tensors({Q: 4, WI: 4})
    weights = read_adapter(write_adapter(tmp_path, lora_config(4, 6), tensors), BASE, LIMITS)
    assert isinstance(weights, WeightAdapterWeights)
    assert set(weights.linears) == {Q, WI}
    np.testing.assert_array_equal(weights.linears[Q].lora.lora_a, tensors[A])
    np.testing.assert_array_equal(weights.linears[Q].lora.lora_b, tensors[B])
    assert weights.linears[Q].lora.lora_a.dtype == np.float32
    assert weights.linears[Q].lora.scaling == 1.5
    assert weights.max_rank == 4


def test_read_adapter_with_patterns_scales_each_module_by_its_own_rank(tmp_path: Path) -> None:
    fields = {"rank_pattern": {"q": 9, "layer.0.*": 2}, "alpha_pattern": {"SelfAttention.v": 5}, "use_rslora": True}
    tensors = lora_tensors({Q: 9, V: 2, WI: 4})
    weights = read_adapter(write_adapter(tmp_path, lora_config(4, 6, **fields), tensors), BASE, LIMITS)
    assert isinstance(weights, WeightAdapterWeights)
    assert weights.linears[Q].lora.scaling == 6 / 3
    assert weights.linears[V].lora.scaling == pytest.approx(5 / 2**0.5)
    assert weights.linears[WI].lora.scaling == 6 / 2
    assert weights.max_rank == 9


def test_read_adapter_whose_keys_hold_the_adapters_name_is_read(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path, lora_config(), lora_tensors({Q: 4}, adapter_name="news"))
    weights = read_adapter(folder, BASE, LIMITS)
    assert isinstance(weights, WeightAdapterWeights)
    assert set(weights.linears) == {Q}


@pytest.mark.parametrize("num_copies", [1, 2])
def test_read_adapter_of_prompt_gives_the_encoders_rows(tmp_path: Path, num_copies: int) -> None:
    rows = np.arange(3 * num_copies * 8, dtype=np.float32).reshape(-1, 8)
    weights = read_adapter(write_adapter(tmp_path, prompt_config(3), {"prompt_embeddings": rows}), BASE, LIMITS)
    assert isinstance(weights, SoftPromptWeights)
    np.testing.assert_array_equal(weights.embeddings, rows[:3])
    assert weights.embeddings.base is None


@pytest.mark.parametrize("nested", [False, True])
def test_inspect_adapter_without_manifest_makes_one(tmp_path: Path, nested: bool) -> None:
    write_lora(tmp_path / "l" / "news" if nested else tmp_path / "l", rank=5)
    write_prompt(tmp_path / "p" / "news" if nested else tmp_path / "p")
    assert inspect_adapter(tmp_path / "l", BASE, LIMITS, "one") == AdapterManifest(
        "one", AdapterKind.LORA, base_model="tiny-t5", rank=5, target_modules=("q", "v", "wi")
    )
    assert inspect_adapter(tmp_path / "p", BASE, LIMITS, "two") == AdapterManifest(
        "two", AdapterKind.PROMPT, base_model="tiny-t5", num_virtual_tokens=3
    )


def test_inspect_adapter_with_manifest_keeps_what_it_says(tmp_path: Path) -> None:
    manifest = AdapterManifest(
        "its-own",
        AdapterKind.LORA,
        base_model="tiny",
        base_fingerprint=BASE.fingerprint,
        base_weights_digest="b" * 64,
        prompt_template="Sum: {{ text }}",
        task="summarization",
        licence="MIT",
        description="A test.",
        scores={"rouge1": 30.0},
    )
    (write_lora(tmp_path) / "medley.json").write_text(manifest.to_json())
    found = inspect_adapter(tmp_path, BASE, LIMITS, "news")
    assert found == replace(manifest, name="news", rank=4, target_modules=("q", "v", "wi"))


@pytest.mark.parametrize(
    ("fields", "match"),
    [({"kind": "prompt"}, "kind"), ({"rank": 5}, "rank 5"), ({"num_virtual_tokens": 1}, "num_virtual_tokens")],
)
def test_inspect_adapter_whose_manifest_contradicts_the_tensors_is_refused(
    tmp_path: Path, fields: dict[str, object], match: str
) -> None:
    folder = write_adapter(tmp_path, lora_config(), lora_tensors({Q: 4}), {"name": "x", "kind": "lora", **fields})
    with pytest.raises(InvalidAdapterError, match=match):
        inspect_adapter(folder, BASE, LIMITS, "x")


@pytest.mark.parametrize(
    ("fields", "match"),
    [({"base_fingerprint": "0" * 64}, "shapes differ"), ({"base_weights_digest": "0" * 64}, "weights differ")],
)
def test_read_adapter_made_for_another_base_is_refused(tmp_path: Path, fields: dict[str, object], match: str) -> None:
    manifest = {"name": "x", "kind": "lora", "base_model": "other", **fields}
    refuse(write_adapter(tmp_path, lora_config(), lora_tensors({Q: 4}), manifest), WrongBaseError, match)


def test_read_adapter_on_a_base_of_unknown_weights_is_taken(tmp_path: Path) -> None:
    manifest = {"name": "x", "kind": "lora", "base_weights_digest": "0" * 64}
    folder = write_adapter(tmp_path, lora_config(), lora_tensors({Q: 4}), manifest)
    assert read_adapter(folder, replace(BASE, weights_digest=None), LIMITS)


def _lora_with(**changes: np.ndarray | None) -> dict[str, np.ndarray]:
    tensors = lora_tensors({Q: 4, V: 4})
    for key, array in changes.items():
        name = {"A": A, "B": B}.get(key, key)
        if array is None:
            del tensors[name]
        else:
            tensors[name] = array.astype(np.float32)
    return tensors


_PATH = "base_model.model.decoder.block.0.layer.0.SelfAttention.q"
BROKEN_LORAS: dict[str, tuple[Mapping[str, np.ndarray], type[AdapterError], str]] = {
    "no B": (_lora_with(B=None), InvalidAdapterError, "no lora_B"),
    "no A": (_lora_with(A=None), InvalidAdapterError, "no lora_A"),
    "no tensors": ({}, InvalidAdapterError, "no tensors"),
    "ranks differ": (_lora_with(A=np.ones((3, 8))), InvalidAdapterError, "differ in rank"),
    "in differs": (_lora_with(A=np.ones((4, 9))), WrongBaseError, "do not fit"),
    "out differs": (_lora_with(B=np.ones((8, 4))), WrongBaseError, "do not fit"),
    "one dimension": (_lora_with(A=np.ones(32)), InvalidAdapterError, "two dimensions"),
    "three dimensions": (_lora_with(A=np.ones((4, 8, 1))), InvalidAdapterError, "two dimensions"),
    "rank 0": (_lora_with(A=np.ones((0, 8)), B=np.ones((12, 0))), InvalidAdapterError, "above 0"),
    "rank over limit": (_lora_with(A=np.ones((17, 8)), B=np.ones((12, 17))), InvalidAdapterError, "config.json says 4"),
    "NaN": (_lora_with(A=np.full((4, 8), np.nan)), InvalidAdapterError, "NaN"),
    "infinite": (_lora_with(B=np.full((12, 4), -np.inf)), InvalidAdapterError, "infinity"),
    "infinite in half": (_lora_with(B=np.full((12, 4), 1e5)), InvalidAdapterError, "too large"),
    "infinite when scaled": (_lora_with(B=np.full((12, 4), -4e4)), InvalidAdapterError, "too large"),
    "missing module": (
        {f"{_PATH}.lora_A.weight": np.ones((4, 8)), f"{_PATH}.lora_B.weight": np.ones((12, 4))},
        WrongBaseError,
        "no linear layer",
    ),
    "long module": (
        {f"{_PATH}{'q' * 9000}.lora_A.weight": np.ones((4, 8))},
        UnsupportedAdapterError,
        "full tensor",
    ),
    "two adapters": (
        lora_tensors({Q: 4}, adapter_name="a") | lora_tensors({V: 4}, adapter_name="b"),
        InvalidAdapterError,
        "more than one adapter",
    ),
    "same pair twice": (
        lora_tensors({Q: 4}, adapter_name="a") | lora_tensors({Q: 4}),
        InvalidAdapterError,
        "more than one adapter",
    ),
    "no prefix": ({A.removeprefix("base_model.model."): np.ones((4, 8))}, InvalidAdapterError, "unknown tensor"),
    "hostile name": (_lora_with(**{"\x1b[2J" + "x" * 999: np.ones((4, 8))}), InvalidAdapterError, "unknown tensor"),
    "prompt": ({"prompt_embeddings": np.ones((6, 8))}, InvalidAdapterError, "says LORA"),
}
FAMILIES = {
    "base_model.model.shared.lora_embedding_A": "embeddings",
    f"base_model.model.{Q}.hada_t1": "convolutions",
    f"base_model.model.{Q}.lokr_w1": "LoKr",
    f"base_model.model.{Q}.oft_R": "OFT",
    "base_model.model.shared.trainable_tokens_delta": "trainable tokens",
    f"base_model.model.{Q}.weight": "modules_to_save",
    f"base_model.model.{Q}.bias": "biases",
}


@pytest.mark.parametrize("case", BROKEN_LORAS)
def test_read_adapter_of_broken_lora_is_refused(tmp_path: Path, case: str) -> None:
    tensors, error, match = BROKEN_LORAS[case]
    refuse(write_adapter(tmp_path, lora_config(), tensors), error, match)


def test_read_adapter_of_rank_over_the_limit_is_too_large(tmp_path: Path) -> None:
    refuse(write_lora(tmp_path, rank=17), AdapterTooLargeError, "rank 17")


@pytest.mark.parametrize("key", FAMILIES)
def test_read_adapter_with_another_familys_tensor_is_refused_by_name(tmp_path: Path, key: str) -> None:
    tensors = _lora_with(**{key: np.ones((4, 8))})
    refuse(write_adapter(tmp_path, lora_config(), tensors), UnsupportedAdapterError, FAMILIES[key])


@pytest.mark.parametrize("dtype", ["F64", "I32"])
def test_read_adapter_of_another_dtype_is_refused(tmp_path: Path, dtype: str) -> None:
    refuse(write_adapter(tmp_path, lora_config(), lora_tensors({Q: 4}), dtype=dtype), InvalidAdapterError, dtype)


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_read_adapter_of_half_precision_is_taken(tmp_path: Path, dtype: str) -> None:
    tensors = lora_tensors({Q: 4})
    folder = write_adapter(tmp_path, lora_config(), tensors, dtype=dtype)
    weights = read_adapter(folder, BASE, LIMITS)
    assert isinstance(weights, WeightAdapterWeights)
    np.testing.assert_allclose(weights.linears[Q].lora.lora_a, tensors[A], rtol=1e-2)


BROKEN_PROMPTS: dict[str, tuple[dict[str, object], np.ndarray, type[AdapterError], str]] = {
    "other width": (prompt_config(3), np.ones((6, 9)), WrongBaseError, "9 wide"),
    "odd rows": (prompt_config(3), np.ones((5, 8)), InvalidAdapterError, "5 rows"),
    "three copies": (prompt_config(3), np.ones((9, 8)), InvalidAdapterError, "9 rows"),
    "no rows": (prompt_config(3), np.ones((0, 8)), InvalidAdapterError, "above 0"),
    "too many": (prompt_config(9), np.ones((18, 8)), AdapterTooLargeError, "9 virtual tokens"),
    "NaN in the unused half": (prompt_config(1), np.array([[0.0] * 8, [np.nan] * 8]), InvalidAdapterError, "NaN"),
    "no count": (
        prompt_config() | {"num_virtual_tokens": None},
        np.ones((6, 8)),
        InvalidAdapterError,
        "num_virtual_tokens",
    ),
    "decoder's": (prompt_config(3, task_type="CAUSAL_LM"), np.ones((3, 8)), UnsupportedAdapterError, "CAUSAL_LM"),
}


@pytest.mark.parametrize("case", BROKEN_PROMPTS)
def test_read_adapter_of_broken_prompt_is_refused(tmp_path: Path, case: str) -> None:
    config, rows, error, match = BROKEN_PROMPTS[case]
    folder = write_adapter(tmp_path, config, {"prompt_embeddings": rows.astype(np.float32)})
    refuse(folder, error, match)


def test_read_adapter_of_prompt_config_with_lora_tensors_is_refused(tmp_path: Path) -> None:
    refuse(write_adapter(tmp_path, prompt_config(), lora_tensors({Q: 4})), InvalidAdapterError, "says PROMPT_TUNING")


BROKEN_FOLDERS: dict[str, tuple[Callable[[Path], object], type[AdapterError], str]] = {
    "no config": (lambda folder: (folder / CONFIG).unlink(), InvalidAdapterError, "is missing"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), InvalidAdapterError, "is missing"),
    "bin beside": (
        lambda folder: (folder / "adapter_model.bin").write_bytes(b"x"),
        UnsupportedAdapterError,
        "run code",
    ),
    "pt beside": (lambda folder: (folder / "TRAINING.PT").write_bytes(b"x"), UnsupportedAdapterError, "run code"),
    "unknown file": (lambda folder: (folder / "run.sh").write_text("x"), InvalidAdapterError, "unexpected file"),
    "hidden file": (lambda folder: (folder / ".env").write_text("x"), InvalidAdapterError, "unexpected file"),
    "other case": (lambda folder: (folder / "readme.MD").write_text("x"), InvalidAdapterError, "unexpected file"),
    "odd name": (lambda folder: (folder / "a\nb\u202e").write_text("x"), InvalidAdapterError, "unexpected file"),
    "pickle as weights": (
        lambda folder: (folder / WEIGHTS).write_bytes(pickle.dumps({"a": [1, 2, 3]})),
        InvalidAdapterError,
        "pickle",
    ),
    "zip as weights": (
        lambda folder: zipfile.ZipFile(folder / WEIGHTS, "w").writestr("archive/data.pkl", b"x"),
        InvalidAdapterError,
        "torch.save",
    ),
    "pickle as card": (
        lambda folder: (folder / "card.md").write_bytes(pickle.dumps({"a": 1})),
        InvalidAdapterError,
        "not text",
    ),
    "pickle as config": (
        lambda folder: (folder / CONFIG).write_bytes(pickle.dumps({})),
        InvalidAdapterError,
        "not text",
    ),
    "link": (
        lambda folder: ((folder / CONFIG).unlink(), (folder / CONFIG).symlink_to("/etc/hostname")),
        InvalidAdapterError,
        "link",
    ),
    "linked folder": (lambda folder: (folder / "sub").symlink_to("/etc"), InvalidAdapterError, "link"),
    "two adapters": (lambda folder: write_lora(folder / "more"), InvalidAdapterError, "more than one adapter"),
    "long card": (lambda folder: (folder / "card.md").write_text("x" * 70_000), AdapterTooLargeError, "card.md"),
    "large weights": (
        lambda folder: (folder / WEIGHTS).write_bytes(b"\0" * ((1 << 20) + 1)),
        AdapterTooLargeError,
        "at most",
    ),
    "many files": (
        lambda folder: [(folder / f"d{number}").mkdir() for number in range(70)],
        AdapterTooLargeError,
        "entries",
    ),
    "truncated": (
        lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1]),
        InvalidAdapterError,
        "cut off",
    ),
    "padded": (
        lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes() + b"\0"),
        InvalidAdapterError,
        "padded",
    ),
    "manifest no json": (lambda folder: (folder / "medley.json").write_text("{"), InvalidAdapterError, "medley.json"),
    "manifest field": (
        lambda folder: (folder / "medley.json").write_text('{"name": "x", "kind": "lora", "evil": 1}'),
        InvalidAdapterError,
        "evil",
    ),
}


@pytest.mark.parametrize("case", BROKEN_FOLDERS)
def test_read_adapter_of_broken_folder_is_refused(tmp_path: Path, case: str) -> None:
    spoil, error, match = BROKEN_FOLDERS[case]
    write_lora(tmp_path)
    assert read_adapter(tmp_path, BASE, LIMITS)
    spoil(tmp_path)
    refuse(tmp_path, error, match)


def test_read_adapter_nested_too_deep_or_twice_is_refused(tmp_path: Path) -> None:
    write_lora(tmp_path / "one" / "a" / "b")
    refuse(tmp_path / "one", InvalidAdapterError, "too deep")
    write_lora(tmp_path / "two" / "a")
    write_lora(tmp_path / "two" / "b")
    refuse(tmp_path / "two", InvalidAdapterError, "more than one")
    write_lora(tmp_path / "three" / "a")
    for folder in ("three", "three/a"):
        (tmp_path / folder / "README.md").write_text("x")
    refuse(tmp_path / "three", InvalidAdapterError, "twice")


def test_inspect_adapter_holds_one_tensor_at_a_time(tmp_path: Path) -> None:
    base = replace(BASE, linear_shapes={f"layer.{number}.q": (512, 512) for number in range(40)})
    tensors = {name: array * 0 for name, array in lora_tensors(dict.fromkeys(base.linear_shapes, 16), base).items()}
    write_adapter(tmp_path, lora_config(16), safetensors_bytes(tensors))
    limits = CodecLimits()
    inspect_adapter(tmp_path, base, limits, "x")
    tracemalloc.start()
    inspect_adapter(tmp_path, base, limits, "x")
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / WEIGHTS).stat().st_size > 2_500_000
    assert peak_bytes < 600_000


def test_codec_imports_nothing_heavy() -> None:
    script = (
        "import sys, adapters.codec, adapters.base_spec\n"
        "heavy = {'torch', 'transformers', 'pydantic', 'jinja2', 'sqlalchemy', 'fsspec', 'safetensors', 'evaluate'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
