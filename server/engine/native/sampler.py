"""Logits to tokens, row by row as each asked, over all rows at once.

A batch of greedy rows takes one argmax. Otherwise: repetition penalty, no-repeat n-gram, then for rows that sample
temperature, top-k, top-p and one draw. A row's draw depends on its seed and step alone, never on its neighbours. Step
thread only.

Legend: B rows, S rows that sample, V vocabulary, T history.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from server.core.outputs import TokenLogprob
from server.engine.native.batch import NOT_FINITE, Row, StepOutput
from server.engine.native.kernels import cpu
from server.engine.native.logits_processors import (
    ban_repeated_ngrams,
    keep_top_k,
    keep_top_p,
    penalise_repetition,
)


@dataclass(frozen=True, slots=True)
class SamplingPlan:
    """The sampling parameters of a batch as tensors; made once per composition.

    Attributes:
        is_greedy: Whether one argmax does for every row.
        penalty_B1: Repetition penalties, or None when all are 1.
        ngram_rows: N-gram size → rows that must not repeat one.
        sampled: Indices of the rows that sample.
        sampled_S: The same on the device.
        temperature_S1: Their temperatures.
        top_k_S: Their top-k, or None when none has one.
        max_top_k: The largest.
        top_p_S: Their top-p, or None when all are 1.
        num_logprobs: Row index → alternatives to report.
    """

    is_greedy: bool
    penalty_B1: Tensor | None
    ngram_rows: dict[int, list[int]]
    sampled: tuple[int, ...]
    sampled_S: Tensor
    temperature_S1: Tensor
    top_k_S: Tensor | None
    max_top_k: int
    top_p_S: Tensor | None
    num_logprobs: dict[int, int]


def plan_sampling(rows: Sequence[Row], device: torch.device) -> SamplingPlan:
    """Return the plan for these rows."""
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
    logprobs = {index: param.num_logprobs for index, param in enumerate(params) if param.num_logprobs is not None}
    return SamplingPlan(
        is_greedy=not (chosen or has_penalty or ngram_rows or logprobs),
        penalty_B1=torch.tensor(penalties, device=device).unsqueeze(1) if has_penalty else None,
        ngram_rows=ngram_rows,
        sampled=tuple(index for index, _ in chosen),
        sampled_S=torch.tensor([index for index, _ in chosen], dtype=torch.long, device=device),
        temperature_S1=torch.tensor([param.temperature for _, param in chosen], device=device).unsqueeze(1),
        top_k_S=torch.tensor(top_k, device=device) if any(top_k) else None,
        max_top_k=max(top_k, default=0),
        top_p_S=torch.tensor(top_p, device=device) if any(p < 1.0 for p in top_p) else None,
        num_logprobs=logprobs,
    )


def uniform(seed: int, step: int) -> float:
    """Return the row's random number of a step, in [0, 1): a hash of seed and step, so the same on every device."""
    digest = hashlib.blake2b(step.to_bytes(8, "little"), key=seed.to_bytes(8, "little"), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) / 2**53


def sample(
    logits_BV: Tensor, rows: Sequence[Row], plan: SamplingPlan, history_BT: Tensor, length_B: Tensor
) -> tuple[Tensor, StepOutput]:
    """Choose one token per row; rows whose logits are not finite get :data:`NOT_FINITE`.

    Returns:
        The tokens on the device, and the step's output on the host: one copy of token ids.
    """
    if plan.is_greedy and cpu.can_run(logits_BV, widths=logits_BV.shape[1:]):
        # The kernel's word for a row that is not finite, -1, is NOT_FINITE.
        token_B = cpu.argmax(logits_BV)
        return token_B, StepOutput(tuple(token_B.tolist()))
    logits_BV = logits_BV.float()
    best_B = token_B = logits_BV.argmax(dim=-1)
    if not plan.is_greedy:
        score_BV = logits_BV.clone()
        _process(score_BV, plan, history_BT, length_B)
        token_B = score_BV.argmax(dim=-1)
        if plan.sampled:
            token_B[plan.sampled_S] = _draw(score_BV[plan.sampled_S], rows, plan)
    # Both NaN and infinity win an argmax, so looking at the best logit alone shows them.
    is_finite_B = logits_BV.gather(1, best_B.unsqueeze(1)).squeeze(1).isfinite()
    token_B = torch.where(is_finite_B, token_B, NOT_FINITE)
    token_ids = tuple(token_B.tolist())
    logprobs = _logprobs(logits_BV, token_ids, plan) if plan.num_logprobs else {}
    return token_B, StepOutput(token_ids, logprobs)


def _process(score_BV: Tensor, plan: SamplingPlan, history_BT: Tensor, length_B: Tensor) -> None:
    if plan.penalty_B1 is not None:
        penalise_repetition(score_BV, history_BT, plan.penalty_B1)
    for size, ngram_rows in plan.ngram_rows.items():
        ban_repeated_ngrams(score_BV, history_BT, length_B, ngram_rows, size)


def _draw(score_SV: Tensor, rows: Sequence[Row], plan: SamplingPlan) -> Tensor:
    score_SV = score_SV / plan.temperature_S1
    if plan.top_k_S is not None:
        keep_top_k(score_SV, plan.top_k_S, plan.max_top_k)
    if plan.top_p_S is not None:
        keep_top_p(score_SV, plan.top_p_S)
    # Inverse of the distribution function, in float64: a token of probability zero is never hit.
    mass_SV = score_SV.softmax(dim=-1).cumsum(dim=-1, dtype=torch.float64)
    drawn = [uniform(rows[index].seed, len(rows[index].token_ids)) for index in plan.sampled]
    level_S1 = torch.tensor(drawn, dtype=torch.float64, device=score_SV.device).unsqueeze(1) * mass_SV[:, -1:]
    return torch.searchsorted(mass_SV, level_S1, right=True).squeeze(1).clamp_(max=score_SV.shape[1] - 1)


def _logprobs(logits_BV: Tensor, token_ids: Sequence[int], plan: SamplingPlan) -> dict[int, TokenLogprob]:
    """Return the log-probabilities, before any processing, of the rows that asked."""
    asked = [index for index in plan.num_logprobs if token_ids[index] != NOT_FINITE]
    if not asked:
        return {}
    logprob_AV = logits_BV[asked].log_softmax(dim=-1)
    chosen = logprob_AV.gather(1, torch.tensor([[token_ids[index]] for index in asked], device=logits_BV.device))
    best = logprob_AV.topk(max(1, *plan.num_logprobs.values()), dim=-1)
    tops = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    found: dict[int, TokenLogprob] = {}
    for index, value, (ids, values) in zip(asked, chosen.squeeze(1).tolist(), tops, strict=True):
        top = tuple(map(TokenLogprob, ids, values))[: plan.num_logprobs[index]]
        found[index] = TokenLogprob(token_ids[index], value, top=top)
    return found
