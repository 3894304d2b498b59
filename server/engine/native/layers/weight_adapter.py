"""Weight adapters of every family: what an adapter becomes at load, and how a batch of them is applied.

At load each change of a linear layer, y = o ⊙ (m̂ ⊙ (W(x ⊙ u) + s·B(Ax)) + b), is brought into the form
y = g ⊙ W(x ⊙ u) + B'(Ax) + c: a LoRA whose B is scaled already, and vectors. So a LoRA of any family costs what a plain
one does, and the vectors cost nothing where no row has any.

Legend: N rows, I in, O out, R rank. Step thread only, except :func:`build_weight_adapter` (any thread).

Source:
    arXiv:2402.09353 (DoRA); as computed by PEFT 0.21 ``tuners/lora/dora.py`` and ``tuners/ia3/layer.py``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from adapters.adapter_weights import LinearChange, LoraModule, WeightAdapterWeights
from adapters.errors import InvalidAdapterError, UnsupportedAdapterError
from server.engine.native.layers.elementwise import Act, ElementwiseDelta, ElementwiseStack, Spot, Vectors
from server.engine.native.layers.finite import is_finite
from server.engine.native.layers.lora import (
    LoraAdapter,
    LoraDelta,
    LoraStack,
    SegmentDelta,
    StackedDelta,
    Target,
    build_lora,
)
from server.engine.native.layers.lora_choice import GroupedLora


@dataclass(frozen=True, slots=True)
class AdaptableBase:
    """What of a base adapters may change.

    Attributes:
        targets: Module path → its place in a fused layer.
        norms: Path of each norm → its weight (D,).
        read_weight: Reads the weight (out, in) of a module from the base's files, float32.
    """

    targets: Mapping[str, Target]
    norms: Mapping[str, Tensor]
    read_weight: Callable[[str], Tensor]

    def width(self, site: str) -> int:
        """Output columns of a fused layer."""
        return max(target.stop for target in self.targets.values() if target.site == site)


@dataclass(frozen=True, slots=True)
class WeightAdapter:
    """A weight adapter on the device: a LoRA by site, and vectors by spot; either may be empty."""

    lora: LoraAdapter
    vectors: Vectors


def build_weight_adapter(
    weights: WeightAdapterWeights, base: AdaptableBase, *, device: torch.device, dtype: torch.dtype
) -> WeightAdapter:
    """Lay an adapter out for a base, on the device and in the serving dtype.

    Raises:
        UnsupportedAdapterError: If it changes a layer that takes no adapters.
        InvalidAdapterError: If a value is no longer finite in the serving dtype.
    """
    loras: dict[str, LoraModule] = {}
    found: dict[Spot, Tensor] = {}
    for path, change in weights.linears.items():
        if path not in base.targets:
            raise UnsupportedAdapterError(
                f"layer {path} takes no adapters; train on the attention or feed-forward layers"
            )
        scale_O = _output_scale(path, change, base)
        if change.lora is not None:
            loras[path] = change.lora if scale_O is None else _scaled_lora(change.lora, scale_O)
        _place_vectors(found, path, change, scale_O, base)
    for path, gamma in weights.norms.items():
        if path not in base.norms:
            raise UnsupportedAdapterError(f"norm {path} takes no adapters")
        found[Spot(path, Act.NORM)] = torch.from_numpy(gamma)
    vectors = {spot: _cast(spot, vector, device, dtype) for spot, vector in found.items()}
    return WeightAdapter(build_lora(loras, base.targets, device=device, dtype=dtype), vectors)


def _output_scale(path: str, change: LinearChange, base: AdaptableBase) -> Tensor | None:
    """Return what the layer's output is multiplied by, DoRA's share and IA3's together."""
    own = None if change.output_scale is None else torch.from_numpy(change.output_scale)
    if change.magnitude is None:
        return own
    weight_OI = base.read_weight(path)
    if change.lora is not None:
        b_OR, a_RI = torch.from_numpy(change.lora.lora_b), torch.from_numpy(change.lora.lora_a)
        weight_OI = torch.addmm(weight_OI, b_OR, a_RI, alpha=change.lora.scaling)
    scale_O = torch.from_numpy(change.magnitude) / torch.linalg.vector_norm(weight_OI, dim=1)
    return scale_O if own is None else scale_O * own


def _scaled_lora(lora: LoraModule, scale_O: Tensor) -> LoraModule:
    b_OR = torch.from_numpy(lora.lora_b) * scale_O.unsqueeze(1)
    return replace(lora, lora_b=b_OR.numpy())


def _place_vectors(
    found: dict[Spot, Tensor], path: str, change: LinearChange, scale_O: Tensor | None, base: AdaptableBase
) -> None:
    """Put a module's vectors at their spots; the outputs of one fused layer share a vector, its identity between."""
    target = base.targets[path]
    if change.input_scale is not None:
        whole_layer = target.stop - target.start == base.width(target.site)
        columns = None if whole_layer else (target.start, target.stop)
        found[Spot(target.site, Act.SCALE_INPUT, columns)] = torch.from_numpy(change.input_scale)
    bias_O = None if change.bias is None else torch.from_numpy(change.bias)
    if bias_O is not None and change.output_scale is not None:
        bias_O = bias_O * torch.from_numpy(change.output_scale)
    for act, vector, identity in ((Act.SCALE_OUTPUT, scale_O, 1.0), (Act.ADD, bias_O, 0.0)):
        if vector is not None:
            whole = found.setdefault(Spot(target.site, act), torch.full((base.width(target.site),), identity))
            whole[target.start : target.stop] = vector


def _cast(spot: Spot, vector: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    cast = vector.to(device=device, dtype=dtype)
    if not is_finite(cast):
        raise InvalidAdapterError(
            f"{spot.site} holds values that are not finite in {str(dtype).removeprefix('torch.')}"
        )
    return cast


@dataclass(frozen=True, slots=True)
class AdapterDelta:
    """What the weight adapters of a batch change, row by row.

    Attributes:
        lora: The LoRAs.
        elementwise: The vectors, or None where no adapter has any.
    """

    lora: LoraDelta
    elementwise: ElementwiseDelta | None

    def linear(
        self, site: str, linear: Callable[[Tensor, Tensor | None], Tensor], x_NI: Tensor, residual_NO: Tensor | None
    ) -> Tensor:
        """Return a fused layer's output, residual included, each row with its own adapter."""
        if self.elementwise is None:
            y_NO = linear(x_NI, residual_NO)
        else:
            y_NO = self.elementwise.linear(site, linear, x_NI, residual_NO)
        self.lora.add(site, x_NI, y_NO)
        return y_NO


def segment_delta(
    segments: Sequence[tuple[int, int, WeightAdapter]], grouped: GroupedLora | None = None
) -> AdapterDelta | None:
    """Return the delta of adapters that each own contiguous rows; None of none.

    Args:
        segments: (first row, one past the last row, adapter).
        grouped: Kernels for several adapters at once, where the device has them.
    """
    if not segments:
        return None
    vectors = [(start, stop, adapter.vectors) for start, stop, adapter in segments if adapter.vectors]
    loras = [(start, stop, adapter.lora) for start, stop, adapter in segments]
    lora = SegmentDelta(loras) if grouped is None else grouped.delta(loras)
    return AdapterDelta(lora, ElementwiseDelta(vectors) if vectors else None)


class AdapterStack:
    """Several weight adapters side by side; made once per set of adapters.

    Args:
        adapters: Digest → adapter.
        norms: Path of each norm → the base's weight.
        grouped: Kernels that need no stack, where the device has them.
    """

    def __init__(
        self,
        adapters: Mapping[str, WeightAdapter],
        norms: Mapping[str, Tensor],
        grouped: GroupedLora | None = None,
    ) -> None:
        self._loras = {digest: adapter.lora for digest, adapter in adapters.items()}
        self._grouped = grouped
        self._stack = LoraStack(self._loras) if grouped is None else None
        vectors = {digest: adapter.vectors for digest, adapter in adapters.items()}
        self._elementwise = ElementwiseStack(vectors, norms) if any(vectors.values()) else None

    def delta(self, digests: Sequence[str | None], *, device: torch.device) -> AdapterDelta:
        """Return the delta of mixed rows, one token each: each row's adapter, or None for the base."""
        lora = self._lora_delta(digests, device)
        if self._elementwise is None:
            return AdapterDelta(lora, None)
        return AdapterDelta(lora, ElementwiseDelta([(0, len(digests), self._elementwise.rows(digests))]))

    def _lora_delta(self, digests: Sequence[str | None], device: torch.device) -> LoraDelta:
        if self._stack is not None:
            return StackedDelta(self._stack, digests, device=device)
        assert self._grouped is not None
        return self._grouped.delta(
            [(row, row + 1, self._loras[digest]) for row, digest in enumerate(digests) if digest]
        )
