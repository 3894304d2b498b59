"""Soft prompts in the form vLLM takes them: rows of embeddings in front of a prompt's real tokens.

vLLM 0.32 takes a prompt whose positions are partly token ids and partly embeddings. It wants the embeddings as one
tensor as long as the whole prompt, but reads only the rows at the positions that are no token ids. So the base's own
embedding rows are not needed here: token ids stay token ids, and what stands beside them is zero.

That tensor goes to the engine's process as raw bytes, and is hashed there for the prefix cache. To make none of it
anew for a request, every soft prompt keeps its rows with zeros behind them, and a request is handed as much of the
front as it is long. Zeros that nobody wrote are pages that take no memory.

Which soft prompts are kept, and which one gives way, is decided elsewhere. Knows no names and no vLLM.

Shapes: P virtual tokens, L positions of a prompt, virtual ones included, D width of the base.

Source:
    vLLM 0.32.0: ``vllm/inputs/engine.py`` (``EmbedsInput``), ``vllm/v1/core/kv_cache_utils.py``.
"""

from pathlib import Path

import numpy as np
import torch

from adapters.adapter_weights import SoftPromptWeights
from adapters.codec import CodecLimits, read_adapter
from adapters.errors import UnsupportedAdapterError
from adapters.manifest import BaseModelSpec

_LEAST_ROWS = 1024


class SoftPrompt:
    """One soft prompt's rows, ready to be sent.

    Args:
        rows_PD: Its embeddings, (P, D), in the serving dtype.
    """

    def __init__(self, rows_PD: torch.Tensor) -> None:
        """Keep the rows."""
        self._rows_PD = rows_PD
        self._padded = _pad(rows_PD, len(rows_PD))

    @property
    def num_virtual_tokens(self) -> int:
        """P."""
        return len(self._rows_PD)

    def rows(self, length: int) -> torch.Tensor:
        """Return what stands at the positions of a prompt, (L, D): the soft prompt's rows, then zeros.

        The tensor is shared and must not be changed. The event loop's thread.

        Args:
            length: L, at least P.
        """
        if len(self._padded) < length:
            self._padded = _pad(self._rows_PD, length)
        return self._padded[:length]


def read_soft_prompt(folder: Path, base: BaseModelSpec, dtype: torch.dtype, max_virtual_tokens: int) -> SoftPrompt:
    """Read and check a soft prompt's files. Any thread; not on the event loop's.

    Args:
        folder: Its PEFT files.
        base: What it must fit.
        dtype: The serving dtype, as ``torch.bfloat16``.
        max_virtual_tokens: Longest soft prompt accepted.

    Raises:
        InvalidAdapterError: If the files break the format, or hold a value that is not finite.
        UnsupportedAdapterError: If it is no soft prompt.
        WrongBaseError: If it was made for another base.
        AdapterTooLargeError: If it is too long.
        OSError: If the files cannot be read.
    """
    weights = read_adapter(folder, base, CodecLimits(max_virtual_tokens=max_virtual_tokens))
    if not isinstance(weights, SoftPromptWeights):
        raise UnsupportedAdapterError("the adapter is no soft prompt")
    return SoftPrompt(torch.from_numpy(weights.embeddings).to(dtype))


def _pad(rows_PD: torch.Tensor, length: int) -> torch.Tensor:
    num_rows = max(_LEAST_ROWS, 1 << (length - 1).bit_length())
    # numpy takes zeroed pages from the system as they are; torch would write each of them, and so make it take memory.
    padded_bytes = np.zeros((num_rows, rows_PD.shape[1] * rows_PD.itemsize), np.uint8)
    padded = torch.from_numpy(padded_bytes).view(rows_PD.dtype)
    padded[: len(rows_PD)] = rows_PD
    return padded
