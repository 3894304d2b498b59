"""T5: encoder, cross keys and values, one decoder step. Ours, for packed rows and a row-slotted cache.

Every call takes the weight adapters' share as an :class:`~server.engine.native.layers.weight_adapter.AdapterDelta` or
None; soft prompts are already in the encoder's input, prefixes in the cache. It knows no requests and no sampling. Step
thread only.

Legend: T packed encoder tokens, B rows, D width, H heads, K head width, V vocabulary, N = B·H.

Source:
    arXiv:1910.10683 (T5), arXiv:2002.05202 (gated GELU); numerics as transformers 5.19 ``modeling_t5``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from server.core.errors import FailedPreconditionError
from server.engine.native.decoder_attention import DecoderStep, StepAttention, prepare
from server.engine.native.families.seq2seq_weights import Seq2SeqConfig, read_config, read_tensors
from server.engine.native.kernels import cpu
from server.engine.native.kv_cache import KVCache
from server.engine.native.layers.attention import PackedAttention, Run
from server.engine.native.layers.linear import Linear, MakeLinear, make_packed
from server.engine.native.layers.lora import Target
from server.engine.native.layers.relative_position import DecoderBias, EncoderBias
from server.engine.native.layers.weight_adapter import AdapterDelta


class _Weights:
    """Takes tensors by name and remembers where each module ended up in the fused layers."""

    def __init__(self, tensors: Mapping[str, Tensor], make_linear: MakeLinear) -> None:
        self._tensors = tensors
        self._make_linear = make_linear
        self.num_linear_bytes = 0
        self.targets: dict[str, Target] = {}
        self.norms: dict[str, Tensor] = {}

    def take(self, name: str) -> Tensor:
        if name not in self._tensors:
            raise FailedPreconditionError(f"the model's weights lack {name}")
        return self._tensors[name]

    def norm(self, path: str) -> Tensor:
        self.norms[path] = self.take(f"{path}.weight")
        return self.norms[path]

    def fused(self, site: str, paths: Sequence[str]) -> Linear:
        weights = [self.take(f"{path}.weight") for path in paths]
        start = 0
        for path, weight in zip(paths, weights, strict=True):
            self.targets[path] = Target(site, start, start + len(weight))
            start += len(weight)
        return self.linear(site, torch.cat(weights))

    def linear(self, site: str, weight_OI: Tensor) -> Linear:
        linear = self._make_linear(site, weight_OI)
        self.num_linear_bytes += linear.num_bytes
        return linear


class _Site:
    """A fused layer whose output adapters may change."""

    def __init__(self, weights: _Weights, site: str, paths: Sequence[str]) -> None:
        self._name = site
        self._linear = weights.fused(site, paths)

    def __call__(self, x: Tensor, delta: AdapterDelta | None, residual: Tensor | None = None) -> Tensor:
        if delta is None:
            return self._linear(x, residual)
        return delta.linear(self._name, self._linear, x, residual)


class _Norm:
    """A norm whose weight adapters may replace."""

    def __init__(self, weights: _Weights, path: str, eps: float) -> None:
        self._path, self._weight_D, self._eps = path, weights.norm(path), eps
        self._has_kernels = cpu.can_run(self._weight_D, widths=self._weight_D.shape)

    def __call__(self, x: Tensor, delta: AdapterDelta | None) -> Tensor:
        y = self._norm(x)
        if delta is not None and delta.elementwise is not None:
            delta.elementwise.norm(self._path, x, y, self._eps)
        return y

    def _norm(self, x: Tensor) -> Tensor:
        if self._has_kernels:
            return cpu.rms_norm(x, self._weight_D, self._eps)
        return functional.rms_norm(x, self._weight_D.shape, self._weight_D, self._eps)


class _FeedForward:
    def __init__(self, weights: _Weights, site: str, path: str, config: Seq2SeqConfig) -> None:
        self._gate_width = config.d_ff if config.is_gated else None
        self._has_kernels = cpu.can_run(weights.take("shared.weight"), widths=(config.d_ff,))
        names = ("wi_0", "wi_1") if config.is_gated else ("wi",)
        self._norm = _Norm(weights, f"{path}.layer_norm", config.norm_eps)
        self._wi = _Site(weights, f"{site}.wi", [f"{path}.DenseReluDense.{name}" for name in names])
        self._wo = _Site(weights, f"{site}.wo", [f"{path}.DenseReluDense.wo"])

    def __call__(self, x: Tensor, delta: AdapterDelta | None) -> Tensor:
        return self._wo(self._activate(self._wi(self._norm(x, delta), delta)), delta, residual=x)

    def _activate(self, h: Tensor) -> Tensor:
        if self._gate_width is None:
            return h.relu_()
        if self._has_kernels:
            return cpu.gated_gelu(h)
        gate, linear = h[:, : self._gate_width], h[:, self._gate_width :]
        return functional.gelu(gate, approximate="tanh").mul_(linear)


class _EncoderLayer:
    def __init__(self, weights: _Weights, index: int, config: Seq2SeqConfig) -> None:
        site, path = f"encoder.{index}", f"encoder.block.{index}.layer"
        own = f"{path}.0.SelfAttention"
        self._norm = _Norm(weights, f"{path}.0.layer_norm", config.norm_eps)
        self._qkv = _Site(weights, f"{site}.qkv", [f"{own}.q", f"{own}.k", f"{own}.v"])
        self._o = _Site(weights, f"{site}.o", [f"{own}.o"])
        self._feed_forward = _FeedForward(weights, site, f"{path}.1", config)

    def __call__(self, x_TD: Tensor, attend: Callable[[Tensor], Tensor], delta: AdapterDelta | None) -> Tensor:
        y_T = attend(self._qkv(self._norm(x_TD, delta), delta))
        return self._feed_forward(self._o(y_T, delta, residual=x_TD), delta)


class _DecoderLayer:
    def __init__(self, weights: _Weights, index: int, config: Seq2SeqConfig) -> None:
        site, path = f"decoder.{index}", f"decoder.block.{index}.layer"
        own, cross = f"{path}.0.SelfAttention", f"{path}.1.EncDecAttention"
        self._index = index
        self._norm = _Norm(weights, f"{path}.0.layer_norm", config.norm_eps)
        self._qkv = _Site(weights, f"{site}.qkv", [f"{own}.q", f"{own}.k", f"{own}.v"])
        self._o = _Site(weights, f"{site}.o", [f"{own}.o"])
        self._cross_norm = _Norm(weights, f"{path}.1.layer_norm", config.norm_eps)
        self._cross_q = _Site(weights, f"{site}.cross_q", [f"{cross}.q"])
        self._cross_o = _Site(weights, f"{site}.cross_o", [f"{cross}.o"])
        self._feed_forward = _FeedForward(weights, site, f"{path}.2", config)

    def __call__(self, x_BD: Tensor, attention: StepAttention, delta: AdapterDelta | None) -> Tensor:
        y_BHK = attention.own(self._index, self._qkv(self._norm(x_BD, delta), delta))
        x_BD = self._o(y_BHK, delta, residual=x_BD)
        y_BHK = attention.cross(self._index, self._cross_q(self._cross_norm(x_BD, delta), delta))
        return self._feed_forward(self._cross_o(y_BHK, delta, residual=x_BD), delta)


@dataclass(slots=True)
class EncoderPass:
    """Packed rows on their way through the encoder, so that decoder steps may come between its stages.

    Attributes:
        x_TD: Output of the last stage that was run; at first the embeddings.
        attend: Self-attention within the rows.
        delta: Adapters, or None when every row is the base.
        next_stage: How many stages were run.
    """

    x_TD: Tensor
    attend: Callable[[Tensor], Tensor]
    delta: AdapterDelta | None
    next_stage: int = 0


class Seq2SeqModel:
    """A T5 model, ready to run.

    Args:
        config: Sizes and habits.
        tensors: Weights by their names in the file.
        max_encoder_len: Most encoder positions of a row.
        max_decoder_len: Most decoder positions of a row.
        make_linear: Makes the linears of the layers and, as ``lm_head``, the head.

    Attributes:
        config: As given.
        targets: Module path → its place in a fused layer, for adapters.
        norms: Path of each norm → its weight, for adapters.
        embedding_VD: Token embeddings.
        num_weight_bytes: What embeddings, head and linears take.

    Raises:
        FailedPreconditionError: If a tensor is missing.
    """

    def __init__(
        self,
        config: Seq2SeqConfig,
        tensors: Mapping[str, Tensor],
        *,
        max_encoder_len: int,
        max_decoder_len: int,
        make_linear: MakeLinear = make_packed,
    ) -> None:
        weights = _Weights(tensors, make_linear)
        self.config = config
        self.embedding_VD = weights.take("shared.weight")
        bias = "layer.0.SelfAttention.relative_attention_bias.weight"
        encoder_bias = EncoderBias(
            weights.take(f"encoder.block.0.{bias}"), max_len=max_encoder_len, max_distance=config.max_distance
        )
        self._encoder_attention = PackedAttention(encoder_bias, num_heads=config.num_heads, head_width=config.d_kv)
        self._decoder_bias = DecoderBias(
            weights.take(f"decoder.block.0.{bias}"), max_len=max_decoder_len, max_distance=config.max_distance
        )
        self._encoder = [_EncoderLayer(weights, index, config) for index in range(config.num_encoder_layers)]
        self._encoder_norm = _Norm(weights, "encoder.final_layer_norm", config.norm_eps)
        cross = [
            f"decoder.block.{index}.layer.1.EncDecAttention.{side}"
            for index in range(config.num_decoder_layers)
            for side in ("k", "v")
        ]
        self._cross_kv = _Site(weights, "cross_kv", cross)
        self._decoder = [_DecoderLayer(weights, index, config) for index in range(config.num_decoder_layers)]
        self._decoder_norm = _Norm(weights, "decoder.final_layer_norm", config.norm_eps)
        self._head = weights.linear("lm_head", tensors.get("lm_head.weight", self.embedding_VD))
        self.targets: Mapping[str, Target] = weights.targets
        self.norms: Mapping[str, Tensor] = weights.norms
        self.num_weight_bytes = self.embedding_VD.nbytes + weights.num_linear_bytes

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        device: torch.device,
        dtype: torch.dtype,
        max_encoder_len: int,
        max_decoder_len: int,
        make_linear: MakeLinear = make_packed,
    ) -> Self:
        """Load a model from its folder.

        Raises:
            FailedPreconditionError: If the folder holds no T5 model in safetensors.
        """
        tensors = read_tensors(folder, device=device, dtype=dtype)
        sizes = {"max_encoder_len": max_encoder_len, "max_decoder_len": max_decoder_len}
        return cls(read_config(folder), tensors, **sizes, make_linear=make_linear)

    def make_cache(self, *, num_rows: int, max_encoder_len: int, max_decoder_len: int) -> KVCache:
        """Return an empty cache for this model."""
        return KVCache(
            num_layers=self.config.num_decoder_layers,
            num_rows=num_rows,
            num_heads=self.config.num_heads,
            head_width=self.config.d_kv,
            max_encoder_len=max_encoder_len,
            max_decoder_len=max_decoder_len,
            weight=self.embedding_VD,
        )

    @property
    def num_encoder_stages(self) -> int:
        """Stages of an encoder pass: its layers, and the projection of its output to cross keys and values."""
        return len(self._encoder) + 1

    def encode(self, x_TD: Tensor, runs: Sequence[Run], delta: AdapterDelta | None) -> Tensor:
        """Return the cross keys and values of packed rows for all decoder layers: (T, layers, 2, H, K).

        Args:
            x_TD: Embeddings, soft prompts included.
            runs: Which rows lie where.
            delta: Adapters, or None when every row is the base.
        """
        kv_T = self.advance(self.begin_encoding(x_TD, runs, delta), self.num_encoder_stages)
        assert kv_T is not None
        return kv_T

    def begin_encoding(self, x_TD: Tensor, runs: Sequence[Run], delta: AdapterDelta | None) -> EncoderPass:
        """Return a pass, not yet begun, that :meth:`advance` takes through what :meth:`encode` does at once."""
        return EncoderPass(x_TD, self._encoder_attention.prepare(runs), delta)

    def advance(self, encoding: EncoderPass, num_stages: int) -> Tensor | None:
        """Run the next stages of a pass; return what :meth:`encode` does once all are run, else None."""
        stop = encoding.next_stage + num_stages
        for layer in self._encoder[encoding.next_stage : stop]:
            encoding.x_TD = layer(encoding.x_TD, encoding.attend, encoding.delta)
        encoding.next_stage = stop
        if stop < self.num_encoder_stages:
            return None
        kv_T = self._cross_kv(self._encoder_norm(encoding.x_TD, encoding.delta), encoding.delta)
        return kv_T.view(len(kv_T), self.config.num_decoder_layers, 2, self.config.num_heads, self.config.d_kv)

    def decode(self, step: DecoderStep, cache: KVCache, delta: AdapterDelta | None) -> Tensor:
        """Take each row one token further; return the logits of its next token, (B, V)."""
        attention = prepare(cache, self._decoder_bias, step)
        x_BD = functional.embedding(step.token_B, self.embedding_VD)
        for layer in self._decoder:
            x_BD = layer(x_BD, attention, delta)
        return self._head(self._decoder_norm(x_BD, delta) * self.config.head_scale)
