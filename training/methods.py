"""What each method of adaptation can be told: one small section of a recipe file each, named after the method.

It knows names, ranges and defaults. It knows no torch and does not train; `training.recipes` does.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from training.errors import TrainingConfigError

MAX_VIRTUAL_TOKENS = 128
ALL_LINEAR = "all-linear"


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise TrainingConfigError(what)


@dataclass(frozen=True)
class FullMethod:
    """Every weight of the base. The result is a base of its own."""


@dataclass(frozen=True)
class LoraMethod:
    """Low-rank updates beside linear layers.

    Attributes:
        rank: R of every pair of matrices; 1 or more.
        alpha: The update counts alpha/R, or alpha/√R with `rslora`.
        target_modules: Names that end the paths of the layers; `all-linear` alone: every one but the output head.
        rank_pattern: End of a layer's path → its rank.
        alpha_pattern: End of a layer's path → its alpha.
        dropout: Share of the update's input that is dropped in training; 0 up to 1.
        rslora: Scale by the square root of the rank.
        dora: Learn each output row's size beside its direction.
        init: How A begins: `default` (PEFT's uniform), `gaussian` or `orthogonal` (B then begins so, too).
    """

    rank: int = 32
    alpha: int = 64
    target_modules: tuple[str, ...] = (ALL_LINEAR,)
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, int] = field(default_factory=dict)
    dropout: float = 0.0
    rslora: bool = False
    dora: bool = False
    init: str = "default"

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            TrainingConfigError: a value is out of its range.
        """
        _require(self.rank >= 1 and min(self.rank_pattern.values(), default=1) >= 1, "a LoRA's rank is 1 or more")
        _require(0.0 <= self.dropout < 1.0, "a LoRA's dropout is 0 or more, and below 1")
        _require(len(self.target_modules) > 0, "a LoRA needs target_modules")
        known = ("default", "gaussian", "orthogonal")
        _require(
            self.init in known, f"a LoRA's init is one of {', '.join(known)}: others change the base's own weights"
        )


@dataclass(frozen=True)
class QloraMethod(LoraMethod):
    """A LoRA over a base held in 4 bits (NF4); it is served over the base as it was.

    Attributes:
        double_quantization: Quantize the quantization constants, too: 4.13 bits a weight rather than 4.5.
    """

    double_quantization: bool = True


@dataclass(frozen=True)
class PromptMethod:
    """Learned embeddings in front of the text; nothing else changes.

    Attributes:
        num_virtual_tokens: 1 to 128; 20 to 100 are usual.
        init: Where the rows begin: `random`, `vocabulary` (words drawn from the commonest), `text` or `class-labels`.
        init_text: For `text`: its tokens, repeated as needed.
        class_labels: For `class-labels`: one row a label, the rest drawn from the vocabulary.
    """

    num_virtual_tokens: int = 20
    init: str = "text"
    init_text: str = "Summarize what both speakers say, want and decide, in the third person."
    class_labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            TrainingConfigError: a value is out of its range.
        """
        _check_num_virtual_tokens(self.num_virtual_tokens)
        known = ("random", "vocabulary", "text", "class-labels")
        _require(self.init in known, f"a soft prompt's init is one of {', '.join(known)}")
        _require(self.init != "text" or bool(self.init_text.strip()), "init text needs init_text")
        _require(self.init != "class-labels" or bool(self.class_labels), "init class-labels needs class_labels")
        _require(len(self.class_labels) <= self.num_virtual_tokens, "there are more class_labels than virtual tokens")


@dataclass(frozen=True)
class PTuningMethod:
    """A soft prompt whose rows come out of a small network; only the rows are kept.

    Attributes:
        num_virtual_tokens: 1 to 128.
        network: `mlp` or `lstm`.
        hidden_size: Width of the network; 0 for the base's.
    """

    num_virtual_tokens: int = 20
    network: str = "mlp"
    hidden_size: int = 0

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            TrainingConfigError: a value is out of its range.
        """
        _check_num_virtual_tokens(self.num_virtual_tokens)
        _require(self.network in ("mlp", "lstm"), "p-tuning's network is mlp or lstm")
        _require(self.hidden_size >= 0, "p-tuning's hidden_size is 0 or more")


@dataclass(frozen=True)
class PrefixMethod:
    """Learned keys and values in front of those of the decoder's self-attention.

    Attributes:
        num_virtual_tokens: 1 to 128.
        projection: Let a small network make them; only what it makes is kept.
        hidden_size: Width of that network; 0 for the base's.
    """

    num_virtual_tokens: int = 20
    projection: bool = False
    hidden_size: int = 0

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            TrainingConfigError: a value is out of its range.
        """
        _check_num_virtual_tokens(self.num_virtual_tokens)
        _require(self.hidden_size >= 0, "prefix tuning's hidden_size is 0 or more")


@dataclass(frozen=True)
class Ia3Method:
    """One learned vector a layer, times its output or its input.

    Attributes:
        target_modules: Names that end the paths of the layers; empty for PEFT's choice: keys, values, last of the FFN.
        feedforward_modules: Those of them whose input is scaled instead of the output.
    """

    target_modules: tuple[str, ...] = ()
    feedforward_modules: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            TrainingConfigError: a value is out of its range.
        """
        known = set(self.feedforward_modules) <= set(self.target_modules)
        _require(known, "IA3's feedforward_modules must be among its target_modules")


@dataclass(frozen=True)
class SelectiveMethod:
    """Some of the base's own tensors.

    Attributes:
        tensors: `norms` (served as an adapter), `biases`, or `last-layers` (a base of their own).
        num_layers: For `last-layers`: blocks counted from the end of each stack.
    """

    tensors: str = "norms"
    num_layers: int = 1

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            TrainingConfigError: a value is out of its range.
        """
        known = ("norms", "biases", "last-layers")
        _require(self.tensors in known, f"selective tuning's tensors is one of {', '.join(known)}")
        _require(self.num_layers >= 1, "selective tuning's num_layers is 1 or more")


@dataclass(frozen=True)
class BottleneckMethod:
    """Small two-layer networks inside the blocks. Medley does not serve them.

    Attributes:
        width: Of the narrow middle.
        after: `both` sub-layers, attention and feed-forward (Houlsby), or `feed-forward` alone (Pfeiffer).
    """

    width: int = 64
    after: str = "both"

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            TrainingConfigError: a value is out of its range.
        """
        _require(self.width >= 1, "a bottleneck's width is 1 or more")
        _require(self.after in ("both", "feed-forward"), "a bottleneck comes after both or feed-forward")


@dataclass(frozen=True)
class MultitaskMethod:
    """Several data sources in one run, mixed by the rates of `data.mixture`.

    Attributes:
        under: What is trained on the mixture, `lora` or `full`.
        lora: The LoRA, where it is one.
    """

    under: str = "lora"
    lora: LoraMethod = field(default_factory=LoraMethod)

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            TrainingConfigError: a value is out of its range.
        """
        _require(self.under in ("lora", "full"), "multitask trains lora or full")


Method = (
    FullMethod
    | LoraMethod
    | PromptMethod
    | PTuningMethod
    | PrefixMethod
    | Ia3Method
    | SelectiveMethod
    | BottleneckMethod
    | MultitaskMethod
)
METHODS: dict[str, type[Method]] = {
    "full": FullMethod,
    "lora": LoraMethod,
    "qlora": QloraMethod,
    "prompt": PromptMethod,
    "p-tuning": PTuningMethod,
    "prefix": PrefixMethod,
    "ia3": Ia3Method,
    "selective": SelectiveMethod,
    "bottleneck": BottleneckMethod,
    "multitask": MultitaskMethod,
}


def method_name(method: Method) -> str:
    """Return what a method is called on the command line and in recipe files.

    Raises:
        Nothing.
    """
    return next(name for name, kind in METHODS.items() if kind is type(method))


def _check_num_virtual_tokens(number: int) -> None:
    _require(1 <= number <= MAX_VIRTUAL_TOKENS, f"num_virtual_tokens is 1 to {MAX_VIRTUAL_TOKENS}")
