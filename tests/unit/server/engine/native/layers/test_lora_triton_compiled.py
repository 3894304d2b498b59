"""The Triton kernels through Triton's own compiler, for GPUs that need not be there."""

from pathlib import Path

import pytest

pytestmark = [pytest.mark.torch, pytest.mark.slow]
pytest.importorskip("torch", reason="needs torch")
triton = pytest.importorskip("triton", reason="Triton offers no build for this platform")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from server.engine.native.layers import lora_triton  # noqa: E402

NUMBERS = {"x_stride": "i32", "num_inputs": "i32", "h_stride": "i32", "y_stride": "i32", "num_places": "i32"}
ADDRESSES = {"h_ptr": "*fp32", "adapters_ptr": "*i64", "parts_ptr": "*i64", "columns_ptr": "*i64", "tiles_ptr": "*i32"}


def assembly(kernel: object, dtype: str, capability: int, constants: dict[str, object]) -> str:
    """Compile a kernel as a launch with well-aligned arguments would, and return its PTX."""
    types = {**NUMBERS, **ADDRESSES, "x_ptr": f"*{dtype}", "y_ptr": f"*{dtype}"}
    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    places = [place for place, name in enumerate(kernel.arg_names) if name in types]
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={name: constants[name] for name in kernel.arg_names if name not in types},
        attrs={(place,): [["tt.divisibility", 16]] for place in places},
    )
    return triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm["ptx"]


@pytest.mark.parametrize("capability", [80, 90], ids=["Ampere", "Hopper"])
@pytest.mark.parametrize(("dtype", "precision"), [("bf16", "tf32"), ("fp32", "ieee")])
@pytest.mark.parametrize("tile_rows", [16, 64])
def test_kernels_compile_and_read_16_bytes_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capability: int, dtype: str, precision: str, tile_rows: int
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    constants = {"M": tile_rows, "R": 16, "IN": 64, "OUT": 128, "PRECISION": precision}
    steps = {"ADDRESS_STEP": 16, "RANK_STEP": 8, "WIDTH_STEP": 16}
    for kernel in (lora_triton._shrink, lora_triton._expand):
        aligned = assembly(kernel, dtype, capability, constants | steps)
        assert "cp.async.cg.shared.global" in aligned, "weights do not come 16 bytes at once"
        # float32 stays float32: no product may go through tf32.
        assert ("tf32" in aligned) == (dtype == "bf16")
        assembly(kernel, dtype, capability, constants | dict.fromkeys(steps, 1))
    assert "st.global.v4" in aligned, "outputs do not go 16 bytes at once"
