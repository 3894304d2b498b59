"""Vectors per row against the plain formula, and rows against their neighbours."""

from dataclasses import replace

import pytest

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch", reason="needs torch")

from server.engine.native.layers.elementwise import (  # noqa: E402
    Act,
    ElementwiseDelta,
    ElementwiseStack,
    Spot,
    Vectors,
)
from server.engine.native.layers.linear import PackedLinear  # noqa: E402

INPUT, FIRST_COLUMNS = Spot("wo", Act.SCALE_INPUT), Spot("wi", Act.SCALE_INPUT, (0, 2))
OUTPUT, BIAS, NORM = Spot("wo", Act.SCALE_OUTPUT), Spot("wo", Act.ADD), Spot("final", Act.NORM)
LAST_COLUMNS = replace(FIRST_COLUMNS, columns=(2, 6))
WIDTHS = {INPUT: 8, FIRST_COLUMNS: 8, LAST_COLUMNS: 8, OUTPUT: 6, BIAS: 6, NORM: 8}
NORM_WEIGHT = torch.linspace(0.5, 2.0, 8)
EPS = 1e-6


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def vectors(seed: int, *spots: Spot) -> Vectors:
    return {spot: draw(WIDTHS[spot], seed=seed + index) for index, spot in enumerate(spots)}


WEIGHT = draw(6, 8, seed=99)
LINEAR = PackedLinear(WEIGHT)


def plain_linear(given: Vectors, x: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
    """The formula for one row."""
    y = WEIGHT @ (x * given.get(INPUT, torch.ones(8)))
    y = y * given.get(OUTPUT, torch.ones(6)) + given.get(BIAS, torch.zeros(6))
    return y if residual is None else y + residual


def plain_norm(given: Vectors, x: torch.Tensor) -> torch.Tensor:
    """The formula for one row."""
    return given.get(NORM, NORM_WEIGHT) * x * torch.rsqrt(x.square().mean() + EPS)


ADAPTERS = {
    "input": vectors(1, INPUT),
    "columns": vectors(2, FIRST_COLUMNS),
    "both columns": vectors(8, FIRST_COLUMNS, LAST_COLUMNS),
    "output": vectors(3, OUTPUT, BIAS),
    "bias": vectors(4, BIAS),
    "norm": vectors(5, NORM),
    "everything": vectors(6, INPUT, OUTPUT, BIAS, NORM),
    "nothing": {},
}
MIXED = ["everything", None, "input", "columns", "output", None, "bias", "norm", "nothing", "both columns"]


def base_norm(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.rms_norm(x, (8,), NORM_WEIGHT, EPS)


def mixed_delta(rows: list[str | None] = MIXED) -> ElementwiseDelta:
    return ElementwiseDelta([(0, len(rows), ElementwiseStack(ADAPTERS, {"final": NORM_WEIGHT}).rows(rows))])


@pytest.mark.parametrize("has_residual", [False, True])
def test_linear_mixed_rows_equal_each_row_alone(has_residual: bool) -> None:
    x, residual = draw(len(MIXED), 8), draw(len(MIXED), 6, seed=7) if has_residual else None
    before = x.clone()
    y = mixed_delta().linear("wo", LINEAR, x, residual)
    for index, name in enumerate(MIXED):
        wanted = plain_linear(ADAPTERS.get(name, {}), x[index], None if residual is None else residual[index])
        assert torch.allclose(y[index], wanted, atol=1e-5), name
    assert torch.equal(x, before), "the input belongs to others"


@pytest.mark.parametrize("name", ADAPTERS)
def test_linear_segment_changes_its_own_rows_only(name: str) -> None:
    x, residual = draw(7, 8), draw(7, 6, seed=7)
    y = ElementwiseDelta([(2, 5, ADAPTERS[name])]).linear("wo", LINEAR, x, residual)
    for index in range(7):
        wanted = plain_linear(ADAPTERS[name] if 2 <= index < 5 else {}, x[index], residual[index])
        assert torch.allclose(y[index], wanted, atol=1e-5), index


def test_linear_input_of_some_columns_mixed_rows_equal_each_row_alone() -> None:
    x = draw(len(MIXED), 8)
    y = mixed_delta().linear("wi", LINEAR, x, None)
    for index, name in enumerate(MIXED):
        given = ADAPTERS.get(name, {})
        first, last = (WEIGHT @ (x[index] * given.get(spot, torch.ones(8))) for spot in (FIRST_COLUMNS, LAST_COLUMNS))
        assert torch.allclose(y[index], torch.cat([first[:2], last[2:]]), atol=1e-5), name


def test_norm_mixed_rows_and_segments_equal_each_row_alone() -> None:
    x = draw(len(MIXED), 8)
    y = base_norm(x)
    mixed_delta().norm("final", x, y, EPS)
    for index, name in enumerate(MIXED):
        assert torch.allclose(y[index], plain_norm(ADAPTERS.get(name, {}), x[index]), atol=1e-5), name
    y = base_norm(x)
    ElementwiseDelta([(1, 3, ADAPTERS["norm"])]).norm("final", x, y, EPS)
    for index in range(len(MIXED)):
        wanted = plain_norm(ADAPTERS["norm"] if 1 <= index < 3 else {}, x[index])
        assert torch.allclose(y[index], wanted, atol=1e-5), index


def test_site_and_norm_nobody_changes_are_left_alone() -> None:
    x, residual = draw(len(MIXED), 8), draw(len(MIXED), 6, seed=7)
    assert torch.equal(mixed_delta().linear("elsewhere", LINEAR, x, residual), LINEAR(x, residual))
    y = base_norm(x)
    mixed_delta().norm("elsewhere", x, y, EPS)
    assert torch.equal(y, base_norm(x))


def test_rows_that_change_nothing_equal_a_batch_without_adapters() -> None:
    x = draw(len(MIXED), 8)
    base = [index for index, name in enumerate(MIXED) if name in (None, "norm", "nothing")]
    assert torch.equal(mixed_delta().linear("wo", LINEAR, x, None)[base], LINEAR(x)[base])


@pytest.mark.parametrize("spot", WIDTHS)
def test_values_that_are_not_finite_stay_in_their_rows(spot: Spot) -> None:
    stack = ElementwiseStack(
        {"bad": {spot: torch.full((WIDTHS[spot],), float("nan"))}, "fine": vectors(6, *WIDTHS)}, {"final": NORM_WEIGHT}
    )
    delta = ElementwiseDelta([(0, 3, stack.rows(["fine", "bad", None]))])
    x, residual = draw(3, 8), None if spot.columns else draw(3, 6)
    y = base_norm(x) if spot is NORM else delta.linear(spot.site, LINEAR, x, residual)
    delta.norm(spot.site, x, y, EPS)
    assert y.isfinite().all(dim=1).tolist() == [True, False, True]
