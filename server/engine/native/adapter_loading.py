"""Adapter folders to weights on the device: read, checked and cast away from the step thread.

Knows no slots. Any thread; takes as long as reading the file.
"""

import torch

from adapters.adapter_weights import PrefixWeights, WeightAdapterWeights
from adapters.codec import CodecLimits, read_adapter
from adapters.errors import AdapterError, InvalidAdapterError, StoreError, UnsupportedAdapterError
from adapters.manifest import BaseModelSpec
from server.core.errors import ErrorCode, FailedPreconditionError, InternalError, MedleyError, code_of
from server.engine.base import ResolvedAdapter
from server.engine.native.layers.lora import Target, build_lora
from server.engine.native.prefill import AdapterPayload


class AdapterLoader:
    """Loads adapters for one base model.

    Args:
        base: What the base demands.
        targets: Where its modules lie in the fused layers.
        limits: Largest rank and longest soft prompt.
        device: Where the weights go.
        dtype: Serving dtype.
    """

    def __init__(
        self,
        base: BaseModelSpec,
        targets: dict[str, Target],
        limits: CodecLimits,
        *,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._base, self._targets, self._limits = base, targets, limits
        self._device, self._dtype = device, dtype

    @torch.inference_mode()
    def load(self, adapter: ResolvedAdapter) -> AdapterPayload:
        """Return the adapter's weights on the device.

        Raises:
            AdapterError: If the files are not a sound adapter for this base.
        """
        try:
            weights = read_adapter(adapter.path, self._base, self._limits)
        except OSError as error:
            raise StoreError("the adapter's files cannot be read; try again later") from error
        if isinstance(weights, WeightAdapterWeights):
            return build_lora(weights, self._targets, device=self._device, dtype=self._dtype)
        if isinstance(weights, PrefixWeights):
            raise UnsupportedAdapterError("the native engine does not serve prefix tuning")
        if len(weights.embeddings) != adapter.num_virtual_tokens:
            raise InvalidAdapterError(
                f"the soft prompt has {len(weights.embeddings)} tokens, not the {adapter.num_virtual_tokens} on record"
            )
        prompt_PD = torch.from_numpy(weights.embeddings).to(device=self._device, dtype=self._dtype)
        if not prompt_PD.isfinite().all():
            raise InvalidAdapterError("the soft prompt holds values that are not finite in the serving dtype")
        return prompt_PD


def loading_error(error: Exception) -> MedleyError:
    """Return the error of a request whose adapter could not be loaded."""
    if isinstance(error, MedleyError):
        return error
    if not isinstance(error, AdapterError):
        return InternalError("the adapter could not be loaded")
    code = code_of(error)
    kinds: dict[ErrorCode, type[MedleyError]] = {kind.code: kind for kind in MedleyError.__subclasses__()}
    return kinds.get(code, FailedPreconditionError)(error.message)
