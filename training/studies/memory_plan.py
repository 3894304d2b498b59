"""Plan the memory of a training step from a model's config alone: the step is gone through on tensors without data.

Weights, gradients and optimizer states are counted; activations and working memory come from the dry run, which
allocates nothing: every tensor on the meta device has a shape and a lifetime, and no bytes. It knows no files.

Legend: B rows, E encoder tokens, L decoder tokens, V vocabulary.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from training.studies.config import MemoryShape

_MOMENT_BYTES = 8
_MASTER_BYTES = 4
_UPDATE_BYTES = 8


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of one training step; `peak` is the most that is held at once.

    Attributes:
        weights: Parameters and buffers, frozen ones included.
        optimizer: Two float32 moments a trainable parameter, and a float32 master where the weights are narrower.
        gradients: One a trainable parameter, in its dtype.
        activations: What the forward pass leaves for the backward pass.
        working: The most that comes and goes beside weights and optimizer states: activations and gradients while the
            backward pass turns the ones into the others, or gradients and the update's own arrays.
        num_trainable: Parameters that are trained.
        num_total: All parameters; a soft prompt's or an adapter's among them.
    """

    weights: int
    optimizer: int
    gradients: int
    activations: int
    working: int
    num_trainable: int
    num_total: int

    @property
    def peak(self) -> int:
        """Most bytes held at once."""
        return self.weights + self.optimizer + self.working


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors made inside it for as long as each storage lives. One thread.

    Attributes:
        live: Bytes now.
        peak: The most so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._seen: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the operation and count what it made."""
        if func is torch.ops.aten._local_scalar_dense.default:
            # Asked only whether a mask hides nothing: plan for a batch with padding, whose masks take memory.
            return False
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf)
        return result

    def ignore(self, tensors: Iterable[Tensor]) -> None:
        """Leave tensors that were there before out of the count.

        Raises:
            Nothing.
        """
        for tensor in tensors:
            self._seen[tensor.untyped_storage()] = True

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self._seen:
            return
        self._seen[storage] = True
        num_bytes = storage.nbytes()
        self.live += num_bytes
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._release, num_bytes)

    def _release(self, num_bytes: int) -> None:
        self.live -= num_bytes


def plan_step(model: torch.nn.Module, shape: MemoryShape) -> MemoryPlan:
    """Return what a training step of `model`, which lies on the meta device, would take.

    Raises:
        Nothing.
    """
    held = {t.untyped_storage(): t for t in (*model.parameters(), *model.buffers())}
    trainable = [p for p in model.parameters() if p.requires_grad]
    num_trainable = sum(p.numel() for p in trainable)
    is_narrow = any(p.dtype != torch.float32 for p in trainable)
    gradients = sum(p.numel() * p.element_size() for p in trainable)
    activations, peak = _dry_run(model.train(), trainable, shape)
    update = gradients + num_trainable * (_UPDATE_BYTES + _MASTER_BYTES * is_narrow)
    return MemoryPlan(
        weights=sum(storage.nbytes() for storage in held),
        optimizer=num_trainable * (_MOMENT_BYTES + _MASTER_BYTES * is_narrow),
        gradients=gradients,
        activations=activations,
        working=max(peak, update),
        num_trainable=num_trainable,
        num_total=count_parameters(model),
    )


def count_parameters(model: torch.nn.Module) -> int:
    """Return the number of parameters; a four-bit weight counts as the numbers it stands for.

    Raises:
        Nothing.
    """
    return sum(p.numel() * (1 if p.is_floating_point() else 2) for p in model.parameters())


def forward_and_backward(
    model: torch.nn.Module, inputs: Mapping[str, Tensor], labels_BL: Tensor, trainable: list[Tensor]
) -> Iterator[tuple[Tensor | None, ...]]:
    """Go through a step's two passes as the loop does; gives nothing between them, and the gradients after them.

    Raises:
        Nothing.
    """
    logits_BLV = model(**inputs, use_cache=False).logits
    loss = cross_entropy(logits_BLV.flatten(0, 1).float(), labels_BL.flatten(), reduction="sum")
    yield ()
    yield torch.autograd.grad(loss, trainable, allow_unused=True)


def step_inputs(
    model: torch.nn.Module, shape: MemoryShape, ids: Callable[[int], Tensor]
) -> tuple[dict[str, Tensor], Tensor]:
    """Return a model's inputs and labels; `ids` makes (B, length) token ids.

    Raises:
        Nothing.
    """
    if model.config.is_encoder_decoder:
        source, target = ids(shape.source), ids(shape.target)
        return {"input_ids": source, "attention_mask": _padded(source), "decoder_input_ids": target}, target
    whole = ids(shape.source + shape.target)
    return {"input_ids": whole, "attention_mask": _padded(whole)}, whole


def _padded(ids: Tensor) -> Tensor:
    mask = torch.ones_like(ids)
    mask[0, -1] = 0  # without any padding no masks would be made
    return mask


def _dry_run(model: torch.nn.Module, trainable: list[Tensor], shape: MemoryShape) -> tuple[int, int]:
    """Return the bytes held between forward and backward pass, and the most held during both."""
    tracker = LiveBytes()
    tracker.ignore((*model.parameters(), *model.buffers()))
    inputs, labels_BL = step_inputs(
        model, shape, lambda n: torch.empty((shape.rows, n), dtype=torch.long, device="meta")
    )
    with tracker:
        passes = forward_and_backward(model, inputs, labels_BL, trainable)
        next(passes)
        activations = tracker.live
        next(passes)
    return activations, tracker.peak
