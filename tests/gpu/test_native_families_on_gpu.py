"""Every adapter family in one batch on a CUDA device, against transformers and PEFT.

Runs without pytest's plugins, see ``make gpu``; so no test is a coroutine.
"""

import asyncio
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("peft", reason="the oracle is PEFT")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.torch,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

from tests.integration.test_native_families import GATED, compare, write_house  # noqa: E402


def test_mixed_families_on_cuda_equal_each_request_alone(tmp_path: Path) -> None:
    asyncio.run(compare(write_house(tmp_path, GATED, is_tied=False), "cuda"))
