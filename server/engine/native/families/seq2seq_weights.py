"""T5 folders on disk: configuration and tensors, read with ``transformers`` and ``safetensors``.

Reads safetensors only. Knows no layers and no requests. Any thread.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, GenerationConfig, T5Config

from server.core.errors import FailedPreconditionError


@dataclass(frozen=True, slots=True)
class Seq2SeqConfig:
    """Sizes and habits of one T5 model.

    Attributes:
        d_model: Width D.
        d_kv: Head width K.
        d_ff: Feed-forward width.
        num_heads: Heads H.
        num_encoder_layers: Encoder layers.
        num_decoder_layers: Decoder layers.
        max_distance: Distance from which on all positions share a bias.
        norm_eps: Added to the mean square in normalisation.
        is_gated: Whether the feed-forward layer is gated GELU; else it is ReLU.
        head_scale: What the last hidden state is multiplied by before the output head.
        decoder_start_token_id: First decoder input.
        eos_token_ids: Tokens that end an output.
    """

    d_model: int
    d_kv: int
    d_ff: int
    num_heads: int
    num_encoder_layers: int
    num_decoder_layers: int
    max_distance: int
    norm_eps: float
    is_gated: bool
    head_scale: float
    decoder_start_token_id: int
    eos_token_ids: tuple[int, ...]

    @property
    def widths(self) -> tuple[int, ...]:
        """Input and output widths of the layers' linears."""
        return self.d_model, self.num_heads * self.d_kv, self.d_ff


def read_config(folder: Path) -> Seq2SeqConfig:
    """Read the configuration of a T5 model.

    Raises:
        FailedPreconditionError: If it is missing, or of another family.
    """
    try:
        raw = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise FailedPreconditionError(f"{folder} has no readable config.json") from error
    if not isinstance(raw, T5Config) or raw.dense_act_fn not in {"relu", "gelu_new"}:
        raise FailedPreconditionError(
            f"{folder} is not a T5 model with ReLU or gated GELU; this engine serves no other"
        )
    start, eos = _special_tokens(folder, raw)
    return Seq2SeqConfig(
        d_model=raw.d_model,
        d_kv=raw.d_kv,
        d_ff=raw.d_ff,
        num_heads=raw.num_heads,
        num_encoder_layers=raw.num_layers,
        num_decoder_layers=raw.num_decoder_layers,
        max_distance=raw.relative_attention_max_distance,
        norm_eps=raw.layer_norm_epsilon,
        is_gated=raw.is_gated_act,
        head_scale=raw.d_model**-0.5 if raw.scale_decoder_outputs else 1.0,
        decoder_start_token_id=start,
        eos_token_ids=eos,
    )


def _special_tokens(folder: Path, config: T5Config) -> tuple[int, tuple[int, ...]]:
    """Return start and end tokens: the generation config's, else the model config's."""
    has_own = (folder / "generation_config.json").exists()
    generation = GenerationConfig.from_pretrained(folder) if has_own else GenerationConfig.from_model_config(config)
    start, eos = generation.decoder_start_token_id, generation.eos_token_id
    if start is None:
        start = getattr(config, "decoder_start_token_id", None)
    if eos is None:
        eos = config.eos_token_id
    if start is None or eos is None:
        raise FailedPreconditionError(f"{folder} names no decoder_start_token_id or no eos_token_id")
    return start, tuple(eos) if isinstance(eos, list | tuple) else (eos,)


def read_tensors(folder: Path, *, device: torch.device, dtype: torch.dtype) -> Mapping[str, Tensor]:
    """Read every tensor of a model, cast to ``dtype``.

    Raises:
        FailedPreconditionError: If there are no safetensors files or one cannot be read.
    """
    tensors: dict[str, Tensor] = {}
    for file in _weight_files(folder):
        with _reading(folder):
            tensors.update(load_file(file))
    return {name: tensor.to(device=device, dtype=dtype) for name, tensor in tensors.items()}


def read_linear(folder: Path, path: str) -> Tensor:
    """Read the weight of one linear layer as it is in the model's files, (out, in), float32, on the host.

    For what must be known of a weight once; a model in memory may keep it in a form that cannot be read back.

    Raises:
        FailedPreconditionError: If the files cannot be read or hold no such layer.
    """
    name = f"{path}.weight"
    for file in _weight_files(folder):
        with _reading(folder), safe_open(file, framework="pt") as tensors:
            if name in tensors.keys():  # noqa: SIM118
                return tensors.get_tensor(name).float()
    raise FailedPreconditionError(f"the weights in {folder} lack {name}")


def _weight_files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise FailedPreconditionError(f"{folder} holds no model.safetensors; pickled weights are not read")
    return files


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise FailedPreconditionError(f"the weights in {folder} cannot be read") from error
