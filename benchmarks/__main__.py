"""Command line of the benchmarks: ``python -m benchmarks engine --json FILE``."""

import argparse
import json
from pathlib import Path

from benchmarks.engine import EngineWorkload, run_engine_benchmark


def main() -> None:
    """Parse arguments, run, print, and write the figures where asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    engine = parser.add_subparsers(dest="benchmark", required=True).add_parser(
        "engine", help="the native engine against PEFT's mixed batch"
    )
    engine.add_argument("--dtype", choices=["float32", "bfloat16"], action="append", help="default: both")
    engine.add_argument("--rounds", type=int, default=3, help="measurements of each side (default 3)")
    engine.add_argument("--threads", type=int, default=0, help="CPU threads of both; 0 is torch's own choice")
    engine.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    dtypes = arguments.dtype or ["float32", "bfloat16"]
    workload = EngineWorkload(num_rounds=arguments.rounds, num_threads=arguments.threads)
    results = [run_engine_benchmark(dtype, workload) for dtype in dtypes]
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
