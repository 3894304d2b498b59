"""Adapter folders to weights on the device: read, checked and cast away from the step thread.

Knows no slots. Any thread; takes as long as reading the file.
"""

import torch
from torch import Tensor

from adapters.adapter_weights import Float32Array, PrefixWeights, WeightAdapterWeights
from adapters.codec import CodecLimits, read_adapter
from adapters.errors import InvalidAdapterError, StoreError
from adapters.manifest import BaseModelSpec
from server.engine.base import ResolvedAdapter
from server.engine.native.adapter_payload import AdapterPayload
from server.engine.native.layers.finite import is_finite
from server.engine.native.layers.prefix import Prefix
from server.engine.native.layers.weight_adapter import AdaptableBase, build_weight_adapter


class AdapterLoader:
    """Loads adapters for one base model.

    Args:
        spec: What the base demands.
        base: What of it adapters may change.
        limits: Largest rank and longest soft prompt.
        device: Where the weights go.
        dtype: Serving dtype.
    """

    def __init__(
        self,
        spec: BaseModelSpec,
        base: AdaptableBase,
        limits: CodecLimits,
        *,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._spec, self._base, self._limits = spec, base, limits
        self._device, self._dtype = device, dtype

    @torch.inference_mode()
    def load(self, adapter: ResolvedAdapter) -> AdapterPayload:
        """Return the adapter's weights on the device.

        Raises:
            AdapterError: If the files are not a sound adapter for this base.
        """
        try:
            weights = read_adapter(adapter.path, self._spec, self._limits)
        except OSError as error:
            raise StoreError("the adapter's files cannot be read; try again later") from error
        if isinstance(weights, WeightAdapterWeights):
            return build_weight_adapter(weights, self._base, device=self._device, dtype=self._dtype)
        if isinstance(weights, PrefixWeights):
            self._check_length(weights.keys.shape[1], adapter)
            return Prefix(self._cast(weights.keys), self._cast(weights.values))
        self._check_length(len(weights.embeddings), adapter)
        return self._cast(weights.embeddings)

    def _check_length(self, num_virtual_tokens: int, adapter: ResolvedAdapter) -> None:
        if num_virtual_tokens != adapter.num_virtual_tokens:
            raise InvalidAdapterError(
                f"the {adapter.kind} has {num_virtual_tokens} tokens, not the {adapter.num_virtual_tokens} on record"
            )

    def _cast(self, array: Float32Array) -> Tensor:
        tensor = torch.from_numpy(array).to(device=self._device, dtype=self._dtype)
        if not is_finite(tensor):
            raise InvalidAdapterError("the adapter holds values that are not finite in the serving dtype")
        return tensor
