"""``vllm bench serve``, called within this process: importing vLLM anew for every run would take longer than a run."""

import argparse
import asyncio
import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked of a server.

    Attributes:
        models: Names drawn from for each request.
        num_requests: Requests.
        rate: Requests per second, Poisson; infinite sends as many as ``max_concurrency`` lets through.
        max_concurrency: Most requests in flight.
        num_in: Random tokens in.
        num_prefix: Tokens before those, the same in all requests.
        num_out: Tokens out.
        seed: Seed of the random tokens.
    """

    models: tuple[str, ...]
    num_requests: int
    rate: float
    max_concurrency: int
    num_in: int
    num_out: int
    num_prefix: int = 0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Run:
    """What vLLM's client measured.

    Attributes:
        num_failed: Requests without a whole answer.
        requests_per_s: Throughput.
        tokens_per_s: Tokens out per second.
        ttft_p50_ms: Median TTFT.
        ttft_p99_ms: Its 99th percentile.
        itl_p50_ms: Median ITL.
        e2e_p50_ms: Median e2e latency.
    """

    num_failed: int
    requests_per_s: float
    tokens_per_s: float
    ttft_p50_ms: float
    ttft_p99_ms: float
    itl_p50_ms: float
    e2e_p50_ms: float


def bench_serve(url: str, base: Path, load: Load) -> Run:
    """Run ``vllm bench serve`` against a server of either kind."""
    from vllm.benchmarks.serve import add_cli_args, main_async

    parser = argparse.ArgumentParser()
    add_cli_args(parser)
    arguments = parser.parse_args(_flags(url, base, load))
    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
        found = asyncio.run(main_async(arguments))
    return Run(
        num_failed=load.num_requests - found["completed"],
        requests_per_s=found["request_throughput"],
        tokens_per_s=found["output_throughput"],
        ttft_p50_ms=found["median_ttft_ms"],
        ttft_p99_ms=found["p99_ttft_ms"],
        itl_p50_ms=found["median_itl_ms"],
        e2e_p50_ms=found["median_e2el_ms"],
    )


def _flags(url: str, base: Path, load: Load) -> Sequence[str]:
    return [
        *("--backend", "openai", "--base-url", url, "--endpoint", "/v1/completions"),
        *("--model", base.name, "--tokenizer", str(base), "--lora-modules", *load.models),
        *("--dataset-name", "random", "--random-input-len", str(load.num_in)),
        *("--random-output-len", str(load.num_out), "--random-prefix-len", str(load.num_prefix)),
        *("--num-prompts", str(load.num_requests), "--request-rate", str(load.rate)),
        *("--max-concurrency", str(load.max_concurrency), "--seed", str(load.seed), "--temperature", "0"),
        *("--percentile-metrics", "ttft,itl,e2el", "--metric-percentiles", "50,99", "--disable-tqdm"),
    ]
