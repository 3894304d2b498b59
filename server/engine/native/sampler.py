"""Logits to tokens, row by row as each asked, over all rows at once.

A batch of greedy rows takes one argmax. Otherwise: biases and banned ends, repetition, presence and frequency
penalties, no-repeat n-gram, then for rows that sample temperature, top-k, top-p, min-p and one draw. A row's draw
depends on its seed and step alone, never on its neighbours. Step thread only.

Legend: B rows, S rows that sample, V vocabulary, T history.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from server.core.outputs import TokenLogprob
from server.engine.native.batch import NOT_FINITE, Row, StepOutput
from server.engine.native.kernels import cpu
from server.engine.native.logits_processors import (
    add_bias,
    ban_repeated_ngrams,
    generated_counts,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalise_counts,
    penalise_repetition,
)
from server.engine.native.sampling_plan import SamplingPlan


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
    if (bias := plan.token_bias) is not None:
        bias_N = bias.bias_N.masked_fill(length_B[bias.row_N] > bias.until_N, 0.0)
        add_bias(score_BV, bias.row_N, bias.token_N, bias_N)
    if plan.penalty_B1 is not None:
        penalise_repetition(score_BV, history_BT, plan.penalty_B1)
    if (counts := plan.count_penalty) is not None:
        count_CV = generated_counts(history_BT[counts.row_C], length_B[counts.row_C], score_BV.shape[1])
        penalise_counts(score_BV, counts.row_C, count_CV, counts.presence_C1, counts.frequency_C1)
    for size, ngram_rows in plan.ngram_rows.items():
        ban_repeated_ngrams(score_BV, history_BT, length_B, ngram_rows, size)


def _draw(score_SV: Tensor, rows: Sequence[Row], plan: SamplingPlan) -> Tensor:
    score_SV = score_SV / plan.temperature_S1
    if plan.top_k_S is not None:
        keep_top_k(score_SV, plan.top_k_S, plan.max_top_k)
    if plan.top_p_S is not None:
        keep_top_p(score_SV, plan.top_p_S)
    if plan.min_p_S is not None:
        keep_min_p(score_SV, plan.min_p_S)
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
