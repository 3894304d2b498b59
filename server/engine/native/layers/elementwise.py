"""What adapters change element by element, row by row: scaled inputs and outputs, biases, the weights of norms.

IA3 scales inputs or outputs, DoRA scales outputs, a LoRA with a bias adds one, LayerNorm tuning replaces a norm's
weight. A linear layer becomes y = g ⊙ W(x ⊙ u) + c + residual; a LoRA's share is added apart, its B scaled by g.
A *spot* is one place where a vector may act. Vectors act on contiguous rows (:class:`ElementwiseDelta`): one vector on
an adapter's rows of the encoder, or a vector per row where rows lie mixed (:class:`ElementwiseStack`). In a mixed batch
the rows that change nothing at a spot get its identity there: ones, zeros, the base's own norm.

Legend: N rows, I in, O out, D width, S adapters. Knows no families of adapters. Step thread only.

Source:
    arXiv:2205.05638 (IA3), arXiv:2402.09353 (DoRA), arXiv:2312.11420 (LayerNorm tuning).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

import torch
from torch import Tensor
from torch.nn import functional


class Act(Enum):
    """How a vector acts."""

    SCALE_INPUT = "scale the input"
    SCALE_OUTPUT = "scale the output"
    ADD = "add to the output"
    NORM = "replace a norm's weight"


@dataclass(frozen=True, slots=True)
class Spot:
    """Where a vector acts.

    Attributes:
        site: A fused layer, or the path of a norm.
        act: How.
        columns: For a scaled input of a layer of several modules, the (start, stop) output columns of the module that
            takes its input so scaled; such layers take no residual. None for a layer of one module.
    """

    site: str
    act: Act
    columns: tuple[int, int] | None = None


Vectors = Mapping[Spot, Tensor]
"""Spot → the vector that acts there, (width,); or a vector for each row, (N, width)."""


@dataclass(slots=True)
class _Found:
    """What acts at one site: (rows, vector) by act."""

    inputs: dict[tuple[int, int] | None, list[tuple[slice, Tensor]]] = field(default_factory=dict)
    by_act: dict[Act, list[tuple[slice, Tensor]]] = field(default_factory=lambda: {act: [] for act in Act})

    def put(self, spot: Spot, rows: slice, vector: Tensor) -> None:
        if spot.act is Act.SCALE_INPUT:
            self.inputs.setdefault(spot.columns, []).append((rows, vector))
        else:
            self.by_act[spot.act].append((rows, vector))


class ElementwiseDelta:
    """Vectors that act on contiguous rows.

    Args:
        segments: (first row, one past the last row, vectors); rows in no segment are the base's.
    """

    def __init__(self, segments: Sequence[tuple[int, int, Vectors]]) -> None:
        self._found: dict[str, _Found] = {}
        for start, stop, vectors in segments:
            for spot, vector in vectors.items():
                self._found.setdefault(spot.site, _Found()).put(spot, slice(start, stop), vector)

    def linear(
        self, site: str, linear: Callable[[Tensor, Tensor | None], Tensor], x_NI: Tensor, residual_NO: Tensor | None
    ) -> Tensor:
        """Return g ⊙ W(x ⊙ u) + c + residual, each row with its own adapter's vectors; leaves ``x_NI`` as it is."""
        found = self._found.get(site)
        if found is None:
            return linear(x_NI, residual_NO)
        scales = found.by_act[Act.SCALE_OUTPUT]
        # Added in the layer's own pass, unless the scale must come in between.
        inside, after = (None, residual_NO) if scales else (residual_NO, None)
        y_NO = linear(_scaled(x_NI, found.inputs.get(None, ())), inside)
        for columns, inputs in found.inputs.items():
            if columns is not None:
                y_NO[:, slice(*columns)] = linear(_scaled(x_NI, inputs), None)[:, slice(*columns)]
        for rows, scale in scales:
            y_NO[rows].mul_(scale)
        for rows, bias in found.by_act[Act.ADD]:
            y_NO[rows].add_(bias)
        return y_NO if after is None else y_NO.add_(after)

    def norm(self, path: str, x_ND: Tensor, y_ND: Tensor, eps: float) -> None:
        """Put the root-mean-square norm of the rows whose adapter has a weight of its own into ``y_ND``."""
        if path in self._found:
            for rows, weight in self._found[path].by_act[Act.NORM]:
                y_ND[rows] = functional.rms_norm(x_ND[rows], x_ND.shape[1:], None, eps).mul_(weight)


def _scaled(x_NI: Tensor, inputs: Sequence[tuple[slice, Tensor]]) -> Tensor:
    if inputs:
        x_NI = x_NI.clone()
    for rows, scale in inputs:
        x_NI[rows].mul_(scale)
    return x_NI


class ElementwiseStack:
    """The vectors of several adapters side by side in one table, with the identity; made once per set of adapters.

    Args:
        adapters: Digest → vectors; at least one adapter has some.
        norms: Path of each norm → the base's weight.
    """

    def __init__(self, adapters: Mapping[str, Vectors], norms: Mapping[str, Tensor]) -> None:
        spots = dict.fromkeys(spot for vectors in adapters.values() for spot in vectors)
        identity = {spot: _identity(spot, adapters, norms) for spot in spots}
        self._widths = {spot: len(vector) for spot, vector in identity.items()}
        rows = [identity, *({**identity, **vectors} for vectors in adapters.values())]
        self._table = torch.stack([torch.cat([row[spot] for spot in spots]) for row in rows])
        self._place = {digest: place for place, digest in enumerate(adapters, start=1)}

    def rows(self, digests: Sequence[str | None]) -> Vectors:
        """Return each row's vector at every spot; None is the base."""
        places = [0 if digest is None else self._place[digest] for digest in digests]
        gathered = self._table.index_select(0, torch.tensor(places, device=self._table.device))
        return dict(zip(self._widths, gathered.split(list(self._widths.values()), dim=1), strict=True))


def _identity(spot: Spot, adapters: Mapping[str, Vectors], norms: Mapping[str, Tensor]) -> Tensor:
    like = next(vectors[spot] for vectors in adapters.values() if spot in vectors)
    if spot.act is Act.NORM:
        return norms[spot.site].to(like.dtype)
    return torch.zeros_like(like) if spot.act is Act.ADD else torch.ones_like(like)
