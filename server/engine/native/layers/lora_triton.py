"""LoRA of mixed rows as two grouped Triton kernels: *shrink* h = A x and *expand* y += B h. For CUDA.

Rows that share an adapter are gathered into tiles, so each adapter's weights are read once per tile; a row without an
adapter is in no tile and costs nothing. The grid covers the largest rank of a site, but a program beyond its own
adapter's rank ends at once: what is read and multiplied is the ranks present. The weights stay where the adapters were
loaded; the kernels find them through a table of addresses. One pair of kernels serves
decoding (few rows, one token each, in any order) and the encoder (many tokens per adapter): only the tile differs.

A row's numbers, infinity included, reach no other row. Needs Triton at import; chosen by
:func:`~server.engine.native.layers.lora_choice.grouped_lora`. Step thread only.

Legend: N rows, I in, O out, R ranks of a site side by side, M rows of a tile.

Source:
    arXiv:2310.18547 (Punica: grouped low-rank products), arXiv:2311.03285 (S-LoRA: ranks that differ).
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

from server.engine.native.layers.lora import LoraAdapter, LoraDelta, LoraPart, LoraSite, SegmentDelta
from server.engine.native.layers.lora_addresses import Addresses, AddressTable

# Of a tile: few rows while decoding, many in the encoder. The smallest a tensor core takes is 16.
_FEW_ROWS, _MANY_ROWS = 16, 64
_RANKS_AT_ONCE = 16
_INPUTS_AT_ONCE = 64
_COLUMNS_AT_ONCE = 128

Rows = NDArray[np.int32]


@triton.jit
def _shrink(  # noqa: PLR0917  (a kernel takes its arguments by place)
    x_ptr, x_stride, num_inputs,
    h_ptr, h_stride,
    adapters_ptr, tiles_ptr,
    M: tl.constexpr, R: tl.constexpr, IN: tl.constexpr,
    ADDRESS_STEP: tl.constexpr, RANK_STEP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write ``R`` ranks of h = A x for the rows of one tile; h lies tile by tile."""
    tile = tl.program_id(0)
    first = tl.program_id(1) * R
    adapter_ptr = adapters_ptr + 2 * tl.load(tiles_ptr + tile * (M + 1))
    rank = tl.load(adapter_ptr + 1).to(tl.int32)
    if first >= rank:
        return
    a_ptr = tl.load(adapter_ptr).to(tl.pointer_type(x_ptr.dtype.element_ty))
    a_ptr = tl.multiple_of(a_ptr, ADDRESS_STEP)
    rank = tl.multiple_of(rank, RANK_STEP)
    m, r = tl.arange(0, M), first + tl.arange(0, R)
    row = tl.load(tiles_ptr + tile * (M + 1) + 1 + m).to(tl.int64)
    h = tl.full((M, R), 0.0, tl.float32)
    for start in range(0, num_inputs, IN):
        i = start + tl.arange(0, IN)
        is_x = (row[:, None] >= 0) & (i[None, :] < num_inputs)
        x = tl.load(x_ptr + row[:, None] * x_stride + i[None, :], mask=is_x, other=0.0)
        is_a = (i[:, None] < num_inputs) & (r[None, :] < rank)
        a = tl.load(a_ptr + i[:, None] * rank + r[None, :], mask=is_a, other=0.0)
        h = tl.dot(x.to(tl.float32), a.to(tl.float32), h, input_precision=PRECISION)
    place = (tile * M + m).to(tl.int64)
    tl.store(h_ptr + place[:, None] * h_stride + r[None, :], h, mask=r[None, :] < rank)


@triton.jit
def _expand(  # noqa: PLR0917
    h_ptr, h_stride,
    y_ptr, y_stride,
    parts_ptr, num_places, columns_ptr, tiles_ptr,
    M: tl.constexpr, R: tl.constexpr, OUT: tl.constexpr,
    ADDRESS_STEP: tl.constexpr, RANK_STEP: tl.constexpr, WIDTH_STEP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add B h to ``OUT`` columns of one part, for the rows of one tile."""
    tile = tl.program_id(0)
    columns_ptr += 4 * tl.program_id(1)
    part = tl.load(columns_ptr)
    adapter = tl.load(tiles_ptr + tile * (M + 1))
    part_ptr = parts_ptr + 3 * (part * num_places + adapter)
    rank = tl.load(part_ptr + 2).to(tl.int32)
    if rank == 0:
        return
    b_ptr = tl.load(part_ptr).to(tl.pointer_type(y_ptr.dtype.element_ty))
    b_ptr = tl.multiple_of(b_ptr, ADDRESS_STEP)
    first_rank = tl.multiple_of(tl.load(part_ptr + 1).to(tl.int32), RANK_STEP)
    part_start = tl.multiple_of(tl.load(columns_ptr + 1).to(tl.int32), WIDTH_STEP)
    width = tl.multiple_of(tl.load(columns_ptr + 2).to(tl.int32), WIDTH_STEP)
    first = tl.multiple_of(tl.load(columns_ptr + 3).to(tl.int32), OUT)
    m, o = tl.arange(0, M), first + tl.arange(0, OUT)
    place = (tile * M + m).to(tl.int64)
    delta = tl.full((M, OUT), 0.0, tl.float32)
    for start in range(0, rank, R):
        r = start + tl.arange(0, R)
        h = tl.load(h_ptr + place[:, None] * h_stride + first_rank + r[None, :], mask=r[None, :] < rank, other=0.0)
        is_b = (r[:, None] < rank) & (o[None, :] < width)
        b = tl.load(b_ptr + r[:, None] * width + o[None, :], mask=is_b, other=0.0)
        delta = tl.dot(h, b.to(tl.float32), delta, input_precision=PRECISION)
    row = tl.load(tiles_ptr + tile * (M + 1) + 1 + m).to(tl.int64)
    y_ptrs = y_ptr + row[:, None] * y_stride + part_start + o[None, :]
    is_y = (row[:, None] >= 0) & (o[None, :] < width)
    y = tl.load(y_ptrs, mask=is_y, other=0.0)
    tl.store(y_ptrs, (y.to(tl.float32) + delta).to(y_ptr.dtype.element_ty), mask=is_y)


class GroupedLora:
    """Applies LoRAs of mixed rows on one device.

    Args:
        device: Where rows and adapters are.
        dtype: Of both; the kernels for it are compiled here, which takes seconds the first time on a machine.
    """

    def __init__(self, *, device: torch.device, dtype: torch.dtype) -> None:
        self._device = device
        self._table = AddressTable(device=device, columns_at_once=_COLUMNS_AT_ONCE)
        self._warm_up(dtype)

    def delta(self, segments: Sequence[tuple[int, int, LoraAdapter]]) -> LoraDelta:
        """Return the delta of these rows.

        Args:
            segments: (first row, one past the last row, adapter), in any order; rows in none of them have no adapter.
        """
        if len(segments) == 1:
            return SegmentDelta(segments)  # one adapter's rows: dense products read it once
        addresses = self._table.hold(adapter for _, _, adapter in segments)
        rows: dict[int, list[Rows]] = {}
        for start, stop, adapter in segments:
            rows.setdefault(addresses.place[id(adapter)], []).append(np.arange(start, stop, dtype=np.int32))
        by_place = {place: np.concatenate(pieces) for place, pieces in rows.items()}
        return _GroupedDelta(addresses, by_place, device=self._device)

    def _warm_up(self, dtype: torch.dtype) -> None:
        """Compile every kind of kernel: short and long tiles, ranks that divide evenly and ranks that do not."""
        width = _COLUMNS_AT_ONCE
        for rank in (1, 8):
            a_IR, b_RO = (
                torch.zeros(*shape, device=self._device, dtype=dtype) for shape in ((width, rank), (rank, width))
            )
            adapter = {"": LoraSite(a_IR, (LoraPart(0, width, b_RO),))}
            for num_rows in (1, _MANY_ROWS):
                x_NI = torch.zeros(num_rows, width, device=self._device, dtype=dtype)
                self.delta([(0, num_rows, adapter)]).add("", x_NI, x_NI.clone())


class _GroupedDelta:
    """Deltas of rows of any adapters, in any order; made once per composition of the batch.

    Args:
        addresses: Where the weights lie.
        by_place: Place of an adapter → its rows.
        device: Where the rows are.
    """

    def __init__(self, addresses: Addresses, by_place: Mapping[int, Rows], *, device: torch.device) -> None:
        self._addresses = addresses
        is_long = sum(map(len, by_place.values())) > _FEW_ROWS * len(by_place)
        self._tile_rows = _MANY_ROWS if is_long else _FEW_ROWS
        tiles = _tiles(by_place, self._tile_rows)
        self._num_tiles = len(tiles)
        self._tiles = torch.from_numpy(tiles).to(device)
        ranks = triton.cdiv(addresses.max_rank, _RANKS_AT_ONCE) * _RANKS_AT_ONCE
        self._h = torch.empty(self._num_tiles * self._tile_rows, ranks, device=device)

    def add(self, site: str, x_NI: Tensor, y_NO: Tensor) -> None:
        """Add s·B(Ax) to ``y_NO`` in place, row by row's own adapter."""
        found = self._addresses.sites.get(site)
        if found is None or not found.max_rank:
            return
        assert x_NI.stride(1) == 1
        assert y_NO.stride(1) == 1
        # Widened to float32, 16-bit numbers pass through tf32 products unchanged; float32 ones must not.
        precision = "ieee" if x_NI.dtype == torch.float32 else "tf32"
        _shrink[self._num_tiles, triton.cdiv(found.max_rank, _RANKS_AT_ONCE)](
            x_NI, x_NI.stride(0), x_NI.shape[1],
            self._h, self._h.stride(0),
            found.adapters_C2, self._tiles,
            M=self._tile_rows, R=_RANKS_AT_ONCE, IN=_INPUTS_AT_ONCE,
            ADDRESS_STEP=self._addresses.address_step, RANK_STEP=self._addresses.rank_step, PRECISION=precision,
        )  # fmt: skip
        _expand[self._num_tiles, len(found.columns_Q4)](
            self._h, self._h.stride(0),
            y_NO, y_NO.stride(0),
            self._addresses.parts_PC3, self._addresses.parts_PC3.shape[1], found.columns_Q4, self._tiles,
            M=self._tile_rows, R=_RANKS_AT_ONCE, OUT=_COLUMNS_AT_ONCE,
            ADDRESS_STEP=self._addresses.address_step, RANK_STEP=self._addresses.rank_step, WIDTH_STEP=found.width_step,
            PRECISION=precision,
        )  # fmt: skip


def _tiles(by_place: Mapping[int, Rows], tile_rows: int) -> Rows:
    """Return per tile: the place of its adapter, then its rows, -1 where there is none."""
    tiles = []
    for place, rows in by_place.items():
        tile = np.full((-(-len(rows) // tile_rows), 1 + tile_rows), -1, dtype=np.int32)
        tile[:, 0] = place
        padded = np.full(tile[:, 1:].size, -1, dtype=np.int32)
        padded[: len(rows)] = rows
        tile[:, 1:] = padded.reshape(-1, tile_rows)
        tiles.append(tile)
    return np.concatenate(tiles)
