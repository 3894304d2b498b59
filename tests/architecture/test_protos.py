"""The committed stubs are those the ``.proto`` files give."""

import importlib.util
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]


def _generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("protos_generate", ROOT / "protos" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_committed_stubs_equal_fresh_ones(tmp_path: Path) -> None:
    generator = _generator()
    generator.generate(tmp_path)
    assert generator.stub_files(generator.STUBS) == generator.stub_files(tmp_path), "run `make protos`"
