"""Variants of an adapter: as good, but others."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from loadtest.variants import SourceError, Variants


@pytest.fixture
def source(tmp_path: Path) -> Path:
    draws = np.random.default_rng(1)
    tensors = {
        "a": draws.normal(size=(4, 8)).astype(np.float32),
        "b": draws.normal(size=(8, 4)).astype(np.float16),
        "zero": np.zeros(64, np.float32),
    }
    save_file(tensors, tmp_path / "adapter_model.safetensors", {"format": "pt"})
    (tmp_path / "adapter_config.json").write_text('{"r": 4}')
    return tmp_path


def _variant(variants: Variants, *number: int) -> dict[str, np.ndarray]:
    with variants.folder(*number) as folder:
        assert json.loads((folder / "adapter_config.json").read_text()) == {"r": 4}
        return dict(load_file(folder / "adapter_model.safetensors"))


def test_variant_is_near_its_source_finite_and_its_numbers_own(source: Path) -> None:
    original, variants = load_file(source / "adapter_model.safetensors"), Variants(str(source))
    one, same, other = _variant(variants, 1), _variant(variants, 1), _variant(variants, 2)
    for name, tensor in original.items():
        assert (one[name].dtype, one[name].shape) == (tensor.dtype, tensor.shape)
        np.testing.assert_allclose(one[name], tensor, rtol=1e-3, atol=1e-30)
        np.testing.assert_array_equal(one[name], same[name])
        assert np.any(one[name] != other[name])
        assert np.any(one[name] != tensor)


def test_variant_of_a_shipped_adapter_is_one_the_server_would_take(tmp_path: Path) -> None:
    with Variants("tweetsumm").folder(3) as folder:
        names = {path.name for path in folder.iterdir()}
        again = Variants(str(folder))
    assert {"adapter_config.json", "adapter_model.safetensors", "medley.json"} <= names
    assert again is not None
    assert not folder.exists()


def test_source_that_is_none_is_refused(tmp_path: Path, source: Path) -> None:
    for name in ("absent", "", "../library"):
        with pytest.raises(SourceError, match="neither a folder nor a shipped adapter"):
            Variants(name)
    (source / "adapter_model.safetensors").write_bytes(b"short")
    with pytest.raises(SourceError, match="no adapter to make variants of"):
        Variants(str(source))
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(SourceError, match="no adapter to make variants of"):
        Variants(str(empty))
