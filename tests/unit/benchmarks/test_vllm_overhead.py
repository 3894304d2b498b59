"""What the vLLM benchmark makes of its runs, and what it asks vLLM's client for; the runs themselves need vLLM."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

pytestmark = pytest.mark.torch
pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("peft", reason="writes adapters")

from benchmarks import vllm_overhead  # noqa: E402
from benchmarks.vllm_client import Load, Run  # noqa: E402
from benchmarks.vllm_command import cpu_package_known  # noqa: E402
from benchmarks.vllm_models import SHAPES, write_base, write_loras, write_soft_prompt  # noqa: E402
from benchmarks.vllm_overhead import HALF, MEDLEY, PLANS, REAL_TOKENS, SATURATED, SOFT_PROMPT, VLLM, Overhead  # noqa: E402
from benchmarks.vllm_plot import plot  # noqa: E402

RUN = Run(
    num_failed=0,
    requests_per_s=10.0,
    tokens_per_s=100.0,
    ttft_p50_ms=10.0,
    ttft_p99_ms=20.0,
    itl_p50_ms=5.0,
    e2e_p50_ms=50.0,
)


@pytest.fixture
def overhead() -> Overhead:
    ours = [replace(RUN, tokens_per_s=speed, ttft_p50_ms=11.0) for speed in (98.0, 20.0, 99.0)]
    sides = {MEDLEY: ours, VLLM: [RUN, RUN, RUN]}
    soft = {SOFT_PROMPT: [replace(RUN, requests_per_s=9.0, e2e_p50_ms=60.0)], REAL_TOKENS: [RUN]}
    return Overhead(PLANS["tiny"], {SATURATED: sides, HALF: sides}, soft)


def test_overhead_headline_is_the_median_of_the_rounds_ratios(overhead: Overhead) -> None:
    headline = overhead.headline()

    assert headline["throughput_over_vllm_saturated"] == pytest.approx(0.98)
    assert headline["ttft_p50_over_vllm_half"] == pytest.approx(1.1)
    assert headline["soft_prompt_throughput_over_real_tokens"] == pytest.approx(0.9)
    assert headline["soft_prompt_e2e_p50_over_real_tokens"] == pytest.approx(1.2)


def test_overhead_plot_writes_a_picture(overhead: Overhead, tmp_path: Path) -> None:
    plot(overhead, tmp_path / "vllm.png")

    assert (tmp_path / "vllm.png").read_bytes().startswith(b"\x89PNG")


def test_measuring_runs_both_servers_by_turns_on_the_same_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, Load]] = []

    def bench(url: str, _base: Path, load: Load) -> Run:
        asked.append((url, load))
        return RUN

    monkeypatch.setattr(vllm_overhead, "bench_serve", bench)
    plan = replace(PLANS["tiny"], num_rounds=2)

    found = vllm_overhead._Measuring(Path("tiny"), {MEDLEY: "m", VLLM: "v"}, plan).overhead()

    saturated = asked[2:6]
    assert [url for url, _ in saturated] == ["m", "v", "v", "m"]
    assert [load.seed for _, load in saturated] == [0, 0, 1, 1]
    halves = [load for _, load in asked if load.rate == RUN.requests_per_s / 2]
    assert len(halves) == 4
    soft, real = [load for url, load in asked if url == "m"][-2:][:: -1 if plan.num_rounds % 2 else 1]
    assert {soft.num_prefix, real.num_prefix} == {0, vllm_overhead._NUM_VIRTUAL_TOKENS}
    assert all(len(runs) == 2 for load in found.loads.values() for runs in load.values())


def test_measuring_a_server_that_fails_requests_gives_no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_overhead, "bench_serve", lambda *_: replace(RUN, num_failed=1))

    with pytest.raises(RuntimeError, match="1 requests to medley failed"):
        vllm_overhead._Measuring(Path("tiny"), {MEDLEY: "m", VLLM: "v"}, PLANS["tiny"]).overhead()


def test_bases_tokenizer_has_a_text_for_every_id_and_adapters_fit_it(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    base = write_base(tmp_path / "tiny", "tiny")
    loras = write_loras(tmp_path / "loras", base, (8, 16))
    prompt = write_soft_prompt(tmp_path / "prompt", base, 5)

    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    vocab_size = SHAPES["tiny"]["vocab_size"]
    assert tokenizer.get_vocab_size() == vocab_size
    assert tokenizer.decode(tokenizer.encode("abc def").ids) == "abc def"
    assert [json.loads((folder / "adapter_config.json").read_text())["r"] for folder in loras.values()] == [8, 16]
    assert json.loads((prompt / "adapter_config.json").read_text())["num_virtual_tokens"] == 5


def test_vllm_command_knows_the_cpu_package_and_no_other_name() -> None:
    with cpu_package_known(), pytest.raises(PackageNotFoundError):
        version("no-such-package")


def test_benchmarks_that_need_what_is_not_here_are_listed_and_refused() -> None:
    code = "import sys; sys.modules['ctranslate2'] = None; from benchmarks.__main__ import main; main(['engine'])"
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, env={**os.environ}, timeout=120
    )

    assert done.returncode == 2
    assert "needs packages that are not here" in done.stderr
