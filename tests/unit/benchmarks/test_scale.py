"""Every part of the scale benchmark, whole, on a tiny base; and the adapters it writes by the thousand."""

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.torch
pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("peft", reason="the benchmarks' adapters are made with it")

from adapters.base_spec import read_base_spec  # noqa: E402
from adapters.codec import CodecLimits, read_adapter  # noqa: E402
from benchmarks import models  # noqa: E402
from benchmarks.__main__ import main  # noqa: E402
from benchmarks.many_loras import forget_cached, write_many_loras  # noqa: E402
from tests.fixtures.t5_models import TINY  # noqa: E402

FIGURES = {
    "registered": {"throughput_20_over_2_adapters"},
    "slots": {"ttft_half_the_slots_over_resident", "ttft_half_the_slots_from_files_over_resident"},
    "cold-load": {"itl_p99_quiet_ms", "itl_p99_loading_ms", "num_loads"},
    "memory": {"num_loads", "num_evictions", "rss_end_mb"},
}


@pytest.mark.parametrize("part", FIGURES)
def test_scale_part_on_a_tiny_base_writes_its_figures(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "RANDOM_SHAPES", {"flan-t5-small": TINY})
    file = tmp_path / "scale.json"
    options = ["--quick", "--shape", "flan-t5-small", "--json", str(file), "--plot", str(tmp_path)]

    main(["scale", "--part", part, *options])

    figures = json.loads(file.read_text())[part]
    assert all(figures[key] > 0 for key in FIGURES[part])
    assert (tmp_path / f"scale-{part}.png").stat().st_size > 0


def test_scale_memory_evicts_at_every_load_beyond_its_slots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "RANDOM_SHAPES", {"flan-t5-small": TINY})
    file = tmp_path / "scale.json"

    main(["scale", "--part", "memory", "--quick", "--shape", "flan-t5-small", "--json", str(file)])

    figures = json.loads(file.read_text())["memory"]
    assert figures["num_loads"] == figures["plan"]["num_cycles"]
    assert figures["num_evictions"] == figures["num_loads"] - figures["plan"]["num_slots"]


def test_many_loras_are_sound_and_no_two_are_equal(tmp_path: Path) -> None:
    base = models.save_base(tmp_path / "base", models.random_base(TINY, seed=0))

    adapters = write_many_loras(tmp_path / "many", base, 5, ranks=(4, 2))

    contents = {(adapter.path / "adapter_model.safetensors").read_bytes() for adapter in adapters}
    assert len(contents) == len({adapter.digest for adapter in adapters}) == 5
    limits = CodecLimits(max_rank=4, max_virtual_tokens=1)
    for adapter in adapters:
        forget_cached(adapter)
        assert read_adapter(adapter.path, read_base_spec(base), limits).linears
