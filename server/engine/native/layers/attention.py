"""Attention as T5 means it: no scaling of scores, a bias added to them.

Legend: T packed tokens of all rows, L tokens of one row, B rows, H heads, K head width.
The encoder's share; the decoder's is in ``decoder_attention.py``. Step thread only.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring rows of equal length in a packed encoder input.

    Attributes:
        start: First packed token.
        num_rows: How many rows.
        num_tokens: Tokens of each.
    """

    start: int
    num_rows: int
    num_tokens: int

    @property
    def stop(self) -> int:
        """One past the last packed token."""
        return self.start + self.num_rows * self.num_tokens


def runs_of(lengths: Sequence[int]) -> tuple[Run, ...]:
    """Return the runs of rows of the given lengths, packed end to end in this order."""
    runs: list[Run] = []
    for length in lengths:
        if runs and runs[-1].num_tokens == length:
            runs[-1] = Run(runs[-1].start, runs[-1].num_rows + 1, length)
        else:
            runs.append(Run(runs[-1].stop if runs else 0, 1, length))
    return tuple(runs)


def packed_self_attention(qkv_T: Tensor, runs: Sequence[Run], biases: Sequence[Tensor], num_heads: int) -> Tensor:
    """Attend within each row of a packed input; return (T, H·K).

    Works run by run, so nothing is ever padded and no row's numbers, NaN included, reach another row.

    Args:
        qkv_T: Queries, keys and values side by side, (T, 3·H·K).
        runs: Which rows lie where.
        biases: Position bias of each run, (1, H, L, L).
        num_heads: H.
    """
    out_T = qkv_T.new_empty(qkv_T.shape[0], qkv_T.shape[1] // 3)
    for run, bias_1HLL in zip(runs, biases, strict=True):
        shape = (run.num_rows, run.num_tokens, 3, num_heads, -1)
        q_BHLK, k_BHLK, v_BHLK = qkv_T[run.start : run.stop].view(shape).permute(2, 0, 3, 1, 4)
        y_BHLK = functional.scaled_dot_product_attention(q_BHLK, k_BHLK, v_BHLK, attn_mask=bias_1HLL, scale=1.0)
        out_T[run.start : run.stop].view(run.num_rows, run.num_tokens, num_heads, -1).copy_(y_BHLK.transpose(1, 2))
    return out_T
