"""Quantized layers on a CUDA device: near the plain product, by as much as their bits allow, and near the CPU's."""

import pytest

torch = pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("bitsandbytes", reason="the layers are its")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.torch,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

from server.engine.native.layers.quantized_linear import linear_maker  # noqa: E402

KINDS = [("bitsandbytes-8bit", 0.02), ("bitsandbytes-4bit", 0.15), ("bitsandbytes-4bit-double", 0.15)]


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.float().cpu() - expected.float().cpu()).norm() / expected.float().cpu().norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(("kind", "tolerance"), KINDS)
@pytest.mark.parametrize("num_rows", [1, 5, 64, 1024])
@torch.inference_mode()
def test_quantized_linear_on_cuda_is_near_the_product_and_the_cpu(
    kind: str, tolerance: float, dtype: torch.dtype, num_rows: int
) -> None:
    draws = torch.Generator().manual_seed(0)
    weight, x, residual = (
        torch.randn(*shape, generator=draws).to(dtype) for shape in ((384, 512), (num_rows, 512), (num_rows, 384))
    )
    x[0, 3] = 20.0
    found = linear_maker(kind)("qkv", weight.cuda())(x.cuda(), residual.cuda())
    assert (found.dtype, found.device.type) == (dtype, "cuda")
    assert distance(found, x.float() @ weight.float().t() + residual.float()) < tolerance
    assert distance(found, linear_maker(kind)("qkv", weight.clone())(x, residual)) < 0.02
