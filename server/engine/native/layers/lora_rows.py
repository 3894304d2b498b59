"""LoRAs on the processor by kernels that fetch each adapter's weights where they lie.

Mixed rows, one token each, fetch their own adapter one by one; adapters with rows that lie together, as in the encoder,
are multiplied with 8 rows at a time. Both pay for the ranks of each row's own adapter, and a row without one costs
nothing. The weights are neither copied nor stacked: the kernels are handed addresses.

Legend: B rows, I in, O out, S sites. Step thread only.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from server.engine.native.kernels import cpu
from server.engine.native.layers.lora import LoraAdapter, LoraDelta, LoraSite


class RowLora:
    """Makes deltas for the kernel, keeping the layout of the adapters of the last one."""

    def __init__(self) -> None:
        self._laid_out: dict[int, _LaidOut] = {}

    def delta(self, segments: Sequence[tuple[int, int, LoraAdapter]]) -> LoraDelta:
        """Return the delta of adapters that each own contiguous rows, (first, one past the last, adapter)."""
        kept = self._laid_out
        self._laid_out = {id(adapter): kept.get(id(adapter)) or _LaidOut(adapter) for _, _, adapter in segments}
        if any(stop - start > 1 for start, stop, _ in segments):
            return _SegmentDelta([(start, stop, self._laid_out[id(adapter)]) for start, stop, adapter in segments])
        place = {site: index for index, site in enumerate(dict.fromkeys(s for _, _, a in segments for s in a))}
        addresses_SB = np.zeros((len(place), segments[-1][1]), dtype=np.int64)
        for row, _, adapter in segments:
            for site, address in self._laid_out[id(adapter)].addresses.items():
                addresses_SB[place[site], row] = address
        rows_SB = torch.from_numpy(addresses_SB)
        return _RowDelta({site: rows_SB[index] for site, index in place.items()}, tuple(self._laid_out.values()))


class _LaidOut:
    """An adapter as the kernels read it, kept alive with it."""

    def __init__(self, adapter: LoraAdapter) -> None:
        self.adapter = adapter
        self.packed = {site: _packed_table(found) for site, found in adapter.items()}
        self._tables = {site: _table(found) for site, found in adapter.items()}
        self.addresses = {site: table.data_ptr() for site, table in self._tables.items()}


def _table(site: LoraSite) -> Tensor:
    """Return what the kernel's ``LoraSite`` holds: A, its ranks, the number of parts, and of each part B and bounds."""
    numbers = [site.a_IR.data_ptr(), site.a_IR.shape[1], len(site.parts)]
    for part in site.parts:
        numbers += [part.b_RO.data_ptr(), len(part.b_RO), part.start, part.stop - part.start]
    return torch.tensor(numbers)


def _packed_table(site: LoraSite) -> Tensor:
    """Return what the kernel's ``PackedLora`` holds.

    A, its padded ranks, the number of parts, and of each part B, the first of its ranks, their padded number, bounds.
    """
    a_packed, *b_packed = site.packed
    numbers = [a_packed.data_ptr(), a_packed.shape[0] * a_packed.shape[2], len(site.parts)]
    first_rank = 0
    for part, packed in zip(site.parts, b_packed, strict=True):
        num_ranks = packed.shape[1] * packed.shape[3]
        numbers += [packed.data_ptr(), first_rank, num_ranks, part.start, part.stop - part.start]
        first_rank += len(part.b_RO)
    return torch.tensor(numbers)


class _SegmentDelta:
    def __init__(self, segments: Sequence[tuple[int, int, _LaidOut]]) -> None:
        self._segments = tuple(segments)

    def add(self, site: str, x_NI: Tensor, y_NO: Tensor) -> None:
        """Add s·B(Ax) to ``y_NO`` in place, row by row's own adapter."""
        for start, stop, adapter in self._segments:
            packed = adapter.packed.get(site)
            if packed is not None:
                cpu.add_packed_lora(packed, start, stop - start, x_NI, y_NO)


class _RowDelta:
    def __init__(self, rows: dict[str, Tensor], adapters: tuple[_LaidOut, ...]) -> None:
        self._rows, self._adapters = rows, adapters

    def add(self, site: str, x_NI: Tensor, y_NO: Tensor) -> None:
        """Add s·B(Ax) to ``y_NO`` in place, row by row's own adapter."""
        site_B = self._rows.get(site)
        if site_B is not None:
            cpu.add_lora(site_B, x_NI, y_NO)
