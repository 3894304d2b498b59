"""LoRA per row: y += s·B(Ax) where row i may have any resident adapter, or none.

A *site* is one fused linear layer of the base (q, k and v together, for instance); an adapter changes *parts* of its
output. The scaling is folded into B at load. Two ways of applying by torch, one face (:class:`LoraDelta`);
``lora_choice.py`` has others where kernels run:

- :class:`SegmentDelta`: each adapter owns contiguous rows; two dense products per adapter. For the encoder, whose rows
  are sorted by adapter, and for a batch of one adapter.
- :class:`StackedDelta`: rows lie mixed, one token each. The A of every adapter present stand side by side in one
  product, a mask keeps each row's own ranks, and one product per part adds the deltas. It costs the sum of the ranks
  present, never a padding to the largest, and a number of kernels that does not grow with the number of adapters.

Legend: N rows, I in, O out, R ranks side by side. Step thread only, except :func:`build_lora` (any thread).

Source:
    arXiv:2106.09685 (LoRA); arXiv:2310.18547 and arXiv:2311.03285 (batches of many adapters).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from adapters.adapter_weights import LoraModule
from adapters.errors import InvalidAdapterError
from server.engine.native.kernels import cpu
from server.engine.native.layers.finite import is_finite

# Columns of output a kernel takes at once.
_LANES = 16


@dataclass(frozen=True, slots=True)
class Target:
    """Where a module of the base lies: output columns ``start`` to ``stop`` of a fused layer."""

    site: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class LoraPart:
    """B of one module: it takes the next ``len(b_RO)`` ranks of its site and adds to columns ``start`` to ``stop``."""

    start: int
    stop: int
    b_RO: Tensor


@dataclass(frozen=True, slots=True)
class LoraSite:
    """An adapter at one site.

    Attributes:
        a_IR: The A of all its parts side by side.
        parts: The parts, by ``start``.
        packed: On a processor with kernels, A and then each part's B as they multiply many rows; else empty.
    """

    a_IR: Tensor
    parts: tuple[LoraPart, ...]
    packed: tuple[Tensor, ...] = ()


LoraAdapter = Mapping[str, LoraSite]


class LoraDelta(Protocol):
    """Adds the adapters' share to the output of a site."""

    def add(self, site: str, x_NI: Tensor, y_NO: Tensor) -> None:
        """Add s·B(Ax) to ``y_NO`` in place, row by row's own adapter."""
        ...


def build_lora(
    pairs: Mapping[str, LoraModule], targets: Mapping[str, Target], *, device: torch.device, dtype: torch.dtype
) -> LoraAdapter:
    """Lay a LoRA out by site, on the device and in the serving dtype.

    Args:
        pairs: Module path → its pair; every path is a target.
        targets: Where modules lie in the fused layers.
        device: Where the weights go.
        dtype: In what.

    Raises:
        InvalidAdapterError: If a value is no longer finite in the serving dtype.
    """
    modules: dict[str, list[tuple[Target, Tensor, Tensor]]] = {}
    for path, module in pairs.items():
        a_RI = torch.from_numpy(module.lora_a).to(dtype)
        b_OR = (torch.from_numpy(module.lora_b) * module.scaling).to(dtype)
        if not (is_finite(a_RI) and is_finite(b_OR)):
            raise InvalidAdapterError(f"{path} holds values that are not finite in {str(dtype).removeprefix('torch.')}")
        modules.setdefault(targets[path].site, []).append((targets[path], a_RI, b_OR))
    return {site: _build_site(found, device) for site, found in modules.items()}


def _build_site(modules: list[tuple[Target, Tensor, Tensor]], device: torch.device) -> LoraSite:
    modules.sort(key=lambda module: module[0].start)
    a_IR = torch.cat([a_RI for _, a_RI, _ in modules]).T.contiguous().to(device)
    parts = tuple(LoraPart(where.start, where.stop, b_OR.T.contiguous().to(device)) for where, _, b_OR in modules)
    return LoraSite(a_IR, parts, pack_site(a_IR, parts))


def pack_site(a_IR: Tensor, parts: Sequence[LoraPart]) -> tuple[Tensor, ...]:
    """Return :attr:`LoraSite.packed`."""
    if not cpu.can_multiply(a_IR.new_empty(a_IR.shape[0], _LANES)):
        return ()
    return cpu.pack(a_IR.T), *(cpu.pack(part.b_RO.T) for part in parts)


def _add_parts(h_NR: Tensor, parts: Sequence[LoraPart], y_NO: Tensor) -> None:
    first = 0
    for part in parts:
        last = first + len(part.b_RO)
        y_NO[:, part.start : part.stop].addmm_(h_NR[:, first:last], part.b_RO)
        first = last


class SegmentDelta:
    """Deltas of adapters that each own contiguous rows.

    Args:
        segments: (first row, one past the last row, adapter).
    """

    def __init__(self, segments: Sequence[tuple[int, int, LoraAdapter]]) -> None:
        self._segments = tuple(segments)

    def add(self, site: str, x_NI: Tensor, y_NO: Tensor) -> None:
        """Add s·B(Ax) to ``y_NO`` in place, row by row's own adapter."""
        for start, stop, adapter in self._segments:
            found = adapter.get(site)
            if found is not None:
                _add_parts(x_NI[start:stop] @ found.a_IR, found.parts, y_NO[start:stop])


class LoraStack:
    """The weights of several adapters side by side, by site; made once per set of adapters.

    Args:
        adapters: Digest → weights.
    """

    def __init__(self, adapters: Mapping[str, LoraAdapter]) -> None:
        self.place = {digest: place for place, digest in enumerate(adapters)}
        self.sites: dict[str, LoraSite] = {}
        self.owners: dict[str, tuple[int, ...]] = {}
        for site in dict.fromkeys(site for adapter in adapters.values() for site in adapter):
            present = [(place, adapter[site]) for place, adapter in enumerate(adapters.values()) if site in adapter]
            self.sites[site], self.owners[site] = _stack_site(present)


def _stack_site(present: list[tuple[int, LoraSite]]) -> tuple[LoraSite, tuple[int, ...]]:
    """Return the side-by-side weights, ranks of one part next to each other, and the adapter that owns each rank."""
    by_part: dict[tuple[int, int], list[tuple[int, Tensor, Tensor]]] = {}
    for place, found in present:
        a_parts = found.a_IR.split([len(part.b_RO) for part in found.parts], dim=1)
        for part, a_IR in zip(found.parts, a_parts, strict=True):
            by_part.setdefault((part.start, part.stop), []).append((place, a_IR, part.b_RO))
    ordered = [by_part[key] for key in sorted(by_part)]
    a_IR = torch.cat([a_IR for pieces in ordered for _, a_IR, _ in pieces], dim=1)
    parts = tuple(
        LoraPart(*key, torch.cat([b_RO for _, _, b_RO in pieces]))
        for key, pieces in zip(sorted(by_part), ordered, strict=True)
    )
    owners = tuple(place for pieces in ordered for place, _, b_RO in pieces for _ in range(len(b_RO)))
    return LoraSite(a_IR, parts), owners


class StackedDelta:
    """Deltas of rows that lie mixed; made once per composition of the batch.

    Args:
        stack: The adapters present.
        digests: Each row's adapter, or None for the base.
        device: Where the rows are.
    """

    def __init__(self, stack: LoraStack, digests: Sequence[str | None], *, device: torch.device) -> None:
        self._stack = stack
        places = [-1 if digest is None else stack.place[digest] for digest in digests]
        self._place_N1 = torch.tensor(places, device=device).unsqueeze(1)
        self._foreign: dict[tuple[int, ...], Tensor] = {}

    def add(self, site: str, x_NI: Tensor, y_NO: Tensor) -> None:
        """Add s·B(Ax) to ``y_NO`` in place, row by row's own adapter."""
        found = self._stack.sites.get(site)
        if found is None:
            return
        # Filled, not multiplied: another adapter's overflow times zero would be NaN in this row.
        h_NR = torch.mm(x_NI, found.a_IR).masked_fill_(self._foreign_ranks(self._stack.owners[site]), 0.0)
        _add_parts(h_NR, found.parts, y_NO)

    def _foreign_ranks(self, owners: tuple[int, ...]) -> Tensor:
        mask = self._foreign.get(owners)
        if mask is None:
            mask = self._place_N1 != torch.tensor(owners, device=self._place_N1.device)
            self._foreign[owners] = mask
        return mask
