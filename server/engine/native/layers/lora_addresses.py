"""Where the weights of the LoRAs in a batch lie: a table of device addresses, for kernels that fetch them themselves.

The weights are neither copied nor stacked. When the set of adapters changes, only the newcomers' addresses are written
and the table is copied to the device once. Knows no kernels. Step thread only.

Legend: S sites, C places for adapters, P parts of all sites, Q blocks of columns of all parts.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from server.engine.native.layers.lora import LoraAdapter, LoraSite

# The largest alignment of use to a kernel: 16 bytes of an address, 16 numbers of a width.
_LARGEST_STEP = 16
# Two kinds only, a kernel is compiled for each: 8 16-bit numbers are what a thread reads at once.
_RANK_STEP = 8
_FEWEST_PLACES = 16

_Bounds = tuple[int, int]


@dataclass(frozen=True, slots=True)
class SiteAddresses:
    """The table of one site, on the device.

    Attributes:
        adapters_C2: Address of A, and its number of ranks: 0 for an adapter that leaves the site alone.
        columns_Q4: Row in :attr:`Addresses.parts_PC3`, the part's first column and width, first column within it.
        max_rank: Most ranks of an adapter here.
        width_step: Divides the start and the width of every part.
    """

    adapters_C2: Tensor
    columns_Q4: Tensor
    max_rank: int
    width_step: int


@dataclass(frozen=True, slots=True)
class Addresses:
    """The addresses of a set of adapters, which it keeps alive.

    Attributes:
        adapters: ``id`` → adapter.
        place: ``id`` of an adapter → its place.
        sites: Site → addresses.
        parts_PC3: Per part and place: address of B, first of its ranks at the site, number of ranks.
        address_step: Divides every address, in bytes.
        rank_step: Divides every number of ranks and every first rank: 8 or 1.
        max_rank: Most ranks of an adapter at any site.
    """

    adapters: Mapping[int, LoraAdapter]
    place: Mapping[int, int]
    sites: Mapping[str, SiteAddresses]
    parts_PC3: Tensor
    address_step: int
    rank_step: int
    max_rank: int


class AddressTable:
    """Makes :class:`Addresses`, remembering those of the last set.

    Args:
        device: Where adapters and table are.
        columns_at_once: Columns of a part that a program writes.
    """

    def __init__(self, *, device: torch.device, columns_at_once: int) -> None:
        self._device, self._columns_at_once = device, columns_at_once
        self._held: dict[int, LoraAdapter] = {}
        self._place: dict[int, int] = {}
        self._parts: dict[str, dict[_Bounds, int]] = {}
        self._lay_out({})
        self._published = self._publish()

    def hold(self, adapters: Iterable[LoraAdapter]) -> Addresses:
        """Return the addresses of exactly these adapters."""
        wanted = {id(adapter): adapter for adapter in adapters}
        if self._held.keys() == wanted.keys():
            return self._published
        if not self._fits(wanted):
            self._lay_out(wanted)
        for key in self._held.keys() - wanted.keys():
            self._erase(key)
        for key in wanted.keys() - self._held.keys():
            self._write(wanted[key])
        self._published = self._publish()
        return self._published

    def _fits(self, wanted: Mapping[int, LoraAdapter]) -> bool:
        if len(wanted) > self._adapters_SC2.shape[1]:
            return False
        return all(
            bounds in self._parts.get(name, ())
            for key in wanted.keys() - self._held.keys()
            for name, site in wanted[key].items()
            for bounds in _bounds(site)
        )

    def _lay_out(self, adapters: Mapping[int, LoraAdapter]) -> None:
        """Make room for these adapters and forget what was written; sites seen before keep their rows."""
        for adapter in adapters.values():
            for name, site in adapter.items():
                for bounds in _bounds(site):
                    self._parts.setdefault(name, {}).setdefault(bounds, 0)
        rows = [(name, bounds) for name, found in self._parts.items() for bounds in sorted(found)]
        for row, (name, bounds) in enumerate(rows):
            self._parts[name][bounds] = row
        num_places = max(_FEWEST_PLACES, 1 << (len(adapters) - 1).bit_length())
        columns = [
            (row, start, stop - start, first)
            for row, (_, (start, stop)) in enumerate(rows)
            for first in range(0, stop - start, self._columns_at_once)
        ]
        self._adapters_SC2 = np.zeros((len(self._parts), num_places, 2), dtype=np.int64)
        self._parts_PC3 = np.zeros((len(rows), num_places, 3), dtype=np.int64)
        self._columns_Q4 = np.array(columns, dtype=np.int64).reshape(-1, 4)
        self._site_row = {name: row for row, name in enumerate(self._parts)}
        self._free = list(range(num_places))
        self._held.clear()
        self._place.clear()

    def _write(self, adapter: LoraAdapter) -> None:
        place = self._free.pop()
        self._held[id(adapter)], self._place[id(adapter)] = adapter, place
        for name, site in adapter.items():
            self._adapters_SC2[self._site_row[name], place] = site.a_IR.data_ptr(), site.a_IR.shape[1]
            first = 0
            for part in site.parts:
                rank = len(part.b_RO)
                self._parts_PC3[self._parts[name][part.start, part.stop], place] = part.b_RO.data_ptr(), first, rank
                first += rank

    def _erase(self, key: int) -> None:
        place = self._place.pop(key)
        self._adapters_SC2[:, place] = 0
        self._parts_PC3[:, place] = 0
        self._free.append(place)
        del self._held[key]

    def _publish(self) -> Addresses:
        """Copy the table to the device, all sites at once; what was published before stays as it is."""
        host = (self._adapters_SC2, self._parts_PC3, self._columns_Q4)
        flat = torch.from_numpy(np.concatenate([table.ravel() for table in host])).to(self._device)
        adapters, parts, columns = flat.split([table.size for table in host])
        adapters_SC2 = adapters.view(self._adapters_SC2.shape)
        columns_Q4 = columns.view(-1, 4)
        addresses = [self._adapters_SC2[:, :, 0].ravel(), self._parts_PC3[:, :, 0].ravel()]
        ranks_SC = self._adapters_SC2[:, :, 1]
        has_step = not (ranks_SC % _RANK_STEP).any() and not (self._parts_PC3[:, :, 1] % _RANK_STEP).any()
        max_ranks = ranks_SC.max(axis=1).tolist()
        sites: dict[str, SiteAddresses] = {}
        first = 0
        for name, row in self._site_row.items():
            widths = [stop - start for start, stop in self._parts[name]]
            stop = first + sum(-(-width // self._columns_at_once) for width in widths)
            sites[name] = SiteAddresses(
                adapters_C2=adapters_SC2[row],
                columns_Q4=columns_Q4[first:stop],
                max_rank=max_ranks[row],
                width_step=math.gcd(_LARGEST_STEP, *widths, *(start for start, _ in self._parts[name])),
            )
            first = stop
        return Addresses(
            adapters=dict(self._held),
            place=dict(self._place),
            sites=sites,
            parts_PC3=parts.view(self._parts_PC3.shape),
            address_step=math.gcd(_LARGEST_STEP, int(np.gcd.reduce(np.concatenate(addresses)))),
            rank_step=_RANK_STEP if has_step else 1,
            max_rank=max(max_ranks, default=0),
        )


def _bounds(site: LoraSite) -> list[_Bounds]:
    return [(part.start, part.stop) for part in site.parts]
