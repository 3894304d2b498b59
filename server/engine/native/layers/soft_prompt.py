"""Soft prompts: learned embeddings in front of a row's text, in the encoder only.

The prompt touches the text: both are packed end to end, so T5's relative positions run through from one to the other.
Legend: T packed positions of all rows, P virtual tokens, D width, V vocabulary. Step thread only.

Source:
    arXiv:2104.08691 (prompt tuning).
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def embed_rows(table_VD: Tensor, prompts: Sequence[tuple[Tensor | None, Sequence[int]]]) -> Tensor:
    """Return the embeddings (T, D) of rows packed end to end: each its soft prompt (P, D), if any, then its text."""
    flat_ids: list[int] = []
    places: list[tuple[int, Tensor]] = []
    for prompt_PD, token_ids in prompts:
        if prompt_PD is not None:
            places.append((len(flat_ids), prompt_PD))
            flat_ids.extend([0] * len(prompt_PD))
        flat_ids.extend(token_ids)
    x_TD = functional.embedding(torch.tensor(flat_ids, device=table_VD.device), table_VD)
    for start, prompt_PD in places:
        x_TD[start : start + len(prompt_PD)] = prompt_PD
    return x_TD
