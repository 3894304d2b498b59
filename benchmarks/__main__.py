"""Command line of the benchmarks: ``python -m benchmarks --help`` lists them."""

import argparse
from collections.abc import Sequence

from transformers.utils import logging

from benchmarks import engine, lease, open_loop, quantization, scale


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark named on the command line.

    Args:
        argv: Its arguments; those of the process by default.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="benchmark", required=True)
    for benchmark in (engine, open_loop, quantization, scale, lease):
        benchmark.add_command(commands)
    arguments = parser.parse_args(argv)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
