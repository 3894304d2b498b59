"""Terms of the loss that hold a model near where it began, so that it forgets less: L2-SP, EWC and KL to the base.

Each is a penalty as the loop takes them. They know parameters and logits; they do not know tasks, nor the loop.

Legend: B rows, L output positions, V vocabulary; θ parameters, θ* where they began, λ strength.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from training.batch import IGNORED_LABEL, Batch

Logits = Callable[[torch.nn.Module, Tensor, Tensor, Tensor], Tensor]


def start_of(model: torch.nn.Module) -> dict[str, Tensor]:
    """Return a copy of every trainable parameter as it is now, in float32: θ*.

    Raises:
        Nothing.
    """
    return {name: p.detach().float().clone() for name, p in model.named_parameters() if p.requires_grad}


@dataclass(frozen=True)
class L2ToStart:
    """λ/2 · Σ (θ - θ*)².

    Source: L2-SP, Li et al. 2018, arXiv:1802.01483, without its second term: there are no new layers here.

    Attributes:
        start: θ* by parameter name.
        strength: λ; 0 adds nothing.
    """

    start: Mapping[str, Tensor]
    strength: float
    per_batch: bool = field(default=False, init=False)

    def __call__(self, model: torch.nn.Module, part: Batch, logits: Tensor) -> Tensor:  # noqa: ARG002 - one face
        """Return the penalty, which depends on the parameters alone.

        Raises:
            KeyError: the model lacks a parameter of the start.
        """
        now = dict(model.named_parameters())
        terms = [(now[name].float() - start).square().sum() for name, start in self.start.items()]
        return self.strength / 2 * torch.stack(terms).sum()


@dataclass(frozen=True)
class ElasticWeights:
    """λ/2 · Σ F · (θ - θ*)²: what mattered to the task before moves least.

    Source: EWC, Kirkpatrick et al. 2017, arXiv:1612.00796, equation 3.

    Attributes:
        start: θ* by parameter name.
        importance: F by parameter name, of :func:`fisher_diagonal`.
        strength: λ; 0 adds nothing.
    """

    start: Mapping[str, Tensor]
    importance: Mapping[str, Tensor]
    strength: float
    per_batch: bool = field(default=False, init=False)

    def __call__(self, model: torch.nn.Module, part: Batch, logits: Tensor) -> Tensor:  # noqa: ARG002 - one face
        """Return the penalty, which depends on the parameters alone.

        Raises:
            KeyError: the model lacks a parameter of the start, or its importance is not known.
        """
        now = dict(model.named_parameters())
        terms = [
            (self.importance[name] * (now[name].float() - start).square()).sum() for name, start in self.start.items()
        ]
        return self.strength / 2 * torch.stack(terms).sum()


@dataclass(frozen=True)
class KlToReference:
    """λ · mean over labels of KL(reference ‖ model): the outputs stay, whatever the parameters do.

    The reference is a frozen copy of its own. Switching an adapter off on the model itself would do for one thread,
    but the parts of a batch run side by side on one model.

    Source: KL to the model before as in Li & Hoiem 2016, arXiv:1606.09282 (learning without forgetting), taken at
    temperature 1 over the new task's own inputs.

    Attributes:
        reference: Gives the distribution to stay near; never trained.
        logits_of: Runs a model on ids, mask and labels.
        strength: λ; 0 adds nothing.
    """

    reference: torch.nn.Module
    logits_of: Logits
    strength: float
    per_batch: bool = field(default=True, init=False)

    def __call__(self, model: torch.nn.Module, part: Batch, logits: Tensor) -> Tensor:  # noqa: ARG002 - one face
        """Return the mean over the part's labels.

        Raises:
            Nothing.
        """
        ids, mask, labels_BL = _tensors(part, logits.device)
        with torch.no_grad():
            reference_BLV = self.logits_of(self.reference, ids, mask, labels_BL)
        is_label = labels_BL != IGNORED_LABEL
        now, before = (log_softmax(x_BLV[is_label].float(), dim=-1) for x_BLV in (logits, reference_BLV))
        return self.strength * kl_div(now, before, reduction="batchmean", log_target=True)


def fisher_diagonal(model: torch.nn.Module, examples: Iterable[Batch], logits_of: Logits) -> dict[str, Tensor]:
    """Return the diagonal of the empirical Fisher information: mean over examples of the squared gradient.

    Each batch has to hold one example: squares of a batch's mean gradient would be something else. The gradient is of
    the example's log-likelihood (summed over its labels), with the labels as they are in the data, not drawn from the
    model; that is the usual, cheaper form.

    Raises:
        ValueError: no examples, or a batch of several.
    """
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    total = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in trainable.items()}
    num = 0
    for example in examples:
        if len(example.labels) != 1:
            raise ValueError("the Fisher information is taken example by example")
        ids, mask, labels_BL = _tensors(example, next(iter(trainable.values())).device)
        logits_BLV = logits_of(model, ids, mask, labels_BL)
        loss = cross_entropy(logits_BLV.flatten(0, 1).float(), labels_BL.flatten(), reduction="sum")
        gradients = torch.autograd.grad(loss, list(trainable.values()), allow_unused=True)
        for name, gradient in zip(trainable, gradients, strict=True):
            if gradient is not None:
                total[name] += gradient.float().square()
        num += 1
    if not num:
        raise ValueError("no examples to take the Fisher information of")
    return {name: squares / num for name, squares in total.items()}


def _tensors(batch: Batch, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    ids, mask, labels = (torch.from_numpy(a).to(device) for a in (batch.input_ids, batch.attention_mask, batch.labels))
    return ids, mask, labels
