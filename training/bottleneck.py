"""Bottleneck adapters: small two-layer networks behind the sub-layers of a frozen model, and their files.

    y = Wx + U gelu(D Wx)

with W the last linear layer of a sub-layer, D [width, D] down and U [D, width] up. U begins at zero, so that the
model begins as the base. PEFT has no such family and Medley does not serve it: the folder names a `peft_type` of its
own, which a server refuses by that name.

Source: Houlsby et al. 2019, arXiv:1902.00751; after the feed-forward layer alone: Pfeiffer et al. 2020,
arXiv:2005.00247.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from adapters.adapter_folder import CONFIG_FILE, WEIGHTS_FILE
from training.errors import TrainingConfigError

PEFT_TYPE = "BOTTLENECK"
# The last linear layer of attention and of feed-forward, as T5 and as Llama and its kin call them.
_ATTENTION_ENDS, _FEED_FORWARD_ENDS = ("o", "o_proj"), ("wo", "down_proj")


class Bottleneck(torch.nn.Module):
    """A frozen linear layer with a bottleneck behind it; looks like the layer from outside."""

    def __init__(self, linear: torch.nn.Linear, width: int) -> None:
        super().__init__()
        size = linear.out_features
        self.linear = linear
        self.down = torch.nn.Linear(size, width)
        self.up = torch.nn.Linear(width, size)
        torch.nn.init.normal_(self.down.weight, std=1e-2)
        for tensor in (self.down.bias, self.up.weight, self.up.bias):
            torch.nn.init.zeros_(tensor)

    @property
    def weight(self) -> Tensor:
        """The frozen layer's, whose dtype T5 looks at."""
        return self.linear.weight

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output and the network's answer to it."""
        y = self.linear(x)
        return y + self.up(torch.nn.functional.gelu(self.down(y.to(self.down.weight.dtype))))


def add_bottlenecks(model: torch.nn.Module, width: int, after: str) -> None:
    """Put bottlenecks into a frozen model, in place; they alone require a gradient.

    Args:
        model: the base.
        width: of the middle.
        after: `both` kinds of sub-layer or `feed-forward`.

    Raises:
        TrainingConfigError: the model has no layer of a known name.
    """
    ends = _FEED_FORWARD_ENDS if after == "feed-forward" else _ATTENTION_ENDS + _FEED_FORWARD_ENDS
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if name in ends and isinstance(child, torch.nn.Linear)
    ]
    if not found:
        raise TrainingConfigError("the base has no layer a bottleneck could follow; known are T5's and Llama's names")
    for parent, name, linear in found:
        setattr(parent, name, Bottleneck(linear, width))


def save_bottlenecks(model: torch.nn.Module, folder: Path, width: int, after: str, base_name: str) -> None:
    """Write the networks in bfloat16, and a config that says what they are.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: p.detach().to(torch.bfloat16).contiguous().cpu() for name, p in _networks(model).items()}
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    config = {"peft_type": PEFT_TYPE, "base_model_name_or_path": base_name, "width": width, "after": after}
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


@torch.no_grad()
def load_bottlenecks(model: torch.nn.Module, folder: Path) -> None:
    """Put the networks that :func:`save_bottlenecks` wrote into a base, in place.

    Raises:
        OSError: the files cannot be read.
        KeyError: a tensor is missing.
    """
    config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    add_bottlenecks(model, config["width"], config["after"])
    tensors = load_file(folder / WEIGHTS_FILE)
    for name, parameter in _networks(model).items():
        parameter.copy_(tensors[name])


def _networks(model: torch.nn.Module) -> dict[str, Tensor]:
    return {
        f"{path}.{name}": parameter
        for path, module in model.named_modules()
        if isinstance(module, Bottleneck)
        for part in ("down", "up")
        for name, parameter in getattr(module, part).named_parameters(prefix=part)
    }
