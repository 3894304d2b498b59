"""AdamW, plain or with updates scaled by each tensor's own size, in memory or paged; and the learning-rate schedule.

Plain AdamW hardly trains a T5 from scratch: its embeddings start near 1 and its projections near 0.06, so one step
size cannot suit both. There the learning rate is relative: 0.01 moves each tensor by about one per cent of its size.

Source: the relative step and update clipping of Adafactor, Shazeer & Stern 2018, arXiv:1804.04235, sections 6 and 8.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import torch
from torch import Tensor

from training.errors import TrainingConfigError

MIN_RMS = 1e-3
# Root mean square of an update that torch's Muon makes at a rate of 1, with `match_rms_adamw`.
_MUON_RMS = 0.2


class Optimizer(Protocol):
    """What the loop needs of an optimiser: float32 masters of the parameters, updates, and a state to keep."""

    masters: dict[str, Tensor]

    def step(self, gradients: Mapping[str, Tensor | None], learning_rate: float) -> None:
        """Apply one update; a parameter without a gradient stays as it is."""

    def write_back(self) -> None:
        """Copy the masters into the model's parameters."""

    def state(self) -> dict[str, Tensor]:
        """Return the moments under `first.` and `second.` names."""

    def load_state(self, state: Mapping[str, Tensor], step_count: int) -> None:
        """Take over the moments of :meth:`state` and the step count that belongs to them."""


class _MasterWeights:
    """The model's parameters, and the float32 copies that updates are made on, by name."""

    parameters: dict[str, Tensor]
    masters: dict[str, Tensor]

    @torch.no_grad()
    def write_back(self) -> None:
        """Copy the float32 masters into the model's parameters.

        Raises:
            Nothing.
        """
        for name, parameter in self.parameters.items():
            parameter.copy_(self.masters[name])


class RelativeAdamW(_MasterWeights):
    """AdamW with updates scaled by the RMS of each tensor and clipped at RMS `clip`. One thread at a time.

    It updates float32 masters and copies them into the model's parameters, which may be bfloat16: an update is often
    smaller than a bfloat16 weight's last digit. Its state is two moments a tensor and the step count, as plain tensors:
    it is saved as safetensors.
    """

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, Tensor]],
        betas: tuple[float, float] = (0.9, 0.98),
        weight_decay: float = 0.0,
        relative: bool = True,
        clip: float = 1.0,
    ) -> None:
        """Take the trainable parameters by name; `relative=False` and `clip=0` together give plain AdamW.

        Raises:
            Nothing.
        """
        self.parameters = {name: p for name, p in named_parameters if p.requires_grad}
        self.masters = {name: p.detach().float() for name, p in self.parameters.items()}
        self.betas, self.weight_decay, self.relative, self.clip = betas, weight_decay, relative, clip
        self.step_count = 0
        self.first = {name: torch.zeros_like(p) for name, p in self.masters.items()}
        self.second = {name: torch.zeros_like(p) for name, p in self.masters.items()}

    @torch.no_grad()
    def step(self, gradients: Mapping[str, Tensor | None], learning_rate: float) -> None:
        """Apply one update; a parameter without a gradient stays as it is.

        Raises:
            Nothing.
        """
        self.step_count += 1
        names = [name for name, gradient in gradients.items() if gradient is not None]
        params = [self.masters[name] for name in names]
        grads = [gradients[name].float() for name in names]
        first, second = [self.first[n] for n in names], [self.second[n] for n in names]
        torch._foreach_lerp_(first, grads, 1.0 - self.betas[0])
        torch._foreach_mul_(second, self.betas[1])
        torch._foreach_addcmul_(second, grads, grads, 1.0 - self.betas[1])
        correction = math.sqrt(1.0 - self.betas[1] ** self.step_count) / (1.0 - self.betas[0] ** self.step_count)
        denominators = torch._foreach_sqrt(second)
        torch._foreach_add_(denominators, 1e-8)
        updates = torch._foreach_div(first, denominators)
        torch._foreach_mul_(updates, correction)
        for param, update in zip(params, updates, strict=True):
            scale = learning_rate / max(1.0, _rms(update) / self.clip) if self.clip else learning_rate
            if self.relative:
                scale *= max(MIN_RMS, _rms(param))
            if self.weight_decay:
                param.mul_(1.0 - learning_rate * self.weight_decay)
            param.sub_(update, alpha=scale)
        self.write_back()

    def state(self) -> dict[str, Tensor]:
        """Return the moments under `first.` and `second.` names.

        Raises:
            Nothing.
        """
        return {f"{kind}.{name}": t for kind in ("first", "second") for name, t in getattr(self, kind).items()}

    def load_state(self, state: Mapping[str, Tensor], step_count: int) -> None:
        """Take over the moments of :meth:`state` and the step count that belongs to them.

        Raises:
            KeyError: a moment is missing.
        """
        self.step_count = step_count
        for kind in ("first", "second"):
            for name, tensor in getattr(self, kind).items():
                tensor.copy_(state[f"{kind}.{name}"])


class RelativeMuon(_MasterWeights):
    """Orthogonalized momentum for the matrices inside the layers, :class:`RelativeAdamW` for everything else.

    An update turns a matrix in all its directions by the same amount, also in those that gradients seldom show. As in
    RelativeAdamW, the learning rate is the share of a tensor's own size by which it moves. Matrices are shared
    out among `num_lanes` threads.

    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks".
    """

    def __init__(
        self, named_parameters: Iterable[tuple[str, Tensor]], betas: tuple[float, float], num_lanes: int = 1
    ) -> None:
        """Take the trainable parameters by name; embeddings and tables of relative positions are no such matrices.

        Raises:
            Nothing.
        """
        self.parameters = {name: p for name, p in named_parameters if p.requires_grad}
        rest = {name: p for name, p in self.parameters.items() if not _is_layer_matrix(name, p)}
        self._adamw = RelativeAdamW(rest.items(), betas=betas)
        self._matrices = {
            name: torch.nn.Parameter(p.detach().float()) for name, p in self.parameters.items() if name not in rest
        }
        self.masters = {
            name: self._matrices[name] if name in self._matrices else self._adamw.masters[name]
            for name in self.parameters
        }
        # One group a matrix, as each has a rate of its own.
        groups = [{"params": [(name, matrix)]} for name, matrix in self._matrices.items()]
        self._lanes = [
            torch.optim.Muon(own, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
            for own in (groups[lane::num_lanes] for lane in range(num_lanes))
            if own
        ]
        self._pool = ThreadPoolExecutor(num_lanes)

    @torch.no_grad()
    def step(self, gradients: Mapping[str, Tensor | None], learning_rate: float) -> None:
        """Apply one update; a parameter without a gradient stays as it is.

        Raises:
            Nothing.
        """
        for name, matrix in self._matrices.items():
            gradient = gradients[name]
            matrix.grad = None if gradient is None else gradient.float()
        list(self._pool.map(lambda lane: _turn(lane, learning_rate, torch.get_num_threads()), self._lanes))
        self._adamw.step({name: g for name, g in gradients.items() if name not in self._matrices}, learning_rate)
        self.write_back()

    def state(self) -> dict[str, Tensor]:
        """Return the momentum under `first.` names, and AdamW's moments; no momentum before the first step.

        Raises:
            Nothing.
        """
        buffers = {matrix: kept["momentum_buffer"] for lane in self._lanes for matrix, kept in lane.state.items()}
        momentum = {f"first.{name}": buffers[m] for name, m in self._matrices.items() if m in buffers}
        return {**momentum, **self._adamw.state()}

    def load_state(self, state: Mapping[str, Tensor], step_count: int) -> None:
        """Take over the moments of :meth:`state` and the step count that belongs to them.

        Raises:
            KeyError: a moment is missing.
        """
        self._adamw.load_state(state, step_count)
        names = {matrix: name for name, matrix in self._matrices.items()}
        for lane in self._lanes:
            for matrix in (group["params"][0] for group in lane.param_groups):
                lane.state[matrix]["momentum_buffer"] = state[f"first.{names[matrix]}"].clone()


def _turn(lane: torch.optim.Muon, learning_rate: float, num_threads: int) -> None:
    torch.set_num_threads(num_threads)  # a thread has its own number
    for group in lane.param_groups:
        group["lr"] = learning_rate * max(MIN_RMS, _rms(group["params"][0])) / _MUON_RMS
    lane.step()


class PagedAdamW(_MasterWeights):
    """Plain AdamW of bitsandbytes, whose moments the driver moves to main memory when the GPU has no room. CUDA only.

    Source: Dettmers et al. 2023, arXiv:2305.14314, section 3 (paged optimizers).
    """

    def __init__(
        self, named_parameters: Iterable[tuple[str, Tensor]], betas: tuple[float, float], weight_decay: float
    ) -> None:
        """Take the trainable parameters by name.

        Raises:
            TrainingConfigError: bitsandbytes is not installed.
        """
        try:
            from bitsandbytes.optim import PagedAdamW32bit
        except ImportError as error:
            raise TrainingConfigError(
                "loop.paged_optimizer needs bitsandbytes: pip install 'medley[quantization]'"
            ) from error
        self.parameters = {name: p for name, p in named_parameters if p.requires_grad}
        self.masters = {name: torch.nn.Parameter(p.detach().float().clone()) for name, p in self.parameters.items()}
        self._adamw = PagedAdamW32bit(self.masters.values(), betas=betas, weight_decay=weight_decay)

    @torch.no_grad()
    def step(self, gradients: Mapping[str, Tensor | None], learning_rate: float) -> None:
        """Apply one update; a parameter without a gradient stays as it is.

        Raises:
            Nothing.
        """
        for name, gradient in gradients.items():
            self.masters[name].grad = None if gradient is None else gradient.float()
        for group in self._adamw.param_groups:
            group["lr"] = learning_rate
        self._adamw.step()
        self.write_back()

    def state(self) -> dict[str, Tensor]:
        """Return the moments under `first.` and `second.` names; none before the first step.

        Raises:
            Nothing.
        """
        moments = {}
        for name, master in self.masters.items():
            for kind, key in _PAGED_MOMENTS.items():
                if key in self._adamw.state[master]:
                    moments[f"{kind}.{name}"] = self._adamw.state[master][key].cpu()
        return moments

    def load_state(self, state: Mapping[str, Tensor], step_count: int) -> None:
        """Take over the moments of :meth:`state` and the step count that belongs to them.

        Raises:
            KeyError: a moment is missing.
        """
        for index, (name, master) in enumerate(self.masters.items()):
            self._adamw.init_state(self._adamw.param_groups[0], master, 0, index)
            for kind, key in _PAGED_MOMENTS.items():
                self._adamw.state[master][key].copy_(state[f"{kind}.{name}"])
            self._adamw.state[master]["step"] = step_count


_PAGED_MOMENTS = {"first": "state1", "second": "state2"}


def _is_layer_matrix(name: str, parameter: Tensor) -> bool:
    tables = ("shared.", "embed", "lm_head.", "relative_attention_bias.")
    return parameter.ndim == 2 and not any(table in name for table in tables)


def _rms(tensor: Tensor) -> float:
    return tensor.norm().item() / math.sqrt(tensor.numel())


def learning_rate_at(step: int, *, peak: float, warmup_steps: int, max_steps: int, cooldown_share: float) -> float:
    """Return the warmup-stable-decay rate of `step` (0-based): linear up, constant, linear down to a hundredth.

    The stable phase does not depend on `max_steps`, so a run stopped in it can be continued to any length.

    Source: Hägele et al. 2024, arXiv:2405.18392 (constant rate with cooldown).

    Raises:
        Nothing.
    """
    cooldown_steps = max(1, round(max_steps * cooldown_share))
    rising = (step + 1) / max(1, warmup_steps)
    falling = max(0.01, (max_steps - step) / cooldown_steps)
    return peak * min(1.0, rising, falling)
