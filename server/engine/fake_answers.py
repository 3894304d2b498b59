"""What the fake engine answers: the prompt itself, rotated by an offset drawn from the adapters' digests.

Plain functions of a request; no state. Token ids up to 2 count as special.
"""

from server.core.outputs import FinishReason, TokenLogprob
from server.core.sampling import SamplingParams
from server.engine.base import EngineRequest

NUM_SPECIAL_TOKENS = 3
_END_OF_SEQUENCE = 1


def whole_answer(request: EngineRequest) -> tuple[int, ...]:
    """Return the tokens of an answer that nothing cuts short."""
    text = tuple(token for token in request.prompt_token_ids if token >= NUM_SPECIAL_TOKENS)
    digests = [adapter.digest for adapter in (request.weight_adapter, request.soft_prompt) if adapter is not None]
    offset = sum(int(digest[:8], 16) for digest in digests) % max(len(text), 1)
    return text[offset:] + text[:offset]


def next_token(
    answer: tuple[int, ...], num_emitted: int, sampling: SamplingParams
) -> tuple[tuple[int, ...], FinishReason | None]:
    """Return the next token, if any, and why it is the last one, if it is.

    An answer that must go on is given again; one that ignores its end has that end in it.
    """
    assert sampling.max_new_tokens is not None, "the service settles it"
    num_least, num_whole = sampling.min_new_tokens, max(len(answer), sampling.min_new_tokens)
    if sampling.ignore_eos:
        answer, num_whole = (*answer, _END_OF_SEQUENCE), sampling.max_new_tokens + 1
    if num_emitted >= num_whole:
        return (), FinishReason.STOP
    token_id = answer[num_emitted % len(answer)] if answer else NUM_SPECIAL_TOKENS
    if token_id in sampling.stop_token_ids and num_emitted >= num_least:
        return (), FinishReason.STOP
    if num_emitted + 1 >= num_whole:
        return (token_id,), FinishReason.STOP
    return (token_id,), FinishReason.LENGTH if num_emitted + 1 >= sampling.max_new_tokens else None


def made_up_logprobs(token_ids: tuple[int, ...], num_logprobs: int | None) -> tuple[TokenLogprob, ...]:
    """Return log-probabilities for the looks of it, one entry per token, if they were asked for."""
    if num_logprobs is None:
        return ()
    return tuple(
        TokenLogprob(token, -0.5, top=tuple(TokenLogprob(token + rank, -0.5 - rank) for rank in range(num_logprobs)))
        for token in token_ids
    )


def prompt_logprobs(request: EngineRequest) -> tuple[TokenLogprob | None, ...]:
    """Return made-up log-probabilities of the prompt's tokens, if they were asked for."""
    num_logprobs = request.sampling.num_prompt_logprobs
    if num_logprobs is None:
        return ()
    return (None, *made_up_logprobs(request.prompt_token_ids[1:], num_logprobs))
