"""Changes to logits before a token is chosen, as ``transformers`` defines them, over rows at once.

Every function changes ``score_BV`` in place. A row's history is the decoder's input so far: start token first, then
what it generated; entries beyond its length repeat the start token. Knows no requests and no random numbers.

Legend: B rows, C chosen rows, N pairs of a row and a token, V vocabulary, T history, W windows.

Source:
    transformers 5.19 ``generation/logits_process.py``: SequenceBias, MinNewTokensLength, RepetitionPenalty,
    NoRepeatNGram, TopK, TopP and MinP; presence and frequency penalties as OpenAI's
    https://platform.openai.com/docs/api-reference/completions/create.
"""

import torch
from torch import Tensor

_BANNED = float("-inf")


def add_bias(score_BV: Tensor, row_N: Tensor, token_N: Tensor, bias_N: Tensor) -> None:
    """Add to the scores of single tokens; minus infinity bans one."""
    score_BV.index_put_((row_N, token_N), bias_N, accumulate=True)


def generated_counts(history_CT: Tensor, length_C: Tensor, vocab_size: int) -> Tensor:
    """Return how often each row generated each token, as (C, V); the start token in front was not generated."""
    place_T = torch.arange(history_CT.shape[1], device=history_CT.device)
    is_generated_CT = (place_T > 0) & (place_T < length_C[:, None])
    count_CV = torch.zeros(len(history_CT), vocab_size, device=history_CT.device)
    return count_CV.scatter_add_(1, history_CT, is_generated_CT.float())


def penalise_counts(
    score_BV: Tensor, row_C: Tensor, count_CV: Tensor, presence_C1: Tensor, frequency_C1: Tensor
) -> None:
    """Take from the scores of tokens that the given rows generated: once each, and once per time it was generated."""
    score_BV[row_C] -= frequency_C1 * count_CV + presence_C1 * (count_CV > 0)


def penalise_repetition(score_BV: Tensor, history_BT: Tensor, penalty_B1: Tensor) -> None:
    """Divide positive scores of tokens already there by the penalty, multiply negative ones (arXiv:1909.05858)."""
    seen_BT = score_BV.gather(1, history_BT)
    seen_BT = torch.where(seen_BT < 0, seen_BT * penalty_B1, seen_BT / penalty_B1)
    score_BV.scatter_(1, history_BT, seen_BT)


def ban_repeated_ngrams(score_BV: Tensor, history_BT: Tensor, length_B: Tensor, rows: list[int], size: int) -> None:
    """Ban, in the given rows, each token that would complete an n-gram of ``size`` tokens already in the history."""
    if history_BT.shape[1] < size:
        return
    row_B = torch.tensor(rows, device=score_BV.device)
    history_BT, length_B = history_BT[row_B], length_B[row_B]
    window_BWn = history_BT.unfold(1, size, 1)
    # The last size - 1 tokens of each row; of a row too short the first are not its own, but then no window counts.
    tail = length_B[:, None] - (size - 1) + torch.arange(size - 1, device=score_BV.device)
    tail_Bn = history_BT.gather(1, tail.clamp(min=0))
    end_W = torch.arange(window_BWn.shape[1], device=score_BV.device) + size
    repeats_BW = (window_BWn[:, :, :-1] == tail_Bn[:, None, :]).all(-1) & (end_W <= length_B[:, None])
    place, window = repeats_BW.nonzero(as_tuple=True)
    score_BV[row_B[place], window_BWn[place, window, -1]] = _BANNED


def keep_top_k(score_BV: Tensor, k_B: Tensor, max_k: int) -> None:
    """Ban all but the k best tokens of each row, ties with the last included; rows with ``k`` 0 are left alone."""
    best_BK = score_BV.topk(min(max_k, score_BV.shape[1]), dim=-1).values
    last_B1 = best_BK.gather(1, (k_B.clamp(1, best_BK.shape[1]) - 1)[:, None])
    last_B1 = torch.where((k_B > 0)[:, None], last_B1, _BANNED)
    score_BV.masked_fill_(score_BV < last_B1, _BANNED)


def keep_top_p(score_BV: Tensor, p_B: Tensor) -> None:
    """Ban the least likely tokens of each row whose joint probability is at most 1 - p (arXiv:1904.09751)."""
    sorted_BV, order_BV = score_BV.sort(dim=-1, descending=False)
    banned_BV = sorted_BV.softmax(dim=-1).cumsum(dim=-1) <= (1 - p_B)[:, None]
    banned_BV[:, -1] = False
    score_BV.masked_fill_(banned_BV.scatter(1, order_BV, banned_BV), _BANNED)


def keep_min_p(score_BV: Tensor, p_B: Tensor) -> None:
    """Ban the tokens of each row that are less than p times as likely as its likeliest (arXiv:2407.01082)."""
    score_BV.masked_fill_(score_BV < score_BV.amax(dim=-1, keepdim=True) + p_B.log()[:, None], _BANNED)
