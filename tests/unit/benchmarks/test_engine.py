"""The quick engine benchmark, whole, on a tiny base in place of the headline's."""

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("peft", reason="a peer of the benchmark")
pytest.importorskip("ctranslate2", reason="a peer of the benchmark")

from benchmarks import models  # noqa: E402
from benchmarks.__main__ import main  # noqa: E402
from server.engine.native.kernels import cpu  # noqa: E402
from tests.fixtures.t5_models import TINY  # noqa: E402

HEADLINE = {
    "ours_over_peft",
    "ours_over_ct2_float32",
    "ours_over_ct2_int8",
    "step_over_roofline",
    "lora32_over_base",
    "prompt20_over_tokens20",
}
HAS_INT8 = cpu.can_multiply_int8(torch.empty(16, 16))


def test_engine_quick_on_a_tiny_base_writes_every_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "RANDOM_SHAPES", {"flan-t5-small": TINY | {"vocab_size": 304}})
    file = tmp_path / "quick.json"

    main(["engine", "--quick", "--rounds", "1", "--json", str(file), "--plot", str(tmp_path)])

    figures = json.loads(file.read_text())
    assert all(figures[key] > 0 for key in HEADLINE)
    compared, measured = figures["cases"]
    assert (compared["dtype"], measured["dtype"]) == ("float32", "bfloat16")
    assert compared["agreement"] == {"peft_mixed": 1.0, "transformers_base": 1.0, "ct2_float32_base": 1.0}
    assert len(measured["sides"]["ours"]["durations_s"]) == 1
    assert ("ours_int8_over_ct2_int8" in figures) == HAS_INT8
    assert ("Medley int8, LoRAs mixed" in (tmp_path / "engine.md").read_text()) == HAS_INT8
    assert (tmp_path / "engine.png").stat().st_size > 0
    assert "CTranslate2 int8, base only" in (tmp_path / "engine.md").read_text()
