"""Save and load a run's state: weights and moments as safetensors, counters as JSON. Never pickle.

A checkpoint is a folder written beside its final name and renamed, so a killed run never leaves half of one.
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


@dataclass(frozen=True)
class RunState:
    """Where a run is: steps done, place in the data, tokens and seconds spent, best held-out figure so far.

    `stable_until` is the step at which the run's learning rate begins to fall.
    """

    step: int
    shard: int
    batch: int
    num_tokens: int
    elapsed_s: float
    best: float
    fingerprint: str
    stable_until: int


def save_checkpoint(
    folder: Path, weights: Mapping[str, Tensor], moments: Mapping[str, Tensor], state: RunState
) -> None:
    """Write a checkpoint folder, replacing the one before.

    Raises:
        OSError: the disk refuses.
    """
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file({k: v.detach().clone().contiguous() for k, v in weights.items()}, partial / "weights.safetensors")
    save_file({k: v.detach().clone().contiguous() for k, v in moments.items()}, partial / "optimizer.safetensors")
    (partial / "state.json").write_text(json.dumps(asdict(state), indent=1))
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def load_checkpoint(folder: Path, fingerprint: str) -> tuple[dict[str, Tensor], dict[str, Tensor], RunState]:
    """Return weights, moments and run state.

    Args:
        folder: the checkpoint folder.
        fingerprint: of the run that wants to go on; another run's checkpoint is refused.

    Raises:
        CheckpointError: no checkpoint, or another run's.
    """
    if not (folder / "state.json").is_file():
        raise CheckpointError(f"no checkpoint to resume in {folder}")
    state = RunState(**json.loads((folder / "state.json").read_text()))
    if state.fingerprint != fingerprint:
        raise CheckpointError(f"the checkpoint in {folder} belongs to a run with another configuration")
    return load_file(folder / "weights.safetensors"), load_file(folder / "optimizer.safetensors"), state
