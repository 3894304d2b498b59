"""What ends a run before its time, said so that one can do something about it. It does not train."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from training.checkpoint import RunFolder
from training.errors import TrainingRunError

# How the allocators of Linux, macOS and Windows begin to say it; a CPU has no error class of its own for it.
_CPU_SIGNS = ("DefaultCPUAllocator", "not enough memory", "can't allocate memory")


def not_finite(loss: float, step: int, learning_rate: float, folder: RunFolder) -> TrainingRunError:
    """Return the error of a loss that is no number.

    Raises:
        Nothing.
    """
    steps = folder.checkpoint_steps()
    kept = f"the last sound checkpoint is {folder.checkpoint(steps[-1])}" if steps else "there is no checkpoint yet"
    return TrainingRunError(
        f"the loss is {loss} at step {step + 1} (learning rate {learning_rate:.2g}); {kept}. Begin anew with a lower "
        "loop.learning_rate, more loop.warmup_steps, loop.max_grad_norm=1.0, or loop.bfloat16=false"
    )


@contextmanager
def explained(step: Callable[[], int]) -> Iterator[None]:
    """Turn a lack of memory into an error that says what to try.

    Raises:
        TrainingRunError: memory has run out.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _is_lack_of_memory(error):
            raise
        raise TrainingRunError(
            f"memory ran out after step {step()}. Lower batch_tokens, or set loop.accumulation to 2 or more (the same "
            "batch in smaller pieces), loop.bfloat16=true, or train by `lora` or `qlora`; --resume goes on from the "
            "last checkpoint only if the recipe stays the same"
        ) from error


def _is_lack_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return any(sign in str(error) for sign in _CPU_SIGNS)
