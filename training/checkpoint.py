"""Save and load a run's state: weights and moments as safetensors, counters as JSON. Never pickle.

A checkpoint is a folder written beside its final name and renamed, so a killed run never leaves half of one. Random
numbers need no place in it: a step draws its own from the run's seed and the step's number.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from training.errors import CheckpointError

_STATE_FILE = "state.json"


@dataclass(frozen=True)
class RunState:
    """Where a run is: steps done, place in the data, tokens and seconds spent, best held-out score so far and its step.

    `stable_until` is the step at which the run's learning rate begins to fall.
    """

    step: int
    shard: int
    batch: int
    num_tokens: int
    elapsed_s: float
    best: float
    best_step: int
    fingerprint: str
    stable_until: int


@dataclass(frozen=True)
class RunFolder:
    """Where one run keeps its checkpoints, its log, and the best weights in the form they are published in."""

    path: Path

    @property
    def log(self) -> Path:
        """JSON-lines log: one object a logged step or evaluation."""
        return self.path / "log.jsonl"

    @property
    def tensorboard(self) -> Path:
        """The same for TensorBoard."""
        return self.path / "tensorboard"

    def checkpoint(self, step: int) -> Path:
        """Folder of the checkpoint after `step` steps."""
        return self.path / "checkpoints" / f"step-{step:06d}"

    def best(self, step: int) -> Path:
        """Folder of what was exported at `step`, the best so far then."""
        return self.path / "best" / f"step-{step:06d}"

    def checkpoint_steps(self) -> list[int]:
        """Return the steps of the checkpoints that are kept, in order."""
        found = (path.parent.name for path in self.path.glob(f"checkpoints/step-*/{_STATE_FILE}"))
        return sorted(int(name.removeprefix("step-")) for name in found if not name.endswith(".partial"))

    def forget_after(self, step: int) -> None:
        """Delete the checkpoints of steps after `step`: a run that goes on from there makes them again.

        Raises:
            OSError: the disk refuses.
        """
        for later in self.checkpoint_steps():
            if later > step:
                shutil.rmtree(self.checkpoint(later))

    def forget_old(self, num_kept: int) -> None:
        """Delete all but the latest checkpoints, and the exports that none of those left calls its best.

        Raises:
            OSError: the disk refuses.
        """
        steps = self.checkpoint_steps()
        for step in steps[:-num_kept]:
            shutil.rmtree(self.checkpoint(step))
        named = {self.best(_read_state(self.checkpoint(step)).best_step) for step in steps[-num_kept:]}
        for folder in set(self.path.glob("best/step-*")) - named:
            shutil.rmtree(folder)


def save_checkpoint(
    folder: Path, weights: Mapping[str, Tensor], moments: Mapping[str, Tensor], state: RunState
) -> None:
    """Write a checkpoint folder, replacing one of the same name.

    Raises:
        OSError: the disk refuses.
    """
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file({k: v.detach().clone().contiguous() for k, v in weights.items()}, partial / "weights.safetensors")
    save_file({k: v.detach().clone().contiguous() for k, v in moments.items()}, partial / "optimizer.safetensors")
    (partial / _STATE_FILE).write_text(json.dumps(asdict(state), indent=1))
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def load_checkpoint(
    folder: RunFolder, step: int | None, fingerprint: str
) -> tuple[dict[str, Tensor], dict[str, Tensor], RunState]:
    """Return weights, moments and run state.

    Args:
        folder: the run's.
        step: of the checkpoint; None for the latest.
        fingerprint: of the run that wants to go on; another run's checkpoint is refused.

    Raises:
        CheckpointError: no such checkpoint, or another run's.
    """
    steps = folder.checkpoint_steps()
    if not steps:
        raise CheckpointError(f"no checkpoint to resume in {folder.path}")
    step = steps[-1] if step is None else step
    if step not in steps:
        raise CheckpointError(f"no checkpoint of step {step} in {folder.path}; kept: {', '.join(map(str, steps))}")
    chosen = folder.checkpoint(step)
    state = _read_state(chosen)
    if state.fingerprint != fingerprint:
        raise CheckpointError(f"the checkpoint in {chosen} belongs to a run with another configuration")
    return load_file(chosen / "weights.safetensors"), load_file(chosen / "optimizer.safetensors"), state


def _read_state(folder: Path) -> RunState:
    return RunState(**json.loads((folder / _STATE_FILE).read_text()))
