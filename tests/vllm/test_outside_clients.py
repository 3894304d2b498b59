"""Clients that were written for vLLM's own server, unchanged, against ``medley serve``: its benchmark, and lm-eval."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import pytest

from tests.fixtures.server_process import ServerProcess

pytest.importorskip("vllm", reason="needs vLLM")
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.fixtures.causal_models import LORAS, write_causal_loras, write_llama

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

# For a busy machine: a launch takes half a minute on an idle one.
PATIENCE_S = 300.0
LORA = "all-linear-16"
TASK = "which_end"
QUESTIONS = (
    ("Anna asks whether the train is late. Tom says", ("it is.", "he does not know.", "trains are never late.")),
    ("The meeting was moved to Friday because", ("the room was taken.", "Friday!", "of the storm on Thursday night.")),
    ("Dear all,", ("thank you", "see you soon at the lake")),
)


class Served:
    """A running server, the base it serves, and the folder of its LoRAs."""

    def __init__(self, url: str, base: Path, adapters: Path) -> None:
        self.url, self.base, self.adapters = url, base, adapters


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("outside")
    base = write_llama(folder / "base", seed=1)
    write_causal_loras(folder / "adapters", base, seed=2)
    engine = {"model": str(base), "dtype": "float32", "max_model_len": 512, "vllm": {"enforce_eager": True}}
    process = ServerProcess(folder / "run", {"engine": engine}, engine="vllm", start_timeout_s=PATIENCE_S)
    try:
        asyncio.run(process.start())
        for name in LORAS:
            files = [("files", (file.name, file.read_bytes())) for file in (folder / "adapters" / name).iterdir()]
            answer = httpx.post(f"{process.http}/v1/adapters/{name}/versions", files=files, timeout=60)
            assert answer.status_code == 201, answer.text
        yield Served(process.http, base, folder / "adapters")
    finally:
        process.kill()


def run(command: Sequence[str], folder: Path) -> None:
    """Run a client to its end, without a network but for the server."""
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    environment = {**os.environ, **offline, "HF_HOME": str(folder / "hf"), "VLLM_NO_USAGE_STATS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *command],
        check=False,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


def test_vllm_bench_serve_with_lora_modules_gets_every_token_it_asks_for(served: Served, tmp_path: Path) -> None:
    lengths = ["--random-input-len", "32", "--random-output-len", "12", "--random-range-ratio", "0"]
    run(
        [
            *("benchmarks.vllm_command", "bench", "serve", "--backend", "openai", "--base-url", served.url),
            *("--endpoint", "/v1/completions", "--model", served.base.name, "--tokenizer", str(served.base)),
            *("--lora-modules", served.base.name, *LORAS, "--dataset-name", "random", *lengths),
            *("--num-prompts", "20", "--max-concurrency", "8", "--temperature", "0", "--disable-tqdm"),
            *("--save-result", "--save-detailed", "--result-dir", str(tmp_path), "--result-filename", "result.json"),
        ],
        tmp_path,
    )

    result = json.loads((tmp_path / "result.json").read_text())
    assert result["completed"] == 20
    assert result["output_lens"] == [12] * 20
    assert not any(result["errors"])
    assert all(result["generated_texts"])
    assert result["median_ttft_ms"] > 0


def test_lm_eval_local_completions_finds_the_loglikelihoods_of_transformers(served: Served, tmp_path: Path) -> None:
    write_task(tmp_path / "tasks")
    model = f"model={LORA},base_url={served.url}/v1/completions,tokenizer={served.base},num_concurrent=4,max_retries=1"
    run(
        [
            *("lm_eval", "run", "--model", "local-completions", "--model_args", model),
            *("--include_path", str(tmp_path / "tasks"), "--tasks", TASK),
            *("--output_path", str(tmp_path / "out"), "--log_samples"),
        ],
        tmp_path,
    )

    (log,) = (tmp_path / "out").rglob("samples_*.jsonl")
    samples = [json.loads(line) for line in log.read_text().splitlines()]
    found = {
        (asked["arg_0"], asked["arg_1"]): (float(told[0][0]), str(told[0][1]) == "True")
        for sample in samples
        for asked, told in zip(sample["arguments"].values(), sample["resps"], strict=True)
    }
    assert len(found) == sum(len(ends) for _, ends in QUESTIONS)
    known = Loglikelihoods(served)
    for (context, end), (loglikelihood, is_greedy) in found.items():
        expected, expected_greedy = known.of(context, end)
        assert loglikelihood == pytest.approx(expected, abs=1e-3)
        assert is_greedy == expected_greedy


def write_task(folder: Path) -> None:
    """Write a task of lm-eval's: which of several ends is the likeliest."""
    folder.mkdir()
    rows = [{"text": text, "ends": ends, "answer": 0} for text, ends in QUESTIONS]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": TASK,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "text",
        "doc_to_choice": "ends",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"}],
    }
    # JSON is YAML.
    (folder / f"{TASK}.yaml").write_text(json.dumps(task))


class Loglikelihoods:
    """The oracle: transformers and PEFT."""

    def __init__(self, served: Served) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(served.base)
        base = AutoModelForCausalLM.from_pretrained(served.base, dtype=torch.float32)
        self._model = PeftModel.from_pretrained(base, served.adapters / LORA).eval()

    @torch.inference_mode()
    def of(self, context: str, end: str) -> tuple[float, bool]:
        """Return the log-likelihood of an end, and whether each of its tokens is the likeliest."""
        token_ids = self._tokenizer.encode(context + end, add_special_tokens=False)
        num_before = len(self._tokenizer.encode(context, add_special_tokens=False))
        logprobs_LV = self._model(torch.tensor([token_ids])).logits[0].log_softmax(-1)
        ends = list(enumerate(token_ids))[num_before:]
        total = sum(float(logprobs_LV[place - 1, token_id]) for place, token_id in ends)
        return total, all(int(logprobs_LV[place - 1].argmax()) == token_id for place, token_id in ends)
