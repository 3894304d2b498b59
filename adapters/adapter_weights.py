"""What an adapter holds once it is read: float32 arrays in the one form the engine takes, whatever family wrote them.

Families that are another way of writing a LoRA (LoHa, AdaLoRA, VeRA) or a soft prompt (P-tuning, multitask prompt
tuning) arrive folded. Every value is finite and of the base's shapes: the codec checked them. Knows no files and no
torch. Any thread; arrays are not changed once they are made.

Shapes: R rank, P virtual tokens, D width of the base, H heads, K head width.

Source:
    LoRA arXiv:2106.09685; DoRA arXiv:2402.09353; IA3 arXiv:2205.05638; LayerNorm tuning arXiv:2312.11420; prompt
    tuning arXiv:2104.08691; prefix tuning arXiv:2101.00190.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class LoraModule:
    """One LoRA pair: y = Wx + scaling · B(Ax).

    Attributes:
        lora_a: A, (R, in), float32.
        lora_b: B, (out, R), float32; not multiplied by the scaling.
        scaling: s.
    """

    lora_a: Float32Array
    lora_b: Float32Array
    scaling: float


@dataclass(frozen=True, eq=False)
class LinearChange:
    """What an adapter changes at one linear layer; absent parts are None.

    y = output_scale ⊙ (g ⊙ (W(x ⊙ input_scale) + s·B(Ax)) + bias), where g = magnitude / ‖W + s·BA‖ per row of W and
    is 1 without a magnitude. The engine makes g, since W is known there.

    Attributes:
        lora: The pair.
        magnitude: DoRA's m, (out,), float32.
        input_scale: IA3 before a layer, as on a feed-forward's output layer: (in,), float32.
        output_scale: IA3 after a layer, as on k and v: (out,), float32.
        bias: s · b_B of a LoRA with a bias, (out,), float32.
    """

    lora: LoraModule | None = None
    magnitude: Float32Array | None = None
    input_scale: Float32Array | None = None
    output_scale: Float32Array | None = None
    bias: Float32Array | None = None


@dataclass(frozen=True, eq=False)
class WeightAdapterWeights:
    """An adapter that changes the base's layers.

    Attributes:
        linears: Module path in the base, ``encoder.block.0.layer.0.SelfAttention.q`` for instance → its change.
        norms: Path of a norm, ``encoder.final_layer_norm`` for instance → gamma, (D,), float32, in place of the base's.
    """

    linears: Mapping[str, LinearChange]
    norms: Mapping[str, Float32Array]

    @property
    def max_rank(self) -> int:
        """The largest rank of its layers; 0 where it is no LoRA."""
        return max((len(change.lora.lora_a) for change in self.linears.values() if change.lora), default=0)


@dataclass(frozen=True, eq=False)
class SoftPromptWeights:
    """A soft prompt.

    Attributes:
        embeddings: (P, D), float32, in front of the input embeddings: the encoder's where there is one.
    """

    embeddings: Float32Array


@dataclass(frozen=True, eq=False)
class PrefixWeights:
    """A prefix: keys and values in front of those of every decoder layer's self-attention; the encoder has none.

    Attributes:
        keys: (layers, P, H, K), float32.
        values: (layers, P, H, K), float32.
    """

    keys: Float32Array
    values: Float32Array


AdapterWeights = WeightAdapterWeights | SoftPromptWeights | PrefixWeights
