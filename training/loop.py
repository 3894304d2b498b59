"""The training loop every recipe shares: batches in, one update a step, log, evaluate, checkpoint, resume.

It does not know what the model is, nor where batches come from. One thread calls it.
"""

from __future__ import annotations

import json
import math
import random
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from training.batch import IGNORED_LABEL, Batch
from training.checkpoint import RunState, load_checkpoint, save_checkpoint
from training.config import LoopConfig
from training.errors import CheckpointError, TrainingDataError
from training.optimizer import RelativeAdamW, learning_rate_at

BatchSource = Callable[[int], Iterator[Batch]]


@dataclass(frozen=True)
class RunFolder:
    """Where one run keeps its checkpoint and log."""

    path: Path

    @property
    def checkpoint(self) -> Path:
        """Folder of the latest checkpoint."""
        return self.path / "checkpoint"

    @property
    def log(self) -> Path:
        """JSON-lines log: one object a logged step or evaluation."""
        return self.path / "log.jsonl"


def seed_everything(seed: int) -> None:
    """Seed every random generator the run could touch.

    Raises:
        Nothing.
    """
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


class Penalty(Protocol):
    """A term of the loss beside the cross-entropy, to hold a model near another for instance.

    Attributes:
        per_batch: Whether it depends on the batch: then it returns the mean over the labels of the part it is given,
            and each part counts by its share of the labels; if not, every part counts alike.
    """

    per_batch: bool

    def __call__(self, model: torch.nn.Module, part: Batch, logits: Tensor) -> Tensor:
        """Return a scalar for one part of a batch and its logits. Parts run in threads of their own."""


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
        penalty: Penalty | None = None,
        evaluate: Callable[[int], dict[str, float]] | None = None,
        keep: Callable[[int, dict[str, float]], float] | None = None,
    ) -> None:
        """Take the model and everything around it.

        Args:
            model: its forward takes input_ids, attention_mask and decoder_input_ids and gives `.logits`; only
                parameters that require a gradient are updated and checkpointed.
            config: lengths, rates and intervals.
            batches: shard number -> that shard's batches, always the same for the same number.
            folder: of this run.
            fingerprint: of the recipe; a checkpoint of another one is refused.
            penalty: added to the loss; None leaves it as it is.
            evaluate: step -> held-out figures.
            keep: called with each evaluation's figures, to export the best weights for instance; returns the one number
                by which states are compared, whose largest value is kept in the run's state as `best`.

        Raises:
            Nothing.
        """
        self.model, self.config, self.batches, self.folder = model, config, batches, folder
        self.fingerprint, self.penalty, self.evaluate, self.keep = fingerprint, penalty, evaluate, keep
        self.trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.optimizer = RelativeAdamW(
            self.trainable.items(), weight_decay=config.weight_decay, relative=config.relative_updates
        )
        stable_until = config.max_steps - round(config.max_steps * config.cooldown_share)
        self.state = RunState(0, 0, 0, 0, 0.0, float("-inf"), fingerprint, stable_until)
        model.to(torch.bfloat16 if config.bfloat16 else torch.float32)

    def resume(self) -> None:
        """Take over the run folder's latest checkpoint.

        Raises:
            CheckpointError: none there, another run's, or one whose learning rate already fell towards another end.
        """
        weights, moments, saved = load_checkpoint(self.folder.checkpoint, self.fingerprint)
        if saved.step > saved.stable_until != self.state.stable_until:
            raise CheckpointError("the checkpoint's learning rate is already falling: its length cannot change")
        self.state = replace(saved, stable_until=self.state.stable_until)
        with torch.no_grad():
            for name, master in self.optimizer.masters.items():
                master.copy_(weights[name])
        self.optimizer.write_back()
        self.optimizer.load_state(moments, self.state.step)
        self._forget_lost_steps()

    def run(self) -> RunState:
        """Train until `max_steps`; checkpoints, logs and evaluates on the way.

        Raises:
            FloatingPointError: the loss is not finite.
            TrainingDataError: a shard has no batches.
        """
        self.folder.path.mkdir(parents=True, exist_ok=True)
        torch.set_num_threads(self.config.num_threads)
        with ThreadPoolExecutor(self.config.num_threads) as pool:
            self._run(pool)
        return self.state

    def _run(self, pool: ThreadPoolExecutor) -> None:
        window: list[float] = []
        window_tokens, window_start = 0, time.monotonic()
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
            step, last = self.state.step, self.state.step == self.config.max_steps
            if step % self.config.log_every == 0 or last:
                self._log_window(window, window_tokens, time.monotonic() - window_start)
                window, window_tokens, window_start = [], 0, time.monotonic()
            if self.evaluate and (step % self.config.evaluate_every == 0 or last):
                self._evaluate()
            if step % self.config.checkpoint_every == 0 or last:
                save_checkpoint(self.folder.checkpoint, self.optimizer.masters, self.optimizer.state(), self.state)

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
        num_labels = int((batch.labels != IGNORED_LABEL).sum())
        # One thread a part, each with its own graph: unlike threads inside an operation, they wait for each other once
        # a step, so another program on the machine costs its share of time and no more.
        parts = self._parts(batch)
        results = list(pool.map(lambda part: self._part(part, num_labels, len(parts)), parts))
        loss = sum(value for value, _ in results)
        if not math.isfinite(loss):
            raise FloatingPointError(f"loss is {loss} at step {self.state.step}")
        gradients = dict(
            zip(self.trainable, map(_total, zip(*(grads for _, grads in results), strict=True)), strict=True)
        )
        rate = learning_rate_at(
            self.state.step,
            peak=self.config.learning_rate,
            warmup_steps=self.config.warmup_steps,
            max_steps=self.config.max_steps,
            cooldown_share=self.config.cooldown_share,
        )
        self.optimizer.step(gradients, rate)
        return loss

    def _parts(self, batch: Batch) -> list[Batch]:
        """Cut the batch's rows into one part a thread."""
        arrays = (batch.input_ids, batch.attention_mask, batch.labels)
        pieces = min(self.config.num_threads, len(batch.input_ids))
        return [Batch(*rows) for rows in zip(*(np.array_split(a, pieces) for a in arrays), strict=True)]

    def _part(self, part: Batch, num_labels: int, num_parts: int) -> tuple[float, tuple[Tensor | None, ...]]:
        """Return a part's share of the mean loss over `num_labels` labels, and its gradients."""
        torch.set_num_threads(1)
        ids, mask, labels = (torch.from_numpy(a) for a in (part.input_ids, part.attention_mask, part.labels))
        # The labels stay here: the model's own loss would be taken in bfloat16.
        inputs = self.model.prepare_decoder_input_ids_from_labels(labels)
        logits = self.model(input_ids=ids, attention_mask=mask, decoder_input_ids=inputs, use_cache=False).logits
        loss = cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), reduction="sum") / num_labels
        if self.penalty:
            share = int((labels != IGNORED_LABEL).sum()) / num_labels if self.penalty.per_batch else 1 / num_parts
            loss = loss + share * self.penalty(self.model, part, logits)
        return loss.item(), torch.autograd.grad(loss, tuple(self.trainable.values()), allow_unused=True)

    def _log_window(self, losses: list[float], tokens: int, seconds: float) -> None:
        step, last = self.state.step, self.config.max_steps
        remaining_s = (last - step) * seconds / max(1, len(losses))
        record = {
            "step": step,
            "loss": sum(losses) / len(losses),
            "tokens_per_s": tokens / seconds,
            "num_tokens": self.state.num_tokens,
            "elapsed_s": self.state.elapsed_s,
        }
        filled = round(20 * step / last)
        self._write(record)
        _say(
            f"[{'#' * filled}{'.' * (20 - filled)}] step {step}/{last} loss {record['loss']:.3f} "
            f"{record['tokens_per_s']:,.0f} tok/s, {remaining_s / 60:.1f} min left"
        )

    def _evaluate(self) -> None:
        assert self.evaluate is not None
        self.model.eval()
        figures = self.evaluate(self.state.step)
        self.model.train()
        self._write({"step": self.state.step, **figures})
        _say(f"  held out at step {self.state.step}: {json.dumps(figures)}")
        if self.keep:
            self.state = replace(self.state, best=max(self.state.best, self.keep(self.state.step, figures)))

    def _forget_lost_steps(self) -> None:
        """Drop log lines of steps after the checkpoint: they will be done, and written, again."""
        lines = self.folder.log.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if json.loads(line)["step"] <= self.state.step]
        self.folder.log.write_text("".join(kept), encoding="utf-8")

    def _write(self, record: dict[str, float]) -> None:
        with self.folder.log.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(record) + "\n")


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _total(gradients: tuple[Tensor | None, ...]) -> Tensor | None:
    """Add the parts' gradients in order; None where no part used the parameter."""
    present = [gradient.float() for gradient in gradients if gradient is not None]
    return torch.stack(present).sum(0) if len(present) > 1 else next(iter(present), None)
