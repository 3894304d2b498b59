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

import numpy as np
import torch

from adapters.adapter_weights import SoftPromptWeights
from adapters.codec import CodecLimits, read_adapter
from adapters.errors import UnsupportedAdapterError
from adapters.manifest import BaseModelSpec
from server.engine.base import ResolvedAdapter

_LEAST_ROWS = 1024


class SoftPrompts:
    """The rows of the soft prompts in use, by digest.

    Args:
        base: What the prompts must fit.
        dtype: The serving dtype, as ``torch.bfloat16``.
        max_virtual_tokens: Longest soft prompt accepted.
    """

    def __init__(self, base: BaseModelSpec, dtype: torch.dtype, max_virtual_tokens: int) -> None:
        """Hold none."""
        self._base = base
        self._dtype = dtype
        self._limits = CodecLimits(max_virtual_tokens=max_virtual_tokens)
        self._padded_rows: dict[str, torch.Tensor] = {}

    def load(self, adapter: ResolvedAdapter) -> None:
        """Read and check a soft prompt's files, and keep its rows. Any thread; not on the event loop's.

        Raises:
            InvalidAdapterError: If the files break the format, or hold a value that is not finite.
            UnsupportedAdapterError: If it is no soft prompt.
            WrongBaseError: If it was made for another base.
            AdapterTooLargeError: If it is too long.
            OSError: If the files cannot be read.
        """
        weights = read_adapter(adapter.path, self._base, self._limits)
        if not isinstance(weights, SoftPromptWeights):
            raise UnsupportedAdapterError("the adapter is no soft prompt")
        rows_PD = torch.from_numpy(weights.embeddings).to(self._dtype)
        self._padded_rows[adapter.digest] = _pad(rows_PD, len(rows_PD))

    def drop(self, digest: str) -> None:
        """Forget a soft prompt, if it is held; requests that were handed its rows keep them. Any thread."""
        self._padded_rows.pop(digest, None)

    def rows(self, digest: str, length: int) -> torch.Tensor:
        """Return what stands at the positions of a prompt, (L, D): the soft prompt's rows, then zeros.

        The tensor is shared and must not be changed. The event loop's thread.

        Args:
            digest: Of a soft prompt that was loaded.
            length: L, at least P.
        """
        rows = self._padded_rows[digest]
        if len(rows) < length:
            rows = self._padded_rows[digest] = _pad(rows, length)
        return rows[:length]


def _pad(rows: torch.Tensor, length: int) -> torch.Tensor:
    num_rows = max(_LEAST_ROWS, 1 << (length - 1).bit_length())
    # numpy takes zeroed pages from the system as they are; torch would write each of them, and so make it take memory.
    padded_bytes = np.zeros((num_rows, rows.shape[1] * rows.itemsize), np.uint8)
    padded = torch.from_numpy(padded_bytes).view(rows.dtype)
    padded[: len(rows)] = rows
    return padded
