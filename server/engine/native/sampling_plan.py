"""The sampling parameters of a batch as tensors, made once per composition of the batch.

What no row asks for is None or empty and costs nothing at a step. Step thread only.

Legend: B rows, S rows that sample, C rows whose generated tokens count, N pairs of a row and a token.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from server.core.sampling import SamplingParams
from server.engine.native.batch import Row

_BANNED = float("-inf")
_NEVER = 2**62


@dataclass(frozen=True, slots=True)
class TokenBias:
    """What is added to the logits of single tokens.

    Attributes:
        row_N: The rows.
        token_N: Their tokens.
        bias_N: What is added; minus infinity bans.
        until_N: While the row has generated fewer tokens.
    """

    row_N: Tensor
    token_N: Tensor
    bias_N: Tensor
    until_N: Tensor


@dataclass(frozen=True, slots=True)
class CountPenalty:
    """What is taken from the logits of tokens that a row has generated.

    Attributes:
        row_C: The rows.
        presence_C1: Once, if it was generated at all.
        frequency_C1: Once per time it was.
    """

    row_C: Tensor
    presence_C1: Tensor
    frequency_C1: Tensor


@dataclass(frozen=True, slots=True)
class SamplingPlan:
    """The sampling parameters of a batch.

    Attributes:
        is_greedy: Whether one argmax does for every row.
        token_bias: Logit biases and, for rows that must not end yet, the tokens that would; or None.
        penalty_B1: Repetition penalties, or None when all are 1.
        count_penalty: Presence and frequency penalties, or None.
        ngram_rows: N-gram size → rows that must not repeat one.
        sampled: Indices of the rows that sample.
        sampled_S: The same on the device.
        temperature_S1: Their temperatures.
        top_k_S: Their top-k, or None when none has one.
        max_top_k: The largest.
        top_p_S: Their top-p, or None when all are 1.
        min_p_S: Their min-p, or None when none has one.
        num_logprobs: Row index → alternatives to report.
    """

    is_greedy: bool
    token_bias: TokenBias | None
    penalty_B1: Tensor | None
    count_penalty: CountPenalty | None
    ngram_rows: dict[int, list[int]]
    sampled: tuple[int, ...]
    sampled_S: Tensor
    temperature_S1: Tensor
    top_k_S: Tensor | None
    max_top_k: int
    top_p_S: Tensor | None
    min_p_S: Tensor | None
    num_logprobs: dict[int, int]


_GREEDY = SamplingPlan(
    is_greedy=True,
    token_bias=None,
    penalty_B1=None,
    count_penalty=None,
    ngram_rows={},
    sampled=(),
    sampled_S=torch.empty(0, dtype=torch.long),
    temperature_S1=torch.empty(0, 1),
    top_k_S=None,
    max_top_k=0,
    top_p_S=None,
    min_p_S=None,
    num_logprobs={},
)


def plan_sampling(rows: Sequence[Row], device: torch.device) -> SamplingPlan:
    """Return the plan for these rows."""
    if all(row.is_plain for row in rows):
        return _GREEDY
    params = [row.request.sampling for row in rows]
    chosen = [(index, param) for index, param in enumerate(params) if param.temperature > 0]
    penalties = [param.repetition_penalty for param in params]
    has_penalty = any(penalty != 1.0 for penalty in penalties)
    ngram_rows: dict[int, list[int]] = {}
    for index, param in enumerate(params):
        if param.no_repeat_ngram_size:
            ngram_rows.setdefault(param.no_repeat_ngram_size, []).append(index)
    top_k = [param.top_k for _, param in chosen]
    top_p = [param.top_p for _, param in chosen]
    min_p = [param.min_p for _, param in chosen]
    logprobs = {index: param.num_logprobs for index, param in enumerate(params) if param.num_logprobs is not None}
    return SamplingPlan(
        is_greedy=False,
        token_bias=_token_bias(rows, device),
        penalty_B1=torch.tensor(penalties, device=device).unsqueeze(1) if has_penalty else None,
        count_penalty=_count_penalty(params, device),
        ngram_rows=ngram_rows,
        sampled=tuple(index for index, _ in chosen),
        sampled_S=torch.tensor([index for index, _ in chosen], dtype=torch.long, device=device),
        temperature_S1=torch.tensor([param.temperature for _, param in chosen], device=device).unsqueeze(1),
        top_k_S=torch.tensor(top_k, device=device) if any(top_k) else None,
        max_top_k=max(top_k, default=0),
        top_p_S=torch.tensor(top_p, device=device) if any(p < 1.0 for p in top_p) else None,
        min_p_S=torch.tensor(min_p, device=device) if any(min_p) else None,
        num_logprobs=logprobs,
    )


def _token_bias(rows: Sequence[Row], device: torch.device) -> TokenBias | None:
    biases: list[tuple[int, int, float, int]] = []
    for index, row in enumerate(rows):
        param = row.request.sampling
        if param.logit_bias:
            biases.extend((index, token_id, bias, _NEVER) for token_id, bias in param.logit_bias)
        if param.min_new_tokens:
            biases.extend((index, token_id, _BANNED, param.min_new_tokens) for token_id in row.end_token_ids)
    if not biases:
        return None
    row_ids, token_ids, values, untils = zip(*biases, strict=True)
    return TokenBias(
        row_N=torch.tensor(row_ids, device=device),
        token_N=torch.tensor(token_ids, device=device),
        bias_N=torch.tensor(values, device=device),
        until_N=torch.tensor(untils, device=device),
    )


def _count_penalty(params: Sequence[SamplingParams], device: torch.device) -> CountPenalty | None:
    counted = [index for index, param in enumerate(params) if param.presence_penalty or param.frequency_penalty]
    if not counted:
        return None
    return CountPenalty(
        row_C=torch.tensor(counted, device=device),
        presence_C1=torch.tensor([[params[index].presence_penalty] for index in counted], device=device),
        frequency_C1=torch.tensor([[params[index].frequency_penalty] for index in counted], device=device),
    )
