"""The training loop every recipe shares: batches in, one update a step, log, evaluate, checkpoint, resume.

It does not know what the model is, nor where batches come from. One thread calls it.

Legend: B rows, L output positions, V vocabulary.
"""

from __future__ import annotations

import functools
import json
import math
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from training.batch import IGNORED_LABEL, Batch, split_rows
from training.checkpoint import RunFolder, RunState, load_checkpoint, save_checkpoint
from training.config import LoopConfig
from training.errors import CheckpointError, TrainingConfigError, TrainingDataError
from training.mishaps import explained, not_finite
from training.objective import Objective, seq2seq_logits
from training.optimizer import Optimizer, PagedAdamW, RelativeAdamW, RelativeMuon, learning_rate_at
from training.run_log import ProgressLine, RunLog

BatchSource = Callable[[int], Iterator[Batch]]


class Penalty(Protocol):
    """A term of the loss beside the cross-entropy, to hold a model near another for instance.

    Attributes:
        per_batch: Whether it depends on the batch. If so it returns the mean over the labels of the part it is given,
            and each part counts by its share of the labels; if not, every part counts alike. Either way what it
            adds to a step's loss does not depend on how many parts the batch was cut into.
    """

    per_batch: bool

    def __call__(self, model: torch.nn.Module, part: Batch, logits: Tensor) -> Tensor:
        """Return a scalar for one part of a batch and its logits_BLV. Parts may run in threads of their own."""


def seed_everything(seed: int) -> None:
    """Seed every random generator the run could touch.

    Raises:
        Nothing.
    """
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


class Trainer:
    """Runs one recipe's optimisation to the end. Not safe to share between threads."""

    def __init__(
        self,
        *,
        model: torch.nn.Module,
        config: LoopConfig,
        batches: BatchSource,
        folder: RunFolder,
        fingerprint: str,
        objective: Objective = seq2seq_logits,
        penalty: Penalty | None = None,
        evaluate: Callable[[int], dict[str, float]] | None = None,
        score: Callable[[dict[str, float]], float] | None = None,
        export: Callable[[Path], None] | None = None,
        title: str = "training",
    ) -> None:
        """Take the model and everything around it.

        Args:
            model: what `objective` runs; only parameters that require a gradient are updated and checkpointed.
            config: lengths, rates and intervals.
            batches: shard number -> that shard's batches, always the same for the same number.
            folder: of this run.
            fingerprint: of the recipe; a checkpoint of another one is refused.
            objective: runs the model on a batch.
            penalty: added to the loss; None leaves it as it is.
            evaluate: step -> held-out figures.
            score: held-out figures -> the one number by which states are compared; larger is better.
            export: writes the weights as they are to a folder; called whenever `score` is the best so far.
            title: what the run is called in MLflow.

        Raises:
            TrainingConfigError: settings that exclude each other.
        """
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model, self.config, self.batches, self.folder = model.to(self.device), config, batches, folder
        self.fingerprint, self.objective, self.penalty, self.title = fingerprint, objective, penalty, title
        self.evaluate, self.score, self.export = evaluate, score, export
        self.trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        # Dropout draws from one generator: parts that ran side by side would draw in no fixed order.
        self.num_lanes = 1 if self.device.type == "cuda" or _drops_out(model) else config.num_threads
        self.optimizer = _optimizer(self.trainable, config, self.device, self.num_lanes)
        stable_until = config.max_steps - round(config.max_steps * config.cooldown_share)
        self.state = RunState(0, 0, 0, 0, 0.0, float("-inf"), 0, fingerprint, stable_until)
        model.to(torch.bfloat16 if config.bfloat16 else torch.float32)

    def resume(self, step: int | None = None) -> None:
        """Take over the checkpoint of `step`, or the latest; what came after it is forgotten.

        Raises:
            CheckpointError: none there, another run's, or one whose learning rate already fell towards another end.
        """
        weights, moments, saved = load_checkpoint(self.folder, step, self.fingerprint)
        if saved.step > saved.stable_until != self.state.stable_until:
            raise CheckpointError("the checkpoint's learning rate is already falling: its length cannot change")
        self.folder.forget_after(saved.step)
        self.state = replace(saved, stable_until=self.state.stable_until)
        with torch.no_grad():
            for name, master in self.optimizer.masters.items():
                master.copy_(weights[name])
        self.optimizer.write_back()
        self.optimizer.load_state(moments, self.state.step)

    def run(self) -> RunState:
        """Train until `max_steps`; checkpoints, logs and evaluates on the way.

        Raises:
            TrainingRunError: the loss is not finite, or memory has run out; the message says what to try.
            TrainingDataError: a shard has no batches.
            TrainingConfigError: the log needs a package that is not installed.
        """
        self.folder.path.mkdir(parents=True, exist_ok=True)
        torch.set_num_threads(self.config.num_threads)
        self.model.train()
        with (
            ThreadPoolExecutor(self.num_lanes) as pool,
            RunLog(self.folder, self.config, self.title, self.state.step) as log,
            ProgressLine(self.config.max_steps) as progress,
            explained(lambda: self.state.step),
        ):
            self._run(pool, log, progress)
        return self.state

    def _run(self, pool: ThreadPoolExecutor, log: RunLog, progress: ProgressLine) -> None:
        window, window_tokens, window_start = [], 0, time.monotonic()
        for batch in self._stream():
            started = time.monotonic()
            window.append(self._step(batch, pool))
            window_tokens += batch.num_tokens
            self.state = replace(
                self.state,
                step=self.state.step + 1,
                batch=self.state.batch + 1,
                num_tokens=self.state.num_tokens + batch.num_tokens,
                elapsed_s=self.state.elapsed_s + time.monotonic() - started,
            )
            if self._is_due(self.config.log_every):
                seconds = time.monotonic() - window_start
                self._log_window(window, window_tokens, seconds, log, progress)
                window, window_tokens, window_start = [], 0, time.monotonic()
            if self.evaluate and self._is_due(self.config.evaluate_every):
                self._evaluate(log, progress)
            if self._is_due(self.config.checkpoint_every):
                self._checkpoint()

    def _is_due(self, every: int) -> bool:
        return self.state.step % every == 0 or self.state.step == self.config.max_steps

    def _stream(self) -> Iterator[Batch]:
        """Give batches from where the state stands, shard after shard, until `max_steps`."""
        while self.state.step < self.config.max_steps:
            index = -1
            for index, batch in enumerate(self.batches(self.state.shard)):
                if index < self.state.batch:
                    continue
                if self.state.step >= self.config.max_steps:
                    return
                yield batch
            if index < 0:
                raise TrainingDataError("no training pair fits the length limits and the tokens of a batch")
            self.state = replace(self.state, shard=self.state.shard + 1, batch=0)

    def _step(self, batch: Batch, pool: ThreadPoolExecutor) -> float:
        # From the seed and the step alone, so that a run that resumes anywhere drops the same units.
        torch.manual_seed(self.config.seed * 1_000_003 + self.state.step)
        num_labels = int((batch.labels != IGNORED_LABEL).sum())
        slices = [split_rows(piece, self.num_lanes) for piece in split_rows(batch, self.config.accumulation)]
        num_parts = sum(map(len, slices))
        loss, gradients = 0.0, dict.fromkeys(self.trainable)
        for parts in slices:
            # One thread a part, each with its own graph: unlike threads inside an operation, they wait for each other
            # once a slice, so another program on the machine costs its share of time and no more.
            results = list(pool.map(lambda part: self._part(part, num_labels, num_parts), parts))
            loss += sum(value for value, _ in results)
            for name, found in zip(self.trainable, zip(*(grads for _, grads in results), strict=True), strict=True):
                gradients[name] = _total((gradients[name], *found))
        rate = self._learning_rate()
        if not math.isfinite(loss):
            raise not_finite(loss, self.state.step, rate, self.folder)
        torch.set_num_threads(self._threads_a_lane)
        self.optimizer.step(_limited(gradients, self.config.max_grad_norm), rate)
        torch.set_num_threads(self.config.num_threads)
        return loss

    @property
    def _threads_a_lane(self) -> int:
        return self.config.num_threads // self.num_lanes

    def _learning_rate(self) -> float:
        return learning_rate_at(
            self.state.step,
            peak=self.config.learning_rate,
            warmup_steps=self.config.warmup_steps,
            max_steps=self.config.max_steps,
            cooldown_share=self.config.cooldown_share,
        )

    def _part(self, part: Batch, num_labels: int, num_parts: int) -> tuple[float, tuple[Tensor | None, ...]]:
        """Return a part's share of the mean loss over `num_labels` labels, and its gradients."""
        torch.set_num_threads(self._threads_a_lane)
        arrays = (part.input_ids, part.attention_mask, part.labels)
        ids, mask, labels = (torch.from_numpy(a).to(self.device) for a in arrays)
        logits = self.objective(self.model, ids, mask, labels)
        loss = cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), reduction="sum") / num_labels
        if self.penalty is not None:
            share = int((part.labels != IGNORED_LABEL).sum()) / num_labels if self.penalty.per_batch else 1 / num_parts
            loss = loss + share * self.penalty(self.model, part, logits)
        return loss.item(), torch.autograd.grad(loss, tuple(self.trainable.values()), allow_unused=True)

    def _log_window(
        self, losses: list[float], tokens: int, seconds: float, log: RunLog, progress: ProgressLine
    ) -> None:
        loss = sum(losses) / len(losses)
        figures = {
            "loss": loss,
            "learning_rate": self._learning_rate(),
            "tokens_per_s": tokens / seconds,
            "num_tokens": self.state.num_tokens,
            "elapsed_s": self.state.elapsed_s,
        }
        log.write(self.state.step, figures)
        progress.show(self.state.step, loss, tokens / seconds, seconds / len(losses))

    def _evaluate(self, log: RunLog, progress: ProgressLine) -> None:
        assert self.evaluate is not None
        self.model.eval()
        figures = self.evaluate(self.state.step)
        log.write(self.state.step, figures)
        progress.say(f"  held out at step {self.state.step}: {json.dumps(figures)}")
        if self.score and self.export and self.score(figures) > self.state.best:
            self.state = replace(self.state, best=self.score(figures), best_step=self.state.step)
            self.export(self.folder.best(self.state.step))
        self.model.train()

    def _checkpoint(self) -> None:
        folder = self.folder.checkpoint(self.state.step)
        save_checkpoint(folder, self.optimizer.masters, self.optimizer.state(), self.state)
        self.folder.forget_old(self.config.keep_checkpoints)


def _optimizer(trainable: dict[str, Tensor], config: LoopConfig, device: torch.device, num_lanes: int) -> Optimizer:
    if config.paged_optimizer and (config.relative_updates or config.update_clip):
        raise TrainingConfigError("loop.paged_optimizer is plain AdamW: set relative_updates: false and update_clip: 0")
    if config.paged_optimizer and device.type == "cuda":
        return PagedAdamW(trainable.items(), betas=config.betas, weight_decay=config.weight_decay)
    if config.orthogonal_updates:
        if not config.relative_updates or config.weight_decay:
            raise TrainingConfigError(
                "loop.orthogonal_updates moves tensors by shares of their size: "
                "set relative_updates: true and weight_decay: 0"
            )
        return RelativeMuon(trainable.items(), config.betas, num_lanes)
    return RelativeAdamW(
        trainable.items(),
        betas=config.betas,
        weight_decay=config.weight_decay,
        relative=config.relative_updates,
        clip=config.update_clip,
    )


def _drops_out(model: torch.nn.Module) -> bool:
    """Say whether a forward pass in training draws random numbers, as a module or as a rate in the model's config."""
    modules = any(isinstance(module, torch.nn.Dropout) and module.p > 0 for module in model.modules())
    config = getattr(model, "config", None)
    return modules or any(getattr(config, name, 0) for name in ("dropout_rate", "attention_dropout"))


def _limited(gradients: dict[str, Tensor | None], max_norm: float) -> dict[str, Tensor | None]:
    """Scale the gradients down together where their common norm is above `max_norm`; 0 for no limit."""
    if not max_norm:
        return gradients
    present = [gradient for gradient in gradients.values() if gradient is not None]
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(gradient.float()) for gradient in present]))
    factor = min(1.0, max_norm / (norm.item() + 1e-6))
    return {name: None if gradient is None else gradient * factor for name, gradient in gradients.items()}


def _total(gradients: tuple[Tensor | None, ...]) -> Tensor | None:
    """Add the parts' gradients in order; None where no part used the parameter."""
    present = [gradient for gradient in gradients if gradient is not None]
    return functools.reduce(torch.add, present[1:], present[0].float()) if present else None
