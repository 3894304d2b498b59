"""What the pages say of vLLM, held to vLLM itself."""

import re
import tomllib
import warnings
from dataclasses import fields
from pathlib import Path

import pytest

pytestmark = pytest.mark.vllm

pytest.importorskip("vllm", reason="needs the vLLM environment (make test-vllm)")
with warnings.catch_warnings():
    # What vLLM imports warns of what it imports.
    warnings.simplefilter("default")
    from vllm import AsyncEngineArgs

from server.engine.vllm.config import check_arguments  # noqa: E402

PAGE = (Path(__file__).parents[2] / "docs" / "engines.md").read_text("utf-8")


def test_arguments_in_the_pages_example_are_vllms() -> None:
    (example,) = re.findall(r"^```toml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    given = tomllib.loads(example)["engine"]["vllm"]
    assert check_arguments(given, {each.name: each.type for each in fields(AsyncEngineArgs)}) == given
