"""Command line of the benchmarks: ``python -m benchmarks --help`` lists them."""

import argparse
from collections.abc import Sequence
from importlib import import_module

from transformers.utils import logging

_BENCHMARKS = (
    "engine",
    "engine_process",
    "feedback",
    "lease",
    "open_loop",
    "overload",
    "quantization",
    "ray_scaling",
    "ray_serving",
    "request_cost",
    "rollouts",
    "scale",
    "serving",
    "side_by_side",
    "slora",
    "streams",
    "tracing",
    "training",
    "vllm_overhead",
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark named on the command line.

    Args:
        argv: Its arguments; those of the process by default.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="benchmark", required=True)
    for name in _BENCHMARKS:
        try:
            benchmark = import_module(f"benchmarks.{name}")
        except ModuleNotFoundError as missing:
            # A peer it is measured against is in the other environment.
            commands.add_parser(name, help=f"not here: needs {missing.name}")
        else:
            benchmark.add_command(commands)
    arguments = parser.parse_args(argv)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if "run" not in arguments:
        parser.error(f"{arguments.benchmark} needs packages that are not here")
    arguments.run(arguments)


if __name__ == "__main__":
    main()
